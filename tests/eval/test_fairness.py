from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.eval.metrics import METRICS

SMALL: dict[str, Any] = {"min_group_images": 1, "min_group_positives": 1}


def value(evaluation, group, finding, metric, column="value"):
    chosen = evaluation.loc[
        (evaluation["group"] == group)
        & (evaluation["finding"] == finding)
        & (evaluation["metric"] == metric),
        column,
    ]
    assert len(chosen) == 1, (group, finding, metric)
    return chosen.iloc[0]


def by_hand():
    """Twelve images, threshold 0.5.

    F: labels 1 1 0 0, called 1 0 0 0: accuracy 3/4, true positives 1/2, false positives 0, selected 1/4.
    M: labels 1 1 1 1 0 0 0 0, called 1 1 1 1 1 1 1 0: accuracy 5/8, true positives 1, false positives 3/4, selected 7/8.
    """
    return pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(12)],
            "patient_id": [f"p{i}" for i in range(12)],
            "split": "test",
            "sex": ["F"] * 4 + ["M"] * 8,
            "y_a": [1.0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
            "p_a": [0.9, 0.2, 0.1, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.6, 0.7, 0.1],
        }
    )


def test_by_hand():
    config = EvaluationConfig(redraws=20, threshold="fixed", groups=("sex",), **SMALL)
    got = evaluate(by_hand(), ["a"], config)
    assert value(got, "sex_F", "a", "accuracy") == 3 / 4
    assert value(got, "sex_F", "a", "statistical_parity_difference") == 3 / 4 - 5 / 8
    assert value(got, "sex_M", "a", "statistical_parity_difference") == 5 / 8 - 3 / 4
    assert value(got, "sex_F", "a", "selection_rate_difference") == 1 / 4 - 7 / 8
    assert value(got, "sex_F", "a", "underdiagnosis_rate") == 1 / 2
    assert value(got, "sex_F", "a", "underdiagnosis_rate_vs_best") == 1 / 2
    assert value(got, "sex_F", "a", "underdiagnosis_rate_vs_best", "reference") == "sex_M"
    assert value(got, "sex_M", "a", "accuracy_vs_best") == 5 / 8 - 3 / 4
    assert value(got, "sex", "a", "demographic_parity_difference") == 7 / 8 - 1 / 4
    assert value(got, "sex", "a", "demographic_parity_difference", "reference") == "sex_M - sex_F"
    assert value(got, "sex", "a", "equal_opportunity_difference") == 1 / 2
    assert value(got, "sex", "a", "equalized_odds_difference") == 3 / 4
    # F: of 4 pairs 0.9 wins both, 0.2 one: 3/4. M: 0.9 and 0.8 win 4 each, 0.7 ties once and wins 3, 0.6 ties once and wins 2.
    assert value(got, "sex_F", "a", "auroc") == 3 / 4
    assert value(got, "sex_M", "a", "auroc") == (4 + 4 + 3.5 + 2.5) / 16
    assert value(got, "sex", "a", "auroc_gap") == pytest.approx(0.125)


def images(seed=0, n=600):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, n // 2, n)
    table = {
        "image_id": [f"i{i}" for i in range(n)],
        "patient_id": patient.astype(str),
        "split": np.where(patient % 4 == 0, "valid", "test"),
        "sex": rng.choice(["F", "M", "unknown"], n, p=[0.4, 0.55, 0.05]),
        "age": rng.uniform(20, 90, n),
    }
    for i, finding in enumerate(("heart", "lung")):
        y = (rng.random(n) < 0.3).astype(float)
        p = np.clip(
            0.3 + (0.2 + 0.1 * i) * y + (0.1 * (table["sex"] == "F") + 0.2) * rng.normal(size=n), 0, 1
        )
        y[rng.random(n) < 0.1] = np.nan
        table[f"y_{finding}"], table[f"p_{finding}"] = y, np.round(p, 2)
    return pd.DataFrame(table)


def test_equals_fairlearn():
    fairness = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score, roc_auc_score

    table = images()
    config = EvaluationConfig(redraws=10, groups=("sex", "age:20,40,60,90"), **SMALL)
    got = evaluate(table, ["heart", "lung"], config)
    for finding in ("heart", "lung"):
        test = table[(table["split"] == "test") & table[f"y_{finding}"].notna()]
        y, p = test[f"y_{finding}"].astype(int), test[f"p_{finding}"]
        called = (p >= value(got, "all", finding, "accuracy", "threshold")).astype(int)
        age: Any = pd.cut(
            test["age"], [20, 40, 60, 90], right=False, labels=["age_20_40", "age_40_60", "age_60_90"]
        )
        for attribute, of in (("sex", "sex_" + test["sex"]), ("age", age.astype(str))):
            measured = {
                "accuracy": accuracy_score,
                "selection_rate": fairness.selection_rate,
                "sensitivity": fairness.true_positive_rate,
                "specificity": fairness.true_negative_rate,
                "underdiagnosis_rate": fairness.false_negative_rate,
            }
            frame = fairness.MetricFrame(metrics=measured, y_true=y, y_pred=called, sensitive_features=of)
            for group, row in frame.by_group.iterrows():
                for metric in measured:
                    assert value(got, group, finding, metric) == pytest.approx(row[metric], abs=1e-12)
            areas = fairness.MetricFrame(metrics=roc_auc_score, y_true=y, y_pred=p, sensitive_features=of)
            assert value(got, attribute, finding, "auroc_gap") == pytest.approx(areas.difference(), abs=1e-12)
            how = {"y_true": y, "y_pred": called, "sensitive_features": of}
            for name in (
                "demographic_parity_difference",
                "equalized_odds_difference",
                "equal_opportunity_difference",
            ):
                expected = getattr(fairness, name)(**how)
                assert value(got, attribute, finding, name) == pytest.approx(expected, abs=1e-12)


def test_difference_to_the_rest_is_that_of_the_images_that_are_left():
    table = images()
    config = EvaluationConfig(redraws=30, groups=("sex",), **SMALL)
    got = evaluate(table, ["heart", "lung"], config)
    masks = {"F": (table["sex"] == "F").to_numpy(), "others": (table["sex"] != "F").to_numpy()}
    split = evaluate(table, ["heart", "lung"], config, groups=masks)
    for metric, name in [
        ("auroc", "auroc_vs_rest"),
        ("accuracy", "statistical_parity_difference"),
        ("brier", "brier_vs_rest"),
    ]:
        expected = value(split, "F", "lung", metric) - value(split, "others", "lung", metric)
        assert value(got, "sex_F", "lung", name) == pytest.approx(expected, abs=1e-12)
    missed = value(split, "F", "any", "no_finding_among_ill") - value(
        split, "others", "any", "no_finding_among_ill"
    )
    assert value(got, "sex_F", "any", "no_finding_among_ill_vs_rest") == pytest.approx(missed, abs=1e-12)


def test_the_rest_has_a_known_value_of_the_attribute():
    table = images()
    table.loc[table["sex"] == "unknown", "sex"] = None
    got = evaluate(table, ["heart"], EvaluationConfig(redraws=5, groups=("sex",), **SMALL))
    women, men = (value(got, g, "heart", "accuracy") for g in ("sex_F", "sex_M"))
    assert value(got, "sex_F", "heart", "statistical_parity_difference") == pytest.approx(
        women - men, abs=1e-12
    )


def test_differences_are_paired():
    """A group and the rest hold different patients, so their redraws vary almost apart; a group and itself do not vary."""
    table = images(n=2000)
    config = EvaluationConfig(redraws=200, groups=("sex",), **SMALL)
    got = evaluate(table, ["lung"], config)
    apart = np.hypot(*(value(got, g, "lung", "accuracy", "std") for g in ("sex_F", "sex_M")))
    assert value(got, "sex_F", "lung", "statistical_parity_difference", "std") == pytest.approx(
        apart, rel=0.2
    )
    best = max(("sex_F", "sex_M", "sex_unknown"), key=lambda g: value(got, g, "lung", "accuracy"))
    assert value(got, best, "lung", "accuracy_vs_best") == 0
    assert value(got, best, "lung", "accuracy_vs_best", "std") == 0
    assert np.isnan(value(got, best, "lung", "accuracy_vs_best", "p_value"))


def test_intervals_of_the_largest_difference_hold_it():
    got = evaluate(
        images(n=1500), ["heart", "lung"], EvaluationConfig(redraws=200, groups=("sex", "age:20,40,60,90"))
    )
    gaps = got.loc[
        got["metric"].isin(["auroc_gap", "equalized_odds_difference", "demographic_parity_difference"])
    ]
    assert ((gaps["ci_low"] <= gaps["value"]) & (gaps["value"] <= gaps["ci_high"])).all()
    assert gaps["p_value"].isna().all()


def test_small_groups_are_named_and_not_judged():
    table = images()
    config = EvaluationConfig(redraws=5, groups=("sex",), min_group_images=40, min_group_positives=8)
    got = evaluate(table, ["heart", "lung"], config)
    small = got.loc[(got["group"] == "sex_unknown") & (got["reference"].isin(["", "rest"]))]
    assert len(small) > 40
    assert small[["value", "ci_low", "ci_high", "std", "delong_low", "p_value"]].isna().all(axis=None)
    assert (small["note"] == "suppressed: fewer than 40 images").all()
    assert "sex_unknown" not in " ".join(got.loc[got["group"] == "sex", "reference"])
    rare = table.assign(y_heart=table["y_heart"].where((table["sex"] != "F") | (table.index % 9 == 0), 0.0))
    got = evaluate(
        rare, ["heart", "lung"], EvaluationConfig(redraws=5, groups=("sex",), min_group_positives=20)
    )
    assert value(got, "sex_F", "heart", "auroc", "note") == "suppressed: fewer than 20 positives"
    assert value(got, "sex_M", "heart", "statistical_parity_difference", "note").startswith("rest suppressed")
    assert value(got, "sex_F", "average", "auroc", "note") == "over 1 of 2 findings"
    assert value(got, "sex_M", "average", "auroc", "note") == ""
    assert value(got, "sex_M", "average", "auroc_vs_rest", "note") == "over 1 of 2 findings"
    # The average of differences is over the finding that both have.
    assert value(got, "sex_F", "average", "auroc") == value(got, "sex_F", "lung", "auroc")
    assert value(got, "sex_M", "average", "auroc_vs_rest") == value(got, "sex_M", "lung", "auroc_vs_rest")


def test_a_group_of_one_class_and_an_empty_group_are_not_defined():
    table = images()
    table.loc[table["sex"] == "F", "y_heart"] = 1.0
    config = EvaluationConfig(redraws=5, groups=("sex", "age:20,90,120"), **SMALL)
    got = evaluate(table, ["heart", "lung"], config)
    women = got.loc[(got["group"] == "sex_F") & (got["finding"] == "heart") & (got["reference"] == "")]
    assert women["value"].isna().all()
    assert set(women["note"]) <= {"suppressed: fewer than 1 negatives", "not defined: one class only"}
    assert not np.isnan(value(got, "sex_F", "lung", "auroc"))
    assert value(got, "age_90_120", "average", "auroc", "note") == "suppressed: fewer than 1 images"
    assert value(got, "age", "average", "auroc_gap", "note") == "not defined: fewer than two groups"


def test_calibration_error_is_not_compared_between_groups():
    names = set(evaluate(images(), ["heart"], EvaluationConfig(redraws=5))["metric"])
    assert not any(name.startswith("ece_") for name in names)
    assert {
        f"{m}_vs_best" for m in METRICS if m not in ("ece", "selection_rate", "calibration_in_the_large")
    } <= names
