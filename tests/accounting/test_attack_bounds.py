import math

import pytest
from scipy.stats import norm

from jaxcxr.accounting import Spending
from jaxcxr.accounting.attack_bounds import attack_bounds


@pytest.mark.parametrize(("sigma", "images"), [(2.0, 1), (8.0, 3)])
def test_the_gaussian_mechanisms_own_tradeoff(sigma: float, images: int) -> None:
    """Dong et al. 2019: the best test at false-positive rate a has power Phi(Phi^-1(a) + 1 / sigma)."""
    bounds = attack_bounds([Spending(1.0, sigma, 1)], 1e-6, images)
    mu = images / sigma
    for rate, bound in bounds.true_positive_rate.items():
        exact = norm.cdf(norm.ppf(rate) + mu)
        assert exact <= bound <= exact * 1.05
    advantage = 2 * norm.cdf(mu / 2) - 1
    assert advantage <= bounds.advantage <= advantage * 1.03


def test_more_noise_and_fewer_images_protect_more() -> None:
    little, much, many = (
        attack_bounds([Spending(0.05, sigma, 40)], 1e-5, images).true_positive_rate[0.01]
        for sigma, images in ((1.0, 1), (3.0, 1), (1.0, 4))
    )
    assert 0.01 < much < little < many < 1


def test_nothing_released_and_no_noise() -> None:
    assert attack_bounds([], 1e-5).advantage == 0.0
    assert attack_bounds([], 1e-5).true_positive_rate[0.01] == 0.01
    open_book = attack_bounds([Spending(0.1, 0.0, 1)], 1e-5)
    assert open_book.advantage == 1.0
    assert set(open_book.true_positive_rate.values()) == {1.0}
    assert math.isclose(attack_bounds([Spending(0.0, 1.0, 5)], 1e-5).advantage, 0.0)
