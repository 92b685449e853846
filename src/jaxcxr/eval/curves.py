"""ROC and calibration curves of one finding, with bootstrap bands."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from jaxcxr.eval.bootstrap import all_multiplicities
from jaxcxr.eval.counts import CALIBRATION_BINS, calibration_bin

CURVE_REPLICATES = 200
"""Replicates of a plotted band; numbers in tables use the number in the configuration."""


def roc_band(
    y: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"],
    *,
    redraws: int = CURVE_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """The ROC curve: true-positive rate at 201 false-positive rates, with a pointwise 95 % band.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        cluster: resampled unit of each image (`bootstrap.clusters`).
        redraws: number of bootstrap replicates.
        seed: of the replicates.

    Returns:
        Columns `fpr`, `tpr`, `low`, `high`; no rows if only one class is labelled.
    """
    known = ~np.isnan(y)
    y, p, cluster = y[known], p[known], cluster[known]
    grid = np.linspace(0, 1, 201)
    if not ((y == 1).any() and (y == 0).any()):
        return pd.DataFrame({"fpr": [], "tpr": [], "low": [], "high": []})
    fpr, tpr, _ = roc_curve(y, p, drop_intermediate=False)
    order = np.argsort(-p, kind="stable")
    last_of_tie = np.append(np.diff(p[order]) != 0, True)
    sampled = all_multiplicities(int(cluster.max()) + 1, seed, redraws)
    curves = []
    for replicate in range(1, 1 + redraws):
        weights = sampled[cluster[order], replicate].astype(np.float64)
        hits, alarms = (
            np.cumsum(weights * y[order])[last_of_tie],
            np.cumsum(weights * (1 - y[order]))[last_of_tie],
        )
        if hits[-1] and alarms[-1]:
            curves.append(np.interp(grid, np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])))
    low, high = np.percentile(curves, [2.5, 97.5], axis=0) if curves else (np.full(grid.shape, np.nan),) * 2
    return pd.DataFrame({"fpr": grid, "tpr": np.interp(grid, fpr, tpr), "low": low, "high": high})


def calibration_band(
    y: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"],
    *,
    redraws: int = CURVE_REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """The calibration curve: share of positives in each bin, with its 95 % bootstrap interval.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        cluster: resampled unit of each image (`bootstrap.clusters`).
        redraws: number of bootstrap replicates.
        seed: of the replicates.

    Returns:
        Columns `probability` (mean of the bin), `observed`, `low`, `high`, `n`; one row per bin that holds
        images. Where all images of a bin have the same label, the interval is Wilson's.
    """
    known = ~np.isnan(y)
    y, p, cluster = y[known], p[known], cluster[known]
    if not len(y):
        return pd.DataFrame({"probability": [], "observed": [], "low": [], "high": [], "n": []})
    bins, width = calibration_bin(p), int(cluster.max()) + 1
    sampled = all_multiplicities(width, seed, redraws).astype(np.float64)
    lines = []
    for number in range(CALIBRATION_BINS):
        here = bins == number
        if here.any():
            images, positives = (
                np.bincount(cluster[here], minlength=width),
                np.bincount(cluster[here], y[here], width),
            )
            with np.errstate(invalid="ignore"):
                shares = (positives @ sampled) / (images @ sampled)
            low, high = (
                np.nanpercentile(shares[1:], [2.5, 97.5])
                if np.isfinite(shares[1:]).any()
                else (np.nan, np.nan)
            )
            if shares[0] in (0, 1):
                # Replicates of a single class hold that class only: Wilson's interval over patients instead.
                patients = int((images > 0).sum())
                low, high = binomtest(round(shares[0] * patients), patients).proportion_ci(0.95, "wilson")
            lines.append([p[here].mean(), shares[0], low, high, int(here.sum())])
    return pd.DataFrame(lines, columns=["probability", "observed", "low", "high", "n"])
