"""What the weights that training started from were worth, beside the trained model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.estimates import Estimates
from jaxcxr.eval.evaluate import VALIDATION, aurocs_of, tabulate
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
        if split not in set(predictions["split"]):
            continue
        own, before = (aurocs_of(table, findings, config, split) for table in (predictions, start))
        rows = own.rows.assign(std_paper=np.nan, delong_low=np.nan, delong_high=np.nan)
        told = [
            (rows.assign(metric=metric + BEFORE), before.draws),
            (rows.assign(metric=metric + GAIN, reference="start"), own.draws - before.draws),
        ]
        parts += [tabulate(Estimates(described, draws, own.policy), config) for described, draws in told]
    return pd.concat(parts, ignore_index=True)
