"""The metrics by their plain definitions, mostly scikit-learn's: what the counted ones must equal."""

import numpy as np
from jaxtyping import Float
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from jaxcxr.eval.metrics import METRICS, NEED_A_THRESHOLD


def plain_metrics(
    y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float
) -> dict[str, float]:
    """Every metric of one finding by name."""
    known = ~np.isnan(y)
    y, p = y[known], p[known]
    if not ((y == 1).any() and (y == 0).any()):
        return dict.fromkeys(METRICS, np.nan)
    called = p >= threshold
    bins = np.digitize(p, np.arange(1, 10) / 10)
    values = {
        "auroc": roc_auc_score(y, p),
        "accuracy": accuracy_score(y, called),
        "sensitivity": recall_score(y, called),
        "specificity": recall_score(y, called, pos_label=0),
        "average_precision": average_precision_score(y, p),
        "balanced_accuracy": balanced_accuracy_score(y, called),
        "f1": f1_score(y, called),
        "brier": np.mean((p - y) ** 2),
        "ece": sum(abs((p - y)[bins == b].sum()) for b in range(10)) / len(y),
        "calibration_in_the_large": p.mean() - y.mean(),
        "selection_rate": called.mean(),
        "underdiagnosis_rate": 1 - recall_score(y, called),
    }
    if np.isnan(threshold):
        values |= dict.fromkeys(NEED_A_THRESHOLD, np.nan)
    return {name: float(value) for name, value in values.items()}
