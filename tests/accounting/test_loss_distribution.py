"""Bounds against the truth: closed forms without sampling and for one release, in many digits."""

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from jaxcxr import accounting
from jaxcxr.accounting import loss_distribution
from jaxcxr.accounting.dominating_pair import Adjacency, Release
from jaxcxr.accounting.loss_distribution import Bounds, epsilon_bounds, epsilon_upper
from jaxcxr.errors import InputError

# Without sampling bounds are closed forms; these reach the composition that all other releases take.
upper_by_composition, lower_by_composition = loss_distribution.upper_of_sum, loss_distribution.lower_of_sum


@pytest.fixture(autouse=True)
def many_digits() -> None:
    mp.mp.dps = 50


def gaussian_delta(epsilon: float, mu: float) -> Any:
    """Balle & Wang 2018, Theorem 8, with sensitivity over noise mu."""
    e, mu = mp.mpf(epsilon), mp.mpf(mu)
    return mp.ncdf(-e / mu + mu / 2) - mp.e**e * mp.ncdf(-e / mu - mu / 2)


def one_release_delta(epsilon: float, rate: float, sigma: float) -> Any:
    """delta of one subsampled release for a unit that is removed: where the loss is epsilon at x, P(beyond x) - e^epsilon Q(beyond x)."""
    q, s = mp.mpf(rate), mp.mpf(sigma)
    x = mp.mpf(1) / 2 + s**2 * mp.log1p(mp.expm1(mp.mpf(epsilon)) / q)
    beyond = mp.ncdf(-x / s)
    return (1 - q) * beyond + q * mp.ncdf((1 - x) / s) - mp.e ** mp.mpf(epsilon) * beyond


def root(delta_at: Callable[[Any], Any], delta: float) -> Any:
    low, high = mp.mpf(0), mp.mpf(1)
    while delta_at(high) > delta:
        high *= 2
    for _ in range(110):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("delta", [1e-1, 1e-5, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize(("sigma", "steps", "images"), [(2.0, 1, 1), (20.0, 100, 3), (100.0, 10_000, 1)])
def test_the_composition_encloses_the_closed_form_at_every_delta(
    sigma: float, steps: int, images: int, delta: float
) -> None:
    releases = (Release(1.0, sigma, steps, images),)
    mu = mp.sqrt(steps) * images / sigma
    truth = root(lambda e: gaussian_delta(e, mu), delta)
    upper, lower = upper_by_composition(releases, delta), lower_by_composition(releases, delta)
    assert truth < upper < truth * (1 + 1e-3)
    assert truth * (1 - 4e-3) < lower < truth
    bounds = epsilon_bounds(releases, delta)
    assert truth * (1 - 1e-9) < bounds.lower < truth < bounds.upper < truth * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-4, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 0.7), (0.5, 3.0), (0.999, 2.0), (0.002, 0.3)])
def test_one_release_against_its_closed_form(rate: float, sigma: float, delta: float) -> None:
    truth = root(lambda e: one_release_delta(e, rate, sigma), delta)
    bounds = epsilon_bounds((Release(rate, sigma, 1),), delta)
    assert truth < bounds.upper < truth * (1 + 1e-3) + 1e-6
    assert truth * (1 - 2e-3) - 1e-6 < bounds.lower < truth


@pytest.mark.parametrize(
    ("release", "delta", "truth"),
    [  # by exponentially tilted Fourier composition on fine grids, elsewhere
        (Release(128 / 153502, 1.0, 179_885), 1e-10, 2.90152),
        (Release(128 / 153502, 1.0, 179_885), 1e-12, 3.237),
        (Release(0.001, 1.0, 1_000_000), 1e-12, 9.796),
        (Release(1.0, 1500.0, 1_000_000), 1e-9, 3.96483),
        (Release(1.0, 100.0, 10_000), 1e-13, 7.560),
        (Release(1.0, 1000.0, 100_000), 1e-12, 2.1324),
        (Release(1.0, 2000.0, 1_000_000, images=2), 1e-12, 7.238),
    ],
)
def test_small_deltas_on_long_runs(release: Release, delta: float, truth: float) -> None:
    """Where an untilted Fourier transform lies by up to 5 % on the wrong side."""
    digits = 10 ** -len(str(truth).split(".")[1])
    for upper, lower in (
        (epsilon_upper((release,), delta), epsilon_bounds((release,), delta).lower),
        (upper_by_composition((release,), delta), lower_by_composition((release,), delta)),
    ):
        assert truth - digits < upper < truth * 1.0005 + digits
        assert truth * 0.9975 - digits < lower < truth + digits


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.01, 1.0, 500), (0.05, 0.8, 30), (0.3, 5.0, 1000)])
def test_bounds_agree_with_dp_accounting_where_it_is_precise(
    rate: float, sigma: float, steps: int, adjacency: Adjacency
) -> None:
    """Google's own bound, on a grid fine enough, at a delta at which its rounding errors do not matter."""
    bounds = epsilon_bounds((Release(rate, sigma, steps, adjacency=adjacency),), 1e-6)
    relation = {
        "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": NeighboringRelation.REPLACE_ONE,
    }
    single = pld.from_gaussian_mechanism(
        sigma, value_discretization_interval=bounds.upper * 2e-3 / math.sqrt(steps) / 10, sampling_prob=rate, neighboring_relation=relation[adjacency]
    )  # fmt: skip
    theirs = single.self_compose(steps).get_epsilon_for_delta(1e-6)
    assert bounds.lower < theirs
    assert theirs == pytest.approx(bounds.upper, rel=1e-3)
    assert bounds.upper - bounds.lower < 4e-3 * bounds.upper


# Calibrated noise multipliers for the paper's run (153,502 images, 128 a batch, 150 epochs, delta 6e-6), found on a grid so fine
# that a minute passes for each.
FINE = {0.29: 4.311, 0.54: 2.499, 1.06: 1.462, 2.04: 0.963, 4.71: 0.675, 7.89: 0.5815}


@pytest.mark.parametrize("epsilon", [0.29, 1.06, 7.89])
def test_bounds_of_the_papers_run_lie_within_half_a_percent_of_the_fine_grid(epsilon: float) -> None:
    bounds = epsilon_bounds((Release(128 / 153502, FINE[epsilon], 179885),), 6e-6)
    assert bounds.lower < bounds.upper < bounds.lower * 1.003
    assert bounds.upper == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize("share", [0.5, 0.999, 1.0, 1.001, 2.0])
def test_being_within_a_budget_is_what_the_bound_says(share: float) -> None:
    releases = (Release(0.05, 1.2, 30), Release(1.0, 30.0, 1))
    upper = epsilon_upper(releases, 1e-5)
    assert loss_distribution.is_within(releases, 1e-5, share * upper) == (share >= 1.0)
    assert loss_distribution.is_within((), 1e-5, 1e-9)
    assert not loss_distribution.is_within((Release(0.1, 0.0, 1),), 1e-5, 100.0)


def test_replacing_costs_more_than_adding_and_at_most_a_group_of_two() -> None:
    spending = [accounting.Spending(0.05, 1.0, 40)]
    replace = accounting.epsilon_bounds(spending, 1e-5, "replace_one")
    add = accounting.epsilon_bounds(spending, 1e-5)
    assert add.upper < replace.lower
    assert replace.upper < epsilon_bounds((Release(0.05, 1.0, 40, images=2),), 1e-5).upper
    with pytest.raises(InputError, match="add_remove"):
        accounting.releases_of(spending, 2, "replace_one")


def test_a_whole_batch_replaced_doubles_the_sensitivity() -> None:
    replace = epsilon_bounds((Release(1.0, 4.0, 1, adjacency="replace_one"),), 1e-5)
    assert gaussian_delta(replace.upper, 0.5) <= 1e-5 <= gaussian_delta(replace.lower, 0.5)


@pytest.mark.parametrize("rate", [0.999999, 1 - 1e-12])
@pytest.mark.parametrize("images", [1, 3])
def test_bounds_are_continuous_where_sampling_ends(rate: float, images: int) -> None:
    """Closed form at rate 1, composition below it."""
    sampled = epsilon_bounds((Release(rate, 30.0, 500, images),), 1e-12)
    full = epsilon_bounds((Release(1.0, 30.0, 500, images),), 1e-12)
    assert sampled.lower < full.upper
    assert sampled.upper == pytest.approx(full.upper, rel=1e-3)


def test_many_images_of_which_few_are_drawn_are_few() -> None:
    """A binomial number of many images is nearly that of ten times as many at a tenth of the rate; counts are kept exactly or in groups."""
    some = epsilon_bounds((Release(2e-3, 20.0, 100, images=2_000),), 1e-6)
    more = epsilon_bounds((Release(2e-5, 20.0, 100, images=200_000),), 1e-6)
    many = epsilon_bounds((Release(0.5, 20_000.0, 10, images=100_000),), 1e-6)
    assert some.upper == pytest.approx(more.upper, rel=0.01)
    assert some.upper - some.lower < 4e-3 * some.upper
    assert 0 < many.lower < many.upper < many.lower * 1.05


def test_no_noise_and_nothing() -> None:
    assert epsilon_bounds((), 1e-5) == Bounds(0.0, 0.0)
    assert epsilon_bounds((Release(0.1, 0.0, 3),), 1e-5).lower == math.inf


def test_a_lower_bound_allows_for_offsets_that_are_rare_but_not_negligible() -> None:
    """Nearly all losses lie on a multiple of the grid, and the few that decide do not."""
    release = Release(1e-6, 0.3, 1, adjacency="replace_one")
    bounds = epsilon_bounds([release], 1e-7)
    assert bounds.lower <= 0.00800956792012 <= bounds.upper  # by mpmath, 40 digits


def test_losses_that_rounding_hides_give_bounds_that_say_nothing_instead_of_a_trace() -> None:
    release = Release(1e-9, 1e4, 10**7)  # epsilon is 0
    assert lower_by_composition((release,), 1e-9) == 0.0
    assert upper_by_composition((release,), 1e-9) == math.inf
