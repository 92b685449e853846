import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import average, bootstrap, clusters, multiplicities, spread, std_paper, weighted_metrics
from jaxcxr.eval.metrics import METRICS, choose_thresholds, point_metrics, rank, youden_threshold

POLICIES = ["youden_test_per_draw", "youden_test", "youden_validation"]


def predictions(n=60, patients=25, seed=0, decimals=1):
    """Three findings: common, rare, and one with unknown labels; coarse probabilities for ties; validation rows between."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, n)
    table = {"patient_id": [f"p{i}" for i in patient], "split": np.where(patient % 4 == 0, "valid", "test")}
    for finding, rate in {"common": 0.5, "rare": 0.06, "unknown": 0.4}.items():
        y = (rng.random(n) < rate).astype(float)
        if finding == "unknown":
            y[rng.random(n) < 0.3] = np.nan
        table[f"y_{finding}"] = y
        table[f"p_{finding}"] = np.round(np.clip(rng.normal(0.4 + 0.2 * np.nan_to_num(y), 0.2), 0, 1), decimals)
    return pd.DataFrame(table)


FINDINGS = ["common", "rare", "unknown"]


def brute_force(table, findings, resample, policy, redraws, seed, rows=None):
    """Copy the drawn rows out and let the point metrics, which are tested against scikit-learn, judge the copy."""
    test = table[table["split"] == "test"]
    group = np.ones(len(test), bool) if rows is None else rows[(table["split"] == "test").to_numpy()]
    cluster = clusters(test["patient_id"], resample)
    fixed = None if policy == "youden_test_per_draw" else choose_thresholds(table, findings, policy)
    result = np.empty((redraws, len(findings), 4))
    for r in range(redraws):
        times = multiplicities(cluster, seed, r)
        for f, finding in enumerate(findings):
            keep = np.where(group, times, 0)
            y, p = (np.repeat(test[f"{c}_{finding}"].to_numpy(), keep) for c in "yp")
            threshold = youden_threshold(y, p) if fixed is None else fixed[f]
            result[r, f] = [point_metrics(y, p, threshold)[m] for m in METRICS]
    return result


@pytest.mark.parametrize("resample", ["patient", "image"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_metrics_of_the_copied_rows(resample, policy, grouped):
    table = predictions()
    rows = np.arange(len(table)) % 3 != 0 if grouped else None
    got = bootstrap(table, FINDINGS, redraws=37, resample=resample, threshold=policy, seed=5, rows=rows)
    expected = brute_force(table, FINDINGS, resample, policy, 37, 5, rows)
    assert np.isnan(expected).any(), "the rare finding is meant to be missing from some redraw"
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


@settings(max_examples=60)
@given(st.data())
def test_any_multiplicities_equal_the_copied_rows(data):
    n = data.draw(st.integers(1, 14))
    y = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=n, max_size=n)))
    p = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.4, 0.5, 0.9]), min_size=n, max_size=n)))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int32)
    cut = data.draw(st.sampled_from([None, 0.0, 0.4, 0.45, 1.0, np.inf, np.nan]))
    got = weighted_metrics(rank(y, p), times[None], cut)[0]
    y_copied, p_copied = np.repeat(y, times), np.repeat(p, times)
    expected = point_metrics(y_copied, p_copied, youden_threshold(y_copied, p_copied) if cut is None else cut)
    np.testing.assert_allclose(got, [expected[m] for m in METRICS], rtol=0, atol=1e-14)


def test_whole_number_products_do_not_overflow():
    """150,000 films: positives x negatives exceeds 32 bits."""
    rng = np.random.default_rng(0)
    y = (rng.random(150_000) < 0.5).astype(float)
    p = np.round(rng.random(150_000) * 0.6 + 0.3 * y, 3)
    got = weighted_metrics(rank(y, p), np.ones((1, len(y)), np.int32), None)[0]
    expected = point_metrics(y, p, youden_threshold(y, p))
    np.testing.assert_allclose(got, [expected[m] for m in METRICS], rtol=0, atol=1e-12)


@pytest.mark.parametrize("resample", ["patient", "image"])
def test_multiplicities_are_a_redraw_of_whole_clusters(resample):
    patients = pd.Series(["b", "a", "b", "c", "a", "b"])
    cluster = clusters(patients, resample)
    drawn = np.array([multiplicities(cluster, 3, r) for r in range(4000)])
    first = np.unique(cluster, return_index=True)[1]
    assert (drawn[:, first].sum(axis=1) == len(first)).all()
    if resample == "patient":
        assert cluster.tolist() == [0, 1, 0, 2, 1, 0]
        assert (drawn[:, 0] == drawn[:, 2]).all()
        assert (drawn[:, 1] == drawn[:, 4]).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 1 - 1 / len(first), atol=0.08)


def test_redraws_are_paired_and_nested():
    table, other = predictions(), predictions()
    settings_ = {"resample": "patient", "threshold": "youden_test", "seed": 1}
    other["p_common"] = np.sqrt(other["p_common"])  # another model with the same order of films
    first = bootstrap(table, ["common"], redraws=50, **settings_)
    again = bootstrap(other, ["common"], redraws=50, **settings_)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:20], bootstrap(table, ["common"], redraws=20, **settings_))
    np.testing.assert_array_equal(first[:, 0], bootstrap(table, FINDINGS, redraws=50, **settings_)[:, 0])
    assert (first != bootstrap(table, ["common"], redraws=50, **settings_ | {"seed": 2})).any()


def test_pairing_narrows_the_difference_of_two_models():
    table = predictions(n=400, patients=200, decimals=6)
    other = table.assign(p_common=np.clip(table["p_common"] + np.random.default_rng(1).normal(0, 0.05, 400), 0, 1))
    how = {"redraws": 300, "resample": "patient", "threshold": "youden_test", "seed": 0}
    a, b = (bootstrap(t, ["common"], **how)[:, 0, 0] for t in (table, other))
    assert (a - b).std() < 0.5 * np.hypot(a.std(), b.std())


def test_copies_of_a_patients_films_add_no_certainty():
    table = predictions(n=200, patients=1000, decimals=6)
    table["patient_id"] = [f"p{i}" for i in range(200)]
    ninefold = pd.concat([table] * 9, ignore_index=True)
    std = {
        (name, resample): spread(
            bootstrap(t, ["common"], redraws=400, resample=resample, threshold="youden_test", seed=0)[:, 0, 0]
        ).std
        for name, t in (("once", table), ("ninefold", ninefold))
        for resample in ("patient", "image")
    }
    assert std["ninefold", "patient"] == pytest.approx(std["once", "patient"], rel=0.15)
    assert std["ninefold", "image"] == pytest.approx(std["once", "image"] / 3, rel=0.15)


def test_interval_covers_a_known_share_about_as_often_as_it_says():
    """Sensitivity at a validation threshold is a plain share, 0.7 here: about 95 of 100 intervals cover it."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = np.r_[0.0, 1.0, np.ones(120), np.zeros(120)]
        p = np.r_[0.0, 0.5, np.where(rng.random(120) < 0.7, 0.9, 0.1), rng.random(120) * 0.4]
        table = pd.DataFrame({"patient_id": np.arange(242), "split": ["valid"] * 2 + ["test"] * 240, "y_a": y, "p_a": p})
        draws = bootstrap(table, ["a"], redraws=200, resample="patient", threshold="youden_validation", seed=seed)
        s = spread(draws[:, 0, METRICS.index("sensitivity")])
        covered += s.ci_low <= 0.7 <= s.ci_high
    assert 0.87 <= covered / 100 <= 0.99


def test_average_is_over_the_same_findings_in_every_redraw():
    draws = np.full((3, 3, 4), np.nan)
    draws[:, 0] = [[0.8], [0.6], [0.7]]
    draws[:, 1] = [[0.4], [0.5], [np.nan]]
    np.testing.assert_allclose(average(draws)[:, 0], [0.6, 0.55, np.nan])
    assert np.isnan(average(np.full((2, 3, 4), np.nan))).all()


def test_spread_leaves_undefined_redraws_out():
    s = spread(np.array([0.2, np.nan, 0.4, 0.6]))
    assert (s.mean, s.std, s.redraws) == (pytest.approx(0.4), pytest.approx(0.2), 3)
    assert (s.ci_low, s.ci_high) == (pytest.approx(0.21), pytest.approx(0.59))
    assert spread(np.array([np.nan])).redraws == 0
    assert np.isnan(spread(np.array([0.5])).std)


def test_papers_std_mixes_findings_and_redraws():
    draws = np.array([[0.8, 0.9], [0.8, 0.9]])
    assert spread(draws.mean(axis=1)).std == 0
    assert std_paper(draws) == pytest.approx(0.1 / np.sqrt(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "train"}, "'test', found none"), ({"split": "test"}, "'valid', found none")],
)
def test_missing_splits_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        bootstrap(predictions().assign(**change), FINDINGS, redraws=2, resample="image", threshold="youden_validation", seed=0)


def test_negative_seed_is_refused():
    with pytest.raises(InputError, match="found -1"):
        bootstrap(predictions(), FINDINGS, redraws=2, resample="image", threshold="youden_test", seed=-1)
