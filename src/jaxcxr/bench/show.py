"""The benchmark's rows for a reader: a table on the screen and a figure."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxcxr.bench.measure import Details, Row, nonprivate_of, ratio

COLOURS = {"jaxcxr": "#0b6e4f", "jax_privacy": "#8fb8de", "torch": "#b0413e", "opacus": "#e4a89f"}


def case_name(row: Row) -> str:
    """The heading of a case's rows; the paper's network is not named."""
    network = "" if row.network == "resnet9" else f"{row.network}, "
    return (
        f"{network}{row.size} {'tokens' if row.network == 'transformer' else 'px'} x {row.batch}, {row.dtype}"
    )


def screen_table(details: Sequence[Details]) -> str:
    """One line a row: step time and spread, films a second, peak memory, ratio to the own non-private step,
    share of the machine's matrix-product rate.
    """
    header = f"{'':25}{'step ms':>9}{'spread':>8}{'films/s':>9}{'peak MB':>9}{'ratio':>7}{'of peak':>9}"
    lines = []
    for case, group in itertools.groupby(details, key=lambda d: case_name(d.row)):
        lines += [case, header]
        lines += [_line(d) for d in group]
        lines.append("")
    return "\n".join(lines[:-1])


def _line(details: Details) -> str:
    row = details.row
    if row.median_s is None or row.spread_s is None:
        return f"{row.name:25}{row.error}"
    peak = f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes is not None else "-"
    ratio = f"{row.ratio_to_nonprivate:.2f}" if row.ratio_to_nonprivate is not None else "-"
    share = f"{details.share_of_product_rate:.0%}" if details.share_of_product_rate is not None else "-"
    times = f"{row.median_s * 1e3:9.0f}{row.spread_s * 1e3:8.0f}{row.images_per_s:9.1f}"
    return f"{row.name:25}{times}{peak:>9}{ratio:>7}{share:>9}"


def speedups(details: Sequence[Details]) -> list[str]:
    """One sentence a case: the private step against its own non-private one and against the fastest of each
    peer, by the median over rounds of the ratio within a round.
    """
    sentences = []
    for case, group in itertools.groupby(details, key=lambda d: case_name(d.row)):
        timed = {d.row.name: d for d in group if d.row.median_s is not None}
        ours = timed.get("jaxcxr layerwise")
        if ours is None:
            continue
        of_peers = (
            [d for d in timed.values() if d.row.name.startswith(peer)] for peer in ("opacus", "jax_privacy")
        )
        fastest = (min(own, key=lambda d: d.row.median_s or 0.0, default=None) for own in of_peers)
        parts = []
        for other in (timed.get("jaxcxr nonprivate"), *fastest):
            times = ratio(other.seconds, ours.seconds) if other else None
            if other and times:
                name = "its own non-private step" if other.row.name == "jaxcxr nonprivate" else other.row.name
                parts.append(f"{times:.2f} times the speed of {name}")
        sentences.append(f"{case}: jaxcxr layerwise has {', '.join(parts)}")
    return sentences


def figure(rows: Sequence[Row], path: Path) -> None:
    """Films a second of every contender, one panel a case, as bars with the spread of the step time."""
    cases = [(case, list(group)) for case, group in itertools.groupby(rows, key=case_name)]
    height = max(len(group) for _, group in cases)
    drawing = Figure(figsize=(4.2 * len(cases) + 1.5, 0.42 * height + 1.4), layout="constrained")
    axes = drawing.subplots(1, len(cases), squeeze=False)[0]
    for axis, (case, group) in zip(axes, cases, strict=True):
        for position, row in enumerate(group):
            colour = COLOURS[row.name.split(" ")[0]]
            if row.median_s is None or row.spread_s is None or row.images_per_s is None:
                axis.text(0, position, "  failed", va="center", fontsize=8, color=colour)
                continue
            half = row.images_per_s * row.spread_s / row.median_s / 2
            hatched = row.name == nonprivate_of(row.name)
            axis.barh(
                position,
                row.images_per_s,
                xerr=half,
                color=colour,
                alpha=0.55 if hatched else 1.0,
                hatch="//" if hatched else "",
            )
        axis.set_yticks(range(len(group)), [row.name for row in group])
        axis.invert_yaxis()
        axis.set_title(case, fontsize=10)
        axis.set_xlabel("films a second (hatched: not private)")
        axis.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
