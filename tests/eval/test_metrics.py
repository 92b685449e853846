import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from jaxcxr.errors import InputError
from jaxcxr.eval.counts import calibration_bin, levels
from jaxcxr.eval.metrics import (
    METRICS,
    NEED_A_THRESHOLD,
    choose_thresholds,
    point_metrics,
    youden_threshold,
)
from tests.eval.plain import plain_metrics

SCORES = np.linspace(0, 1, 6)


@st.composite
def images(draw):
    """Labels with unknowns and probabilities full of ties, both classes present."""
    n = draw(st.integers(2, 40))
    y = [*draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=n, max_size=n)), 0.0, 1.0]
    p = draw(st.lists(st.sampled_from(list(SCORES)), min_size=n + 2, max_size=n + 2))
    return np.array(y), np.array(p)


def brute_youden(y, p):
    """Highest of the best cut-offs, by trying every probability with whole-number rates."""
    best, chosen = 0, np.inf
    positives, negatives = (y == 1).sum(), (y == 0).sum()
    for t in np.unique(p[~np.isnan(y)])[::-1]:
        called = p >= t
        index = int((called & (y == 1)).sum() * negatives - (called & (y == 0)).sum() * positives)
        if index > best:
            best, chosen = index, t
    return chosen


@settings(deadline=None)
@given(images())
def test_agrees_with_scikit_learn_under_ties_and_unknown_labels(case):
    y, p = case
    threshold = youden_threshold(y, p)
    got = point_metrics(y, p, threshold)
    assert got.keys() == set(METRICS)
    plain = plain_metrics(y, p, threshold)
    assert got == pytest.approx(plain, abs=1e-12)
    exact = ("accuracy", "sensitivity", "specificity")
    assert [got[metric] for metric in exact] == [plain[metric] for metric in exact]


@given(images())
def test_youden_threshold_is_the_highest_of_the_best(case):
    y, p = case
    threshold = youden_threshold(y, p)
    assert threshold == brute_youden(y, p)
    known = ~np.isnan(y)
    fpr, tpr, _ = roc_curve(y[known], p[known])
    got = point_metrics(y, p, threshold)
    assert got["sensitivity"] - (1 - got["specificity"]) == pytest.approx((tpr - fpr).max(), abs=1e-12)


def test_threshold_itself_counts_as_positive():
    y, p = np.array([0.0, 1.0]), np.array([0.2, 0.7])
    assert youden_threshold(y, p) == 0.7
    got = point_metrics(y, p, 0.7)
    assert [got[m] for m in ("auroc", "accuracy", "sensitivity", "specificity", "selection_rate")] == [
        1,
        1,
        1,
        1,
        0.5,
    ]
    assert point_metrics(y, p, np.nextafter(0.7, 1))["sensitivity"] == 0.0


def test_of_two_equally_good_thresholds_the_higher_is_taken():
    y, p = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.8, 0.7, 0.6])
    assert youden_threshold(y, p) == 0.9


def test_no_better_than_chance_calls_nobody():
    y, p = np.array([1.0, 0.0]), np.array([0.1, 0.9])
    assert youden_threshold(y, p) == np.inf
    got = point_metrics(y, p, np.inf)
    assert [got[m] for m in ("auroc", "accuracy", "sensitivity", "specificity", "f1")] == [0, 0.5, 0, 1, 0]


def test_calibration_by_hand():
    """Two bins: [0.1, 0.2) with 1 of 2 positive at mean 0.15, and [0.9, 1] with 2 of 3 positive at mean 0.95."""
    y = np.array([0.0, 1.0, 1.0, 0.0, 1.0, np.nan])
    p = np.array([0.1, 0.2 - 1e-12, 0.9, 0.95, 1.0, 0.5])
    got = point_metrics(y, p, 0.5)
    assert got["ece"] == pytest.approx((abs(0.3 - 1) + abs(2.85 - 2)) / 5)
    assert got["calibration_in_the_large"] == pytest.approx((3.15 - 3) / 5)
    np.testing.assert_array_equal(calibration_bin(np.array([0, 0.1, 0.3, 0.999, 1.0])), [0, 1, 3, 9, 9])


@pytest.mark.parametrize("y", [[1.0, 1.0, np.nan], [0.0, np.nan, 0.0], [np.nan] * 3, []])
def test_one_class_is_not_defined(y):
    y = np.array(y)
    p = np.full(len(y), 0.5)
    assert np.isnan(youden_threshold(y, p))
    assert all(np.isnan(value) for value in point_metrics(y, p, 0.5).values())


def test_undefined_threshold_leaves_what_needs_none():
    got = point_metrics(np.array([0.0, 1.0]), np.array([0.2, 0.7]), np.nan)
    assert {metric for metric, value in got.items() if np.isnan(value)} == NEED_A_THRESHOLD
    assert (got["auroc"], got["average_precision"], got["brier"]) == (1.0, 1.0, pytest.approx(0.065))


def test_levels_by_hand():
    y = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, np.nan, 1.0, 0.0])
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.5, 0.2])
    at = levels(y, p)
    np.testing.assert_array_equal(at.thresholds, [0.9, 0.8, 0.5])
    np.testing.assert_array_equal(at.positive_level, [0, 1, 2, 2])
    np.testing.assert_array_equal(at.negative_level, [2, 2, 2, 3])
    np.testing.assert_array_equal(at.negative_tied, [False, False, True, False])


def predictions():
    return pd.DataFrame(
        {
            "split": ["valid", "valid", "test", "test", "test", "test", "train"],
            "y_a": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
            "p_a": [0.1, 0.3, 0.4, 0.6, 0.2, 0.5, 0.0],
        }
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("youden_validation", 0.3), ("youden_test", 0.5), ("youden_test_per_draw", 0.5), ("fixed", 0.25)],
)
def test_policies_choose_on_their_rows(policy, expected):
    assert choose_thresholds(predictions(), ["a"], policy, (0.25,)).tolist() == [expected]


def test_fixed_thresholds_are_one_or_one_each():
    table = predictions().assign(y_b=1.0, p_b=0.5)
    assert choose_thresholds(table, ["a", "b"], "fixed", (0.1,)).tolist() == [0.1, 0.1]
    assert choose_thresholds(table, ["a", "b"], "fixed", (0.1, 0.2)).tolist() == [0.1, 0.2]
    with pytest.raises(InputError, match="one threshold or 2, one per finding; found 3"):
        choose_thresholds(table, ["a", "b"], "fixed", (0.1, 0.2, 0.3))


def test_validation_threshold_needs_validation_rows():
    table = predictions()
    with pytest.raises(InputError, match="'valid', found none"):
        choose_thresholds(table.loc[table["split"] == "test"], ["a"], "youden_validation")
