import math

import pytest

from jaxcxr.privacy import accounting, loss_distribution
from jaxcxr.privacy.accounting import Spending

RATE, STEPS, DELTA = 128 / 153502, 179885, 6e-6


@pytest.mark.parametrize(("epsilon", "sigma", "sigma_rdp"), [(0.29, 4.311, 4.695), (1.06, 1.462, 1.557)])
def test_the_papers_run_is_calibrated_to_half_a_percent(epsilon: float, sigma: float, sigma_rdp: float) -> None:
    plan = accounting.calibrate(epsilon, DELTA, RATE, STEPS)
    assert plan.noise_multiplier == pytest.approx(sigma, rel=5e-3)
    assert epsilon * 0.998 <= plan.epsilon_pld <= epsilon
    assert plan.epsilon_rdp > plan.epsilon_pld
    assert accounting.epsilon_rdp([Spending(RATE, sigma_rdp, STEPS)], DELTA) == pytest.approx(epsilon, rel=5e-3)


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
    assert bounds.upper >= epsilon * 0.997


def test_the_coarse_grid_is_not_believed() -> None:
    spending = [Spending(RATE, 4.311, STEPS)]
    assert loss_distribution.upper_on_grid(accounting.releases_of(spending), DELTA, 1e-3) > 0.55
    assert accounting.epsilon_pld(spending, DELTA) == pytest.approx(0.2900, rel=2e-3)


def test_one_gaussian_release_against_the_closed_form() -> None:
    """Balle & Wang 2018, Theorem 8: the exact (epsilon, delta) curve of the Gaussian mechanism with sensitivity 1."""
    sigma, delta = 2.0, 1e-5
    epsilon = accounting.epsilon_pld([Spending(1.0, sigma, 1)], delta)

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    exact = phi(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * phi(-1 / (2 * sigma) - epsilon * sigma)
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


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_impossible_budgets_are_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        accounting.calibrate(epsilon, 1e-5, 0.01, 10)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        accounting.calibrate(1.0, delta, 0.01, 10)


def test_a_budget_that_no_noise_can_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise multiplier"):
        accounting.calibrate(1e-7, 1e-9, 1.0, 100_000)


def test_epochs_and_rates_of_the_paper() -> None:
    assert accounting.steps_of_epochs(150.0, 153502, 128) == STEPS
    assert accounting.sample_rate_of(128, 153502) == RATE
    with pytest.raises(ValueError, match="expected_batch_size"):
        accounting.sample_rate_of(11, 10)
