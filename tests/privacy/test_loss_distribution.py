import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from jaxcxr.privacy import accounting, loss_distribution
from jaxcxr.privacy.loss_distribution import epsilon_bounds
from jaxcxr.privacy.summed_loss import Release, SummedLoss, films_drawn, summed_loss


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """Balle & Wang 2018, Theorem 8."""
    return float(ndtr(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * ndtr(-1 / (2 * sigma) - epsilon * sigma))


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (20.0, 100), (50.0, 2000)])
@pytest.mark.parametrize("films", [1, 3])
def test_bounds_enclose_the_closed_form_closely(sigma: float, steps: int, films: int) -> None:
    bounds = epsilon_bounds((Release(1.0, sigma, steps, films),), 1e-5)
    together = sigma / math.sqrt(steps) / films
    assert gaussian_delta(bounds.upper, together) <= 1e-5 <= gaussian_delta(bounds.lower, together)
    assert bounds.upper - bounds.lower <= 0.01 * bounds.upper


@pytest.mark.parametrize("leaving", [True, False])
@pytest.mark.parametrize("coarseness", [1.0, 30.0, 300.0])
def test_bounds_hold_however_coarsely_losses_are_rounded(coarseness: float, leaving: bool) -> None:
    sigma, steps = 50.0, 2000
    together = sigma / math.sqrt(steps)
    near = epsilon_bounds((Release(1.0, sigma, steps),), 1e-5).upper
    summed = summed_loss((Release(1.0, sigma, steps),), 1e-5, coarseness * near, leaving)
    assert gaussian_delta(summed.upper(1e-5), together) <= 1e-5 <= gaussian_delta(summed.lower(1e-5), together)
    for epsilon in (0.0, near / 2, near):
        assert summed.delta(epsilon) >= gaussian_delta(epsilon, together)


def test_rounding_keeps_the_mean_even_where_every_loss_becomes_zero() -> None:
    summed = summed_loss((Release(1.0, 50.0, 2000),), 1e-5, near=1e4)
    assert summed.probabilities @ summed.losses == pytest.approx(2000 / (2 * 50.0**2), rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "probabilities"),
    [
        (np.arange(-300, 900) * 0.01, stats.norm.pdf(np.arange(-300, 900) * 0.01, 2.0, 1.0) * 0.01),
        (np.arange(0, 9000) * 1.0, stats.norm.pdf(np.arange(0, 9000), 4000, 400)),  # losses too far apart to weigh at once
        (np.arange(5) * 1.0, np.array([0.2, 0.0, 0.3, 0.0, 0.5])),
    ],
)
def test_epsilon_is_where_delta_falls_to_it(losses: np.ndarray, probabilities: np.ndarray) -> None:
    summed = SummedLoss(losses, probabilities, 0.0, 0.0)
    for delta in (0.45, 1e-2, 1e-5):
        epsilon = summed.middle(delta)
        above = losses > epsilon
        assert probabilities[above] @ -np.expm1(epsilon - losses[above]) == pytest.approx(delta, rel=1e-6)
    assert summed.middle(1.5) == 0
    assert SummedLoss(losses, probabilities, 0.0, 0.1).upper(0.1) == math.inf


@pytest.mark.parametrize("release", [Release(128 / 153502, 1.462, 179885), Release(0.05, 0.8, 30), Release(1.0, 20.0, 100)])
def test_the_estimate_is_near_the_truth(release: Release) -> None:
    bounds = epsilon_bounds((release,), 6e-6)
    found = loss_distribution.estimate((release,), 6e-6, bounds.upper * 1.3)
    assert bounds.lower * 0.9995 <= found <= bounds.upper * 1.0005


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0, 1.001, 1.1, 2.0])
def test_being_within_a_budget_is_what_the_bound_says(share: float) -> None:
    releases = (Release(0.05, 1.2, 30), Release(1.0, 30.0, 1))
    upper = loss_distribution.epsilon_upper(releases, 1e-5)
    assert loss_distribution.is_within(releases, 1e-5, share * upper) == (share >= 1.0)
    assert loss_distribution.is_within((), 1e-5, 1e-9)
    assert not loss_distribution.is_within((Release(0.1, 0.0, 1),), 1e-5, 100.0)


# Calibrated noise multipliers for the paper's run (153,502 films, 128 a batch, 150 epochs, delta 6e-6), found on a grid so fine
# that a minute passes for each.
FINE = {0.29: 4.311, 0.54: 2.499, 1.06: 1.462, 2.04: 0.963, 4.71: 0.675, 7.89: 0.5815}


@pytest.mark.parametrize("epsilon", [0.29, 1.06, 7.89])
def test_bounds_of_the_papers_run_lie_within_half_a_percent_of_the_fine_grid(epsilon: float) -> None:
    bounds = epsilon_bounds((Release(128 / 153502, FINE[epsilon], 179885),), 6e-6)
    assert bounds.lower < bounds.upper
    assert bounds.upper == pytest.approx(epsilon, rel=5e-3)
    assert bounds.lower == pytest.approx(epsilon, rel=8e-3)


def test_prv_and_pld_agree_where_both_apply() -> None:
    """The library's pessimistic grid lies within our two bounds by mean-preserving rounding (PRV), in both directions."""
    releases = (Release(0.03, 0.9, 400), Release(0.1, 2.0, 50), Release(1.0, 30.0, 1))
    upper = loss_distribution.epsilon_upper(releases, 1e-5)
    leaving, joining = (summed_loss(releases, 1e-5, upper, leaving) for leaving in (True, False))
    assert leaving.lower(1e-5) <= upper <= leaving.upper(1e-5) * 1.001
    assert joining.upper(1e-5) < leaving.lower(1e-5)
    assert leaving.upper(1e-5) - leaving.lower(1e-5) < 0.015 * upper


def test_direction_matters_only_for_subsampling() -> None:
    releases = (Release(1.0, 3.0, 4),)
    leaving, joining = (summed_loss(releases, 1e-5, 3.0, leaving) for leaving in (True, False))
    assert leaving.upper(1e-5) == pytest.approx(joining.upper(1e-5), rel=1e-3)


def test_replacing_costs_more_than_adding_and_at_most_a_group_of_two() -> None:
    spending = [accounting.Spending(0.05, 1.0, 40)]
    replace = accounting.epsilon_bounds(spending, 1e-5, "replace_one")
    add = accounting.epsilon_bounds(spending, 1e-5)
    assert add.upper < replace.lower
    assert replace.upper < epsilon_bounds((Release(0.05, 1.0, 40, films=2),), 1e-5).upper
    assert replace.upper - replace.lower < 0.01 * replace.upper
    with pytest.raises(ValueError, match="add_remove"):
        accounting.releases_of(spending, 2, "replace_one")


def test_a_whole_batch_replaced_doubles_the_sensitivity() -> None:
    replace = epsilon_bounds((Release(1.0, 4.0, 1, adjacency="replace_one"),), 1e-5)
    assert gaussian_delta(replace.upper, 2.0) <= 1e-5 <= gaussian_delta(replace.lower, 2.0)


@pytest.mark.parametrize(("films", "rate"), [(1, 0.01), (4, 0.3), (10_000, 8e-4), (3, 1.0)])
def test_films_drawn_leave_out_no_more_than_they_say(films: int, rate: float) -> None:
    values, weights, left_out = films_drawn(rate, films, 1e-12)
    assert math.fsum(weights) == pytest.approx(1)
    assert left_out <= 2e-12
    assert np.dot(values, weights) == pytest.approx(films * rate, rel=1e-6)
    assert len(values) <= 60


def test_no_noise_and_nothing() -> None:
    assert epsilon_bounds((), 1e-5) == loss_distribution.Bounds(0.0, 0.0)
    assert epsilon_bounds((Release(0.1, 0.0, 3),), 1e-5).lower == math.inf
