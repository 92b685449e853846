"""The bootstrap: how much the metrics would vary with other patients (the paper: 1,000 replicates).

A bootstrap replicate is a vector of multiplicities: how often each patient (or image) was sampled. The counts
that the metrics need are computed for many replicates at once (`eval.counts`).

Replicate r of a seed depends on the seed, on r and on the patients (or the number) of the test rows, never on
a probability or a label. Two models with predictions for the same rows in the same order, and two groups of
the same rows, therefore share their replicates, and the difference replicate by replicate is a paired
bootstrap.

`redraws`, in the configuration and in `evaluation.csv`, is the number of replicates. Arrays with an axis
`draws` hold the sample itself first (every patient once), then the replicates.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt16
from scipy.special import expit, logit
from scipy.stats import t

from jaxcxr.errors import InputError
from jaxcxr.eval.counts import Sums, counted, sums_of
from jaxcxr.eval.metrics import METRICS, metrics_of

Resample = Literal["patient", "image"]

BLOCK = 16
"""Replicates that a thread handles at once: few enough for its arrays to stay in the CPU cache."""

MAX_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Spread:
    """Summary of the replicates of one metric.

    Attributes:
        mean: over the replicates in which the metric is defined.
        std: standard deviation over the same, with ddof = 1.
        ci_low, ci_high: 2.5th and 97.5th percentile, linearly interpolated (percentile bootstrap, 95 %).
        redraws: number of replicates in which the metric is defined.
    """

    mean: float
    std: float
    ci_low: float
    ci_high: float
    redraws: int


@dataclasses.dataclass(frozen=True)
class Replicates:
    """The metrics of groups of images, on the sample itself and in every bootstrap replicate.

    Attributes:
        metrics: in the order of `METRICS`; draw 0 is the sample itself, draws 1 and up are the replicates.
            NaN where a draw holds only one class of a finding, and where a metric needs a threshold and there
            is none.
        no_finding_among_ill: share of the images with any positive label for which no finding is called
            (underdiagnosis).
        ill: number of images with any positive label.
    """

    metrics: Float[np.ndarray, "groups findings metrics draws"]
    no_finding_among_ill: Float[np.ndarray, "groups draws"]
    ill: Int[np.ndarray, " groups"]


def clusters(patient_ids: pd.Series, resample: Resample) -> Int[np.ndarray, " n"]:
    """Cluster number of each image: its patient's, in order of appearance, or its own."""
    return pd.factorize(patient_ids)[0] if resample == "patient" else np.arange(len(patient_ids))


def multiplicities(count: int, seed: int, replicate: int) -> UInt16[np.ndarray, " count"]:
    """Multiplicity of each of `count` clusters in one replicate: `count` samples with replacement."""
    sampled = np.random.default_rng([seed, replicate]).integers(0, count, count)
    return np.bincount(sampled, minlength=count).astype(np.uint16)


def all_multiplicities(count: int, seed: int, redraws: int) -> UInt16[np.ndarray, "count draws"]:
    """Multiplicities of draw 0, the sample itself (every cluster once), and of the replicates."""
    if seed < 0:
        raise InputError(f"evaluation.seed: expected a number that is not negative, found {seed}")
    sampled = np.ones((1 + redraws, count), np.uint16)
    for replicate in range(redraws):
        sampled[1 + replicate] = multiplicities(count, seed, replicate)
    return sampled.T


def bootstrap(
    test: pd.DataFrame,
    findings: Sequence[str],
    groups: Sequence[Bool[np.ndarray, " n"]],
    *,
    thresholds: Float[np.ndarray, " findings"] | None,
    redraws: int,
    resample: Resample,
    seed: int,
) -> Replicates:
    """The metrics of each finding in each group, on the sample itself and in each bootstrap replicate.

    Args:
        test: table with `patient_id`, `y_<finding>` and `p_<finding>`, one row per image, test images only.
        findings: names of the findings.
        groups: masks over the rows of `test`. All images are resampled and the groups are taken from each
            replicate, so that two groups are paired as well.
        thresholds: one per finding, for all groups and replicates; None chooses Youden's threshold anew in
            every replicate and group, on the same images that are then judged (the paper's code), which is
            optimistic.
        redraws: number of replicates.
        resample: `patient` samples patients, with all images of each; `image` (the paper) samples images as
            if they were independent, which understates the spread if patients have several.
        seed: not negative.

    Raises:
        InputError: no rows, or a negative seed.
    """
    if test.empty:
        raise InputError("predictions: expected rows whose split is 'test', found none")
    cluster = clusters(pd.Series(test["patient_id"]), resample)
    sampled = all_multiplicities(int(cluster.max()) + 1, seed, redraws)
    blocks = [slice(first, min(first + BLOCK, 1 + redraws)) for first in range(0, 1 + redraws, BLOCK)]
    labels = {f: test[f"y_{f}"].to_numpy(np.float64) for f in findings}
    scores = {f: test[f"p_{f}"].to_numpy(np.float64) for f in findings}
    metrics = np.full((len(groups), len(findings), len(METRICS), 1 + redraws), np.nan)
    chosen = np.full((len(groups), len(findings), 1 + redraws), np.nan)
    missed = np.full((len(groups), 1 + redraws), np.nan)
    ill = np.any([y == 1 for y in labels.values()], axis=0)

    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for f, finding in enumerate(findings):
            cut = None if thresholds is None else float(thresholds[f])
            prepared = [
                sums_of(np.where(mask, labels[finding], np.nan), scores[finding], cluster, cut)
                for mask in groups
            ]

            def fill(block: slice, f: int = f, prepared: Sequence[Sums] = prepared) -> None:
                # Row-major: products with sparse matrices add whole rows.
                double = sampled[:, block].astype(np.float64, order="C")
                exact = double.astype(prepared[0].counts.dtype) if prepared else double
                for g, sums in enumerate(prepared):
                    if (counts := counted(sums, exact, double)) is not None:
                        metrics[g, f, :, block], chosen[g, f, block] = metrics_of(counts), counts.thresholds

            list(threads.map(fill, blocks))

        def fill_missed(block: slice) -> None:
            for g, mask in enumerate(groups):
                rows = mask & ill
                cuts = chosen[g, :, block] if thresholds is None else np.asarray(thresholds)[:, None]
                if rows.any() and not np.isnan(cuts).all():
                    called = np.any(
                        [scores[f][rows, None] >= cut for f, cut in zip(findings, cuts, strict=True)], axis=0
                    )
                    weights = sampled[:, block].astype(np.float64, order="C")[cluster[rows]]
                    with np.errstate(invalid="ignore", divide="ignore"):
                        missed[g, block] = (weights * ~called).sum(axis=0) / weights.sum(axis=0)

        list(threads.map(fill_missed, blocks))
    return Replicates(metrics, missed, np.array([int((mask & ill).sum()) for mask in groups]))


def average(draws: Float[np.ndarray, "*groups findings draws"]) -> Float[np.ndarray, "*groups draws"]:
    """Mean over the findings in each draw; draw 0 is the sample itself.

    A finding that is undefined on the sample itself is left out of the mean; a replicate in which another
    finding is undefined has no average. So the mean is over the same findings in every draw.
    """
    defined = ~np.isnan(draws[..., :1])
    summed = np.where(defined, draws, 0.0).sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return summed / defined.sum(axis=-2)


def spread(draws: Float[np.ndarray, " replicates"]) -> Spread:
    """Mean, standard deviation and 95 % interval of one metric's replicates; NaN if too few are defined."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return Spread(np.nan, np.nan, np.nan, np.nan, 0)
    low, high = np.percentile(defined, [2.5, 97.5])
    std = float(defined.std(ddof=1)) if defined.size > 1 else np.nan
    return Spread(float(defined.mean()), std, float(low), float(high), int(defined.size))


def around_estimate(estimate: float, draws: Float[np.ndarray, " replicates"]) -> Spread:
    """`spread` of a metric that noise biases upwards (a sum of absolute values), shifted to the estimate."""
    if not np.isfinite(draws).any():
        return spread(draws)
    return spread(np.maximum(draws - np.nanmean(draws) + estimate, 0))


def on_logit_scale(estimate: float, draws: Float[np.ndarray, " replicates"], clusters: int) -> Spread:
    """`spread` of an average precision, with Student's interval on the logit scale instead of percentiles.

    An average precision is skewed and, with few positives, biased upwards; its replicates, in which images
    repeat, are biased upwards once more. A percentile interval inherits both biases: it lies too high, and is
    too short (docs/statistics.md). Where there is no logit (0 or 1), or only one cluster, the percentile
    interval is kept.

    Args:
        estimate: on the sample itself.
        draws: its replicates.
        clusters: number of resampled units with a positive; less one, it is the degrees of freedom, and the
            bootstrap's variance is multiplied by clusters / (clusters - 1).

    Source: Boyd, Eng & Page, Area under the precision-recall curve: point estimates and confidence intervals
    (ECML 2013), the logit interval; here with a cluster bootstrap and the number of clusters.
    """
    found = spread(draws)
    if not (0 < estimate < 1 and found.std > 0 and clusters > 1):
        return found
    std = found.std * np.sqrt(clusters / (clusters - 1)) / (estimate * (1 - estimate))
    reach = t.ppf(0.975, clusters - 1) * std
    low, high = expit(logit(estimate) + np.array([-reach, reach]))
    return dataclasses.replace(found, ci_low=float(low), ci_high=float(high))


def spread_of(metric: str, row: Float[np.ndarray, " draws"], clusters: int) -> Spread:
    """Summary of one metric's replicates, the estimate (draw 0) first.

    Percentile intervals, except for two metrics whose replicates lie to one side of the estimate. `clusters`
    is the number of clusters with a positive.
    """
    match metric:
        case "ece":
            return around_estimate(float(row[0]), row[1:])
        case "average_precision":
            return on_logit_scale(float(row[0]), row[1:], clusters)
        case _:
            return spread(row[1:])


def std_paper(draws: Float[np.ndarray, "findings replicates"]) -> float:
    """The '±' of the paper's 'average': standard deviation (ddof = 1) over all replicates of all findings.

    It mostly reflects the difference between easy and hard findings, not how well the average is known; for
    that, take the standard deviation of `average` over the replicates. The paper's 0.90 ± 0.04 is this
    number.
    """
    return spread(draws.ravel()).std


def p_value(differences: Float[np.ndarray, " replicates"]) -> float:
    """Two-sided p-value of 'no difference', from the replicates of a difference.

    The level at which the percentile interval just reaches zero; the sample itself counts as one more
    replicate, so the p-value is never 0.
    """
    defined = differences[~np.isnan(differences)]
    if not defined.size:
        return np.nan
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (defined.size + 1))


def holm(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Holm's step-down correction of a family of p-values; NaN stays NaN and is not counted as a test.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 1979.
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted
