"""Metrics from noised counts of scores (`privacy.score_counts`): post-processing, which costs nothing more.

A finding's AUROC, sensitivity and specificity, and accuracy, are those of `eval.metrics`, but of weighted
images (a patient's images weigh at most `images_per_patient` together) and with scores in the same bin tied.

Intervals. The standard deviation of an estimate has two parts. That of the noise comes from adding `DRAWS`
further draws of the same noise to the counts and computing the metric of each. That of the sample is a
formula: binomial for shares (with two successes and two failures more, Agresti & Coull 1998), Hanley & McNeil
1982 for AUROC, with the total weight over `images_per_patient` as the number of images, which does not
understate it where a patient has several. The interval is the 2.5th to 97.5th percentile of the noisier
metrics with a normal draw of the sample's part added. Of an average over findings the sample's part is the
mean over the findings, which holds however they are correlated.

An estimate is given if the number of images that it is a share of (for AUROC: both numbers) is estimated as
`CERTAIN` standard deviations of its noise or more; else the noise hides it. That decision is made on noised
numbers, too.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from jaxcxr.privacy.score_counts import EDGES, Design, strategy

METRICS = ("auroc", "accuracy", "sensitivity", "specificity")
NEED_A_THRESHOLD = METRICS[1:]
OF_GROUPS = ("auroc", "accuracy")
DRAWS = 1000
CERTAIN = 4.0
HIDDEN = "not defined: the noise hides how many images there are"
NO_THRESHOLD = "not defined: the noise hides the threshold; give one (--threshold fixed)"
NOISED_COLUMNS = (
    "group", "finding", "metric", "value", "ci_low", "ci_high", "std_noise", "std_sample", "threshold",
    "attribute", "label", "note",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NamedGroup:
    """A group that was counted: its names, as in `evaluation.csv`."""

    name: str
    label: str
    attribute: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics of one group, first as estimated, then with further noise.

    Attributes:
        values: in the order of `METRICS`.
        positives, negatives: estimated weighted numbers of images.
        sample: standard deviation of each metric by the sample; of the estimates only.
    """

    values: Float[np.ndarray, "draws findings metrics"]
    positives: Float[np.ndarray, "draws findings"]
    negatives: Float[np.ndarray, "draws findings"]
    sample: Float[np.ndarray, "findings metrics"]

    @property
    def certain(self) -> Bool[np.ndarray, "findings metrics"]:
        """Whether what a metric divides by stands out from the noise."""
        positives, negatives, images = (
            number[0] > CERTAIN * number[1:].std(axis=0)
            for number in (self.positives, self.negatives, self.positives + self.negatives)
        )
        return np.stack([positives & negatives, images, positives, negatives], axis=-1)


def noised_evaluation(
    counts: Int[np.ndarray, "blocks findings classes rows"],
    design: Design,
    findings: Sequence[str],
    groups: Sequence[NamedGroup],
    has_threshold: Sequence[bool],
) -> pd.DataFrame:
    """The table of `noised_evaluation.csv`: one row per group, finding (and `average`) and metric.

    Args:
        counts: as released, in steps.
        design: of the release.
        findings: their names.
        groups: in the order of the design's blocks after the first.
        has_threshold: of each finding, whether there is a threshold to judge by.
    """
    rng = np.random.default_rng(0)  # of draws that protect nobody
    thresholds = [t if has else np.nan for t, has in zip(design.thresholds, has_threshold, strict=True)]
    rows: list[dict[str, object]] = []
    for block, group in enumerate((NamedGroup("all", "all", ""), *groups)):
        found = measured(counts[block], design, block, rng)
        base = dataclasses.asdict(group)
        base["group"] = base.pop("name")
        shown = METRICS if block == 0 else OF_GROUPS
        for row in _rows(found, findings, np.array(thresholds), shown, rng):
            rows.append(base | row)
    return pd.DataFrame(rows, columns=list(NOISED_COLUMNS))


def cells(
    counts: Float[np.ndarray, "... blocks findings classes rows"], design: Design
) -> Float[np.ndarray, "... blocks findings classes bins"]:
    """Unbiased estimates of the weighted numbers of images in each bin; they may be negative.

    Args:
        counts: in the unit of weights: steps times the size of a step.
        design: of the release.
    """
    found = np.empty(counts.shape)
    for finding, split in enumerate(design.splits):
        found[..., finding, :, :] = counts[..., finding, :, :] @ np.linalg.inv(strategy(split)).T
    return found / design.factors[:, None, None, None]


def measured(
    counts: Int[np.ndarray, "findings classes rows"], design: Design, block: int, rng: np.random.Generator
) -> Measured:
    """The metrics of one block of counts, and of the same with further noise."""
    grid, k = design.grid, design.images_per_patient
    drawn = rng.normal(0, grid.deviation, (1 + DRAWS, *counts.shape))
    drawn[0] = 0
    alone = dataclasses.replace(design, groups=())
    noisy = cells((counts + drawn)[:, None] * grid.step, alone)[:, 0] / design.factors[block]
    positives, negatives = noisy[:, :, 0], noisy[:, :, 1]
    p, n = positives.sum(axis=-1), negatives.sum(axis=-1)
    above = np.arange(noisy.shape[-1]) > np.array(design.splits)[:, None]
    called_p, called_n = (positives * above).sum(axis=-1), (negatives * above).sum(axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (positives * below).sum(axis=-1) / (p * n)
        values = np.stack([auroc, (called_p + n - called_n) / (p + n), called_p / p, 1 - called_n / n], -1)
    values = np.clip(values, 0.0, 1.0)
    return Measured(values, p, n, _sample(values[0], np.maximum(p[0] / k, 1), np.maximum(n[0] / k, 1)))


def _sample(
    values: Float[np.ndarray, "findings metrics"],
    positives: Float[np.ndarray, " findings"],
    negatives: Float[np.ndarray, " findings"],
) -> Float[np.ndarray, "findings metrics"]:
    """Standard deviations by the sample of patients."""
    auroc = np.clip(values[:, 0], 0.5, 1 - 1 / (2 * (positives + negatives)))
    beaten, beating = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (
        auroc * (1 - auroc) + (positives - 1) * (beaten - auroc**2) + (negatives - 1) * (beating - auroc**2)
    )
    of_shares = []
    for share, number in zip(values.T[1:], (positives + negatives, positives, negatives), strict=True):
        shrunk = (share * number + 2) / (number + 4)
        of_shares.append(np.sqrt(shrunk * (1 - shrunk) / (number + 4)))
    return np.stack([np.sqrt(variance / (positives * negatives)), *of_shares], axis=-1)


def _rows(
    found: Measured,
    findings: Sequence[str],
    thresholds: Float[np.ndarray, " findings"],
    shown: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[dict[str, object]]:
    has = ~np.isnan(thresholds)
    for metric in shown:
        m, needs = METRICS.index(metric), metric in NEED_A_THRESHOLD
        certain = found.certain[:, m]
        kept = certain & has if needs else certain
        for f, finding in enumerate(findings):
            row = {"finding": finding, "metric": metric, "threshold": thresholds[f] if needs else np.nan}
            note = "" if kept[f] else NO_THRESHOLD if certain[f] else HIDDEN
            yield row | _estimate(found.values[:, f, m], found.sample[f, m], note, rng)
        over = kept if kept.any() else np.ones(len(findings), bool)
        note = "" if kept.any() else NO_THRESHOLD if certain.any() else HIDDEN
        average = found.values[:, over, m].mean(axis=1)
        estimate = _estimate(average, float(found.sample[over, m].mean()), note, rng)
        if kept.any() and not kept.all():
            estimate["note"] = f"over {kept.sum()} of {len(findings)} findings"
        yield {"finding": "average", "metric": metric, "threshold": np.nan} | estimate


def _estimate(
    draws: Float[np.ndarray, " draws"], sample: float, note: str, rng: np.random.Generator
) -> dict[str, object]:
    if note:
        nothing: dict[str, object] = dict.fromkeys(
            ("value", "ci_low", "ci_high", "std_noise", "std_sample"), np.nan
        )
        return nothing | {"note": note}
    both = draws[1:] + sample * rng.standard_normal(len(draws) - 1)
    low, high = np.clip(np.percentile(both, [2.5, 97.5]), 0.0, 1.0)
    return {
        "value": float(draws[0]),
        "ci_low": float(low),
        "ci_high": float(high),
        "std_noise": float(draws[1:].std(ddof=1)),
        "std_sample": float(sample),
        "note": note,
    }


def pooled_auroc(counts: Int[np.ndarray, "1 findings classes rows"], design: Design) -> float:
    """One figure for a model, from noised counts of everybody: how probably a positive image is scored above
    a negative one of the same finding, over all such pairs of all findings.

    A finding counts by its number of pairs, so that those with few images, which the noise hides, weigh
    little: the noise of this figure is much smaller than that of an average over findings.
    """
    positives, negatives = np.moveaxis(cells(counts * design.grid.step, design)[0], 1, 0)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = float((positives.sum(axis=-1) * negatives.sum(axis=-1)).sum())
    return float(np.clip((positives * below).sum() / pairs, 0.0, 1.0)) if pairs > 0 else 0.5


def chosen_split(counts: Int[np.ndarray, "findings classes rows"], design: Design) -> list[int | None]:
    """For each finding the edge with the largest Youden index on the noised counts of validation images.

    None where the noise hides how many positives or negatives there are.
    """
    found = measured(counts, design, 0, np.random.default_rng(0))
    exact = cells(counts[None] * design.grid.step, dataclasses.replace(design, groups=()))[0]
    chosen: list[int | None] = []
    for f, certain in enumerate(found.certain[:, 0]):
        positives, negatives = (np.cumsum(exact[f, c])[: len(EDGES)] / exact[f, c].sum() for c in (0, 1))
        chosen.append(int(np.argmax(negatives - positives)) if certain else None)
    return chosen
