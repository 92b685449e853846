"""Metrics of one finding, and the threshold at which an image is called positive.

A metric is a function of counts (`eval.counts`), for one draw of images or many; its name is the function's,
and `DEFINITIONS` holds its properties. Labels are 1, 0 or NaN (unknown, left out). An image is called
positive if its probability is at least the threshold, as in scikit-learn's `roc_curve`. If only one class of
a finding is labelled, all its metrics are NaN ('not defined').
Source: the paper's Quantitative Evaluation and Statistical Analysis for the first four metrics and Youden's
criterion.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcxr.errors import InputError
from jaxcxr.eval.counts import Counts, counted, levels, sums_of

ThresholdPolicy = Literal["youden_test_per_draw", "youden_test", "youden_validation", "fixed"]
Draws = Float[np.ndarray, " draws"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, and what tables and comparisons must know about it.

    Attributes:
        of: its definition; a division by zero gives NaN.
        better: the better direction; None if there is none.
        needs_threshold: whether it depends on which images are called positive.
        compared: whether groups are compared by it.
    """

    of: Callable[[Counts], Draws]
    better: Literal["higher", "lower"] | None
    needs_threshold: bool = False
    compared: bool = True

    @property
    def name(self) -> str:
        """Its name in every table."""
        return self.of.__name__


def auroc(c: Counts) -> Draws:
    """Area under the ROC curve; a tie between a positive and a negative counts one half."""
    return c.won_twice / (2 * c.positives * c.negatives)


def accuracy(c: Counts) -> Draws:
    """Share of images that are called correctly."""
    return (c.called_positives + c.negatives - c.called_negatives) / c.images


def sensitivity(c: Counts) -> Draws:
    """Share of positives that are called positive."""
    return c.called_positives / c.positives


def specificity(c: Counts) -> Draws:
    """Share of negatives that are called negative."""
    return (c.negatives - c.called_negatives) / c.negatives


def average_precision(c: Counts) -> Draws:
    """The step-wise area under precision over recall (scikit-learn's definition)."""
    return c.precision_summed / c.positives


def balanced_accuracy(c: Counts) -> Draws:
    """Mean of sensitivity and specificity."""
    return (sensitivity(c) + specificity(c)) / 2


def f1(c: Counts) -> Draws:
    """Harmonic mean of precision and sensitivity."""
    return 2 * c.called_positives / (c.called + c.positives)


def brier(c: Counts) -> Draws:
    """Mean squared difference between probability and label."""
    return c.squared_errors / c.images


def ece(c: Counts) -> Draws:
    """Expected calibration error over `CALIBRATION_BINS` bins of equal width, weighted by images."""
    return np.abs(c.errors_by_bin).sum(axis=0) / c.images


def calibration_in_the_large(c: Counts) -> Draws:
    """Mean probability minus the share of positives; positive if the model overpredicts."""
    return c.errors_by_bin.sum(axis=0) / c.images


def selection_rate(c: Counts) -> Draws:
    """Share of images that are called positive."""
    return c.called / c.images


def underdiagnosis_rate(c: Counts) -> Draws:
    """Share of positives that are called negative."""
    return (c.positives - c.called_positives) / c.positives


DEFINITIONS: tuple[Metric, ...] = (
    Metric(auroc, "higher"),
    Metric(accuracy, "higher", needs_threshold=True),
    Metric(sensitivity, "higher", needs_threshold=True),
    Metric(specificity, "higher", needs_threshold=True),
    Metric(average_precision, "higher"),
    Metric(balanced_accuracy, "higher", needs_threshold=True),
    Metric(f1, "higher", needs_threshold=True),
    Metric(brier, "lower"),
    # not compared: it is larger in smaller groups even with equal calibration
    Metric(ece, "lower", compared=False),
    Metric(calibration_in_the_large, None),
    Metric(selection_rate, None, needs_threshold=True),
    Metric(underdiagnosis_rate, "lower", needs_threshold=True),
)
METRICS: tuple[str, ...] = tuple(metric.name for metric in DEFINITIONS)
"""The metrics, in the order of every array of them."""
NEED_A_THRESHOLD = frozenset(metric.name for metric in DEFINITIONS if metric.needs_threshold)
BETTER: Mapping[str, str] = MappingProxyType(
    {metric.name: metric.better for metric in DEFINITIONS if metric.better is not None}
)
"""The better direction of each metric; selection rate and mean calibration error have none."""
COMPARED: tuple[str, ...] = tuple(metric.name for metric in DEFINITIONS if metric.compared)
"""Metrics that are compared between groups."""


def metrics_of(counts: Counts) -> Float[np.ndarray, "metrics draws"]:
    """Every metric in every draw, in the order of `METRICS`; NaN in draws with only one class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.stack([metric.of(counts) for metric in DEFINITIONS])
    values[:, (counts.positives == 0) | (counts.negatives == 0)] = np.nan
    return values


def point_metrics(
    y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float
) -> dict[str, float]:
    """Every metric of one finding, by name; with a NaN threshold, those that need one are NaN.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        threshold: at which images are called positive.
    """
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    once = np.ones((len(y), 1))
    counts = counted(sums_of(y, p, np.arange(len(y)), threshold), once, once)
    values = np.full((len(METRICS), 1), np.nan) if counts is None else metrics_of(counts)
    return dict(zip(METRICS, values[:, 0].tolist(), strict=True))


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
