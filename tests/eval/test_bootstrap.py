import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import (
    all_multiplicities,
    average,
    bootstrap,
    clusters,
    holm,
    multiplicities,
    p_value,
    spread,
    spread_of,
    std_paper,
)
from jaxcxr.eval.metrics import METRICS, choose_thresholds, youden_threshold
from tests.eval.plain import plain_metrics

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
        table[f"p_{finding}"] = np.round(
            np.clip(rng.normal(0.4 + 0.2 * np.nan_to_num(y), 0.2), 0, 1), decimals
        )
    return pd.DataFrame(table)


FINDINGS = ["common", "rare", "unknown"]


def redraw(table, findings=("common", "rare", "unknown"), groups=None, policy: Any = "youden_test", **how):
    """Draws of the test rows of a table: groups x findings x metrics x draws."""
    test = table["split"].to_numpy() == "test"
    masks = [np.ones(test.sum(), bool)] if groups is None else [np.asarray(g)[test] for g in groups]
    cuts = None if policy == "youden_test_per_draw" else choose_thresholds(table, findings, policy)
    how = {"redraws": 50, "resample": "patient", "seed": 0} | how
    return bootstrap(table[test], findings, masks, thresholds=cuts, **how)


def brute_force(table, findings, resample, policy, redraws, seed, rows):
    """Copy the drawn rows out and let the plain metrics judge the copy."""
    test = table[table["split"] == "test"]
    group = rows[(table["split"] == "test").to_numpy()]
    cluster = clusters(test["patient_id"], resample)
    fixed = None if policy == "youden_test_per_draw" else choose_thresholds(table, findings, policy)
    result, missed = np.empty((len(findings), len(METRICS), 1 + redraws)), np.empty(1 + redraws)
    for r in range(1 + redraws):
        times = multiplicities(int(cluster.max()) + 1, seed, r - 1)[cluster] if r else np.ones(len(test), int)
        copied = test.iloc[np.repeat(np.arange(len(test)), np.where(group, times, 0))]
        called = np.zeros(len(copied), bool)
        for f, finding in enumerate(findings):
            y, p = (copied[f"{c}_{finding}"].to_numpy() for c in "yp")
            threshold = youden_threshold(y, p) if fixed is None else fixed[f]
            plain = plain_metrics(y, p, threshold)
            result[f, :, r] = [plain[m] for m in METRICS]
            called |= p >= threshold
        ill = (copied[[f"y_{f}" for f in findings]] == 1).any(axis=1).to_numpy()
        missed[r] = (~called[ill]).mean()
    return result, missed


@pytest.mark.parametrize("resample", ["patient", "image"])
@pytest.mark.parametrize("policy", POLICIES)
def test_equals_metrics_of_the_copied_rows(resample, policy):
    table = predictions()
    groups = [np.ones(len(table), bool), np.arange(len(table)) % 3 != 0]
    got = redraw(table, FINDINGS, groups, policy, redraws=20, resample=resample, seed=5)
    for g, rows in enumerate(groups):
        expected, missed = brute_force(table, FINDINGS, resample, policy, 20, 5, rows)
        assert np.isnan(expected).any(), "the rare finding is meant to be missing from some redraw"
        np.testing.assert_allclose(got.metrics[g], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.no_finding_among_ill[g], missed, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_points_equal_the_plain_metrics_under_any_ties(data):
    n = data.draw(st.integers(1, 14))
    y = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=n, max_size=n)))
    p = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.4, 0.5, 0.9]), min_size=n, max_size=n)))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    cut = data.draw(st.sampled_from([None, 0.0, 0.4, 0.45, 1.0, np.inf, np.nan]))
    y, p = np.repeat(y, times), np.repeat(p, times)
    table = pd.DataFrame({"patient_id": np.arange(len(y)), "y_a": y, "p_a": p})
    if table.empty:
        return
    cuts = None if cut is None else np.array([cut])
    got = bootstrap(
        table, ["a"], [np.ones(len(y), bool)], thresholds=cuts, redraws=1, resample="image", seed=0
    )
    expected = plain_metrics(y, p, youden_threshold(y, p) if cut is None else cut)
    np.testing.assert_allclose(got.metrics[0, 0, :, 0], [expected[m] for m in METRICS], rtol=0, atol=1e-12)


def test_whole_number_products_do_not_overflow():
    """150,000 images: positives x negatives exceeds 32 bits."""
    rng = np.random.default_rng(0)
    y = (rng.random(150_000) < 0.5).astype(float)
    p = np.round(rng.random(150_000) * 0.6 + 0.3 * y, 3)
    table = pd.DataFrame({"patient_id": np.arange(len(y)), "y_a": y, "p_a": p})
    got = bootstrap(
        table, ["a"], [np.ones(len(y), bool)], thresholds=None, redraws=1, resample="image", seed=0
    )
    expected = plain_metrics(y, p, youden_threshold(y, p))
    np.testing.assert_allclose(got.metrics[0, 0, :, 0], [expected[m] for m in METRICS], rtol=0, atol=1e-12)


def test_clusters_are_patients_or_images():
    patients = pd.Series(["b", "a", "b", "c", "a", "b"])
    assert clusters(patients, "patient").tolist() == [0, 1, 0, 2, 1, 0]
    assert clusters(patients, "image").tolist() == [0, 1, 2, 3, 4, 5]


def test_multiplicities_are_those_of_a_redraw_with_replacement():
    drawn = np.array([multiplicities(6, 3, r) for r in range(4000)])
    assert (drawn.sum(axis=1) == 6).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.astype(float).var(axis=0), 1 - 1 / 6, atol=0.08)
    assert (all_multiplicities(6, 3, 10)[:, 1:] == drawn[:10].T).all()
    assert (all_multiplicities(6, 3, 10)[:, 0] == 1).all()


def test_redraws_are_paired_and_nested():
    table, other = predictions(), predictions()
    other["p_common"] = np.sqrt(other["p_common"])  # another model with the same order of images
    rank_metrics = [METRICS.index(m) for m in ("auroc", "accuracy", "sensitivity", "average_precision")]
    first, again = (redraw(t, ["common"], seed=1).metrics[0, 0] for t in (table, other))
    np.testing.assert_array_equal(first[rank_metrics], again[rank_metrics])
    np.testing.assert_array_equal(first[:, :21], redraw(table, ["common"], seed=1, redraws=20).metrics[0, 0])
    np.testing.assert_array_equal(first, redraw(table, FINDINGS, seed=1).metrics[0, 0])
    assert (first[:, 1:] != redraw(table, ["common"], seed=2).metrics[0, 0, :, 1:]).any()


def test_pairing_narrows_the_difference_of_two_models():
    table = predictions(n=400, patients=200, decimals=6)
    other = table.assign(
        p_common=np.clip(table["p_common"] + np.random.default_rng(1).normal(0, 0.05, 400), 0, 1)
    )
    a, b = (redraw(t, ["common"], redraws=300).metrics[0, 0, 0, 1:] for t in (table, other))
    assert (a - b).std() < 0.5 * np.hypot(a.std(), b.std())


def test_copies_of_a_patients_images_add_no_certainty():
    table = predictions(n=200, patients=1000, decimals=6)
    table["patient_id"] = [f"p{i}" for i in range(200)]
    ninefold = pd.concat([table] * 9, ignore_index=True)
    std = {
        (name, resample): spread(
            redraw(t, ["common"], redraws=400, resample=resample).metrics[0, 0, 0, 1:]
        ).std
        for name, t in (("once", table), ("ninefold", ninefold))
        for resample in ("patient", "image")
    }
    assert std["ninefold", "patient"] == pytest.approx(std["once", "patient"], rel=0.15)
    assert std["ninefold", "image"] == pytest.approx(std["once", "image"] / 3, rel=0.15)


def test_average_is_over_the_same_findings_in_every_draw():
    #                        itself  redraws
    draws = np.array([[0.8, 0.6, 0.7], [0.4, 0.5, np.nan], [np.nan, 0.1, 0.1]])
    np.testing.assert_allclose(average(draws), [0.6, 0.55, np.nan])
    assert np.isnan(average(np.full((3, 2), np.nan))).all()


def test_spread_leaves_undefined_redraws_out():
    s = spread(np.array([0.2, np.nan, 0.4, 0.6]))
    assert (s.mean, s.std, s.redraws) == (pytest.approx(0.4), pytest.approx(0.2), 3)
    assert (s.ci_low, s.ci_high) == (pytest.approx(0.21), pytest.approx(0.59))
    assert spread(np.array([np.nan])).redraws == 0
    assert np.isnan(spread(np.array([0.5])).std)


def test_an_average_precision_has_students_interval_on_the_logit_scale():
    draws = np.array([0.80, 0.84, 0.88, 0.92, 0.96])
    s = spread_of("average_precision", np.array([0.85, *draws]), clusters=10)
    reach = 2.262157 * draws.std(ddof=1) * np.sqrt(10 / 9) / (0.85 * 0.15)  # t with nine degrees of freedom
    low, high = (1 / (1 + np.exp(-(np.log(0.85 / 0.15) + side * reach))) for side in (-1, 1))
    assert (s.ci_low, s.ci_high) == pytest.approx((low, high), rel=1e-6)
    assert (s.mean, s.std, s.redraws) == (pytest.approx(0.88), pytest.approx(draws.std(ddof=1)), 5)
    alike, none = np.full(3, 0.5), np.full(3, np.nan)
    for estimate, others, k in (
        (1.0, draws, 9),
        (0.0, draws, 9),
        (0.85, draws, 1),
        (0.5, alike, 9),
        (np.nan, none, 0),
    ):
        same, plain = spread_of("average_precision", np.array([estimate, *others]), k), spread(others)
        np.testing.assert_equal(dataclasses.astuple(same), dataclasses.astuple(plain))


def test_where_positives_are_few_percentiles_of_average_precision_lie_too_high():
    """Small samples: the truth is below percentile intervals far oftener than above; the interval that is given does better."""
    big = precisions(100_000, 0, redraws=0)
    truth, below = big[0], {"percentile": 0, "given": 0}
    for seed in range(1, 101):
        row = precisions(60, seed, redraws=100)
        below["percentile"] += truth < spread(row[1:]).ci_low
        below["given"] += truth < spread_of("average_precision", row, clusters=15).ci_low
    assert below["given"] < below["percentile"]


def precisions(n, seed, redraws):
    rng = np.random.default_rng([9, seed])
    y = (rng.random(n) < 0.25).astype(float)
    p = 1 / (1 + np.exp(-2 * y - rng.normal(size=n)))
    table = pd.DataFrame({"patient_id": np.arange(n), "y_a": y, "p_a": p})
    how = {"thresholds": np.array([0.5]), "redraws": redraws, "resample": "patient", "seed": seed}
    return bootstrap(table, ["a"], [np.ones(n, bool)], **how).metrics[
        0, 0, METRICS.index("average_precision")
    ]


def test_papers_std_mixes_findings_and_redraws():
    draws = np.array([[0.8, 0.8], [0.9, 0.9]])
    assert spread(draws.mean(axis=0)).std == 0
    assert std_paper(draws) == pytest.approx(0.1 / np.sqrt(3))


def test_p_value_is_two_sided_and_never_zero():
    assert p_value(np.linspace(0.1, 1, 999)) == pytest.approx(2 / 1000)
    assert p_value(-np.linspace(0.1, 1, 999)) == pytest.approx(2 / 1000)
    assert p_value(np.linspace(-1, 1, 999)) == 1.0
    assert p_value(np.zeros(99)) == 1.0
    assert p_value(np.r_[np.full(30, -0.1), np.full(969, 0.1), np.nan]) == pytest.approx(2 * 31 / 1000)
    assert np.isnan(p_value(np.array([np.nan])))


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 are multiplied by 3, 2 and 1; the last may not fall below the one before it."""
    np.testing.assert_allclose(holm(np.array([0.04, np.nan, 0.01, 0.03])), [0.06, np.nan, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert np.isnan(holm(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [({"split": "train"}, {}, "'test', found none"), ({}, {"seed": -1}, "found -1")],
)
def test_what_cannot_be_drawn_is_refused(change, how, message):
    table = predictions().assign(**change)
    with pytest.raises(InputError, match=message):
        bootstrap(
            table.loc[table["split"] == "test"],
            FINDINGS,
            [],
            thresholds=None,
            **{"redraws": 2, "resample": "image", "seed": 0} | how,
        )
