"""Figures from the summary of a sweep, each as PNG (print) and SVG (page), in colours that colour-blind readers tell apart."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxcxr.report.tables import METRIC_NAMES, paper_results, same_findings_as_paper

PRIVATE = "#0072B2"
NON_PRIVATE = "#D55E00"
PAPER = "#8C8C8C"
"""Blue and vermilion of the palette of Okabe and Ito; the paper's results in grey."""

DPI = 300


def figure_2(summary: pd.DataFrame, out_dir: str | Path, stem: str = "figure_2") -> tuple[Path, Path]:
    """Average AUROC, accuracy, specificity and sensitivity against the privacy budget (the paper's Figure 2).

    The intervals are those of the average over findings. The non-private model is a line across with a band. The paper's
    results are drawn beside ours if the findings are the paper's eight; they have no intervals, because the paper's '±' of the
    average is the difference between findings.

    Args:
        summary: table in the form of `summary.csv`; one budget, or the non-private model alone, is enough.
        out_dir: folder, made if it does not exist.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file.
    """
    paper = paper_results() if same_findings_as_paper(summary) else paper_results().iloc[:0]
    ours, paper = (table.loc[table["finding"] == "average"] for table in (summary, paper))
    budgets = _apart([*ours["epsilon"], *paper["epsilon"]])

    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for letter, panel, (metric, name) in zip("ABCD", panels, METRIC_NAMES.items(), strict=True):
        _draw_ours(panel, ours.loc[ours["metric"] == metric])
        _draw_paper(panel, paper.loc[paper["metric"] == metric])
        _dress(panel, f"({letter}) {name}", name, budgets)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _save(figure, Path(out_dir), stem)


def _apart(budgets: list[float]) -> list[float]:
    """The finite budgets, leaving out those too close to an earlier one for both to be written under a logarithmic axis."""
    kept: list[float] = []
    for budget in budgets:
        if np.isfinite(budget) and all(abs(np.log(budget / other)) > 0.25 for other in kept):
            kept.append(float(budget))
    return sorted(kept)


def _draw_ours(panel: Axes, rows: pd.DataFrame) -> None:
    private = rows.loc[np.isfinite(rows["epsilon"])].sort_values(by="epsilon")
    if not private.empty:
        panel.plot(
            private["epsilon"], private["mean"], "o-", color=PRIVATE, lw=1.5, ms=5, label="private (95 % interval)", zorder=4
        )
        if {"ci_low", "ci_high"} <= set(private):
            panel.vlines(private["epsilon"], private["ci_low"], private["ci_high"], color=PRIVATE, lw=1.5, zorder=4)
    for row in rows.loc[np.isinf(rows["epsilon"])].to_dict("records"):
        panel.axhline(row["mean"], color=NON_PRIVATE, lw=1.5, label="non-private (95 % interval)", zorder=3)
        if np.isfinite([row.get("ci_low", np.nan), row.get("ci_high", np.nan)]).all():
            panel.axhspan(row["ci_low"], row["ci_high"], color=NON_PRIVATE, alpha=0.2, lw=0, zorder=2)


def _draw_paper(panel: Axes, rows: pd.DataFrame) -> None:
    private = rows.loc[np.isfinite(rows["epsilon"])].sort_values(by="epsilon")
    if not private.empty:
        panel.plot(
            private["epsilon"], private["mean"], "s--", color=PAPER, mfc="white", lw=1, ms=4, label="paper, private", zorder=1
        )
    for mean in rows.loc[np.isinf(rows["epsilon"]), "mean"]:
        panel.axhline(mean, color=PAPER, lw=1, ls=":", label="paper, non-private", zorder=1)


def _dress(panel: Axes, heading: str, name: str, budgets: list[float]) -> None:
    panel.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    panel.set_xscale("log")
    panel.set_xlabel("privacy budget ε", fontsize=9)
    panel.set_ylabel(f"average {name}" if name == "AUROC" else f"average {name.lower()}", fontsize=9)
    panel.xaxis.set_major_locator(FixedLocator(budgets))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if budgets:
        panel.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", color="0.9", lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, out_dir: Path, stem: str) -> tuple[Path, Path]:
    out_dir.mkdir(parents=True, exist_ok=True)
    png, svg = out_dir / f"{stem}.png", out_dir / f"{stem}.svg"
    # Text stays text in the SVG, for search and screen readers; salt and date make equal figures equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxcxr"}):
        FigureCanvasAgg(figure).print_figure(png, dpi=DPI)
        FigureCanvasSVG(figure).print_figure(svg, metadata={"Date": None})
    return png, svg
