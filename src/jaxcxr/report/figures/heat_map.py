"""Metrics by group and budget as a heat map whose labels never overlap."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from jaxcxr.eval.metrics import BETTER
from jaxcxr.report.evaluation_facts import crossed, is_difference
from jaxcxr.report.figures.sweep_figures import ink_on, save
from jaxcxr.report.wording import number, signed

METRICS = ("auroc", "underdiagnosis_rate", "statistical_parity_difference")
LEAST_SPAN = 0.05
"""Difference at which the colours are strongest, at least: a few thousandths are not to look like much."""
CELL_WIDTH, CELL_HEIGHT = 0.72, 0.34
"""Inches; an interval such as '−0.26, −0.21' fits into a cell."""
_LETTERS = 15
"""Letters of a panel's title that fit above one cell."""


def heat_map(
    evaluations: pd.DataFrame,
    out_dir: str | Path,
    metrics: Sequence[str] = METRICS,
    stem: str = "heat_map",
) -> tuple[Path, Path] | None:
    """Metrics of the average over findings by group and budget, each cell with its value and 95 % interval.

    Args:
        evaluations: table of `supplementary_tables.stack`.
        out_dir: folder, made if it does not exist.
        metrics: one panel each, one below the other. Differences are coloured around zero.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file; None if fewer than two groups have a value. Groups without any value are
        left out; a single cell without one is hatched.
    """
    figure = draw_heat_map(evaluations, metrics)
    return None if figure is None else save(figure, Path(out_dir), stem)


def heat_map_rows(evaluations: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """The estimates that the heat map shows: averages over findings of everyone and of single-attribute
    groups that have a value.
    """
    rows = evaluations.loc[(evaluations["finding"] == "average") & ~crossed(evaluations)]
    rows = rows.loc[rows["metric"].isin(list(metrics)) & rows["reference"].isin(["", "rest"])]
    return rows.loc[rows["group"].isin(rows.loc[rows["value"].notna(), "group"])]


def draw_heat_map(evaluations: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure | None:
    """The heat map before it is written."""
    rows = heat_map_rows(evaluations, metrics)
    if len(set(rows["group"])) < 2:
        return None
    metrics = [metric for metric in metrics if metric in set(rows["metric"])]
    budgets = sorted(set(rows["epsilon"]), reverse=True)
    names = ["non-private" if np.isinf(epsilon) else f"{epsilon:g}" for epsilon in budgets]
    # Everyone has no difference to others, and so no row there.
    shown = {metric: rows.loc[rows["metric"] == metric] for metric in metrics}
    labels = {
        metric: own.drop_duplicates("group").set_index("group")["label"] for metric, own in shown.items()
    }
    heights = [0.5 + CELL_HEIGHT * len(groups) for groups in labels.values()]
    longest = max(len(label) for label in rows["label"])
    width = 0.3 + 0.07 * longest + max(2.4, CELL_WIDTH * len(budgets))
    figure = Figure(figsize=(width, 0.5 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights).ravel()
    for panel, metric in zip(panels, metrics, strict=True):
        own, groups = shown[metric].set_index(["group", "epsilon"]), labels[metric]
        cells = [[own.loc[(g, e)] if (g, e) in own.index else None for e in budgets] for g in groups.index]
        _draw_panel(panel, metric, cells)
        name = metric.replace("_", " ").replace("auroc", "AUROC")
        letters = max(30, _LETTERS * len(budgets))
        panel.set_title("\n".join(textwrap.wrap(name, letters)), fontsize=8, loc="left")
        panel.set_xticks(range(len(budgets)), names, fontsize=7)
        panel.set_yticks(range(len(groups)), list(groups), fontsize=7)
        panel.spines[:].set_visible(False)
    figure.supxlabel("privacy budget ε\n(* over fewer findings; hatched: not defined)", fontsize=7)
    return figure


def _draw_panel(panel: Axes, metric: str, cells: Sequence[Sequence[pd.Series | None]]) -> None:
    values = np.array(
        [[np.nan if cell is None else cell["value"] for cell in line] for line in cells], np.float64
    )
    image = panel.imshow(np.ma.masked_invalid(values), aspect="auto", **_colours(metric, values))
    for (y, x), value in np.ndenumerate(values):
        text = signed(value) if is_difference(metric) else number(value, 2)
        _draw_cell(panel, image, cells[y][x], (x, y), text)


def _colours(metric: str, values: Float[np.ndarray, "groups budgets"]) -> dict[str, Any]:
    if not is_difference(metric):
        return {"cmap": "cividis_r" if BETTER.get(metric) == "lower" else "cividis"}
    known = np.abs(values[np.isfinite(values)])
    span = max(LEAST_SPAN, float(known.max(initial=0)))
    return {"cmap": "PuOr", "vmin": -span, "vmax": span}


def _draw_cell(panel: Axes, image: AxesImage, cell: Any, at: tuple[int, int], text: str) -> None:
    x, y = at
    if cell is None:
        return
    if np.isnan(cell["value"]):
        panel.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.93", edgecolor="0.7", hatch="///", lw=0)
        )
        return
    ink = ink_on(image.to_rgba(np.asarray(cell["value"], np.float64)))
    text += "*" * str(cell["note"]).startswith("over ")
    panel.text(x, y - 0.2, text, ha="center", va="center", fontsize=7, color=ink)
    if np.isfinite(cell["ci_low"]):
        interval = f"{number(cell['ci_low'], 2)}, {number(cell['ci_high'], 2)}"
        panel.text(x, y + 0.25, interval, ha="center", va="center", fontsize=5.5, color=ink)
