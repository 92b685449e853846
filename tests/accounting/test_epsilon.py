import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr import accounting
from jaxcxr.accounting import Spending, loss_distribution, summed_loss
from jaxcxr.accounting.attack_bounds import attack_bounds
from jaxcxr.config import PrivacyConfig
from jaxcxr.errors import InputError

RATE, STEPS, DELTA = 128 / 153502, 179885, 6e-6


@pytest.mark.parametrize(("epsilon", "sigma", "sigma_rdp"), [(0.29, 4.311, 4.695), (1.06, 1.462, 1.557)])
def test_the_papers_run_is_calibrated_to_half_a_percent(
    epsilon: float, sigma: float, sigma_rdp: float
) -> None:
    plan = accounting.calibrate(epsilon, DELTA, RATE, STEPS)
    assert plan.noise_multiplier == pytest.approx(sigma, rel=5e-3)
    assert epsilon * (1 - accounting.CALIBRATION_TOLERANCE) <= plan.epsilon_pld <= epsilon
    assert plan.epsilon_rdp > plan.epsilon_pld
    assert accounting.epsilon_rdp([Spending(RATE, sigma_rdp, STEPS)], DELTA) == pytest.approx(
        epsilon, rel=5e-3
    )


def test_published_values_of_other_accountants() -> None:
    """Those that Opacus's tests expect: 6.7774 by PRV after 2,249 steps, 7.3291 by RDP after 2,250, both at delta 1e-5."""
    bounds = accounting.epsilon_bounds([Spending(0.04, 1.5, 2249)], 1e-5)
    assert bounds.upper == pytest.approx(6.7774, abs=0.015)
    assert bounds.lower == pytest.approx(6.7774, abs=0.03)
    assert accounting.epsilon_rdp([Spending(0.04, 1.5, 2250)], 1e-5) == pytest.approx(7.3291, abs=0.02)


@pytest.mark.parametrize(("epsilon", "already"), [(0.29, []), (8.0, []), (2.0, [Spending(1.0, 4.0, 1)])])
def test_calibration_is_certified_and_wastes_little(epsilon: float, already: list[Spending]) -> None:
    """The truth lies between the bounds: the noise is enough, and at most half a percent of the budget is left."""
    sigma = accounting.calibrated_noise(epsilon, 1e-5, 0.02, 400, already)
    bounds = accounting.epsilon_bounds([*already, Spending(0.02, sigma, 400)], 1e-5)
    assert bounds.upper <= epsilon
    assert bounds.lower >= epsilon * 0.993
    assert bounds.upper >= epsilon * 0.999


def test_one_gaussian_release_against_the_closed_form() -> None:
    """Balle & Wang 2018, Theorem 8: the exact (epsilon, delta) curve of the Gaussian mechanism with sensitivity 1."""
    sigma, delta = 2.0, 1e-5
    epsilon = accounting.epsilon_pld([Spending(1.0, sigma, 1)], delta)

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    exact = phi(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * phi(
        -1 / (2 * sigma) - epsilon * sigma
    )
    assert exact <= delta
    assert exact == pytest.approx(delta, rel=0.02)


def test_composition_counts_everything_in_any_order() -> None:
    a, b = Spending(0.05, 1.5, 30), Spending(0.02, 1.0, 10)
    together = accounting.epsilon_pld([a, b], 1e-5)
    assert together == accounting.epsilon_pld([b, a], 1e-5)
    assert together > max(accounting.epsilon_pld([a], 1e-5), accounting.epsilon_pld([b], 1e-5))
    halves = [Spending(0.05, 1.5, 12), b, Spending(0.05, 1.5, 18)]
    assert accounting.epsilon_pld(halves, 1e-5) == together


def test_nothing_spent_costs_nothing_and_no_noise_costs_everything() -> None:
    assert accounting.epsilon_pld([], 1e-5) == 0
    assert accounting.epsilon_pld([Spending(0.1, 1.0, 0)], 1e-5) == 0
    assert accounting.epsilon_pld([Spending(0.1, 0.0, 1)], 1e-5) == math.inf
    assert accounting.epsilon_rdp([Spending(0.1, 0.0, 1)], 1e-5) == math.inf


def test_affordable_steps_is_the_most_that_fits() -> None:
    spent = [Spending(0.05, 1.2, 20)]
    more = accounting.affordable_steps(spent, 0.05, 1.2, 2.0, 1e-5, wanted=1000)
    assert 0 < more < 1000
    assert accounting.epsilon_pld([*spent, Spending(0.05, 1.2, more)], 1e-5) <= 2.0
    assert accounting.epsilon_pld([*spent, Spending(0.05, 1.2, more + 1)], 1e-5) > 2.0
    assert accounting.affordable_steps(spent, 0.05, 1.2, 2.0, 1e-5, wanted=more - 1) == more - 1
    assert accounting.affordable_steps([Spending(0.05, 0.5, 500)], 0.05, 1.2, 2.0, 1e-5, wanted=10) == 0


def test_a_calibrated_run_affords_exactly_its_steps() -> None:
    plan = accounting.calibrate(3.0, 1e-5, 0.06, 30)
    assert accounting.affordable_steps([], 0.06, plan.noise_multiplier, 3.0, 1e-5, wanted=30) == 30
    assert accounting.affordable_steps([], 0.06, plan.noise_multiplier, 3.0, 1e-5, wanted=33) < 33


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 501.0, 1e6])
def test_impossible_budgets_are_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        accounting.calibrate(epsilon, 1e-5, 0.01, 10)


@pytest.mark.parametrize("delta", [0.0, 1e-16, 1.0, -1e-5, math.nan])
def test_impossible_deltas_are_refused_everywhere(delta: float) -> None:
    spent = [Spending(0.01, 1.0, 10)]
    for ask in (
        lambda: accounting.calibrate(1.0, delta, 0.01, 10),
        lambda: accounting.epsilon_pld(spent, delta),
        lambda: accounting.epsilon_bounds(spent, delta),
        lambda: accounting.epsilon_rdp(spent, delta),
        lambda: accounting.gdp_mu(spent, delta),
        lambda: accounting.affordable_steps(spent, 0.01, 1.0, 1.0, delta, 10),
        lambda: attack_bounds(spent, delta),
    ):
        with pytest.raises(InputError, match="delta: expected at least 1e-15 and less than 1"):
            ask()


@pytest.mark.parametrize(
    ("spending", "named"),
    [
        (Spending(1.1, 1.0, 1), "sample rate"),
        (Spending(-0.1, 1.0, 1), "sample rate"),
        (Spending(math.nan, 1.0, 1), "sample rate"),
        (Spending(1e-300, 1.0, 1), "sample rate"),
        (Spending(0.1, -1.0, 1), "noise multiplier"),
        (Spending(0.1, math.nan, 1), "noise multiplier"),
        (Spending(0.1, math.inf, 1), "noise multiplier"),
        (Spending(0.1, 1e-200, 1), "noise multiplier"),
        (Spending(0.1, 1.0, -1), "steps"),
        (Spending(0.1, 1.0, 10**9 + 1), "steps"),
    ],
)
def test_impossible_releases_are_named(spending: Spending, named: str) -> None:
    for ask in (accounting.epsilon_bounds, accounting.epsilon_rdp):
        with pytest.raises(InputError, match=f"^{named}: expected"):
            ask([spending], 1e-5)


def test_the_configuration_has_the_accountants_limits() -> None:
    limits = {
        name: {
            key: getattr(bound, key)
            for bound in field.metadata
            for key in ("le", "ge")
            if hasattr(bound, key)
        }
        for name, field in (
            (name, PrivacyConfig.__annotations__[name].__metadata__[0]) for name in ("epsilon", "delta")
        )
    }
    assert limits == {
        "epsilon": {"le": loss_distribution.NO_GUARANTEE},
        "delta": {"ge": loss_distribution.LEAST_DELTA},
    }


# q, sigma, steps, delta, epsilon: what once took hundreds of gigabytes, or gave no answer.
EXTREMES = [
    (1e-6, 0.2, 1, 1e-5, 0.0),  # at most one in a million is drawn: delta covers it
    (1.0, 1.0, 1, 0.4, 0.0),
    (1e-9, 1.0, 1000, 1e-6, 0.0),
    (1e-9, 1e-3, 1, 1e-10, math.inf),
    (0.01, 1e-3, 100, 1e-5, math.inf),
    (1.0, 1e-3, 1, 1e-5, math.inf),
    (1.0, 1e6, 10**9, 1e-15, 0.2292),
    (0.0, 1.0, 100, 1e-15, 0.0),
]


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "epsilon"), EXTREMES)
def test_extremes_are_answered(rate: float, sigma: float, steps: int, delta: float, epsilon: float) -> None:
    bounds = accounting.epsilon_bounds([Spending(rate, sigma, steps)], delta)
    assert bounds.upper == pytest.approx(epsilon, rel=0.02)
    assert bounds.lower <= bounds.upper
    assert bounds.lower >= 0.99 * min(epsilon, 500)


@pytest.mark.parametrize("delta", [1e-5, 1e-15])
@pytest.mark.parametrize(
    ("rate", "sigma", "steps"), [(1e-4, 0.2, 10), (1e-7, 0.5, 10**5), (0.9, 0.3, 3), (0.5, 1000.0, 10**5)]
)
def test_arrays_stay_small(
    rate: float, sigma: float, steps: int, delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = []
    on_grid, composed_curve = summed_loss.on_grid, summed_loss.composed_curve

    def watched_grid(*arguments: Any) -> Any:
        found = on_grid(*arguments)
        longest.append(len(found.probabilities))
        return found

    def watched_curve(*arguments: Any) -> Any:
        found = composed_curve(*arguments)
        longest.append(len(found.deltas))
        return found

    monkeypatch.setattr(summed_loss, "on_grid", watched_grid)
    monkeypatch.setattr(summed_loss, "composed_curve", watched_curve)
    bounds = accounting.epsilon_bounds([Spending(rate, sigma, steps)], delta)
    assert max(longest, default=0) <= 1 << 22
    assert bounds.lower <= bounds.upper < math.inf


@settings(max_examples=12, deadline=None)
@given(
    st.floats(-9, 0).map(lambda x: 10.0**x),
    st.floats(-1, 3).map(lambda x: 10.0**x),
    st.integers(0, 3).map(lambda x: 10**x),
    st.floats(-15, -0.1).map(lambda x: 10.0**x),
    st.integers(1, 4),
)
def test_bounds_are_in_order_and_fall_with_delta(
    rate: float, sigma: float, steps: int, delta: float, images: int
) -> None:
    """Any plan is answered; more delta, fewer steps and fewer images never cost more than what bounds may be apart."""
    bounds, looser = accounting.profile([Spending(rate, sigma, steps)], (delta, min(2 * delta, 0.99)), images)
    one = accounting.epsilon_bounds([Spending(rate, sigma, steps)], delta)
    assert 0 <= bounds.lower <= bounds.upper
    assert looser.lower <= bounds.upper
    assert one.lower <= bounds.upper


def test_contradictions_are_raised_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = [Spending(0.05, 1.0, 40)]
    upper = accounting.epsilon_bounds(spent, 1e-5).upper
    monkeypatch.setattr(loss_distribution, "_upper", lambda *_: 0.9 * upper)
    with pytest.raises(ArithmeticError, match=r"lower bound .* exceeds the upper bound"):
        accounting.epsilon_bounds(spent, 1e-5)
    monkeypatch.setattr(loss_distribution, "_upper", lambda *_: math.nan)
    with pytest.raises(InputError, match="defect of the accountant"):
        accounting.epsilon_bounds(spent, 1e-5)
    monkeypatch.undo()
    monkeypatch.setattr("jaxcxr.accounting.calibration.epsilon_rdp", lambda *_: 0.9 * upper)
    with pytest.raises(ArithmeticError, match="Rényi"):
        accounting.plan(1.0, 1e-5, 0.05, 40)


def test_mu_of_a_gaussian_release_is_its_own() -> None:
    assert 0.5 <= accounting.gdp_mu([Spending(1.0, 2.0, 1)], 1e-9) < 0.5 * 1.01
    assert 0.75 <= accounting.gdp_mu([Spending(1.0, 4.0, 1)], 1e-9, images=3) < 0.75 * 1.01
    assert accounting.gdp_mu([], 1e-5) == 0
    assert accounting.gdp_mu([Spending(1e-6, 0.2, 1)], 1e-5) == 0
    assert accounting.gdp_mu([Spending(0.1, 0.0, 1)], 1e-5) == math.inf
    assert accounting.gdp_mu([Spending(1.0, 1e-3, 1)], 1e-5) == math.inf


def test_mu_covers_the_whole_profile() -> None:
    """At every delta from the claimed one up the Gaussian curve lies above ours, and somewhere it is near."""
    spent = [Spending(0.05, 1.0, 40), Spending(1.0, 20.0, 1)]
    mu = accounting.gdp_mu(spent, 1e-6)
    deltas = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 5e-2]
    ours = accounting.profile(spent, deltas)
    theirs = [accounting.epsilon_bounds([Spending(1.0, 1 / mu, 1)], delta) for delta in deltas]
    assert all(mine.upper <= gaussian.upper for mine, gaussian in zip(ours, theirs, strict=True))
    assert max(mine.upper / gaussian.upper for mine, gaussian in zip(ours[:-1], theirs, strict=False)) > 0.98
    assert ours == tuple(accounting.epsilon_bounds(spent, delta) for delta in deltas)


def test_a_budget_that_no_noise_can_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise multiplier"):
        accounting.calibrate(1e-7, 1e-9, 1.0, 100_000)


def test_epochs_and_rates_of_the_paper() -> None:
    assert accounting.steps_of_epochs(150.0, 153502, 128) == STEPS
    assert accounting.sample_rate_of(128, 153502) == RATE
    with pytest.raises(InputError, match="expected_batch_size"):
        accounting.sample_rate_of(11, 10)
    for epochs in (math.nan, 0.0, -1.0):
        with pytest.raises(InputError, match="epochs: expected a positive number"):
            accounting.steps_of_epochs(epochs, 100, 10)
    for epochs in (math.inf, 1e300):
        with pytest.raises(InputError, match="expected at most 1,000,000,000"):
            accounting.steps_of_epochs(epochs, 100, 10)
