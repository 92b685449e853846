"""Figures from the summary of a sweep, each as PNG (print) and SVG (page), in colours that colour-blind
readers tell apart.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxcxr.eval.correlations import pearson
from jaxcxr.report.paper.supplementary_tables import (
    METRIC_NAMES,
    paper_results,
    same_findings_as_paper,
    title,
)
from jaxcxr.report.wording import number

PRIVATE = "#0072B2"
NON_PRIVATE = "#D55E00"
BESIDE = "#009E73"
PAPER = "#8C8C8C"
"""Blue, vermilion and green of the palette of Okabe and Ito; the paper's results in grey."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, in an order in which neighbours differ in lightness too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

DPI = 300


def figure_2(
    summary: pd.DataFrame,
    out_dir: str | Path,
    stem: str = "figure_2",
    beside: tuple[str, pd.DataFrame] | None = None,
) -> tuple[Path, Path]:
    """Average AUROC, accuracy, specificity and sensitivity against the privacy budget (the paper's Figure 2).

    The intervals are those of the average over findings. The non-private model is a line across with a band.
    The paper's results are drawn beside ours if the findings are the paper's eight; they have no intervals,
    because the paper's '±' of the average is the difference between findings.

    Args:
        summary: table in the form of `summary.csv`; one budget, or the non-private model alone, is enough.
        out_dir: folder, made if it does not exist.
        stem: name of the files without ending.
        beside: name and summary of another sweep, drawn in the same panels, its non-private model broken and
            without a band.

    Returns:
        The PNG and the SVG file.
    """
    paper = paper_results() if same_findings_as_paper(summary) else paper_results().iloc[:0]
    ours, paper = (table.loc[table["finding"] == "average"] for table in (summary, paper))
    name, other = ("", summary.iloc[:0]) if beside is None else beside
    other = other.loc[other["finding"] == "average"]
    budgets = _apart([*ours["epsilon"], *other["epsilon"], *paper["epsilon"]])

    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for letter, panel, (metric, called) in zip("ABCD", panels, METRIC_NAMES.items(), strict=True):
        _draw_ours(panel, ours.loc[ours["metric"] == metric])
        _draw_beside(panel, other.loc[other["metric"] == metric], name)
        _draw_paper(panel, paper.loc[paper["metric"] == metric])
        _dress(panel, f"({letter}) {called}", called, budgets)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save(figure, Path(out_dir), stem)


def figure_3(
    evaluations: pd.DataFrame,
    samples: pd.Series,
    epsilon: float,
    out_dir: str | Path,
    comparisons: pd.DataFrame | None = None,
    stem: str = "figure_3",
) -> tuple[Path, Path] | None:
    """AUROC of the private model against sample size, one dot per finding, coloured by the loss of AUROC (the
    paper's Figure 3).

    Args:
        evaluations: table of `tables.stack`.
        samples: number of images with each finding (`paper_tables.sample_sizes`).
        epsilon: budget of the private model.
        out_dir: folder, made if it does not exist.
        comparisons: rows of `eval.compare.compare` with a column `epsilon`, whose intervals of the loss stand
            at the dots.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file; None unless there are this model, the non-private one and sample sizes.
    """
    rows = evaluations.loc[(evaluations["group"] == "all") & (evaluations["metric"] == "auroc")]
    rows = rows.loc[rows["finding"] != "average"]
    private, public = (rows.loc[rows["epsilon"] == e].set_index("finding") for e in (epsilon, np.inf))
    findings = [
        f for f in private.index if f in public.index and f in samples.index and private["value"].notna()[f]
    ]
    if not findings:
        return None
    private, public, x = (
        private.loc[findings],
        public.loc[findings],
        samples.loc[findings].to_numpy(np.float64),
    )
    loss = (public["value"] - private["value"]).to_numpy(np.float64)
    figure = Figure(figsize=(6.4, 4.4 + 0.16 * len(findings)), layout="constrained")
    above, below = np.asarray(
        figure.subfigures(2, 1, height_ratios=(4.4, 0.16 * (len(findings) + 1))), object
    )
    panel = above.subplots()
    panel.vlines(x, private["ci_low"], private["ci_high"], color="0.6", lw=1.2, zorder=1)
    dots = panel.scatter(
        x, private["value"], c=loss, cmap="cividis_r", s=130, edgecolor="black", lw=0.6, zorder=2
    )
    above.colorbar(dots, ax=panel, label="loss of AUROC (non-private − private)").ax.tick_params(labelsize=8)
    said = dict(zip(findings, [number(value, 2) for value in loss], strict=True))
    if comparisons is not None:
        own = comparisons.loc[(comparisons["epsilon"] == epsilon) & (comparisons["group"] == "all")]
        for row in own.loc[own["metric"] == "auroc"].to_dict("records"):
            value, low, high = (number(row[key], 2) for key in ("difference", "ci_low", "ci_high"))
            said[row["finding"]] = f"{value} [{low}, {high}]"
    for place, (at, value, lost) in enumerate(zip(x, private["value"], loss, strict=True), start=1):
        ink = ink_on(dots.to_rgba(lost))
        panel.text(at, value, str(place), ha="center", va="center", fontsize=7, color=ink, zorder=3)
    named = [f"{place} {title(f)}: {said[f]}" for place, f in enumerate(findings, start=1)]
    below.text(0.08, 0.98, "loss of AUROC\n" + "\n".join(named), fontsize=7.5, va="top")
    r = pearson(x, private["value"].to_numpy(np.float64))
    interval = "" if np.isnan(r.ci_low) else f" [{number(r.ci_low, 2)}, {number(r.ci_high, 2)}]"
    panel.set_title(
        f"ε = {epsilon:g}; Pearson's r {number(r.r, 2)}{interval}, n = {r.n} findings", fontsize=9, loc="left"
    )
    panel.set_xlabel("images with the finding", fontsize=9)
    panel.set_ylabel("AUROC of the private model (95 % interval)", fontsize=9)
    panel.margins(x=0.12, y=0.08)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    return save(figure, Path(out_dir), stem)


def figure_4(
    evaluations: pd.DataFrame, out_dir: str | Path, attribute: str = "sex", stem: str = "figure_4"
) -> tuple[Path, Path] | None:
    """Average AUROC, accuracy, specificity and sensitivity of each group against the budget (the paper's
    Figure 4: by sex).

    Args:
        evaluations: table of `tables.stack`.
        out_dir: folder, made if it does not exist.
        attribute: whose groups to draw, each in its own colour: intervals at the budgets, and a dashed line
            across for the non-private model.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file; None if no group of the attribute is defined.
    """
    rows = evaluations.loc[(evaluations["attribute"] == attribute) & (evaluations["finding"] == "average")]
    rows = rows.loc[
        (rows["reference"] == "") & rows["metric"].isin(list(METRIC_NAMES)) & rows["value"].notna()
    ]
    groups = dict(zip(rows["group"], rows["label"], strict=True))
    if not groups:
        return None
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    budgets = _apart(list(rows["epsilon"]))
    for letter, panel, (metric, name) in zip("ABCD", panels, METRIC_NAMES.items(), strict=True):
        for place, (group, label) in enumerate(groups.items()):
            own = rows.loc[(rows["group"] == group) & (rows["metric"] == metric)]
            private = own.loc[np.isfinite(own["epsilon"])].sort_values(by="epsilon")
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            # Beside one another, so that intervals do not hide those of another group.
            x = private["epsilon"] * 1.06 ** (place - (len(groups) - 1) / 2)
            panel.vlines(x, private["ci_low"], private["ci_high"], color=colour, lw=1.3)
            panel.plot(x, private["value"], marker=marker, color=colour, lw=1.3, ms=4, label=label)
            for row in own.loc[np.isinf(own["epsilon"])].to_dict("records"):
                panel.axhline(row["value"], color=colour, lw=1.1, ls="--")
                panel.axhspan(row["ci_low"], row["ci_high"], color=colour, alpha=0.12, lw=0)
        _dress(panel, f"({letter}) {name}", name, budgets)
    handles, labels = panels[0].get_legend_handles_labels()
    if np.isinf(rows["epsilon"]).any():
        handles.append(Line2D([], [], color="0.3", ls="--", lw=1.1))
        labels.append("non-private, in the same colours")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, Path(out_dir), stem)


def ink_on(colour: Any) -> str:
    """Black or white, whichever is better read on a colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"


def _apart(budgets: list[float]) -> list[float]:
    """The finite budgets, leaving out those too close to an earlier one for both to be written under a
    logarithmic axis.
    """
    kept: list[float] = []
    for budget in budgets:
        if np.isfinite(budget) and all(abs(np.log(budget / other)) > 0.25 for other in kept):
            kept.append(float(budget))
    return sorted(kept)


def _draw_private(panel: Axes, rows: pd.DataFrame, *, moved: float = 1.0, **style: Any) -> None:
    """Estimate and interval of each budget of one sweep, moved to the right by a factor."""
    private = rows.loc[np.isfinite(rows["epsilon"])].sort_values(by="epsilon")
    if private.empty:
        return
    at = private["epsilon"] * moved
    panel.plot(at, private["value"], **style)
    if {"ci_low", "ci_high"} <= set(private):
        panel.vlines(
            at,
            private["ci_low"],
            private["ci_high"],
            color=style["color"],
            lw=style["lw"],
            zorder=style["zorder"],
        )


def _draw_ours(panel: Axes, rows: pd.DataFrame) -> None:
    _draw_private(
        panel, rows, marker="o", color=PRIVATE, lw=1.5, ms=5, label="private (95 % interval)", zorder=4
    )
    for row in rows.loc[np.isinf(rows["epsilon"])].to_dict("records"):
        panel.axhline(row["value"], color=NON_PRIVATE, lw=1.5, label="non-private (95 % interval)", zorder=3)
        if np.isfinite([row.get("ci_low", np.nan), row.get("ci_high", np.nan)]).all():
            panel.axhspan(row["ci_low"], row["ci_high"], color=NON_PRIVATE, alpha=0.2, lw=0, zorder=2)


def _draw_beside(panel: Axes, rows: pd.DataFrame, name: str) -> None:
    style = {"marker": "^", "color": BESIDE, "lw": 1.2, "ms": 4.5, "label": f"{name}, private", "zorder": 3}
    _draw_private(panel, rows, moved=1.05, **style)  # next to ours, so that both intervals are seen
    for value in rows.loc[np.isinf(rows["epsilon"]), "value"]:
        panel.axhline(value, color=NON_PRIVATE, lw=1, ls="--", label=f"{name}, non-private", zorder=2)


def _draw_paper(panel: Axes, rows: pd.DataFrame) -> None:
    private = rows.loc[np.isfinite(rows["epsilon"])].sort_values(by="epsilon")
    if not private.empty:
        panel.plot(
            private["epsilon"],
            private["bootstrap_mean"],
            "s--",
            color=PAPER,
            mfc="white",
            lw=1,
            ms=4,
            label="paper, private",
            zorder=1,
        )
    for mean in rows.loc[np.isinf(rows["epsilon"]), "bootstrap_mean"]:
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


def save(figure: Figure, out_dir: Path, stem: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG; equal figures become equal files."""
    out_dir.mkdir(parents=True, exist_ok=True)
    png, svg = out_dir / f"{stem}.png", out_dir / f"{stem}.svg"
    # Text stays text in the SVG, for search and screen readers; salt and date make equal figures equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxcxr"}):
        FigureCanvasAgg(figure).print_figure(png, dpi=DPI)
        FigureCanvasSVG(figure).print_figure(svg, metadata={"Date": None})
    return png, svg
