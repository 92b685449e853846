import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, roc_curve

from jaxcxr.errors import InputError
from jaxcxr.eval.metrics import choose_thresholds, point_metrics, rank, youden_threshold

SCORES = np.linspace(0, 1, 6)


@st.composite
def films(draw):
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


@given(films())
def test_agrees_with_scikit_learn_under_ties_and_unknown_labels(case):
    y, p = case
    known = ~np.isnan(y)
    threshold = youden_threshold(y, p)
    got = point_metrics(y, p, threshold)
    called = p[known] >= threshold
    assert got["auroc"] == roc_auc_score(y[known], p[known])
    assert got["accuracy"] == accuracy_score(y[known], called)
    assert got["sensitivity"] == recall_score(y[known], called)
    assert got["specificity"] == recall_score(y[known], called, pos_label=0)


@given(films())
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
    assert point_metrics(y, p, 0.7) == {"auroc": 1.0, "accuracy": 1.0, "sensitivity": 1.0, "specificity": 1.0}
    assert point_metrics(y, p, np.nextafter(0.7, 1))["sensitivity"] == 0.0


def test_of_two_equally_good_thresholds_the_higher_is_taken():
    y, p = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.8, 0.7, 0.6])
    assert youden_threshold(y, p) == 0.9


def test_no_better_than_chance_calls_nobody():
    y, p = np.array([1.0, 0.0]), np.array([0.1, 0.9])
    assert youden_threshold(y, p) == np.inf
    assert point_metrics(y, p, np.inf) == {"auroc": 0.0, "accuracy": 0.5, "sensitivity": 0.0, "specificity": 1.0}


@pytest.mark.parametrize("y", [[1.0, 1.0, np.nan], [0.0, np.nan, 0.0], [np.nan] * 3, []])
def test_one_class_is_not_defined(y):
    y = np.array(y)
    p = np.full(len(y), 0.5)
    assert np.isnan(youden_threshold(y, p))
    assert all(np.isnan(value) for value in point_metrics(y, p, 0.5).values())


def test_undefined_threshold_leaves_the_auroc():
    got = point_metrics(np.array([0.0, 1.0]), np.array([0.2, 0.7]), np.nan)
    assert got.pop("auroc") == 1.0
    assert np.isnan(list(got.values())).all()


def test_candidates_are_the_ends_of_runs_of_positives():
    #             run of positives      tie        run
    y = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2])
    ranking = rank(y, p)
    np.testing.assert_array_equal(ranking.thresholds, [0.8, 0.5, 0.3])
    np.testing.assert_array_equal(ranking.positives_at, [2, 3, 5])
    np.testing.assert_array_equal(ranking.negatives_at, [0, 3, 3])
    np.testing.assert_array_equal(ranking.negatives_above, [0, 2, 3])


def predictions():
    return pd.DataFrame(
        {
            "split": ["valid", "valid", "test", "test", "test", "test", "train"],
            "y_a": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
            "p_a": [0.1, 0.3, 0.4, 0.6, 0.2, 0.5, 0.0],
        }
    )


@pytest.mark.parametrize(
    ("policy", "expected", "in_group"),
    [("youden_validation", 0.3, 0.3), ("youden_test", 0.5, 0.5), ("youden_test_per_draw", 0.5, 0.6)],
)
def test_policies_choose_on_their_rows(policy, expected, in_group):
    table = predictions()
    group = np.array([True, True, True, True, False, False, True])
    assert choose_thresholds(table, ["a"], policy).tolist() == [expected]
    assert choose_thresholds(table, ["a"], policy, group).tolist() == [in_group]


def test_validation_threshold_needs_validation_rows():
    table = predictions()
    with pytest.raises(InputError, match="'valid', found none"):
        choose_thresholds(table[table["split"] == "test"], ["a"], "youden_validation")
