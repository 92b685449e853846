import math

import mpmath as mp
import numpy as np
import pytest
from scipy.stats import binom

from jaxcxr.accounting.chi_square import chi_square, epsilon_by_chi_square, total_variation_by_chi_square
from jaxcxr.accounting.dominating_pair import Release
from jaxcxr.accounting.loss_distribution import Bounds, epsilon_bounds


def exact_chi_square(release: Release) -> float:
    """By the sum over the numbers of images drawn, in 50 digits."""
    with mp.workdps(50):
        q, k, variance = mp.mpf(release.sample_rate), release.images, mp.mpf(release.noise_multiplier) ** 2
        law = [mp.binomial(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)]
        moment = mp.fsum(
            a * b * mp.e ** (i * j / variance) for i, a in enumerate(law) for j, b in enumerate(law)
        )
        return float(moment**release.steps - 1)


@pytest.mark.parametrize(
    ("release", "looseness"),
    [
        (Release(1e-9, 1e4, 10**7), 1e-9),
        (Release(1e-3, 1.0, 1000), 1e-9),
        (Release(0.2, 3.0, 1), 1e-9),
        (Release(1.0, 3.0, 1, images=2), 1e-9),
        (Release(1e-6, 3.0, 10, images=3), 1.0),
        (Release(0.1, 20.0, 10, images=4), 0.2),
    ],
)
def test_chi_square_is_exact_for_one_image_and_above_the_truth_for_several(
    release: Release, looseness: float
) -> None:
    exact = exact_chi_square(release)
    assert exact <= chi_square([release]) <= exact * (1 + looseness)


def test_chi_squares_multiply() -> None:
    one, other = Release(1e-3, 1.0, 1000), Release(1.0, 3.0, 1)
    assert math.log1p(chi_square([one, other])) == pytest.approx(
        math.log1p(chi_square([one])) + math.log1p(chi_square([other]))
    )
    assert chi_square([Release(1e-9, 1e-3, 1)]) == chi_square([Release(0.1, 0.0, 1)]) == math.inf
    assert chi_square([]) == 0


def distance(release: Release, others: np.ndarray) -> float:
    """Total variation of one release, by integrating over its answer."""
    x = np.linspace(-9, 9 + release.images, 400_001) * release.noise_multiplier
    weights = binom.pmf(np.arange(release.images + 1), release.images, release.sample_rate)

    def density(means: np.ndarray) -> np.ndarray:
        return np.asarray(
            sum(
                w * np.exp(-(((x - m) / release.noise_multiplier) ** 2) / 2)
                for w, m in zip(weights, means, strict=True)
            )
        )

    means = np.arange(release.images + 1.0)
    return (
        float(np.trapezoid(np.abs(density(means) - density(others)), x))
        / release.noise_multiplier
        / math.sqrt(8 * math.pi)
    )


@pytest.mark.parametrize("release", [Release(1e-3, 1.0, 1), Release(0.05, 5.0, 1, images=3)])
def test_total_variation_is_bounded_and_of_the_right_size(release: Release) -> None:
    exact = distance(release, np.zeros(release.images + 1))
    assert exact <= total_variation_by_chi_square([release]) <= 2 * exact


def test_total_variation_of_a_replaced_unit() -> None:
    release = Release(0.01, 2.0, 1, adjacency="replace_one")
    exact = distance(release, -np.arange(2.0))
    assert exact <= total_variation_by_chi_square([release]) <= 2 * exact
    assert epsilon_by_chi_square([release], 0.5) == math.inf


@pytest.mark.parametrize("mu", [1e-10, 1e-4, 0.1])
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3])
def test_epsilon_of_a_gaussian_release(mu: float, share: float) -> None:
    """Against the closed form, at deltas that are a share of the one at epsilon 0."""
    release = Release(1.0, 1 / mu, 1)
    delta = share * mu / math.sqrt(2 * math.pi)
    truth, found = epsilon_bounds([release], delta), epsilon_by_chi_square([release], delta)
    assert truth.lower <= found
    if delta > mu**2:
        assert found < mu**2 / delta


def test_units_that_are_hardly_ever_drawn_get_finite_bounds() -> None:
    """Losses so small that rounding hides them from the composition, which says nothing."""
    release = Release(1e-9, 1e4, 10**7)
    assert epsilon_bounds([release], 1e-9) == Bounds(0.0, 0.0)
    # The sum is nearly Gaussian, with mu = q sqrt(steps) / sigma = 3.16e-10: epsilon is 7.43e-10 at this delta.
    rare = epsilon_bounds([release], 1e-12)
    assert rare.lower <= 7.43e-10 <= rare.upper < 1e-7
