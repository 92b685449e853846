"""Fit the calibration of a model on its predictions for validation images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression

from jaxcxr import digests
from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.metrics import choose_thresholds
from jaxcxr.models.calibration import Calibration, logits
from jaxcxr.run_folder import CALIBRATION


def write_calibration(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig, out: Path
) -> Calibration | None:
    """Fit the calibration on the validation rows and write `calibration.json`.

    Without such rows there is none, and an older file, which would be another model's, is taken away.
    """
    found = calibrate(predictions, findings, config)
    if found is None:
        digests.unlink(out / CALIBRATION)
    else:
        found.write(out)
    return found


def calibrate(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> Calibration | None:
    """Platt's map of each finding, and Youden's threshold on its scores, both chosen on validation images.

    A finding with fewer than `min_group_positives` positives or negatives, or whose scores do not rise with
    it, keeps its scores. Images with an unknown label are left out.

    Args:
        predictions: table with `split`, `y_<finding>` and `p_<finding>`.
        findings: names of the findings.
        config: for the least number of positives, and for thresholds that are `fixed`.

    Returns:
        None if there are no validation images.
    """
    valid = predictions.loc[predictions["split"] == "valid"]
    if valid.empty:
        return None
    policy = "fixed" if config.threshold == "fixed" else "youden_validation"
    thresholds = choose_thresholds(predictions, findings, policy, config.fixed_thresholds)
    slopes, intercepts, notes = [], [], []
    for finding in findings:
        labels, scores = (valid[f"{kind}_{finding}"].to_numpy(np.float64) for kind in "yp")
        known = ~np.isnan(labels)
        slope, intercept, note = _fitted(labels[known] == 1, scores[known], config.min_group_positives)
        slopes.append(slope)
        intercepts.append(intercept)
        notes.append(note)
    return Calibration(
        tuple(findings),
        tuple(slopes),
        tuple(intercepts),
        tuple(None if np.isnan(t) else float(t) for t in thresholds),
        f"{len(valid)} validation images",
        tuple(notes),
    )


def _fitted(
    positive: np.ndarray, scores: Float[np.ndarray, " n"], least: int
) -> tuple[float | None, float | None, str]:
    """Slope and intercept, or why there are none.

    Maximum likelihood with Platt's targets (p + 1) / (p + 2) for p positives and 1 / (n + 2) for n negatives,
    which keep a perfect separation finite: every image counts as positive with its target, and as negative
    with the rest.
    """
    p, n = int(positive.sum()), int((~positive).sum())
    if min(p, n) < least:
        return (
            None,
            None,
            f"{p} positive and {n} negative validation images; at least {least} of each are needed",
        )
    target = np.where(positive, (p + 1) / (p + 2), 1 / (n + 2))
    inputs = np.concatenate([logits(scores)] * 2)[:, None]
    classes = np.repeat([1, 0], len(scores))
    weights = np.concatenate([target, 1 - target])
    fit = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(inputs, classes, sample_weight=weights)
    slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    if not slope > 0:
        return None, None, "its scores do not rise with the finding on the validation images"
    return slope, intercept, ""
