"""Privacy and fairness in one picture: for each group its exposure, without privacy and with it, and what it
pays.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcxr.report.figures.sweep_figures import MARKERS, NON_PRIVATE, PALETTE, save
from jaxcxr.report.risk_files import RiskFiles
from jaxcxr.report.risk_sentences import RATE, is_complement, label_of

MOST_BUDGETS = 3
"""Budgets that are drawn: the smallest, the largest and the middle one of more."""
_PRICES = (("auroc_lost", "AUROC lost"), ("underdiagnosis_gained", "underdiagnosis gained"))


def drawn_budgets(exposure: pd.DataFrame) -> list[float]:
    """Budgets that the picture shows, falling."""
    budgets = sorted({float(e) for e in exposure["epsilon"] if math.isfinite(e)}, reverse=True)
    if len(budgets) <= MOST_BUDGETS:
        return budgets
    return [budgets[0], budgets[len(budgets) // 2], budgets[-1]]


def drawn_groups(exposure: pd.DataFrame) -> list[tuple[str, str]]:
    """Groups that the picture shows, with their labels."""
    rows = exposure.loc[(exposure["false_positive_rate"] == RATE) & np.isinf(exposure["epsilon"])]
    rows = rows.loc[rows["exposure"].notna() & ~rows["group"].map(is_complement)]
    labels = [
        "everyone" if g == "all" else label_of(label)
        for g, label in zip(rows["group"], rows["label"], strict=True)
    ]
    return list(zip(rows["group"], labels, strict=True))


def risk_figure(risk: RiskFiles, out: Path, stem: str = "risk") -> tuple[Path, Path]:
    """One row per group: exposure at 1 % false positives on the left, the two prices beside it.

    Args:
        risk: the tables.
        out: folder, made if it does not exist.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file.
    """
    groups, budgets = drawn_groups(risk.exposure), drawn_budgets(risk.exposure)
    panels = 1 if risk.price is None else 1 + len(_PRICES)
    figure = Figure(figsize=(3.4 + 2.5 * panels, 1.4 + 0.34 * len(groups)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels, sharey=True))
    exposure = risk.exposure.loc[risk.exposure["false_positive_rate"] == RATE]
    for place, epsilon in enumerate((math.inf, *budgets)):
        style = _style(place, epsilon, len(budgets))
        own = exposure.loc[exposure["epsilon"] == epsilon].set_index("group")
        _dots(axes[0], own, groups, ("exposure", 100.0), style)
        if risk.price is None or math.isinf(epsilon):
            continue
        for axis, (price, _) in zip(axes[1:], _PRICES, strict=True):
            rows = risk.price.loc[(risk.price["epsilon"] == epsilon) & (risk.price["price"] == price)]
            _dots(axis, rows.set_index("group"), groups, ("value", 1.0), style)
    named = [
        "exposure: recognised − wrongly accused,\nof 100 training patients",
        *(name for _, name in _PRICES),
    ]
    for axis, name in zip(axes, named[:panels], strict=True):
        axis.axvline(0, color="0.5", lw=0.8, zorder=0)
        axis.set_xlabel(name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.92", lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        for row in range(0, len(groups), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=-1, lw=0)
    axes[0].set_yticks(range(len(groups)), [label for _, label in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return save(figure, out, stem)


def _style(place: int, epsilon: float, budgets: int) -> dict[str, Any]:
    colours = [colour for colour in PALETTE if colour != NON_PRIVATE]
    shift = 0.6 * (place / max(budgets, 1) - 0.5)
    label = "without privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}"
    colour = NON_PRIVATE if math.isinf(epsilon) else colours[place - 1]
    return {"colour": colour, "marker": MARKERS[place], "label": label, "shift": shift}


def _dots(
    axis: Axes,
    rows: pd.DataFrame,
    groups: list[tuple[str, str]],
    what: tuple[str, float],
    style: dict[str, Any],
) -> None:
    column, scale = what
    there = [(place, group) for place, (group, _) in enumerate(groups) if group in rows.index]
    y = np.array([place + style["shift"] for place, _ in there])
    x, low, high = (
        scale * np.array([float(rows.loc[group, name]) for _, group in there])
        for name in (column, "ci_low", "ci_high")
    )
    axis.hlines(y, low, high, color=style["colour"], lw=1.2)
    axis.plot(x, y, ls="", marker=style["marker"], ms=4, color=style["colour"], label=style["label"])
