"""Figures of one model from its predictions: ROC curves and calibration curves, a panel a finding, with their
bands.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcxr.eval.bootstrap import Resample, clusters
from jaxcxr.eval.curves import calibration_band, roc_band
from jaxcxr.eval.metrics import point_metrics
from jaxcxr.report.figures.sweep_figures import PALETTE, save
from jaxcxr.report.paper.supplementary_tables import title


def roc_figure(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    out_dir: str | Path,
    *,
    groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
    resample: Resample = "patient",
    seed: int = 0,
    stem: str = "roc",
) -> tuple[Path, Path]:
    """ROC curve of each finding on the test rows, with a pointwise 95 % band.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings.
        out_dir: folder, made if it does not exist.
        groups: masks over the rows by label, a curve each; None draws everyone.
        resample: what is resampled.
        seed: of the bootstrap replicates.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file.
    """

    def draw(panel: Axes, y: np.ndarray, p: np.ndarray, cluster: np.ndarray, colour: str, label: str) -> None:
        band = roc_band(y, p, cluster, seed=seed)
        if band.empty:
            return
        area = point_metrics(y, p, np.nan)["auroc"]
        panel.fill_between(band["fpr"], band["low"], band["high"], color=colour, alpha=0.2, lw=0)
        panel.plot(band["fpr"], band["tpr"], color=colour, lw=1.3, label=f"{label}AUROC {area:.2f}")

    figure, panels = _panels(findings)
    _fill(panels, predictions, findings, groups, resample, draw)
    for panel in panels[: len(findings)]:
        _dress(panel, "false positive rate", "true positive rate", "lower right")
    return save(figure, Path(out_dir), stem)


def calibration_figure(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    out_dir: str | Path,
    *,
    groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
    resample: Resample = "patient",
    seed: int = 0,
    stem: str = "calibration",
) -> tuple[Path, Path]:
    """Share of positives against the predicted probability of each finding on the test rows, with 95 %
    intervals.

    Takes and returns what `roc_figure` does. Bins with fewer than ten images are left out: their share says
    nothing.
    """

    def draw(panel: Axes, y: np.ndarray, p: np.ndarray, cluster: np.ndarray, colour: str, label: str) -> None:
        curve = calibration_band(y, p, cluster, seed=seed)
        curve = curve.loc[curve["n"] >= 10]
        if curve.empty:
            return
        error = point_metrics(y, p, np.nan)["ece"]
        panel.vlines(curve["probability"], curve["low"], curve["high"], color=colour, lw=1.3)
        panel.plot(
            curve["probability"],
            curve["observed"],
            "o-",
            color=colour,
            lw=1,
            ms=3,
            label=f"{label}ECE {error:.2f}",
        )

    figure, panels = _panels(findings)
    _fill(panels, predictions, findings, groups, resample, draw)
    for panel in panels[: len(findings)]:
        _dress(panel, "predicted probability", "share of positives", "upper left")
    return save(figure, Path(out_dir), stem)


def _panels(findings: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(4, len(findings))
    rows = -(-len(findings) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.45 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel())
    for panel in panels[len(findings) :]:
        panel.set_visible(False)
    for number, panel in enumerate(panels[: len(findings)]):
        # Under a hidden panel there are no tick labels to share.
        panel.xaxis.set_tick_params(labelbottom=number + columns >= len(findings))
    return figure, panels


def _fill(panels, predictions, findings, groups, resample, draw) -> None:
    is_test = (predictions["split"] == "test").to_numpy()
    test = predictions.loc[is_test]
    cluster = clusters(pd.Series(test["patient_id"]), resample)
    masks = (
        {"": np.ones(len(test), bool)}
        if groups is None
        else {f"{k}: ": np.asarray(m)[is_test] for k, m in groups.items()}
    )
    for panel, finding in zip(panels, findings, strict=False):
        panel.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
        panel.set_title(title(finding), fontsize=8, loc="left")
        p = test[f"p_{finding}"].to_numpy(np.float64)
        for (label, mask), colour in zip(masks.items(), PALETTE, strict=False):
            y = np.where(mask, test[f"y_{finding}"].to_numpy(np.float64), np.nan)
            draw(panel, y, p, cluster, colour, label)
        if not panel.get_legend_handles_labels()[0]:
            panel.text(0.5, 0.5, "not defined", ha="center", va="center", fontsize=8, color="0.3")


def _dress(panel: Axes, x: str, y: str, place: Literal["lower right", "upper left"]) -> None:
    panel.set_aspect("equal")
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    spec = panel.get_subplotspec()
    if panel.xaxis.get_tick_params().get("labelbottom", True):
        panel.set_xlabel(x, fontsize=8)
    if spec is not None and spec.is_first_col():
        panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc=place, fontsize=7, frameon=False, handlelength=1)
