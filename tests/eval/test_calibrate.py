"""Calibration on validation images: right where the scores are distorted by a known amount, and silent where it cannot be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.digests import seal
from jaxcxr.errors import InputError
from jaxcxr.eval.calibrate import calibrate, write_calibration
from jaxcxr.eval.metrics import choose_thresholds
from jaxcxr.models.calibration import Calibration, logits, platt, read_calibration
from jaxcxr.run_folder import CALIBRATION

CONFIG = EvaluationConfig()


def predictions(n: int = 40_000) -> pd.DataFrame:
    """True probabilities p; the scores of `weighted` have their odds multiplied by 5, as class weights do."""
    rng = np.random.default_rng(3)
    p = rng.beta(1, 6, n)
    label = (rng.uniform(size=n) < p).astype(float)
    frame = pd.DataFrame({"split": np.where(np.arange(n) < n // 2, "valid", "test")})
    score = 1 / (1 + np.exp(-(logits(p) + np.log(5))))
    frame = frame.assign(y_weighted=label, p_weighted=score, truth=p)
    frame = frame.assign(y_backwards=label, p_backwards=1 - score, y_rare=0.0, p_rare=score)
    frame.loc[[0, 1], "y_rare"] = 1.0
    frame.loc[frame["split"] == "test", "y_weighted"] = np.nan  # the test images' labels must have no say
    return frame


FINDINGS = ("weighted", "backwards", "rare")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return predictions()


@pytest.fixture(scope="module")
def found(table: pd.DataFrame) -> Calibration:
    made = calibrate(table, FINDINGS, CONFIG)
    assert made is not None
    return made


def test_the_odds_that_class_weights_added_are_taken_away(found: Calibration, table: pd.DataFrame) -> None:
    assert found.slope[0] == pytest.approx(1.0, abs=0.06)
    assert found.intercept[0] == pytest.approx(-np.log(5), abs=0.1)
    test = table.loc[table["split"] == "test"]
    mapped = found.probabilities(test[[f"p_{f}" for f in FINDINGS]].to_numpy())
    assert (
        np.abs(mapped[:, 0] - test["truth"]).mean() < 0.01 < np.abs(test["p_weighted"] - test["truth"]).mean()
    )
    np.testing.assert_array_equal(mapped[:, 1:], test[["p_backwards", "p_rare"]].to_numpy())


def test_what_cannot_be_calibrated_keeps_its_scores_and_says_why(found: Calibration) -> None:
    assert found.slope[1:] == (None, None)
    assert "do not rise" in found.notes[1]
    assert found.notes[2].startswith("2 positive and 19998 negative validation images")
    assert found.notes[0] == ""
    assert found.made_on == "20000 validation images"


def test_the_same_images_are_called_before_and_after(found: Calibration, table: pd.DataFrame) -> None:
    scores = table[[f"p_{f}" for f in FINDINGS]].to_numpy()
    raw = choose_thresholds(table, FINDINGS, "youden_validation")
    before, after = scores >= raw, found.probabilities(scores) >= found.thresholds()
    np.testing.assert_array_equal(before, after)


def test_without_validation_images_there_is_none_and_an_old_file_goes(
    tmp_path: Path, table: pd.DataFrame, found: Calibration
) -> None:
    found.write(tmp_path)
    assert read_calibration(tmp_path, FINDINGS) == found
    with pytest.raises(InputError, match=r"calibration\.json: is of the findings weighted, backwards, rare"):
        read_calibration(tmp_path, ("weighted",))
    (tmp_path / CALIBRATION).write_text("[]")
    seal(tmp_path / CALIBRATION)
    with pytest.raises(InputError, match="not a calibration"):
        read_calibration(tmp_path, FINDINGS)
    assert write_calibration(table.loc[table["split"] == "test"], FINDINGS, CONFIG, tmp_path) is None
    assert read_calibration(tmp_path, FINDINGS) is None


def test_a_perfect_separation_stays_finite() -> None:
    label = np.repeat([0.0, 1.0], 50)
    frame = pd.DataFrame({"split": "valid", "y_a": label, "p_a": label})
    made = calibrate(frame, ("a",), CONFIG)
    assert made is not None
    assert made.slope[0] is not None
    low, high = made.probabilities(np.array([[0.0], [1.0]]))[:, 0]
    assert low == pytest.approx(1 / 52, rel=0.05)  # Platt's targets
    assert high == pytest.approx(51 / 52, rel=0.05)


def test_platt_is_a_straight_line_in_the_logit() -> None:
    assert platt(np.array([0.5]), 2.0, -1.0)[0] == pytest.approx(1 / (1 + np.e))
    assert np.isfinite(logits(np.array([0.0, 1.0]))).all()
