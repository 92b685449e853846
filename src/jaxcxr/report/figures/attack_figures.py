"""What an epsilon means, as figures: how far any attack can get, and what patients with several images are
promised.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, NullLocator

from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.report.figures.sweep_figures import MARKERS, PALETTE, save

Curve = tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]
"""False-positive rates and true-positive rates."""
Edge = tuple[Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"]]
"""The same along the edge of a band, of whatever length."""
BAND = (
    "Band: 95 % interval of both rates of one threshold (Clopper-Pearson); some of many thresholds lie "
    "outside by chance."
)


def trade_off_figure(
    curves: Mapping[str, Curve],
    out_dir: str | Path,
    stem: str = "trade_off",
    *,
    unit: str = "images",
    bands: Mapping[str, tuple[Edge, Edge]] = MappingProxyType({}),
) -> tuple[Path, Path]:
    """Best true-positive rate of any test 'was this unit in the training data?' against its false-positive
    rate.

    On the left the whole curve, on the right the same on logarithmic axes, where an attacker who must not
    raise false alarms works.

    Args:
        curves: by label, such as from `accounting.attack_bounds.trade_off`.
        out_dir: folder, made if it does not exist.
        stem: name of the files without ending.
        unit: what is in the training data or not, in the plural.
        bands: by the label of a measured curve, the lower right and the upper left edge of its 95 % band
            (such as from `audit.lower_bounds.MembershipCurve.band`), which the figure's legend explains.

    Returns:
        The PNG and the SVG file.
    """
    figure = Figure(figsize=(7.6, 4.2 if bands else 3.9), layout="constrained")
    whole, few = figure.subplots(1, 2)
    lowest = min(float(x[x > 0].min()) for x, _ in curves.values())
    chance = np.geomspace(lowest, 1, 200)
    for panel in (whole, few):
        panel.plot([0, *chance], [0, *chance], color="0.5", ls=":", lw=1, label="guessing")
        for (label, (x, y)), colour in zip(curves.items(), PALETTE, strict=False):
            panel.plot(x, y, color=colour, lw=1.5, label=label)
            if label in bands:
                panel.fill(*_outline(*bands[label], lowest), color=colour, alpha=0.15, lw=0)
        panel.set_xlabel(f"false-positive rate: {unit} wrongly said to be in", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    at_most = "" if bands else " (at most)"
    whole.set_ylabel(f"true-positive rate: {unit} rightly said to be in{at_most}", fontsize=8)
    whole.set_title("(A) all tests", loc="left", fontsize=9, fontweight="bold")
    few.set_title("(B) tests with few false alarms", loc="left", fontsize=9, fontweight="bold")
    few.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.3))
    for axis in (few.xaxis, few.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    legend = figure.legend(
        *whole.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    if bands:
        legend.set_title(
            BAND, prop=FontProperties(size=7.5)
        )  # inside the legend, which the layout makes room for
    return save(figure, Path(out_dir), stem)


def _outline(lower: Edge, upper: Edge, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Along the lower edge and back along the upper one; kept on the paper where axes are logarithmic."""
    x = np.concatenate([lower[0], upper[0][::-1]])
    y = np.concatenate([lower[1], upper[1][::-1]])
    return np.maximum(x, lowest / 10), np.maximum(y, lowest / 10)


def patients_figure(
    bounds: Mapping[str, Mapping[int, Bounds]], out_dir: str | Path, stem: str = "patients"
) -> tuple[Path, Path]:
    """Epsilon of a patient against how many images they have in the training data.

    Args:
        bounds: by model, then by number of images, such as from `accounting.group_privacy.patient_bounds`.
            The upper bound is plotted, with a bar down to the lower one; a dotted line shows epsilon times
            images, which holds at a far larger delta only.
        out_dir: folder, made if it does not exist.
        stem: name of the files without ending.

    Returns:
        The PNG and the SVG file.
    """
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    panel = figure.subplots()
    most = 1
    for (label, of), colour, marker in zip(bounds.items(), PALETTE, MARKERS, strict=False):
        films = [k for k in sorted(of) if np.isfinite(of[k].upper)]
        upper, lower = [of[k].upper for k in films], [max(of[k].lower, 1e-3) for k in films]
        panel.vlines(films, lower, upper, color=colour, lw=3, alpha=0.35)
        panel.plot(films, upper, color=colour, marker=marker, ms=4, lw=1.3, label=label)
        if 1 in of:
            panel.plot(films, [of[1].upper * k for k in films], color=colour, ls=":", lw=1)
        most = max(most, *films)
    panel.plot([], [], color="0.4", ls=":", lw=1, label="images times epsilon (true at a far larger delta)")
    ticks = sorted({k for of in bounds.values() for k in of if k <= most})
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(ticks, [f"{k}" for k in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("images of a patient in the training data", fontsize=9)
    panel.set_ylabel("epsilon of that patient (upper bound; bar: down to the lower)", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", color="0.9", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return save(figure, Path(out_dir), stem)
