import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.compare import COMPARISON_COLUMNS, compare, read_pair
from jaxcxr.eval.delong import delong
from jaxcxr.eval.estimates import measure
from jaxcxr.eval.evaluate import evaluate

ROOT = Path(__file__).parents[2]
FINDINGS = ["heart", "lung"]
CONFIG = EvaluationConfig(redraws=80, groups=("sex",), min_group_images=5, min_group_positives=2)


def model(noise, seed=0, n=300):
    rng = np.random.default_rng(0)
    patient = rng.integers(0, n // 2, n)
    table = {
        "image_id": [f"i{i}" for i in range(n)],
        "patient_id": [f"p{i}" for i in patient],
        "split": np.where(patient % 3 == 0, "valid", "test"),
        "sex": np.where(patient % 2 == 0, "F", "M"),
    }
    labels = {f: (rng.random(n) < 0.3).astype(float) for f in FINDINGS}
    base = {f: rng.normal(size=n) for f in FINDINGS}
    more = np.random.default_rng(seed + 1)
    for finding, y in labels.items():
        table[f"y_{finding}"] = y
        table[f"p_{finding}"] = 1 / (1 + np.exp(-(1.5 * y - 1 + base[finding] + noise * more.normal(size=n))))
    return pd.DataFrame(table)


def row(frame, group, finding, metric):
    chosen = frame[(frame["group"] == group) & (frame["finding"] == finding) & (frame["metric"] == metric)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_difference_is_that_of_the_paired_redraws():
    a, b = model(0), model(1)
    got = compare(a, b, FINDINGS, CONFIG)
    assert list(got.columns) == list(COMPARISON_COLUMNS)
    one, two = (evaluate(t, FINDINGS, CONFIG) for t in (a, b))
    lung = row(got, "sex_F", "lung", "auroc")
    assert lung["value_a"] == row(one, "sex_F", "lung", "auroc")["value"]
    assert lung["difference"] == lung["value_a"] - row(two, "sex_F", "lung", "auroc")["value"]
    draws = [e.draws[((e.rows["group"] == "all") & (e.rows["finding"] == "lung") & (e.rows["metric"] == "auroc")).to_numpy()][0, 1:]
             for e in (measure(t, FINDINGS, CONFIG) for t in (a, b))]  # fmt: skip
    paired = draws[0] - draws[1]
    everyone = row(got, "all", "lung", "auroc")
    assert everyone["std"] == pytest.approx(paired.std(ddof=1))
    assert everyone["std"] < 0.9 * np.hypot(draws[0].std(), draws[1].std())
    assert (everyone["ci_low"], everyone["ci_high"]) == pytest.approx(
        tuple(np.percentile(paired, [2.5, 97.5]))
    )
    parity = row(got, "sex_F", "average", "statistical_parity_difference")
    assert parity["difference"] == pytest.approx(
        row(one, "sex_F", "average", "statistical_parity_difference")["value"]
        - row(two, "sex_F", "average", "statistical_parity_difference")["value"]
    )


def test_holm_is_over_the_findings_of_a_group_and_metric():
    got = compare(model(0), model(1), FINDINGS, CONFIG)
    p = [row(got, "all", f, "auroc")["p_value"] for f in FINDINGS]
    assert sorted(row(got, "all", f, "auroc")["p_holm"] for f in FINDINGS) == pytest.approx(
        [min(1, 2 * min(p)), min(1, max(2 * min(p), max(p)))]
    )
    assert np.isnan(row(got, "all", "average", "auroc")["p_holm"])


def test_delong_stands_beside_the_bootstrap():
    a, b = model(0), model(1)
    got = compare(a, b, FINDINGS, CONFIG)
    test = a["split"] == "test"
    women = (a.loc[test, "sex"] == "F").to_numpy()
    y = np.where(women, a["y_lung"][test], np.nan)
    scores = np.stack([t.loc[test, "p_lung"].to_numpy() for t in (a, b)])
    expected = delong(y, scores, pd.factorize(a["patient_id"][test])[0]).p_value()
    assert row(got, "sex_F", "lung", "auroc")["delong_p"] == pytest.approx(expected)
    assert np.isnan(row(got, "sex_F", "lung", "accuracy")["delong_p"])


def test_a_model_against_itself_differs_nowhere():
    got = compare(model(0), model(0), FINDINGS, CONFIG)
    defined = got["difference"].notna()
    assert (got.loc[defined, ["difference", "ci_low", "ci_high", "std"]] == 0).all(axis=None)
    assert (got.loc[defined, "p_value"] == 1).all()
    assert set(got["delong_p"].dropna()) == {1}


def write(folder, a, b):
    for name, table in (("a", a), ("b", b)):
        (folder / name).mkdir()
        table.to_parquet(folder / name / "predictions.parquet")
    return folder / "a", folder / "b"


def test_files_are_put_into_one_order_and_need_not_share_all(tmp_path):
    a = model(0)
    shuffled = (
        model(1).sample(frac=1, random_state=0).drop(columns=["sex"]).assign(y_hernia=0.0, p_hernia=0.5)
    )
    shuffled = shuffled[(shuffled["split"] == "test") | (shuffled.index % 2 == 0)]
    first, second, findings = read_pair(*write(tmp_path, a, shuffled))
    assert findings == ("heart", "lung")
    got = compare(first, second, findings, CONFIG)
    expected = compare(a, model(1), FINDINGS, CONFIG)
    aurocs = got["metric"] == "auroc"
    pd.testing.assert_frame_equal(
        got.loc[aurocs, ["difference", "ci_low", "p_value"]],
        expected.loc[aurocs, ["difference", "ci_low", "p_value"]],
    )


def images_fewer(t):
    return t[t["image_id"] != t.loc[t["split"] == "test", "image_id"].iloc[3]]


def other_label(t):
    at = t.index[t["split"] == "test"][2]
    t.loc[at, "y_lung"] = 1 - t.loc[at, "y_lung"]
    return t


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (images_fewer, "b/predictions.parquet: test image 'i.*' of .*a/predictions.parquet is missing; .* found 1 fewer"),
        (other_label, r"image_id 'i.*', column 'y_lung': expected [01]\.0 as in .*a/predictions.parquet, found [01]\.0"),
        (lambda t: t.rename(columns=lambda c: c.replace("heart", "x").replace("lung", "y")), r"expected a finding of .* \(heart, lung\), found x, y"),
        (lambda t: t.assign(patient_id=t["patient_id"] + "b"), "column 'patient_id': expected p"),
    ],
)  # fmt: skip
def test_models_of_other_images_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_pair(*write(tmp_path, model(0), change(model(1))))


def test_script_writes_and_prints_the_comparison(tmp_path):
    a, b = write(tmp_path, model(0), model(1))
    command = [
        sys.executable,
        str(ROOT / "scripts/compare.py"),
        str(a),
        str(b),
        "--out",
        str(tmp_path / "c"),
        "--redraws",
        "30",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"comparing .* with .*: 30 bootstrap replicates\n", done.stderr)
    written = pd.read_csv(tmp_path / "c" / "comparison.csv")
    assert "A minus B is" in (tmp_path / "c" / "report.html").read_text()
    assert set(written["group"]) == {"all", "sex_F", "sex_M"}
    assert f"{row(written, 'all', 'average', 'auroc')['difference']:+.3f} [" in done.stdout
    missing = subprocess.run(
        [*command[:2], str(a), "nowhere", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[1:] == ["error: nowhere: no such predictions file"]
