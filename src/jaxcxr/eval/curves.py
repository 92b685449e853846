"""Curves with bands: the receiver operating characteristic and the calibration curve of one finding, over
redraws.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from jaxcxr.eval.bootstrap import draw_all
from jaxcxr.eval.counts import CALIBRATION_BINS, calibration_bin

CURVE_REDRAWS = 200
"""Enough for a band that is looked at; numbers in tables rest on the redraws of the configuration."""


def roc_band(
    y: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"],
    *,
    redraws: int = CURVE_REDRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """True positive rate at 201 false positive rates, with a pointwise 95 % band.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        cluster: what is redrawn, for each film (`bootstrap.clusters`).
        redraws: redraws that the band is made of.
        seed: of the redraws.

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
    drawn = draw_all(int(cluster.max()) + 1, seed, redraws)
    curves = []
    for redraw in range(1, 1 + redraws):
        weights = drawn[cluster[order], redraw].astype(np.float64)
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
    redraws: int = CURVE_REDRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of positives in each calibration bin, with its 95 % interval over redraws (Wilson's where all
    films are alike).

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        cluster: what is redrawn, for each film (`bootstrap.clusters`).
        redraws: redraws that the interval is made of.
        seed: of the redraws.

    Returns:
        Columns `probability` (mean of the bin), `observed`, `low`, `high`, `n`; a row a bin with films.
    """
    known = ~np.isnan(y)
    y, p, cluster = y[known], p[known], cluster[known]
    if not len(y):
        return pd.DataFrame({"probability": [], "observed": [], "low": [], "high": [], "n": []})
    bins, width = calibration_bin(p), int(cluster.max()) + 1
    drawn = draw_all(width, seed, redraws).astype(np.float64)
    lines = []
    for number in range(CALIBRATION_BINS):
        here = bins == number
        if here.any():
            films, positives = (
                np.bincount(cluster[here], minlength=width),
                np.bincount(cluster[here], y[here], width),
            )
            with np.errstate(invalid="ignore"):
                shares = (positives @ drawn) / (films @ drawn)
            low, high = (
                np.nanpercentile(shares[1:], [2.5, 97.5])
                if np.isfinite(shares[1:]).any()
                else (np.nan, np.nan)
            )
            if shares[0] in (0, 1):
                # Redraws of nothing but positives hold nothing but positives: Wilson's interval over patients
                # instead.
                patients = int((films > 0).sum())
                low, high = binomtest(round(shares[0] * patients), patients).proportion_ci(0.95, "wilson")
            lines.append([p[here].mean(), shares[0], low, high, int(here.sum())])
    return pd.DataFrame(lines, columns=["probability", "observed", "low", "high", "n"])
