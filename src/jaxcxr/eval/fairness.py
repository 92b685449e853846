"""Fairness: differences of metrics between groups, draw by draw, so that intervals are paired.

Names. `statistical_parity_difference` is the paper's: accuracy of a group minus that of all others. In its
usual meaning, about positive rather than correct predictions, it is `selection_rate_difference` for a group
against all others and `demographic_parity_difference` for the largest difference between any two groups.
`equal_opportunity_difference` is the largest difference in true positive rate, `equalized_odds_difference`
the larger of that and the one in false positive rate, both between any two groups (fairlearn's definitions),
`auroc_gap` the largest difference in AUROC.

Pitfalls. The best group is chosen on the same images on which it is then compared, so differences to it are
biased towards the worse. For the same reason a largest difference is biased away from zero; its interval is
that of the two groups furthest apart.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcxr.eval.bootstrap import average
from jaxcxr.eval.metrics import BETTER, COMPARED, METRICS

REST_NAMES: Mapping[str, str] = MappingProxyType(
    {"accuracy": "statistical_parity_difference", "selection_rate": "selection_rate_difference"}
)
"""Names of a metric's difference to all others; for metrics not listed it is `<metric>_vs_rest`."""

GAPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "auroc_gap": ("auroc",),
        "demographic_parity_difference": ("selection_rate",),
        "equal_opportunity_difference": ("sensitivity",),
        "equalized_odds_difference": ("sensitivity", "specificity"),
    }
)
"""Largest differences between any two groups -> the metrics over which the maximum is taken."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """The metrics of a group of images; draw 0 is the sample itself.

    Attributes:
        values: one row per finding and a last one for the mean over findings, metrics in the order of
            `METRICS`; NaN where undefined or suppressed.
        no_finding_among_ill: share of images with any positive label on which no finding is called, in each
            draw.
        n, positives: labelled images per finding, and positives among them.
        images, ill: number of images, and of images with any positive label.
        clusters: number of patients (images, if images are resampled) with a positive per finding, and (last)
            with a positive of any defined finding.
        few: per finding, and (last) for any defined one, whether all positives or all negatives are of fewer
            patients (images) than an interval needs.
        notes: per finding, and (last) for `no_finding_among_ill`, why there is no value; empty if there is
            one, and an interval.
    """

    values: Float[np.ndarray, "rows metrics draws"]
    no_finding_among_ill: Float[np.ndarray, " draws"]
    n: Int[np.ndarray, " findings"]
    positives: Int[np.ndarray, " findings"]
    images: int
    ill: int
    clusters: Int[np.ndarray, " rows"]
    few: Bool[np.ndarray, " rows"]
    notes: tuple[str, ...]


def with_average(
    values: Float[np.ndarray, "findings metrics draws"],
) -> Float[np.ndarray, "rows metrics draws"]:
    """The values with the mean over findings appended, as a last row."""
    return np.concatenate([values, average(np.swapaxes(values, 0, 1))[None]])


def difference(a: Judged, b: Judged) -> Float[np.ndarray, "rows metrics draws"]:
    """Values of `a` minus those of `b`; the average is over the findings defined in both."""
    return with_average(a.values[:-1] - b.values[:-1])


def rest_name(metric: str) -> str:
    """Name of the difference of a metric to all others."""
    return REST_NAMES.get(metric, f"{metric}_vs_rest")


def best_of(
    judged: Sequence[Judged],
) -> tuple[Int[np.ndarray, "rows metrics"], Float[np.ndarray, "groups rows metrics draws"]]:
    """The best group in each finding and metric, and every group minus it.

    Returns:
        The index of the best group, -1 where fewer than two groups are defined or the metric has no better
        direction (`metrics.BETTER`); and the differences, NaN there.
    """
    values = np.stack([j.values for j in judged])
    points = values[..., 0].copy()
    lower = np.array([BETTER.get(metric) == "lower" for metric in METRICS])
    points[:, :, lower] *= -1
    comparable = (~np.isnan(points)).sum(axis=0) >= 2
    comparable &= np.array([metric in BETTER and metric in COMPARED for metric in METRICS])
    best = np.where(comparable, np.argmax(np.where(np.isnan(points), -np.inf, points), axis=0), -1)
    differences = np.full(values.shape, np.nan)
    for m in range(len(METRICS)):
        for f in range(values.shape[1] - 1):
            if best[f, m] >= 0:
                differences[:, f, m] = values[:, f, m] - values[best[f, m], f, m]
        if best[-1, m] >= 0:
            # Mean over the findings that both groups have; their own averages may be over different findings.
            differences[:, -1, m] = average(values[:, :-1, m] - values[best[-1, m], :-1, m])
    return best, differences


def gaps(
    judged: Sequence[Judged],
) -> tuple[Float[np.ndarray, "rows gaps draws"], Int[np.ndarray, "findings gaps 2"]]:
    """The largest differences between two groups, in the order of `GAPS`; last row: mean over findings.

    Draw 0 is the largest difference. The replicates are those of the difference between the same two groups:
    the largest difference within each replicate would grow with noise, and its interval would exclude the
    estimate.

    Returns:
        The differences (NaN with fewer than two defined groups), and the indices of the two groups, highest
        and lowest.
    """
    values = np.stack([j.values[:-1] for j in judged])
    findings, draws = values.shape[1], values.shape[-1]
    spans, pairs = np.full((findings, len(GAPS), draws), np.nan), np.full((findings, len(GAPS), 2), -1)
    for f in range(findings):
        for g, gap in enumerate(GAPS):
            for metric in GAPS[gap]:
                of = values[:, f, METRICS.index(metric)]
                if (~np.isnan(of[:, 0])).sum() < 2:
                    continue
                high, low = int(np.nanargmax(of[:, 0])), int(np.nanargmin(of[:, 0]))
                span = of[high] - of[low]
                if not span[0] <= spans[f, g, 0]:
                    spans[f, g], pairs[f, g] = span, (high, low)
    return with_average(spans), pairs
