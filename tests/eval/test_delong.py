import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxcxr.eval.bootstrap import bootstrap
from jaxcxr.eval.delong import delong


def kernel(a, b):
    return 1.0 if a > b else 0.5 if a == b else 0.0


def classic(y, scores):
    """DeLong's formulas, pair by pair."""
    x, z = [np.asarray(s)[y == 1] for s in scores], [np.asarray(s)[y == 0] for s in scores]
    v10 = np.array([[np.mean([kernel(a, b) for b in zz]) for a in xx] for xx, zz in zip(x, z, strict=True)])
    v01 = np.array([[np.mean([kernel(a, b) for a in xx]) for b in zz] for xx, zz in zip(x, z, strict=True)])
    return np.atleast_2d(np.cov(v10)) / v10.shape[1] + np.atleast_2d(np.cov(v01)) / v01.shape[1]


def images(n=60, decimals=1, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    scores = np.round(0.3 * y + rng.random((2, n)) * 0.7 + 0.2 * rng.random(n), decimals)
    y[::7] = np.nan
    return y, scores


def test_equals_the_formulas_under_ties_and_unknown_labels():
    y, scores = images()
    known = ~np.isnan(y)
    got = delong(y, scores)
    np.testing.assert_allclose(got.auroc, [roc_auc_score(y[known], s[known]) for s in scores], atol=1e-12)
    np.testing.assert_allclose(got.covariance, classic(y[known], scores[:, known]), rtol=1e-10)


def test_copies_of_a_patients_images_add_no_certainty():
    y, scores = images(n=80)
    once = delong(y, scores)
    ninefold = delong(np.tile(y, 9), np.tile(scores, 9), np.tile(np.arange(len(y)), 9))
    np.testing.assert_allclose(ninefold.auroc, once.auroc)
    np.testing.assert_allclose(ninefold.covariance, once.covariance, rtol=1e-10)
    assert delong(np.tile(y, 9), np.tile(scores, 9)).covariance[0, 0] < once.covariance[0, 0] / 8


def test_agrees_with_the_bootstrap_of_patients():
    import pandas as pd

    rng = np.random.default_rng(1)
    patient = rng.integers(0, 300, 900)
    y = (rng.random(900) < 0.3).astype(float)
    p = np.clip(0.3 + 0.2 * y + 0.1 * rng.normal(size=300)[patient] + 0.1 * rng.normal(size=900), 0, 1)
    table = pd.DataFrame({"patient_id": patient, "y_a": y, "p_a": p})
    how = {"thresholds": None, "redraws": 600, "resample": "patient", "seed": 0}
    draws = bootstrap(table, ["a"], [np.ones(900, bool)], **how).metrics[0, 0, 0]
    got = delong(y, p[None], pd.factorize(table["patient_id"])[0])
    assert np.sqrt(got.covariance[0, 0]) == pytest.approx(draws[1:].std(ddof=1), rel=0.1)
    assert got.interval() == pytest.approx(tuple(np.percentile(draws[1:], [2.5, 97.5])), abs=0.008)


def test_the_same_model_twice_is_no_difference():
    y, scores = images()
    assert delong(y, scores[[0, 0]]).p_value() == 1.0
    assert 0 < delong(y, scores).p_value() <= 1


def test_one_class_and_one_positive_are_not_defined():
    y, scores = images()
    one_class = delong(np.where(y == 1, np.nan, y), scores)
    assert np.isnan(one_class.auroc).all()
    assert np.isnan(one_class.p_value())
    assert np.isnan(one_class.interval()).all()
    single = delong(np.array([1.0, 0.0, 0.0]), np.array([[0.9, 0.1, 0.2]]))
    assert single.auroc[0] == 1.0
    assert np.isnan(single.covariance).all()
