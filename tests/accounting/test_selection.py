import decimal
import math

import mpmath
import numpy as np
import pytest
from dp_accounting.dp_event import (
    GaussianDpEvent,
    PoissonSampledDpEvent,
    RepeatAndSelectDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.selection import (
    Choice,
    Repetitions,
    choice_orders,
    choose_best,
    epsilon_together,
    gamma_of,
    number_of_runs,
    publish_all,
)

CHEAP, EXPENSIVE = (Spending(0.05, 2.0, 50),), (Spending(0.05, 1.2, 50),)
DELTA = 1e-5
SHAPES: dict[Repetitions, float] = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}


def test_publishing_all_is_composition() -> None:
    together = publish_all([CHEAP, EXPENSIVE], DELTA)
    assert together.upper == accounting.epsilon_pld([*CHEAP, *EXPENSIVE], DELTA)
    assert together.lower > accounting.epsilon_pld(EXPENSIVE, DELTA)


@pytest.mark.parametrize("repetitions", SHAPES)
@pytest.mark.parametrize("mean", [1.5, 7.0])
def test_choosing_the_best_is_papernot_and_steinkes_bound(repetitions: Repetitions, mean: float) -> None:
    run = SelfComposedDpEvent(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.2)), 50)
    accountant = RdpAccountant(choice_orders().tolist())
    accountant.compose(RepeatAndSelectDpEvent(run, mean, SHAPES[repetitions]))
    found = Choice((EXPENSIVE,), mean, repetitions).renyi()
    assert found is not None
    monotone = np.minimum.accumulate(np.asarray(accountant._rdp)[::-1])[::-1]
    np.testing.assert_allclose(found, monotone, rtol=1e-9)
    assert choose_best([EXPENSIVE], DELTA, mean, repetitions) == pytest.approx(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("repetitions", SHAPES)
def test_never_below_the_theorems_as_they_stand_in_the_paper(repetitions: Repetitions) -> None:
    """Theorems 2 and 6 for one Gaussian release, written down anew with many digits: epsilon(a) = a / (2 s^2)."""
    sigma, mean = mpmath.mpf("3.5"), 4.0
    own = Choice(((Spending(1.0, 3.5, 1),),), mean, repetitions).renyi()
    gamma = mpmath.mpf(gamma_of(mean, repetitions)) if repetitions != "poisson" else None
    inner = [mpmath.mpf(order) / 10 for order in range(11, 600)]
    constant = min((1 - 1 / x) * x / (2 * sigma**2) - mpmath.log(gamma or 1) / x for x in inner)
    eta, exact = SHAPES[repetitions], {}
    for order in (mpmath.mpf(float(order)) for order in choice_orders()):
        if gamma is not None:
            extra = (1 + eta) * constant
        else:  # the exact delta of a Gaussian at epsilon log(1 + 1 / (order - 1))
            e, mu = mpmath.log(1 + 1 / (order - 1)), 1 / sigma
            extra = mean * (mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu))
        exact[float(order)] = order / (2 * sigma**2) + extra + mpmath.log(mean) / (order - 1)
    assert own is not None
    for order, value in zip(choice_orders(), own, strict=True):
        least = min(bound for other, bound in exact.items() if other >= order)  # divergences rise with order
        assert value >= least * (1 - mpmath.mpf("1e-12"))
        assert gamma is None or value <= least * mpmath.mpf("1.01")


@pytest.mark.parametrize("mean", [1.25, 2.0, 16.0])
def test_the_number_of_runs_has_the_law_that_is_paid_for(mean: float) -> None:
    numbers = np.arange(40)
    laws = {
        "poisson": stats.poisson(mean).cdf(numbers),
        "geometric": stats.geom(1 / mean).cdf(numbers),
        "logarithmic": stats.logser(1 - gamma_of(mean, "logarithmic")).cdf(numbers),
    }
    for repetitions, cdf in laws.items():
        for number in (0, 1, 2, 5, 30):
            for shift in (-1e-9, 1e-9):
                at = decimal.Decimal(float(cdf[number]) + shift)
                if 0 < at < 1 - decimal.Decimal("1e-8"):
                    found = number_of_runs(at, mean, repetitions)  # type: ignore[arg-type]
                    assert (found <= number) == (shift < 0)
    odds = gamma_of(5.0, "logarithmic")
    assert (1 / odds - 1) / math.log(1 / odds) == pytest.approx(5.0)


def test_the_most_expensive_candidate_decides_and_repeating_costs() -> None:
    assert (
        choose_best([CHEAP, EXPENSIVE], DELTA, 2.0)
        == choose_best([EXPENSIVE], DELTA, 2.0)
        > choose_best([CHEAP], DELTA, 2.0)
    )
    assert choose_best([EXPENSIVE], DELTA, 1.0, "geometric") >= accounting.epsilon_pld(EXPENSIVE, DELTA)
    assert choose_best([EXPENSIVE], DELTA, 20.0) > choose_best([EXPENSIVE], DELTA, 2.0)
    assert choose_best([[Spending(0.1, 0.0, 1)]], DELTA, 2.0) == math.inf
    for candidates, mean in (((EXPENSIVE,), 0.5), ((), 2.0)):
        with pytest.raises(ValueError, match=r"mean_runs|candidates"):
            Choice(candidates, mean, "poisson")


def test_many_runs_cost_less_to_choose_from_than_to_publish() -> None:
    runs = [CHEAP] * 40
    assert choose_best(runs, DELTA) < publish_all(runs, DELTA).lower


def test_choices_and_releases_add_up() -> None:
    choice = Choice((CHEAP,), 3.0, "geometric")
    alone = choice.epsilon(DELTA)
    assert alone == pytest.approx(epsilon_together([choice], [], DELTA))
    assert alone < epsilon_together([choice], EXPENSIVE, DELTA) < alone + choose_best([EXPENSIVE], DELTA, 1.0)
    assert epsilon_together([choice], [Spending(1.0, 0.0, 1)], DELTA) == math.inf
    epsilons = np.array([0.0, alone, 2 * alone])
    curve = choice.curve(epsilons)
    assert curve[1] == pytest.approx(DELTA, rel=1e-3)
    assert curve[0] > curve[1] > curve[2]


def test_a_choice_covers_what_a_candidate_releases_and_nothing_else() -> None:
    counts, few, many = Spending(1.0, 9.0, 1), Spending(0.1, 1.0, 50), Spending(0.1, 2.0, 80)
    choice = Choice(((counts, few), (many,)), 2.0, "geometric")
    assert all(choice.covers(spent) for spent in ([], [few], [counts, few], [many], [Spending(0.1, 2.0, 7)]))
    for spent in ([Spending(0.1, 1.0, 51)], [few, many], [Spending(0.1, 1.5, 1)], [counts, many]):
        assert not choice.covers(spent)
