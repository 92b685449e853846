import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import average, bootstrap, std_paper
from jaxcxr.eval.evaluate import EVALUATION_COLUMNS, VALIDATION, evaluate, read_evaluation, read_predictions
from jaxcxr.eval.metrics import METRICS, NEED_A_THRESHOLD, choose_thresholds, point_metrics, youden_threshold
from jaxcxr.report.screen import validation_text

ROOT = Path(__file__).parents[2]
CONTRACT = ["group", "finding", "metric", "value", "ci_low", "ci_high", "std", "n", "positives"]


def predictions(n=90):
    rng = np.random.default_rng(0)
    y = {"heart": rng.integers(0, 2, n).astype(float), "lung": rng.integers(0, 2, n).astype(float)}
    y["lung"][::5] = np.nan
    table = {
        "image_id": [f"i{i}" for i in range(n)],
        "patient_id": [f"p{i // 2}" for i in range(n)],
        "split": ["train"] * 10 + ["valid"] * 30 + ["test"] * (n - 40),
        "sex": np.where(np.arange(n) % 3 == 0, "F", "M"),
    }
    for finding, labels in y.items():
        table[f"y_{finding}"] = labels
        table[f"p_{finding}"] = np.clip(rng.normal(0.4 + 0.3 * np.nan_to_num(labels), 0.2), 0, 1)
    return pd.DataFrame(table)


def row(evaluation, finding, metric, group="all"):
    chosen = evaluation[
        (evaluation["group"] == group) & (evaluation["finding"] == finding) & (evaluation["metric"] == metric)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


PLAIN: dict[str, Any] = {"groups": ()}


@pytest.mark.parametrize("policy", ["youden_test_per_draw", "youden_test", "youden_validation", "fixed"])
def test_evaluation_is_in_the_form_of_the_contract(policy):
    table, config = (
        predictions(),
        EvaluationConfig(redraws=40, threshold=policy, seed=3, fixed_thresholds=(0.4, 0.6), **PLAIN),
    )
    evaluation = evaluate(table, ["heart", "lung"], config)
    assert list(evaluation.columns) == list(EVALUATION_COLUMNS)
    assert list(EVALUATION_COLUMNS)[: len(CONTRACT)] == CONTRACT
    assert len(evaluation) == 3 * len(METRICS) + 1 + 3  # and the AUROC on validation images
    assert not evaluation.duplicated(["group", "finding", "metric"]).any()
    test = table.loc[table["split"] == "test"]
    cuts = choose_thresholds(table, ["heart", "lung"], policy, (0.4, 0.6))
    drawn = bootstrap(
        test,
        ["heart", "lung"],
        [np.ones(len(test), bool)],
        thresholds=None if policy == "youden_test_per_draw" else cuts,
        redraws=40,
        resample="patient",
        seed=3,
    ).metrics[0]

    chosen_on = table.loc[table["split"] == ("valid" if policy == "youden_validation" else "test")]
    threshold = (
        0.6
        if policy == "fixed"
        else youden_threshold(chosen_on["y_lung"].to_numpy(), chosen_on["p_lung"].to_numpy())
    )
    y, p = test["y_lung"].to_numpy(), test["p_lung"].to_numpy()
    points = point_metrics(y, p, threshold)
    lung = row(evaluation, "lung", "accuracy")
    assert lung["value"] == pytest.approx(points["accuracy"], abs=1e-12)
    assert lung["threshold_policy"] == policy
    if policy == "youden_test_per_draw":
        assert np.isnan(lung["threshold"])
    else:
        assert lung["threshold"] == threshold
    assert (lung["n"], lung["positives"]) == (np.isfinite(y).sum(), (y == 1).sum())
    d = drawn[1, METRICS.index("accuracy"), 1:]
    assert lung["std"] == pytest.approx(d.std(ddof=1))
    assert lung["bootstrap_mean"] == pytest.approx(d.mean())
    assert (lung["ci_low"], lung["ci_high"]) == pytest.approx(tuple(np.percentile(d, [2.5, 97.5])))
    assert evaluation.loc[~evaluation["metric"].isin(list(NEED_A_THRESHOLD)), "threshold"].isna().all()

    both = row(evaluation, "average", "auroc")
    assert both["value"] == pytest.approx((row(evaluation, "heart", "auroc")["value"] + points["auroc"]) / 2)
    assert both["std"] == pytest.approx(average(drawn[:, 0])[1:].std(ddof=1))
    assert both["std_paper"] == pytest.approx(std_paper(drawn[:, 0, 1:]))
    assert row(evaluation, "lung", "auroc")["std_paper"] == pytest.approx(
        row(evaluation, "lung", "auroc")["std"]
    )
    assert both["n"] == len(test)
    assert pd.isna(both["positives"])


def test_validation_images_have_an_auroc_of_their_own():
    table, config = predictions(), EvaluationConfig(redraws=20, **PLAIN)
    found = evaluate(table, ["heart", "lung"], config)
    other_split = {"train": "train", "valid": "test", "test": "valid"}
    swapped = table.assign(split=[other_split[str(split)] for split in table["split"]])
    other = evaluate(swapped, ["heart", "lung"], config)
    for finding in ("heart", "lung", "average"):
        names = ["value", "ci_low", "ci_high", "n"]
        on_validation = row(found, finding, VALIDATION)[names]
        assert on_validation.tolist() == row(other, finding, "auroc")[names].tolist()
        assert on_validation["value"] != row(found, finding, "auroc")["value"]
    assert VALIDATION not in set(evaluate(table.loc[table["split"] != "valid"], ["heart"], config)["metric"])
    n = table["split"].tolist().count("valid")
    assert f"average AUROC on the {n:,} validation images: " in validation_text(found)
    assert validation_text(found.loc[found["metric"] != VALIDATION]) == ""


def test_auto_takes_validation_images_where_there_are_any():
    table, config = predictions(), EvaluationConfig(redraws=5, **PLAIN)
    assert set(evaluate(table, ["heart"], config)["threshold_policy"]) == {"youden_validation"}
    without = table.loc[table["split"] != "valid"]
    assert set(evaluate(without, ["heart"], config)["threshold_policy"]) == {"youden_test"}


def test_a_group_is_a_row_mask():
    table, config = (
        predictions(),
        EvaluationConfig(redraws=30, min_group_images=5, min_group_positives=2, **PLAIN),
    )
    women = (table["sex"] == "F").to_numpy()
    evaluation = evaluate(table, ["heart", "lung"], config, groups={"sex_F": women})
    assert list(dict.fromkeys(evaluation["group"])) == ["all", "sex_F", "group"]
    pd.testing.assert_frame_equal(
        evaluation.loc[evaluation["group"] == "all"].reset_index(drop=True),
        evaluate(table, ["heart", "lung"], config),
    )
    test = table.loc[women & (table["split"] == "test")]
    got = row(evaluation, "heart", "accuracy", "sex_F")
    assert got["n"] == len(test)
    assert got["threshold"] == row(evaluation, "heart", "accuracy")["threshold"]
    points = point_metrics(test["y_heart"].to_numpy(), test["p_heart"].to_numpy(), got["threshold"])
    assert got["value"] == pytest.approx(points["accuracy"], abs=1e-12)


def test_delong_stands_beside_the_bootstrap():
    evaluation = evaluate(predictions(n=300), ["heart"], EvaluationConfig(redraws=400, **PLAIN))
    auroc = row(evaluation, "heart", "auroc")
    assert auroc["delong_low"] == pytest.approx(auroc["ci_low"], abs=0.02)
    assert auroc["delong_high"] == pytest.approx(auroc["ci_high"], abs=0.02)
    rest = ~evaluation["metric"].isin(["auroc", VALIDATION])
    assert evaluation.loc[rest, "delong_low"].isna().all()


def test_a_sum_of_absolute_values_has_an_interval_around_it():
    """Of a calibrated model every redraw is worse calibrated than its images: the plain percentiles would lie above."""
    table, rng = predictions(n=400), np.random.default_rng(1)
    table["p_heart"] = rng.random(400)
    table["y_heart"] = (rng.random(400) < table["p_heart"]).astype(float)
    ece = row(evaluate(table, ["heart"], EvaluationConfig(redraws=200, **PLAIN)), "heart", "ece")
    assert ece["ci_low"] < ece["value"] < ece["ci_high"]
    assert ece["bootstrap_mean"] == pytest.approx(ece["value"], rel=0.05)


def test_a_finding_of_one_class_is_not_defined_and_leaves_the_average():
    table = predictions().assign(y_lung=1.0)
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=10, **PLAIN))
    lung = evaluation.loc[evaluation["finding"] == "lung"]
    assert lung[["value", "ci_low", "ci_high", "std", "bootstrap_mean"]].isna().all(axis=None)
    assert (lung["redraws"] == 0).all()
    assert (lung["note"] == "not defined: one class only").all()
    for metric in METRICS:
        assert row(evaluation, "average", metric)["value"] == row(evaluation, "heart", metric)["value"]
        assert row(evaluation, "average", metric)["ci_low"] == pytest.approx(
            row(evaluation, "heart", metric)["ci_low"]
        )


def test_no_threshold_leaves_the_metrics_that_need_none():
    table = predictions()
    table.loc[table["split"] == "valid", "y_lung"] = 0.0
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=10, **PLAIN))
    assert np.isnan(row(evaluation, "lung", "accuracy")["value"])
    assert "one class only where it is chosen" in row(evaluation, "lung", "accuracy")["note"]
    assert np.isfinite(row(evaluation, "lung", "auroc")["value"])


def test_redraws_without_the_finding_are_counted():
    table = predictions()
    test = table.index[(table["split"] == "test").to_numpy()]
    table["y_lung"] = np.where(table["split"] == "test", 0.0, table["y_lung"])
    table.loc[test[0], "y_lung"] = 1.0
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=100, **PLAIN))
    assert 40 < row(evaluation, "lung", "auroc")["redraws"] < 90
    assert row(evaluation, "average", "auroc")["redraws"] == row(evaluation, "lung", "auroc")["redraws"]
    assert row(evaluation, "heart", "auroc")["redraws"] == 100


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_both_file_kinds_are_read_alike(tmp_path, ending):
    table, path = predictions(), tmp_path / f"predictions{ending}"
    table["patient_id"] = [f"00{i // 2}" for i in range(len(table))]
    table["y_heart"] = table["y_heart"].astype("Int8")
    table.to_parquet(path) if ending == ".parquet" else table.to_csv(path, index=False)
    read, findings = read_predictions(path)
    assert findings == ("heart", "lung")
    assert read["patient_id"].tolist() == table["patient_id"].tolist()
    assert read["sex"].tolist() == table["sex"].tolist()
    for column in ("y_heart", "p_heart", "y_lung", "p_lung"):
        assert read[column].dtype == np.float64
        np.testing.assert_allclose(read[column], table[column].astype(float), rtol=1e-15)


def spoil(column, value):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[4, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="patient_id"), "column 'patient_id' is missing"),
        (lambda t: t.drop(columns="y_lung"), "column 'y_lung' is missing"),
        (lambda t: t.drop(columns="p_heart"), "column 'p_heart' is missing"),
        (lambda t: t.drop(columns=["p_heart", "p_lung"]), "at least one column p_<finding>, found none"),
        (lambda t: t.rename(columns={"p_lung": "p_average", "y_lung": "y_average"}), "'p_average'"),
        (
            spoil("p_lung", 1.5),
            r"row 5 \(image_id 'i4'\), column 'p_lung': expected a probability in \[0, 1\], found 1.5",
        ),
        (spoil("p_lung", -0.1), "column 'p_lung': .* found -0.1"),
        (spoil("p_lung", None), "row 5 .* column 'p_lung': .* found nothing"),
        (spoil("y_heart", 0.5), "row 5 .* column 'y_heart': expected 1, 0 or empty, found 0.5"),
        (spoil("y_heart", -1), "column 'y_heart': .* found -1"),
        (spoil("y_heart", "yes"), "column 'y_heart': expected 1, 0 or empty, found 'yes'"),
        (spoil("image_id", "i1"), "row 5, column 'image_id': expected each image once, found 'i1'"),
        (spoil("image_id", None), "row 5, column 'image_id': expected a value, found nothing"),
        (
            spoil("patient_id", "p44"),
            "column 'patient_id': expected each patient in one split only, found 'p44'",
        ),
        (spoil("split", "hold-out"), "column 'split': expected one of train, valid, test, found 'hold-out'"),
        (lambda t: t.rename(columns={"p_lung": "p_any", "y_lung": "y_any"}), "the name 'any' is kept"),
        (spoil("p_lung", "nan"), "row 5 .* column 'p_lung': expected a probability .* found nothing"),
        (spoil("p_lung", "inf"), "row 5 .* column 'p_lung': expected a probability"),
        (lambda t: t[:0], "expected one row per image, found a file without rows"),
        (lambda t: t[t["split"] != "test"], "expected rows of split 'test', found none"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, change, message):
    path = tmp_path / "predictions.csv"
    change(predictions()).to_csv(path, index=False)
    with pytest.raises(InputError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such predictions file"):
        read_predictions(tmp_path / "none.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1, but not really")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_predictions(broken)
    (tmp_path / "table.xlsx").touch()
    with pytest.raises(InputError, match=r"found '\.xlsx'"):
        read_predictions(tmp_path / "table.xlsx")


def test_an_empty_file_and_another_schema_version_are_refused(tmp_path):
    for name in ("empty.csv", "empty.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=rf"{name}: expected a predictions file, found an empty file"):
            read_predictions(tmp_path / name)
    table = predictions()
    table.attrs["schema_version"] = 99
    table.to_parquet(tmp_path / "future.parquet")
    with pytest.raises(
        InputError,
        match=r"future.parquet: written with version 99 of the predictions schema; expected version 1",
    ):
        read_predictions(tmp_path / "future.parquet")


def test_an_evaluation_survives_its_file_and_an_older_one_is_refused(tmp_path):
    config = EvaluationConfig(redraws=5, groups=("sex",), min_group_images=5, min_group_positives=2)
    evaluation = evaluate(predictions(), ["heart", "lung"], config)
    evaluation.to_csv(tmp_path / "evaluation.csv", index=False)
    read = read_evaluation(tmp_path / "evaluation.csv")
    pd.testing.assert_frame_equal(read, evaluation, check_dtype=False)
    read.drop(columns=["note"]).to_csv(tmp_path / "old.csv", index=False)
    with pytest.raises(InputError, match=r"old.csv: column 'note' is missing; written by another version"):
        read_evaluation(tmp_path / "old.csv")
    with pytest.raises(InputError, match="no such evaluation"):
        read_evaluation(tmp_path / "none.csv")


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_script_writes_and_prints_the_evaluation(tmp_path):
    path, out = tmp_path / "other_model.csv", tmp_path / "new" / "folder"
    predictions().to_csv(path, index=False)
    done = script(
        path,
        "--out",
        out,
        "--redraws",
        20,
        "--resample",
        "image",
        "--threshold",
        "youden_test_per_draw",
        "--seed",
        7,
        "--groups",
        "sex",
    )
    assert done.returncode == 0, done.stderr
    bar = "20 replicates: "
    assert [line for line in done.stderr.splitlines() if line and not line.startswith(bar)] == [
        f"reading {path}",
        "drawing figures and the page",
    ]
    written = pd.read_csv(out / "evaluation.csv")
    config = EvaluationConfig(
        redraws=20, resample="image", threshold="youden_test_per_draw", seed=7, groups=("sex",)
    )
    expected = evaluate(*read_predictions(path), config)
    np.testing.assert_allclose(written["ci_low"], expected["ci_low"], rtol=1e-12)
    assert {path.name for path in (out / "figures").iterdir()} == {
        "roc.png",
        "roc.svg",
        "calibration.png",
        "calibration.svg",
    }
    assert "the paper's code" in done.stdout
    assert "how it was trained is not known here" in (out / "report.html").read_text()
    average_line = next(line for line in done.stdout.splitlines() if line.strip().startswith("average"))
    assert f"{row(expected, 'average', 'auroc')['value']:.3f} [" in average_line


def test_script_answers_a_mistake_with_one_line(tmp_path):
    done = script(tmp_path / "none.csv", "--out", tmp_path)
    assert done.returncode == 2
    reading, error = done.stderr.splitlines()
    assert reading == f"reading {tmp_path / 'none.csv'}"
    assert error == f"error: {tmp_path / 'none.csv'}: no such predictions file"


def test_evaluation_needs_no_jax():
    code = "import sys, jaxcxr.eval.evaluate, jaxcxr.eval.compare, jaxcxr.report.paper.supplementary_tables, jaxcxr.report.figures.sweep_figures, jaxcxr.report.figures.model_curves; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("patients", "of"), [(1, "1 patient"), (2, "2 patients"), (4, "4 patients")])
def test_no_interval_follows_from_few_patients(patients, of):
    """Every replicate of one would be the sample itself: an interval without width, which looks like certainty."""
    table, config = predictions(), EvaluationConfig(redraws=20, threshold="fixed", **PLAIN)
    one = table.assign(patient_id=[f"p{i % patients}" for i in range(len(table))])
    for metric in ("auroc", "sensitivity", "accuracy", "average_precision", "ece"):
        found = row(evaluate(one, ["heart", "lung"], config), "heart", metric)
        assert np.isfinite(found["value"])
        assert np.isnan([found["ci_low"], found["ci_high"], found["std"]]).all()
        assert found["note"] == f"no interval: all images are of {of}"
    average = row(evaluate(one, ["heart", "lung"], config), "average", "auroc")
    assert average["note"] == f"no interval: all images are of {of}"
    assert np.isnan(average["ci_low"])
    by_image = row(
        evaluate(one, ["heart", "lung"], EvaluationConfig(redraws=20, resample="image", **PLAIN)),
        "heart",
        "auroc",
    )
    assert by_image["ci_low"] < by_image["ci_high"]
    assert by_image["note"] == ""


@pytest.mark.parametrize("patients", [1, 4])
def test_no_interval_follows_from_the_positives_of_few_patients(patients):
    table = predictions()
    test = (table["split"] == "test").to_numpy()
    having = table.loc[test, "patient_id"].drop_duplicates()[:patients]
    table.loc[test, "y_heart"] = table.loc[test, "patient_id"].isin(having).astype(float)
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=20, threshold="fixed", **PLAIN))
    found, other = row(evaluation, "heart", "sensitivity"), row(evaluation, "lung", "sensitivity")
    assert np.isfinite(found["value"])
    assert np.isnan([found["ci_low"], found["ci_high"]]).all()
    assert found["note"] == "no interval: all positives or all negatives are of fewer than 5 patients"
    assert np.isnan(row(evaluation, "heart", "auroc")["delong_low"])
    assert other["ci_low"] < other["ci_high"]
    assert other["note"] == ""
    assert np.isfinite(row(evaluation, "average", "auroc")["ci_low"])
