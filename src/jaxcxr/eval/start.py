"""What the weights that training started from were worth, beside the trained model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.estimates import Estimates, measure
from jaxcxr.eval.evaluate import VALIDATION, tabulate
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.run_folder import PREDICTIONS, UNTOUCHED

BEFORE, GAIN = "_before_training", "_gain"
"""Endings of the metrics `auroc` and `auroc_validation`: of the starting weights, and of the model minus them
(paired; positive is better).
"""


def with_start(
    evaluation: pd.DataFrame,
    predictions: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    folder: Path,
) -> pd.DataFrame:
    """An evaluation with the AUROC of the weights that training started from, of each finding and on average,
    on the validation and the test images, and what the model gained over them; as it is where they were not
    evaluated.

    Args:
        evaluation: table of `evaluate.evaluate`.
        predictions: that it was made from.
        findings: their findings.
        config: how it was judged.
        folder: of the run, in which `untouched/` holds the predictions of the starting weights.
    """
    path = folder / UNTOUCHED / PREDICTIONS
    if not path.is_file():
        return evaluation
    start, theirs = read_predictions(path)
    if tuple(theirs) != tuple(findings) or start["image_id"].tolist() != predictions["image_id"].tolist():
        return evaluation
    parts = [evaluation]
    for split, metric in (("test", "auroc"), ("valid", VALIDATION)):
        if not (predictions["split"] == split).any():
            continue
        (rows, own), (_, before) = (_aurocs(table, findings, config, split) for table in (predictions, start))
        nowhere = {"delong_low": np.nan, "delong_high": np.nan}
        told = [
            (rows.assign(metric=metric + BEFORE, std_paper=np.nan, **nowhere), before),
            (rows.assign(metric=metric + GAIN, reference="start", std_paper=np.nan, **nowhere), own - before),
        ]
        parts += [tabulate(Estimates(described, draws, "fixed"), config) for described, draws in told]
    for part in parts[1:]:
        part["threshold_policy"] = evaluation["threshold_policy"].iloc[0]  # they need no threshold
    return pd.concat(parts, ignore_index=True)


def _aurocs(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig, split: str
) -> tuple[pd.DataFrame, Float[np.ndarray, "rows draws"]]:
    """Description and draws of the AUROC of each finding, and on average, on the images of a split."""
    images = predictions.loc[predictions["split"] == split].assign(split="test")
    alone = dataclasses.replace(config, threshold="fixed", fixed_thresholds=None, groups=())
    found = measure(images, findings, alone)
    is_auroc = (found.rows["metric"] == "auroc") & (found.rows["group"] == "all")
    return found.rows.loc[is_auroc].reset_index(drop=True), found.draws[is_auroc.to_numpy()]
