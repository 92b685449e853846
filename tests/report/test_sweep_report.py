import json

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.report.evaluated_runs import Run
from jaxcxr.report.evaluation_facts import suppressed, worst_off
from jaxcxr.report.paper.supplementary_tables import summarise
from jaxcxr.report.run_report import against_untouched
from jaxcxr.report.screen import comparison_text, groups_text, sweep_text
from jaxcxr.report.sweep_report import compare_with_non_private, write_sweep
from tests.report.films import predicted_films

pytestmark = pytest.mark.usefixtures("quick_compilation")

FINDINGS = ["congestion", "hernia"]
CONFIG = EvaluationConfig(
    redraws=40, groups=("sex", "age:0,30,60,80"), min_group_images=20, min_group_positives=3
)


def model(signal):
    return predicted_films(signal, FINDINGS)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    tmp_path, folders, runs = tmp_path_factory.mktemp("sweep"), {}, []
    for epsilon, signal in ((np.inf, 2.5), (7.89, 1.5), (1.0, 0.8)):
        folder = tmp_path / f"{epsilon:g}"
        folder.mkdir()
        table = model(signal)
        table[table["split"] != "train"].to_parquet(folder / "predictions.parquet")
        evaluate(table, FINDINGS, CONFIG).to_csv(folder / "evaluation.csv", index=False)
        folders[epsilon] = folder
        runs.append(Run(pd.read_csv(folder / "evaluation.csv"), epsilon, None if np.isinf(epsilon) else 1e-5))
    return folders, runs


def test_a_sweep_leaves_tables_figures_and_comparisons(tmp_path, swept):
    folders, runs = swept
    films = model(1.0).rename(columns={f"y_{f}": f for f in FINDINGS})
    written = write_sweep(tmp_path / "out", runs, folders, CONFIG, films, FINDINGS)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert {"evaluations.csv", "comparisons.csv", "correlations.csv"} <= names
    assert {f"tables/table_{i}.{e}" for i in (1, 2, 3) for e in ("md", "tex", "csv")} <= names
    figures = (
        "figure_3",
        "figure_4",
        "figure_4_age",
        "heat_map",
        "figure_s1",
        "figure_s2",
        "figure_s3",
        "figure_s4",
    )
    assert {f"figures/{stem}.{e}" for stem in figures for e in ("png", "svg")} <= names
    assert all(path.stat().st_size > 100 for path in written)
    comparisons = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert list(dict.fromkeys(comparisons["epsilon"])) == [7.89, 1.0]
    auroc = comparisons.loc[
        (comparisons["group"] == "all")
        & (comparisons["finding"] == "average")
        & (comparisons["metric"] == "auroc")
    ]
    assert (auroc["difference"] > 0).all()
    assert auroc["difference"].is_monotonic_increasing


def test_one_model_alone_has_nothing_to_be_compared_with(tmp_path, swept):
    folders, runs = swept
    assert compare_with_non_private({np.inf: folders[np.inf]}, CONFIG) is None
    assert compare_with_non_private({1.0: folders[1.0]}, CONFIG) is None
    films = model(1.0).rename(columns={f"y_{f}": f for f in FINDINGS})
    written = write_sweep(tmp_path / "out", runs[:1], {np.inf: folders[np.inf]}, CONFIG, films, FINDINGS)
    assert "comparisons.csv" not in {path.name for path in written}


@pytest.mark.parametrize(
    ("changed", "compared"),
    [({}, True), ({"prediction_views": "mirrored"}, False), ({"weights_sha256": "cd"}, False), ({"store_fingerprint": "other"}, False)],
)  # fmt: skip
def test_a_run_is_set_against_the_very_weights_it_started_from(tmp_path, swept, changed, compared):
    """They have a run.json and no config.yaml: nothing was trained."""
    folders, _ = swept
    before = {"prediction_views": "one", "weights_sha256": "ab", "store_fingerprint": "this", **changed}
    for name, source, facts in (
        ("untouched", 1.0, before),
        ("run", 7.89, {"initial_weights_sha256": "ab", "store_fingerprint": "this"}),
    ):
        (tmp_path / name).mkdir()
        table = (folders[source] / "predictions.parquet").read_bytes()
        (tmp_path / name / "predictions.parquet").write_bytes(table)
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
    (tmp_path / "run" / "config.yaml").write_text("model: {test_time_augmentation: one}")
    row = against_untouched(tmp_path / "run", CONFIG)
    assert (row is not None) == compared
    if row is not None:
        assert row["difference"] < 0  # the weights that it started from are the weaker model here


def test_sentences_follow_from_the_numbers():
    table = model(2.5)
    evaluation = evaluate(table, FINDINGS, CONFIG)
    worst = worst_off(evaluation, "auroc")
    assert worst is not None
    assert worst["group"] == "sex_M"
    assert worst["clear"]
    assert worst["difference"] < worst["ci_high"] < 0
    text = groups_text(evaluation)
    assert "chosen on the validation images" in text
    assert f"sex M (n = {worst['n']}), {worst['difference']:+.3f}" in text
    assert "age [0, 30)" in suppressed(evaluation)
    assert worst_off(evaluate(table, FINDINGS, EvaluationConfig(redraws=5, groups=()))) is None


def test_a_comparison_says_where_a_p_value_is_only_a_bound(swept):
    folders, _ = swept
    comparison = compare_with_non_private(folders, CONFIG)
    assert comparison is not None
    text = comparison_text(comparison.loc[comparison["epsilon"] == 1.0])
    assert f"≤ {2 / 41:.3f}" in text
    assert "1 of 5 groups is too small to be judged (fewer than 20 images)" in text
    assert "age [0, 30)" not in text  # counted, not listed


def test_the_screen_gives_the_estimate_and_a_verdict(swept):
    _, runs = swept
    text = sweep_text(summarise(runs), runs[-1].evaluation)
    for run in runs:
        rows = run.evaluation
        own = rows[
            (rows["group"] == "all") & (rows["finding"] == "average") & (rows["metric"] == "auroc")
        ].iloc[0]
        assert f"{own['value']:.3f} [{own['ci_low']:.3f}" in text
        assert own["value"] != own["bootstrap_mean"]
    assert "before training" in text
    assert "no better than guessing" in text  # at epsilon 1
