"""Metrics of one finding, and the threshold at which an image is called positive.

Labels are 1, 0 or NaN (unknown, left out). An image is called positive if its probability is at least the
threshold, as in scikit-learn's `roc_curve`. If only one class of a finding is labelled, all its metrics are
NaN ('not defined').
Source: the paper's Quantitative Evaluation and Statistical Analysis for the first four metrics and Youden's
criterion.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxcxr.errors import InputError

METRICS: tuple[str, ...] = (
    "auroc",
    "accuracy",
    "sensitivity",
    "specificity",
    "average_precision",
    "balanced_accuracy",
    "f1",
    "brier",
    "ece",
    "calibration_in_the_large",
    "selection_rate",
    "underdiagnosis_rate",
)
"""The metrics, in the order of every array of them."""

NEED_A_THRESHOLD: frozenset[str] = frozenset(
    {
        "accuracy",
        "sensitivity",
        "specificity",
        "balanced_accuracy",
        "f1",
        "selection_rate",
        "underdiagnosis_rate",
    }
)

BETTER: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("auroc", "accuracy", "sensitivity", "specificity", "average_precision"), "higher")
    | {
        "balanced_accuracy": "higher",
        "f1": "higher",
        "brier": "lower",
        "ece": "lower",
        "underdiagnosis_rate": "lower",
    }
)
"""The better direction of each metric; selection rate and mean calibration error have none."""

CALIBRATION_BINS = 10
"""Bins of equal width, [0, 0.1) to [0.9, 1], of the expected calibration error."""

ThresholdPolicy = Literal["youden_test_per_draw", "youden_test", "youden_validation", "fixed"]


@dataclasses.dataclass(frozen=True)
class Levels:
    """The images of one finding, sorted into levels: one per distinct probability of a positive image.

    Level 0 is the highest probability of a positive image, level 1 the next. With a falling threshold,
    Youden's index rises only at a positive image, so these probabilities are the only candidates for its
    threshold, whatever the multiplicities of the images, and the areas under both curves are sums over them.

    Attributes:
        thresholds: the distinct probabilities of the positive images, highest first.
        positives, negatives: rows with that label.
        positive_level: level of each positive image.
        negative_level: for each negative image, the first level at which it is called positive; the number of
            levels if there is none.
        negative_tied: whether its probability equals that of its level, so that it ties with the positives
            there.
    """

    thresholds: Float[np.ndarray, " k"]
    positives: Int[np.ndarray, " p"]
    negatives: Int[np.ndarray, " q"]
    positive_level: Int[np.ndarray, " p"]
    negative_level: Int[np.ndarray, " q"]
    negative_tied: Bool[np.ndarray, " q"]

    @property
    def one_class(self) -> bool:
        """Whether positives or negatives are missing, so that no metric is defined."""
        return not (self.positives.size and self.negatives.size)


def levels(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> Levels:
    """Sort the labelled images of a finding into levels."""
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    thresholds = np.unique(p[positives])[::-1]
    negative_level = np.searchsorted(-thresholds, -p[negatives], side="left")
    reached = np.append(thresholds, np.nan)[negative_level]
    return Levels(
        thresholds=thresholds,
        positives=positives,
        negatives=negatives,
        positive_level=np.searchsorted(-thresholds, -p[positives], side="left"),
        negative_level=negative_level,
        negative_tied=reached == p[negatives],
    )


def youden_threshold(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> float:
    """Threshold with the largest true positive rate minus false positive rate (the paper's criterion).

    The rates are compared as whole numbers, without rounding. Among equally good thresholds the highest is
    taken; it is always the probability of a positive image.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.

    Returns:
        The threshold; infinity, which calls no image positive, if no threshold beats chance; NaN if only one
        class is labelled.
    """
    at = levels(y, p)
    if at.one_class:
        return np.nan
    count = at.thresholds.size
    true_positives = np.cumsum(np.bincount(at.positive_level, minlength=count))
    false_positives = np.cumsum(np.bincount(at.negative_level, minlength=count + 1))[:count]
    index = true_positives * at.negatives.size - false_positives * at.positives.size
    best = int(np.argmax(index))
    return float(at.thresholds[best]) if index[best] > 0 else np.inf


def point_metrics(
    y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float
) -> dict[str, float]:
    """Every metric of one finding, by name; with a NaN threshold, those that need one are NaN.

    - `auroc`: a tie between a positive and a negative counts one half; `average_precision`: the step-wise
      area under precision over recall (scikit-learn's definition).
    - `accuracy`, `sensitivity`, `specificity`, `balanced_accuracy` (mean of the two before it), `f1`: at the
      threshold.
    - `brier`: mean squared difference between probability and label.
    - `ece`: expected calibration error over `CALIBRATION_BINS` bins of equal width, weighted by number of
      images.
    - `calibration_in_the_large`: mean probability minus the share of positives; positive if the model
      overpredicts.
    - `selection_rate`: share of images called positive; `underdiagnosis_rate`: share of positive images
      called negative.
    """
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    known = ~np.isnan(y)
    y, p = y[known], p[known]
    if not ((y == 1).any() and (y == 0).any()):
        return dict.fromkeys(METRICS, np.nan)
    called, positive = p >= threshold, y == 1
    found = float(called[positive].mean())
    spared = float((~called[~positive]).mean())
    hits = float((called & positive).sum())
    values = {
        "auroc": float(roc_auc_score(y, p)),
        "accuracy": float((called == positive).mean()),
        "sensitivity": found,
        "specificity": spared,
        "average_precision": float(average_precision_score(y, p)),
        "balanced_accuracy": (found + spared) / 2,
        "f1": 2 * hits / float(called.sum() + positive.sum()),
        "brier": float(np.mean((p - y) ** 2)),
        "ece": float(np.abs(np.bincount(calibration_bin(p), p - y)).sum() / len(y)),
        "calibration_in_the_large": float(np.mean(p - y)),
        "selection_rate": float(called.mean()),
        "underdiagnosis_rate": float((~called[positive]).mean()),
    }
    if np.isnan(threshold):
        values |= dict.fromkeys(NEED_A_THRESHOLD, np.nan)
    return values


def calibration_bin(p: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Index of each probability's calibration bin; the last bin includes 1."""
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    return np.clip(np.searchsorted(edges, p, side="right") - 1, 0, CALIBRATION_BINS - 1)


def choose_thresholds(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    policy: ThresholdPolicy,
    fixed: Sequence[float] | None = None,
) -> Float[np.ndarray, " findings"]:
    """One threshold per finding, for all groups, by the policy.

    Args:
        predictions: table with `split`, `y_<finding>` and `p_<finding>`.
        findings: names of the findings.
        policy: `youden_validation` chooses on the rows of split `valid`, `youden_test` on those of split
            `test`; `youden_test_per_draw` on the test rows too (each replicate and group chooses anew);
            `fixed` takes `fixed`.
        fixed: one threshold for all findings, or one per finding; None is 0.5.

    Returns:
        The thresholds; NaN for a finding of which the rows used hold only one class.

    Raises:
        InputError: `youden_validation` without validation rows, or a wrong number of fixed thresholds.
    """
    if policy == "fixed":
        fixed = (0.5,) if fixed is None else fixed
        if len(fixed) not in (1, len(findings)):
            raise InputError(
                f"evaluation.fixed_thresholds: expected one threshold or {len(findings)}, one per finding; "
                f"found {len(fixed)}"
            )
        return np.broadcast_to(np.asarray(fixed, np.float64), (len(findings),)).copy()
    chosen = (predictions["split"] == ("valid" if policy == "youden_validation" else "test")).to_numpy()
    if policy == "youden_validation" and not chosen.any():
        raise InputError(
            "predictions: threshold 'youden_validation' needs rows whose split is 'valid', found none; add "
            "them, or choose the threshold 'youden_test'"
        )
    table = predictions.loc[chosen]
    return np.array(
        [youden_threshold(table[f"y_{f}"].to_numpy(), table[f"p_{f}"].to_numpy()) for f in findings],
        np.float64,
    )
