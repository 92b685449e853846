"""Does a group fare worse than others: differences of metrics between groups, draw by draw, so that intervals
are paired.

Names. `statistical_parity_difference` is the paper's: accuracy of a group minus that of all others. The usual
meaning of the words, in positive predictions rather than right ones, is `selection_rate_difference` for a
group against all others and `demographic_parity_difference` for the largest difference between any two
groups. `equal_opportunity_difference` is the largest difference in true positive rate,
`equalized_odds_difference` the larger of that and the one in false positive rate, both between any two groups
(fairlearn's definitions), `auroc_gap` the largest difference in AUROC.

Traps. The best group is chosen on the very films on which it is then compared, so that differences to it lean
towards the worse. For the same reason a largest difference leans away from zero; its interval is that of the
two groups furthest apart.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from jaxcxr.eval.bootstrap import average
from jaxcxr.eval.metrics import BETTER, COMPARED, METRICS

REST_NAMES: Mapping[str, str] = MappingProxyType(
    {"accuracy": "statistical_parity_difference", "selection_rate": "selection_rate_difference"}
)
"""Metrics whose difference to all others has a name of its own; that of another metric is `<metric>_vs_rest`.
"""

GAPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "auroc_gap": ("auroc",),
        "demographic_parity_difference": ("selection_rate",),
        "equal_opportunity_difference": ("sensitivity",),
        "equalized_odds_difference": ("sensitivity", "specificity"),
    }
)
"""Largest differences between any two groups, and the metrics in which they are sought: the larger one
counts.
"""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A set of films and how it fared; draw 0 is the films themselves.

    Attributes:
        values: a row a finding and a last one for the mean over findings, in the order of `METRICS`; NaN
            where not defined or suppressed.
        no_finding_among_ill: share of ill films on which no finding is called, in each draw.
        n, positives: labelled films of each finding, and positives among them.
        images, ill: films, and films with any positive label.
        clusters: patients (films, where films are redrawn) with a positive of each finding, and (last) of any
            that is defined.
        notes: why a finding, or (last) no finding among the ill, is missing; empty where it is not.
    """

    values: Float[np.ndarray, "rows metrics draws"]
    no_finding_among_ill: Float[np.ndarray, " draws"]
    n: Int[np.ndarray, " findings"]
    positives: Int[np.ndarray, " findings"]
    images: int
    ill: int
    clusters: Int[np.ndarray, " rows"]
    notes: tuple[str, ...]


def with_average(
    values: Float[np.ndarray, "findings metrics draws"],
) -> Float[np.ndarray, "rows metrics draws"]:
    """Append the mean over the findings that are defined on the films themselves."""
    return np.concatenate([values, average(np.swapaxes(values, 0, 1))[None]])


def difference(a: Judged, b: Judged) -> Float[np.ndarray, "rows metrics draws"]:
    """`a` minus `b`; the average is over the findings that are defined in both."""
    return with_average(a.values[:-1] - b.values[:-1])


def rest_name(metric: str) -> str:
    """Name of the difference of a metric to all others."""
    return REST_NAMES.get(metric, f"{metric}_vs_rest")


def best_of(
    judged: Sequence[Judged],
) -> tuple[Int[np.ndarray, "rows metrics"], Float[np.ndarray, "groups rows metrics draws"]]:
    """The best group in each finding and metric, and every group minus it.

    Returns:
        The number of the best group, -1 where fewer than two groups are defined or the metric has no better
        and worse (`metrics.BETTER`); and the differences, NaN there.
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
            # A mean over the findings that both groups have: their own averages may be over different ones.
            differences[:, -1, m] = average(values[:, :-1, m] - values[best[-1, m], :-1, m])
    return best, differences


def gaps(
    judged: Sequence[Judged],
) -> tuple[Float[np.ndarray, "rows gaps draws"], Int[np.ndarray, "findings gaps 2"]]:
    """The largest differences between any two groups, in the order of `GAPS`; the last row is the mean over
    findings.

    Draw 0 is the largest difference. The redraws are those of the difference between the same two groups: a
    redraw's own largest difference would grow with noise, and its interval would leave the estimate outside.

    Returns:
        The differences, NaN with fewer than two groups that are defined, and the two groups, highest and
        lowest.
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
