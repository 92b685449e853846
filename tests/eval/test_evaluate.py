import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import average, bootstrap, std_paper
from jaxcxr.eval.evaluate import EVALUATION_COLUMNS, evaluate, read_predictions
from jaxcxr.eval.metrics import METRICS, accuracy, auroc, youden_threshold

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
    chosen = evaluation[(evaluation["group"] == group) & (evaluation["finding"] == finding) & (evaluation["metric"] == metric)]
    assert len(chosen) == 1
    return chosen.iloc[0]


@pytest.mark.parametrize("policy", ["youden_test_per_draw", "youden_test", "youden_validation"])
def test_evaluation_is_in_the_form_of_the_contract(policy):
    table, config = predictions(), EvaluationConfig(redraws=40, threshold=policy, seed=3)
    evaluation = evaluate(table, ["heart", "lung"], config)
    assert list(evaluation.columns) == list(EVALUATION_COLUMNS)
    assert list(EVALUATION_COLUMNS)[: len(CONTRACT)] == CONTRACT
    assert len(evaluation) == 3 * len(METRICS)
    draws = bootstrap(table, ["heart", "lung"], redraws=40, resample="patient", threshold=policy, seed=3)

    test, chosen_on = (table[table["split"] == s] for s in ("test", "valid" if policy == "youden_validation" else "test"))
    threshold = youden_threshold(chosen_on["y_lung"].to_numpy(), chosen_on["p_lung"].to_numpy())
    y, p = test["y_lung"].to_numpy(), test["p_lung"].to_numpy()
    lung = row(evaluation, "lung", "accuracy")
    assert lung["threshold"] == threshold
    assert lung["value"] == accuracy(y, p, threshold)
    assert (lung["n"], lung["positives"]) == (np.isfinite(y).sum(), (y == 1).sum())
    d = draws[:, 1, METRICS.index("accuracy")]
    assert lung["std"] == pytest.approx(d.std(ddof=1))
    assert lung["bootstrap_mean"] == pytest.approx(d.mean())
    assert (lung["ci_low"], lung["ci_high"]) == pytest.approx(tuple(np.percentile(d, [2.5, 97.5])))
    assert np.isnan(row(evaluation, "lung", "auroc")["threshold"])

    both = row(evaluation, "average", "auroc")
    assert both["value"] == pytest.approx((row(evaluation, "heart", "auroc")["value"] + auroc(y, p)) / 2)
    assert both["std"] == pytest.approx(average(draws)[:, 0].std(ddof=1))
    assert both["std_paper"] == pytest.approx(std_paper(draws[:, :, 0]))
    assert both["n"] == len(test)
    assert pd.isna(both["positives"])


def test_a_group_is_a_row_mask():
    table, config = predictions(), EvaluationConfig(redraws=30)
    women = (table["sex"] == "F").to_numpy()
    evaluation = evaluate(table, ["heart", "lung"], config, groups={"sex_F": women})
    assert list(dict.fromkeys(evaluation["group"])) == ["all", "sex_F"]
    pd.testing.assert_frame_equal(
        evaluation[evaluation["group"] == "all"].reset_index(drop=True), evaluate(table, ["heart", "lung"], config)
    )
    test = table[women & (table["split"] == "test")]
    got = row(evaluation, "heart", "accuracy", "sex_F")
    assert got["n"] == len(test)
    assert got["threshold"] == row(evaluation, "heart", "accuracy")["threshold"]
    assert got["value"] == accuracy(test["y_heart"].to_numpy(), test["p_heart"].to_numpy(), got["threshold"])


def test_a_finding_of_one_class_is_not_defined_and_leaves_the_average():
    table = predictions().assign(y_lung=1.0)
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=10))
    lung = evaluation[evaluation["finding"] == "lung"]
    assert lung[["value", "ci_low", "ci_high", "std", "bootstrap_mean"]].isna().all(axis=None)
    assert (lung["redraws"] == 0).all()
    for metric in METRICS:
        assert row(evaluation, "average", metric)["value"] == row(evaluation, "heart", metric)["value"]
        assert row(evaluation, "average", metric)["ci_low"] == row(evaluation, "heart", metric)["ci_low"]


def test_redraws_without_the_finding_are_counted():
    table = predictions()
    test = table.index[table["split"] == "test"]
    table["y_lung"] = np.where(table["split"] == "test", 0.0, table["y_lung"])
    table.loc[test[0], "y_lung"] = 1.0
    evaluation = evaluate(table, ["heart", "lung"], EvaluationConfig(redraws=100))
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
        (spoil("p_lung", 1.5), r"row 5 \(image_id 'i4'\), column 'p_lung': expected a probability in \[0, 1\], found 1.5"),
        (spoil("p_lung", -0.1), "column 'p_lung': .* found -0.1"),
        (spoil("p_lung", None), "row 5 .* column 'p_lung': .* found nothing"),
        (spoil("y_heart", 0.5), "row 5 .* column 'y_heart': expected 1, 0 or empty, found 0.5"),
        (spoil("y_heart", -1), "column 'y_heart': .* found -1"),
        (spoil("y_heart", "yes"), "column 'y_heart': expected 1, 0 or empty, found 'yes'"),
        (spoil("image_id", "i1"), "row 5, column 'image_id': expected each image once, found 'i1'"),
        (spoil("image_id", None), "row 5, column 'image_id': expected a value, found nothing"),
        (spoil("patient_id", "p44"), "column 'patient_id': expected each patient in one split only, found 'p44'"),
        (spoil("split", "hold-out"), "column 'split': expected one of train, valid, test, found 'hold-out'"),
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


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_script_writes_and_prints_the_evaluation(tmp_path):
    path, out = tmp_path / "other_model.csv", tmp_path / "new" / "folder"
    predictions().to_csv(path, index=False)
    done = script(
        path, "--out", out, "--redraws", 20, "--resample", "image", "--threshold", "youden_test_per_draw", "--seed", 7
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = pd.read_csv(out / "evaluation.csv")
    config = EvaluationConfig(redraws=20, resample="image", threshold="youden_test_per_draw", seed=7)
    expected = evaluate(*read_predictions(path), config)
    np.testing.assert_allclose(written["ci_low"], expected["ci_low"], rtol=1e-12)
    average_line = next(line for line in done.stdout.splitlines() if line.strip().startswith("average"))
    assert f"{row(expected, 'average', 'auroc')['value']:.3f} [" in average_line


def test_script_answers_a_mistake_with_one_line(tmp_path):
    done = script(tmp_path / "none.csv", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.csv'}: no such predictions file\n"


def test_evaluation_needs_no_jax():
    code = "import sys, jaxcxr.eval.evaluate, jaxcxr.report.tables, jaxcxr.report.figures; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
