"""The weights before training beside the model."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig, Experiment
from jaxcxr.data.store import Store
from jaxcxr.digests import sealed
from jaxcxr.eval.evaluate import evaluate, read_evaluation
from jaxcxr.eval.start import with_start
from jaxcxr.report.run_report import against_untouched
from jaxcxr.report.screen import start_text
from jaxcxr.run_folder import EVALUATION, PREDICTIONS, UNTOUCHED
from jaxcxr.training import parameters
from jaxcxr.training.weights import save_weights
from jaxcxr.workflows.experiment import has_start, run_experiment
from tests.conftest import changed

CONFIG = EvaluationConfig(redraws=60, groups=(), threshold="fixed")


def model(seed: int, knows: float, n: int = 300) -> pd.DataFrame:
    labels = np.random.default_rng(0).integers(0, 2, n).astype(float)
    noise = np.random.default_rng(seed).uniform(size=n)
    return pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "split": np.where(np.arange(n) < 100, "valid", "test"),
            "y_mass": labels,
            "p_mass": knows * labels + (1 - knows) * noise,
        }
    )


def judged(folder: Path, own: pd.DataFrame, start: pd.DataFrame | None) -> pd.DataFrame:
    if start is not None:
        (folder / UNTOUCHED).mkdir(exist_ok=True)
        with sealed(folder / UNTOUCHED / PREDICTIONS) as part:
            start.to_parquet(part, index=False)
    return with_start(evaluate(own, ["mass"], CONFIG), own, ["mass"], CONFIG, folder)


def value(table: pd.DataFrame, metric: str, column: str = "value") -> float:
    everyone = (table["group"] == "all") & (table["finding"] == "average")
    rows = table.loc[everyone & (table["metric"] == metric)]
    return float(rows[column].item())


def test_gain_and_harm_are_paired(tmp_path: Path) -> None:
    good, poor = model(1, 0.4), model(2, 0.1)
    for name, own, start, said in (
        ("gain", good, poor, "training gained +0."),
        ("harm", poor, good, "WARNING: training did harm, -0."),
        ("none", good, good, "training is not shown to have gained anything, +0.000 [+0.000, +0.000]"),
    ):
        (tmp_path / name).mkdir()
        found = judged(tmp_path / name, own, start)
        of_start = evaluate(start, ["mass"], CONFIG)
        for metric in ("auroc", "auroc_validation"):
            assert value(found, f"{metric}_before_training") == value(of_start, metric)
            gain = value(found, metric) - value(of_start, metric)
            assert value(found, f"{metric}_gain") == pytest.approx(gain)
        assert said in start_text(found)
        assert not found.duplicated(["group", "finding", "metric"]).any()
    assert "on the validation images" in start_text(found)


def test_nothing_is_said_of_another_start(tmp_path: Path) -> None:
    """No start, or one that was judged on other images: the evaluation as it is."""
    own = model(1, 0.4)
    plain = evaluate(own, ["mass"], CONFIG)
    pd.testing.assert_frame_equal(judged(tmp_path, own, None), plain)
    others = own.assign(image_id=own["image_id"] + "x")
    pd.testing.assert_frame_equal(judged(tmp_path, own, others), plain)
    assert start_text(plain) == ""


def test_a_run_judges_the_weights_it_starts_from(
    tiny_nonprivate_config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_nonprivate_config, evaluation=EvaluationConfig(redraws=20))
    config = changed(config, "training", steps=2, learning_rate=0.1, augmentation="none")
    params = parameters.random_params(config, bytes(32))
    for name, head in (("given", "mapped"), ("zero", "zero")):
        save_weights(tmp_path / name, params, {"head": head})
    given, zero = (changed(config, "model", weights=str(tmp_path / name)) for name in ("given", "zero"))
    assert [has_start(c) for c in (given, zero, config)] == [True, False, False]
    assert has_start(changed(changed(zero, "training", scope="head_on_features"), "head", start="public"))

    run = tmp_path / "run"
    found = run_experiment(given, run, say=lambda _: None, judge_start=True)
    assert found is not None
    start = read_evaluation(run / UNTOUCHED / EVALUATION)
    assert value(found, "auroc_before_training") == pytest.approx(value(start, "auroc"))
    assert value(found, "auroc_gain") == pytest.approx(value(found, "auroc") - value(start, "auroc"))
    assert value(found, "auroc_gain") != 0
    beside = against_untouched(run, given.evaluation)
    assert beside is not None
    assert -beside["difference"] == pytest.approx(value(found, "auroc_gain"))
    again = run_experiment(given, run, resume=True, say=lambda _: None, judge_start=True)
    assert again is not None
    assert "auroc_gain" in set(again["metric"])
