"""The tables of `report.html` that set one model against another, or each private model of a sweep against
the non-private one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from jaxcxr.eval.metrics import METRICS
from jaxcxr.report.page.page_tables import Cell, Table, count, estimated, metric_name, p_cell, without_small
from jaxcxr.report.paper.supplementary_tables import title
from jaxcxr.report.wording import number

Row = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Question:
    """What one table compares: its name and caption, the head and names of its rows, and which rows."""

    name: str
    caption: str
    first: str
    named: Callable[[Row], str]
    rows: Callable[[pd.DataFrame], pd.DataFrame]


def _of_everyone(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[(rows["reference"].astype(str) == "") & (rows["group"] == "all")]


def _metrics(rows: pd.DataFrame) -> pd.DataFrame:
    everyone = _of_everyone(rows)
    return everyone.loc[(everyone["finding"] == "average") & everyone["metric"].isin(list(METRICS))]


def _findings(rows: pd.DataFrame) -> pd.DataFrame:
    everyone = _of_everyone(rows)
    return everyone.loc[(everyone["metric"] == "auroc") & (everyone["finding"] != "average")]


def _areas(rows: pd.DataFrame) -> pd.DataFrame:
    average = rows.loc[(rows["finding"] == "average") & (rows["group"] != "all")]
    return average.loc[(average["metric"] == "auroc") & (average["reference"].astype(str) == "")]


def _parities(rows: pd.DataFrame) -> pd.DataFrame:
    average = rows.loc[(rows["finding"] == "average") & (rows["group"] != "all")]
    return average.loc[average["metric"] == "statistical_parity_difference"]


QUESTIONS = (
    Question(
        "By metric",
        "Means over the findings.",
        "Metric",
        lambda row: metric_name(str(row["metric"])),
        _metrics,
    ),
    Question("By finding", "AUROC.", "Finding", lambda row: title(str(row["finding"])), _findings),
    Question(
        "AUROC by group", "Average AUROC of each group.", "Group", lambda row: str(row["label"]), _areas
    ),
    Question(
        "Parity by group",
        "Average accuracy of the group minus that of all others: how a group's distance to the others "
        "changes.",
        "Group",
        lambda row: str(row["label"]),
        _parities,
    ),
)
HOLM = "p after Holm's correction for the number of findings"


def comparison_tables(comparison: pd.DataFrame, a: str, b: str) -> tuple[Table, ...]:
    """One model minus another: by metric, by finding and by group.

    Args:
        comparison: rows of `eval.compare.compare`.
        a: what the first model is called.
        b: what the second is called.
    """
    how = _how(a, b, "on the same images and bootstrap replicates")
    tables = (_differences(question, how, question.rows(comparison), a, b) for question in QUESTIONS)
    return tuple(table for table in tables if table.rows)


def _how(a: str, b: str, what: str) -> str:
    second = b if len(b) == 1 else b[0].lower() + b[1:]
    return f"{a} minus {second}, {what}, with the 95 % interval of the difference."


def _differences(question: Question, how: str, rows: pd.DataFrame, a: str, b: str) -> Table:
    rows, too_small = without_small(rows)
    corrected, lines = bool(rows["p_holm"].notna().any()), []
    for row in rows.to_dict("records"):
        least, smallest = _least(row, rows)
        cells = [
            Cell(number(row[v]) if not math.isnan(row[v]) else "–", key=float(row[v]))
            for v in ("value_a", "value_b")
        ]
        p = [p_cell(row["p_value"], least)]
        if corrected:
            p += [p_cell(row["p_holm"], smallest), p_cell(row["delong_p"])]
        lines.append(
            (
                Cell(question.named(row)),  # type: ignore[arg-type]
                count(row["n"]),
                *cells,
                estimated(row, "difference", with_sign=True),  # type: ignore[arg-type]
                *p,
            )
        )
    caption = f"{how} {question.caption}"
    if corrected:
        caption += f" {HOLM}; DeLong's p is a check without bootstrap."
    heads = (question.first, "Images", a, b, "Difference", "p")
    heads += ("p (Holm)", "p (DeLong)") if corrected else ()
    return Table(question.name, caption, heads, tuple(lines), too_small=too_small)


def _least(row: Mapping, rows: pd.DataFrame) -> tuple[float, float]:
    """The smallest p-value that the bootstrap replicates can show, and the same after Holm's correction."""
    least = 2 / (float(row["redraws"]) + 1)
    return least, min(1.0, least * float(np.isfinite(np.asarray(rows["p_value"], np.float64)).sum()))


def budget_tables(comparisons: pd.DataFrame) -> tuple[Table, ...]:
    """The non-private model minus each private one, one column per budget: by metric, by finding and by
    group. The page of each run has the values of both models besides.

    Args:
        comparisons: rows of `report.sweep_report.compare_with_non_private`.
    """
    how = _how("Non-private", "Private", "on the same images and bootstrap replicates")
    tables = (_by_budget(question, how, question.rows(comparisons)) for question in QUESTIONS)
    return tuple(table for table in tables if table.rows)


def _by_budget(question: Question, how: str, rows: pd.DataFrame) -> Table:
    rows, small = without_small(rows)
    corrected = bool(rows["p_holm"].notna().any())
    budgets = sorted({float(epsilon) for epsilon in rows["epsilon"]}, reverse=True)
    lines: dict[str, dict[float, Cell]] = {}
    for epsilon in budgets:
        own = rows.loc[rows["epsilon"] == epsilon]
        for row in own.to_dict("records"):
            cell = estimated(row, "difference", with_sign=True)  # type: ignore[arg-type]
            least, smallest = _least(row, own)
            p = p_cell(row["p_holm"], smallest) if corrected else p_cell(row["p_value"], least)
            if p.text:
                sign = "" if p.text[0] in "<≤" else "= "
                cell = dataclasses.replace(cell, detail=f"{cell.detail}\np {sign}{p.text}")
            lines.setdefault(question.named(row), {})[epsilon] = cell  # type: ignore[arg-type]
    none = Cell("–", key=np.nan)
    return Table(
        question.name,
        f"{how} {question.caption}" + (f" {HOLM}." if corrected else " p is not corrected."),
        (question.first, *(f"ε = {epsilon:g}" for epsilon in budgets)),
        tuple((Cell(name), *(cells.get(e, none) for e in budgets)) for name, cells in lines.items()),
        too_small=tuple(dict.fromkeys(small)),
    )
