import numpy as np
from scipy.stats import norm

from jaxcxr.accounting import Spending
from jaxcxr.accounting.attack_bounds import attack_bounds, trade_off


def test_the_whole_curve_of_the_gaussian_mechanism() -> None:
    """Dong et al. 2019: the best test at false-positive rate a has power Phi(Phi^-1(a) + 1 / sigma)."""
    rates = np.linspace(0.0005, 0.9995, 200)
    exact = norm.cdf(norm.ppf(rates) + 0.5)
    found = trade_off([Spending(1.0, 2.0, 1)], 1e-6, rates)
    assert np.all(exact <= found)
    assert np.all(found <= exact * 1.02)
    assert np.all(1 - found >= (1 - exact) * 0.97)  # the end at which nearly everybody is accused


def test_the_curve_goes_through_the_points_of_the_bounds() -> None:
    spent = [Spending(0.05, 1.5, 40)]
    points = attack_bounds(spent, 1e-5).true_positive_rate
    np.testing.assert_array_equal(trade_off(spent, 1e-5, np.array([*points])), [*points.values()])


def test_the_ends() -> None:
    ends = np.array([0.0, 0.3, 1.0])
    np.testing.assert_array_equal(trade_off([], 1e-5, ends), ends)
    np.testing.assert_array_equal(trade_off([Spending(0.1, 0.0, 1)], 1e-5, ends), [1, 1, 1])
    found = trade_off([Spending(0.1, 4.0, 10)], 1e-5, ends)
    assert 0 <= found[0] < 1.01e-5  # nobody is accused: delta is all there is
    assert 0.3 < found[1] < 0.5
    assert found[2] == 1
