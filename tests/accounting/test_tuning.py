import math

import numpy as np
import pytest

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.guarantee import Guarantee, together
from jaxcxr.accounting.selection import Choice, Repetitions
from jaxcxr.accounting.tuning import PlannedRun, calibrated_choice, calibrated_score
from jaxcxr.errors import InputError

DELTA = 1e-5
LONG, SHORT = PlannedRun(0.1, 40), PlannedRun(0.02, 200, (Spending(1.0, 20.0, 1),))


@pytest.mark.parametrize("repetitions", ["geometric", "poisson", "logarithmic"])
def test_the_choice_costs_its_budget_and_no_more(repetitions: Repetitions) -> None:
    choice, noise = calibrated_choice(2.04, DELTA, [LONG, SHORT, LONG], 4.0, repetitions)
    assert set(noise) == {LONG, SHORT}
    assert choice.candidates == tuple(run.spent(noise[run]) for run in (LONG, SHORT))
    assert 2.04 * 0.99 < choice.epsilon(DELTA) <= 2.04
    for run in choice.candidates:
        assert accounting.epsilon_pld(run, DELTA) < 2.04 * 0.85
    score = calibrated_score(2.04, DELTA, 4.0, repetitions)
    assert 2.04 * 0.99 < score.epsilon(DELTA) <= 2.04


def test_a_budget_that_is_spent_before_the_first_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"--budget 0.01: is spent before the first run: .* 16 runs"):
        calibrated_choice(0.01, DELTA, [LONG], 16.0, "geometric")
    with pytest.raises(InputError, match="spent before the first run"):
        calibrated_choice(0.5, DELTA, [PlannedRun(0.1, 4, (Spending(1.0, 2.0, 1),))], 2.0, "poisson")


RUN = (Spending(0.05, 3.0, 100),)
CHOSEN = Guarantee(RUN, Choice((RUN,), 4.0, "geometric"))
PLAIN = Guarantee(RUN)


def test_the_promise_of_a_chosen_model_is_the_choices() -> None:
    assert PLAIN.bounds(DELTA) == accounting.epsilon_bounds(RUN, DELTA)
    assert CHOSEN.choice is not None
    assert CHOSEN.bounds(DELTA).upper == CHOSEN.choice.epsilon(DELTA) > PLAIN.bounds(DELTA).upper
    assert CHOSEN.bounds(DELTA).lower == 0
    assert CHOSEN.epsilon_rdp(DELTA) == CHOSEN.bounds(DELTA).upper > CHOSEN.bounds(1e-3).upper
    assert (CHOSEN.mu(DELTA), PLAIN.mu(DELTA)) == (None, accounting.gdp_mu(RUN, DELTA))
    own, chosen = PLAIN.attacks(DELTA), CHOSEN.attacks(DELTA)
    for rate, most in chosen.true_positive_rate.items():
        assert own.true_positive_rate[rate] < most < 1
        epsilon = CHOSEN.bounds(DELTA).upper
        assert most <= math.exp(epsilon) * rate + DELTA + 1e-2
    assert own.advantage < chosen.advantage < 1
    np.testing.assert_array_equal(
        CHOSEN.trade_off(DELTA, np.array([0.01])), [chosen.true_positive_rate[0.01]]
    )


def test_several_images_are_promised_less_and_a_group_follows_from_the_curve() -> None:
    one, two, four = (CHOSEN.bounds(DELTA, images).upper for images in (1, 2, 4))
    assert 2 * one < two < four
    half = two / 2  # (half, d) for one image gives (2 half, d (1 + e^half)) for two
    (single,) = CHOSEN.choice.curve(np.array([half]))  # type: ignore[union-attr]
    assert single * (1 + math.exp(half)) <= DELTA
    assert CHOSEN.attacks(DELTA, 4).true_positive_rate[0.01] > CHOSEN.attacks(DELTA).true_positive_rate[0.01]
    nothing = Guarantee(RUN, Choice(((Spending(1.0, 0.0, 1),),), 2.0, "poisson"))
    assert nothing.bounds(DELTA).upper == nothing.bounds(DELTA, 3).upper == math.inf
    assert nothing.attacks(DELTA).advantage == 1


def test_chosen_and_plain_models_add_up() -> None:
    plain = together([PLAIN, PLAIN], DELTA)
    assert plain == accounting.epsilon_bounds([*RUN, *RUN], DELTA).upper
    assert together([PLAIN, CHOSEN], DELTA) > plain
    assert together([CHOSEN, CHOSEN], DELTA) < 2 * CHOSEN.bounds(DELTA / 2).upper
    swapped = together([PLAIN, CHOSEN], DELTA, replaced=True)
    assert swapped > 1.9 * together([PLAIN, CHOSEN], DELTA)
