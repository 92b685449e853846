"""The tables of `report.html`: evaluations as rows of cells that know what they are sorted by."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from jaxcxr.eval.fairness import GAPS
from jaxcxr.eval.metrics import METRICS
from jaxcxr.eval.strata import WITHIN
from jaxcxr.report.evaluation_facts import SUPPRESSED, crossed, is_difference
from jaxcxr.report.paper.supplementary_tables import METRIC_NAMES, title
from jaxcxr.report.wording import number, p_text, signed

GROUP_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "auroc": "AUROC",
        "auroc_vs_rest": "AUROC − others",
        "auroc_vs_best": "AUROC − best group",
        "accuracy": "Accuracy",
        "statistical_parity_difference": "Accuracy − others (the paper's parity)",
        "sensitivity": "Sensitivity",
        "specificity": "Specificity",
        "underdiagnosis_rate": "Underdiagnosis rate",
        "underdiagnosis_rate_vs_rest": "Underdiagnosis − others",
        "selection_rate_difference": "Called positive − others (usual parity)",
        "calibration_in_the_large": "Mean probability − share of positives",
        "ece": "Expected calibration error",
    }
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read first.
        detail: what stands under it, such as an interval.
        key: what it is sorted by: a number, or None for its text. NaN is sorted to the end.
    """

    text: str
    detail: str = ""
    key: float | None = None

    @property
    def sort_key(self) -> str | None:
        """The key as JavaScript reads numbers; empty for a cell without a value."""
        if self.key is None:
            return None
        if math.isnan(self.key):
            return ""
        return (
            repr(float(self.key))
            if math.isfinite(self.key)
            else ("Infinity" if self.key > 0 else "-Infinity")
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: what it is called.
        caption: what a reader must know of its numbers.
        columns: heads of the columns.
        rows: cells; the first cell of a row is its name.
        foot: rows that stay at the end whatever the table is sorted by.
        too_small: names of groups that have no row because they are too small to be judged.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[tuple[Cell, ...], ...] = ()
    too_small: tuple[str, ...] = ()


def metric_name(metric: str) -> str:
    """Name of a metric at the head of a column."""
    known = {**METRIC_NAMES, "ece": "Expected calibration error", "f1": "F1", "brier": "Brier score"}
    return known.get(metric, metric.replace("_", " ").capitalize().replace("Auroc", "AUROC"))


def count(value: object) -> Cell:
    """A whole number; empty if it is missing."""
    if pd.isna(value):  # type: ignore[arg-type]
        return Cell("", key=np.nan)
    return Cell(f"{int(value):,}", key=float(value))  # type: ignore[call-overload]


def estimated(row: Mapping[str, object] | None, value: str = "value", with_sign: bool = False) -> Cell:
    """A value over its 95 % interval; why there is none, if there is none."""
    if row is None:
        return Cell("–", key=np.nan)
    if row.get("reference") and row["reference"] == row["group"]:
        return Cell("the best", key=0.0)
    point, note = float(row[value]), str(row.get("note") or "")  # type: ignore[arg-type]
    if math.isnan(point):
        short = "too small" if SUPPRESSED in note else "not defined"
        return Cell(short, key=np.nan)
    write = signed if with_sign else number
    low, high = float(row["ci_low"]), float(row["ci_high"])  # type: ignore[arg-type]
    detail = "" if math.isnan(low) else f"[{write(low)}, {write(high)}]"
    if note.startswith("over "):
        detail += f"\n{note.removeprefix('over ')}"
    return Cell(write(point), detail, point)


def _by(rows: pd.DataFrame, *keys: str) -> dict[tuple[str, ...], dict[str, object]]:
    return {tuple(str(row[key]) for key in keys): row for row in rows.to_dict("records")}  # type: ignore[misc]


def finding_table(evaluation: pd.DataFrame) -> Table:
    """Every metric over all test images: one row per finding, and the average at the foot."""
    rows = evaluation.loc[(evaluation["group"] == "all") & evaluation["metric"].isin(list(METRICS))]
    cells = _by(rows, "finding", "metric")
    lines = []
    for finding in dict.fromkeys(rows["finding"]):
        first = cells[finding, "auroc"]
        name = Cell("Average" if finding == "average" else title(str(finding)))
        cut = cells[finding, "accuracy"]["threshold"]
        shown = Cell("", key=np.nan) if pd.isna(cut) else Cell(f"{cut:.3f}", key=float(cut))  # type: ignore[arg-type]
        metrics = [estimated(cells.get((finding, m)), with_sign=is_difference(m)) for m in METRICS]
        lines.append((name, count(first["n"]), count(first["positives"]), *metrics, _delong(first), shown))
    return Table(
        "Findings",
        "Each finding on the test images, with its 95 % interval. The average is the mean over the findings "
        "that are defined; its interval is that of the mean. DeLong's interval of the AUROC is a check that "
        "needs no bootstrap.",
        (
            "Finding",
            "Images",
            "Positives",
            *(metric_name(m) for m in METRICS),
            "AUROC by DeLong",
            "Threshold",
        ),
        tuple(lines[:-1]),
        tuple(lines[-1:]),
    )


def _delong(row: Mapping[str, object]) -> Cell:
    low, high = float(row["delong_low"]), float(row["delong_high"])  # type: ignore[arg-type]
    return Cell("–", key=np.nan) if math.isnan(low) else Cell(f"[{number(low)}, {number(high)}]", key=low)


def group_table(evaluation: pd.DataFrame, *, several: bool) -> Table | None:
    """Metrics of the average over findings, one row per group; None without groups.

    Args:
        evaluation: table of `evaluate.evaluate`.
        several: the groups of several attributes at once, instead of those of one.
    """
    rows = evaluation.loc[
        (evaluation["finding"] == "average") & evaluation["metric"].isin(list(GROUP_METRICS))
    ]
    of_groups = rows.loc[crossed(rows) == several]
    groups = of_groups.loc[(of_groups["metric"] == "auroc") & (of_groups["group"] != "all")]
    if groups.empty:
        return None
    ill = _by(evaluation.loc[evaluation["metric"] == "no_finding_among_ill"], "group")
    cells = _by(rows, "group", "metric")

    def line(group: str, label: str, n: object) -> tuple[Cell, ...]:
        own = [estimated(cells.get((group, m)), with_sign=is_difference(m)) for m in GROUP_METRICS]
        return (Cell(label), count(n), *own, estimated(ill.get((group,))))

    everyone = cells["all", "auroc"]
    judged, too_small = without_small(groups)
    return Table(
        "Groups of two attributes" if several else "Groups",
        "Means over the findings, with 95 % intervals; differences are paired. The best group is chosen on "
        "these very images, so that differences to it lean to the worse.",
        ("Group", "Images", *GROUP_METRICS.values(), "Ill, but no finding called"),
        tuple(line(row["group"], row["label"], row["n"]) for row in judged.to_dict("records")),
        (line("all", "Everyone", everyone["n"]),),
        too_small,
    )


def without_small(groups: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows of groups that are large enough to be judged, and the labels of those that are not."""
    small = groups["note"].astype(str).str.startswith(SUPPRESSED)
    return groups.loc[~small], tuple(groups.loc[small, "label"].astype(str))


def strata_table(evaluation: pd.DataFrame) -> Table | None:
    """AUROC of each finding in each stratum, at the foot that within all of them and that over all pairs;
    None without strata.
    """
    rows = evaluation.loc[evaluation["metric"] == WITHIN]
    if rows.empty:
        return None
    findings = [str(f) for f in dict.fromkeys(rows["finding"])]
    if len(findings) == 2:  # one finding, and the average over it
        findings = findings[:1]
    everyone = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == "auroc")]

    def line(cells: Mapping[tuple[str, ...], dict[str, object]], group: str, label: str) -> tuple[Cell, ...]:
        return (
            Cell(label),
            count(cells[group, findings[-1]]["n"]),
            *(estimated(cells[group, f]) for f in findings),
        )

    cells, groups = _by(rows, "group", "finding"), rows.loc[rows["finding"] == findings[-1]]
    judged, too_small = without_small(groups)
    lines = {row["group"]: line(cells, row["group"], row["label"]) for row in judged.to_dict("records")}
    pooled = lines.pop("all", line(cells, "all", "within strata"))
    return Table(
        "Within strata",
        "AUROC among images that were taken alike, with its 95 % interval. The pooled figure is the share of "
        "pairs of a positive and a negative image of the same stratum that are ranked rightly; strata that "
        "are too small are left out of it. The figure over all pairs also counts those across strata, which "
        "a model can rank by the strata alone.",
        ("Stratum", "Images", *("Average" if f == "average" else title(f) for f in findings)),
        tuple(lines.values()),
        (pooled, line(_by(everyone, "group", "finding"), "all", "over all pairs")),
        too_small,
    )


def group_by_finding_table(evaluation: pd.DataFrame, metric: str = "auroc") -> Table | None:
    """One metric of each finding in each group; None without groups."""
    rows = evaluation.loc[(evaluation["metric"] == metric) & (evaluation["reference"].astype(str) == "")]
    findings = [str(f) for f in dict.fromkeys(rows["finding"])]
    cells, groups = _by(rows, "group", "finding"), rows.drop_duplicates("group")
    if len(groups) < 2:
        return None
    judged, too_small = without_small(rows.loc[rows["finding"] == "average"])
    lines = [
        (
            Cell("Everyone" if row["group"] == "all" else str(row["label"])),
            *(estimated(cells.get((str(row["group"]), f))) for f in findings),
        )
        for row in judged.to_dict("records")
    ]
    names = ["Average" if f == "average" else title(f) for f in findings]
    return Table(
        f"{metric_name(metric)} of each finding in each group",
        f"{metric_name(metric)} with its 95 % interval. Each metric of each finding and group is in "
        "evaluation.csv.",
        ("Group", *names),
        tuple(lines[1:]),
        tuple(lines[:1]),
        too_small,
    )


def gap_table(evaluation: pd.DataFrame) -> Table | None:
    """The largest differences between any two groups of each attribute; None without groups."""
    rows = evaluation.loc[evaluation["metric"].isin(list(GAPS)) & (evaluation["finding"] == "average")]
    if rows.empty:
        return None
    cells = _by(rows, "attribute", "metric")
    lines = [
        (Cell(a), *(estimated(cells.get((a, gap))) for gap in GAPS))
        for a in dict.fromkeys(rows["attribute"].astype(str))
    ]
    return Table(
        "Largest differences between groups",
        "The largest difference between any two groups of an attribute, averaged over findings, with the "
        "95 % interval for the two groups furthest apart. They are chosen on these very images, so that the "
        "values lean away from zero.",
        ("Attribute", *(metric_name(gap) for gap in GAPS)),
        tuple(lines),
    )


def p_cell(p: float, smallest: float = 0.0) -> Cell:
    """A p-value; `smallest` is the least one that the bootstrap replicates can show."""
    text = "" if math.isnan(p) else p_text(p, smallest).removeprefix("p ").removeprefix("= ")
    return Cell(text, key=float(p))


def correlation_table(correlations: pd.DataFrame) -> Table:
    """The paper's correlations with their intervals and numbers of points."""
    lines = []
    for row in correlations.to_dict("records"):
        paper = (
            Cell("", key=np.nan)
            if math.isnan(row["paper_r"])
            else Cell(number(row["paper_r"], 2), key=row["paper_r"])
        )
        r = estimated(row, "r", with_sign=True)
        lines.append((Cell(str(row["analysis"])), r, count(row["n"]), p_cell(row["p_value"]), paper))
    return Table(
        "Correlations",
        "Pearson's r with its 95 % interval, as if the points were independent, and the number of points "
        "that it rests on.",
        ("Analysis", "r", "Points", "p", "r in the paper"),
        tuple(lines),
    )


def text_table(name: str, caption: str, frame: pd.DataFrame) -> Table:
    """A table of texts, sorted by the first number in a cell where it begins with one."""
    lines = [
        (Cell(str(index)), *(Cell(_with_minus(str(text)), key=_leading(str(text))) for text in row))
        for index, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)
    ]
    return Table(
        name, caption, (str(frame.index.name or ""), *(str(column) for column in frame.columns)), tuple(lines)
    )


def _with_minus(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _leading(text: str) -> float | None:
    if not text:
        return np.nan
    found = re.match(r"[-−+]?\d[\d,]*\.?\d*(e[-+]?\d+)?", text)
    return float(found[0].replace("−", "-").replace(",", "")) if found else None


def pair_table(name: str, caption: str, heads: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Table:
    """A table of names and values."""
    return Table(
        name,
        caption,
        tuple(heads),
        tuple((Cell(key), Cell(value, key=_leading(value))) for key, value in pairs),
    )
