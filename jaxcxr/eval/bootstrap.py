"""How far the metrics would move with other patients: the bootstrap (the paper: 1,000 redraws).

A redraw is a vector of multiplicities, how often each test film was drawn. Sorting a finding by probability is done once; every
redraw then needs cumulative sums of the multiplicities in that order and nothing else. All counts are whole numbers until the
last division, so that ties, in probability or in Youden's index, are exact.

Redraw r of a seed depends on the seed, r and the patients (or the number) of the test rows, never on a probability or a label.
Two models with predictions for the same rows in the same order therefore get the same redraws, and the difference of their
draws is a paired bootstrap.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from jaxcxr.errors import InputError
from jaxcxr.eval.metrics import METRICS, Ranking, ThresholdPolicy, choose_thresholds, rank

Resample = Literal["patient", "image"]

BLOCK = 16
"""Redraws a thread handles at once: few enough for its arrays to stay in the processor's cache."""

MAX_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Spread:
    """What the redraws of one metric say about it.

    Attributes:
        mean: over the redraws in which the metric is defined.
        std: over the same, with ddof = 1.
        ci_low, ci_high: 2.5th and 97.5th percentile, linearly interpolated (percentile bootstrap, 95 %).
        redraws: how many of the redraws that is.
    """

    mean: float
    std: float
    ci_low: float
    ci_high: float
    redraws: int


def clusters(patient_ids: pd.Series, resample: Resample) -> Int[np.ndarray, " n"]:
    """Number of the thing that is drawn, for each film: its patient in order of appearance, or the film itself."""
    return pd.factorize(patient_ids)[0] if resample == "patient" else np.arange(len(patient_ids))


def multiplicities(cluster: Int[np.ndarray, " n"], seed: int, redraw: int) -> Int[np.ndarray, " n"]:
    """How often a redraw holds each film: as many clusters as there are are drawn with replacement, each with all its films."""
    count = int(cluster.max()) + 1
    drawn = np.random.default_rng([seed, redraw]).integers(0, count, count)
    return np.bincount(drawn, minlength=count).astype(np.int32).take(cluster)


def weighted_metrics(
    ranking: Ranking, weights: Int[np.ndarray, "redraws n"], threshold: float | None
) -> Float[np.ndarray, "redraws 4"]:
    """The four metrics of one finding in each redraw, in the order of `METRICS`.

    Args:
        ranking: the films of the finding (`metrics.rank`).
        weights: multiplicity of each film in each redraw, int32.
        threshold: used in every redraw; None chooses Youden's anew in each, by the rule of `metrics.youden_threshold`.

    Returns:
        NaN where a redraw has one class only, and in all but the AUROC where `threshold` is NaN.
    """
    if ranking.one_class:
        return np.full((len(weights), len(METRICS)), np.nan)
    true_positives = _cumulative(weights, ranking.positives)
    false_positives = _cumulative(weights, ranking.negatives)
    n_positive, n_negative = true_positives[:, -1].astype(np.int64), false_positives[:, -1].astype(np.int64)
    tp = np.take(true_positives, ranking.positives_at, axis=1)
    fp = np.take(false_positives, ranking.negatives_at, axis=1)
    fp_above = np.take(false_positives, ranking.negatives_above, axis=1)
    # A negative below a positive wins a pair and one at its probability half a pair: counted twice, both are whole numbers.
    won_twice = (np.diff(tp, axis=1, prepend=0) * (2 * n_negative[:, None] - fp - fp_above)).sum(axis=1)

    if threshold is None:
        index = tp * n_negative[:, None] - fp * n_positive[:, None]
        best = (np.arange(len(weights)), np.argmax(index, axis=1))
        beats_chance = index[best] > 0
        called_p, called_n = np.where(beats_chance, tp[best], 0), np.where(beats_chance, fp[best], 0)
    else:
        at_p, at_n = ranking.called(threshold)
        called_p, called_n = true_positives[:, at_p], false_positives[:, at_n]

    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.stack(
            [
                won_twice / (2 * n_positive * n_negative),
                (called_p + n_negative - called_n) / (n_positive + n_negative),
                called_p / n_positive,
                (n_negative - called_n) / n_negative,
            ],
            axis=1,
        )
    result[(n_positive == 0) | (n_negative == 0)] = np.nan
    if threshold is not None and np.isnan(threshold):
        result[:, 1:] = np.nan
    return result


def _cumulative(weights: Int[np.ndarray, "redraws n"], rows: Int[np.ndarray, " p"]) -> Int[np.ndarray, "redraws p+1"]:
    sums = np.zeros((len(weights), len(rows) + 1), np.int32)
    np.cumsum(np.take(weights, rows, axis=1), axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums


def bootstrap(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    *,
    redraws: int,
    resample: Resample,
    threshold: ThresholdPolicy,
    seed: int,
    rows: Bool[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, "redraws findings 4"]:
    """Draw the test rows again, `redraws` times, and compute the four metrics of each finding in each redraw.

    Args:
        predictions: table with `patient_id`, `split`, `y_<finding>` and `p_<finding>`, one row a film
            (`evaluate.read_predictions`).
        findings: names of the findings.
        redraws: number of redraws.
        resample: `patient` draws patients and takes all films of each; `image` (the paper) draws films as if they were
            independent, which understates the spread where patients have several.
        threshold: `youden_test_per_draw` (the paper's code) chooses anew in every redraw, on the redraw itself, which flatters;
            `youden_test` and `youden_validation` choose once (`metrics.choose_thresholds`).
        seed: not negative.
        rows: mask of the group to evaluate, over all rows of `predictions`; None is everyone. The whole test set is redrawn and
            then the group taken from it, so that draws of two groups, too, are paired.

    Returns:
        float64, last axis in the order of `METRICS`; NaN where a redraw holds one class of a finding only.

    Raises:
        InputError: no test rows, a negative seed, or `youden_validation` without validation rows.
    """
    test = (predictions["split"] == "test").to_numpy()
    if not test.any():
        raise InputError("predictions: expected rows whose split is 'test', found none")
    if seed < 0:
        raise InputError(f"evaluation.seed: expected a number that is not negative, found {seed}")
    chosen = [None] * len(findings)
    if threshold != "youden_test_per_draw":
        chosen = [float(t) for t in choose_thresholds(predictions, findings, threshold)]

    table = predictions.loc[test]
    evaluated = np.ones(len(table), bool) if rows is None else rows[test]
    rankings = [rank(np.where(evaluated, table[f"y_{f}"], np.nan), table[f"p_{f}"].to_numpy()) for f in findings]
    cluster = clusters(table["patient_id"], resample)
    draws = np.empty((redraws, len(findings), len(METRICS)))

    def fill(first: int) -> None:
        last = min(first + BLOCK, redraws)
        weights = np.stack([multiplicities(cluster, seed, redraw) for redraw in range(first, last)])
        for column, (ranking, cut) in enumerate(zip(rankings, chosen, strict=True)):
            draws[first:last, column] = weighted_metrics(ranking, weights, cut)

    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        list(threads.map(fill, range(0, redraws, BLOCK)))
    return draws


def average(draws: Float[np.ndarray, "redraws findings 4"]) -> Float[np.ndarray, "redraws 4"]:
    """Mean over the findings in each redraw.

    A finding without any defined redraw is left out of the mean, and a redraw in which another one is undefined has no average:
    the mean is over the same findings in every redraw.
    """
    defined = ~np.isnan(draws).all(axis=0)
    summed = np.where(defined, draws, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return summed / defined.sum(axis=0)


def spread(draws: Float[np.ndarray, " redraws"]) -> Spread:
    """Mean, standard deviation and 95 % interval of one metric's redraws; NaN where too few of them are defined."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return Spread(np.nan, np.nan, np.nan, np.nan, 0)
    low, high = np.percentile(defined, [2.5, 97.5])
    std = float(defined.std(ddof=1)) if defined.size > 1 else np.nan
    return Spread(float(defined.mean()), std, float(low), float(high), int(defined.size))


def std_paper(draws: Float[np.ndarray, "redraws findings"]) -> float:
    """The '±' of the paper's 'average': one standard deviation (ddof = 1) over all redraws of all findings together.

    It is mostly the difference between easy and hard findings and says little about how well the average is known; for that,
    take the standard deviation of `average` over the redraws. The paper's 0.90 ± 0.04 is this number.
    """
    return spread(draws.ravel()).std
