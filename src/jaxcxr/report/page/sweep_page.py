"""The page of a sweep: the models side by side, what privacy costs and who pays, and the paper's tables and
figures from our numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.report import run_facts as said
from jaxcxr.report.conclusions import estimate, number, signed, sweep_conclusions
from jaxcxr.report.page.page_tables import (
    Cell,
    Table,
    comparison_tables,
    correlation_table,
    estimated,
    text_table,
)
from jaxcxr.report.page.run_page import DRAWN, STAYS, Fact, Page, Section, as_sentence, drawings, film_tables
from jaxcxr.report.paper.paper_tables import CAPTIONS, budget, table_2, table_3
from jaxcxr.report.paper.supplementary_tables import (
    caption,
    paper_results,
    same_findings_as_paper,
    supplementary_table,
)
from jaxcxr.report.run_facts import Facts
from jaxcxr.report.screen import how, worst_off


def sweep_page(
    name: str,
    evaluations: pd.DataFrame,
    summary: pd.DataFrame,
    *,
    facts: Mapping[float, Facts],
    findings: Sequence[str],
    films: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
    correlations: pd.DataFrame | None = None,
    untouched: pd.DataFrame | None = None,
    predictions: pd.DataFrame,
    folder: Path | None = None,
) -> Page:
    """The page of a sweep over budgets.

    Args:
        name: of the sweep.
        evaluations: table of `tables.stack`.
        summary: table of `tables.summarise`.
        facts: of each model, by its budget; infinity is the non-private one.
        findings: their findings.
        films: manifest of the store, or None.
        comparisons: the non-private model minus each private one, with `epsilon`, or None.
        correlations: rows of `eval.correlations.privacy_correlations`, or None.
        untouched: evaluation of the weights before training, or None.
        predictions: of any of the models, for who is judged.
        folder: where the figures of a sweep lie, or None.
    """
    private = [f for e, f in sorted(facts.items(), reverse=True) if math.isfinite(e)]
    described = private[0] if private else next(iter(facts.values()), None)
    deltas = sorted({f"{f.run['delta']:g}" for f in private})
    units = sorted(
        {said.UNITS.get(str((f.config.get("privacy") or {}).get("unit", "image")), "") for f in private}
    )
    promised = (
        f"δ = {', '.join(deltas)}; for {' or '.join(units)} added or removed, and for each model on its own"
        if private
        else ""
    )
    sections = _sweep_sections(evaluations, summary, findings, films, comparisons, correlations, folder)
    budgets = sorted((e for e in set(evaluations["epsilon"]) if math.isfinite(e)), reverse=True)
    text = "A model for each privacy budget" + (
        ", and one without privacy" if np.isinf(evaluations["epsilon"]).any() else ""
    )
    return Page(
        title=f"Report: {name}",
        lead=f"{text}: what privacy costs, and who pays.",
        stays=DRAWN if described is not None and described.synthetic else STAYS,
        facts=(
            Fact(
                "Trained", "", "Not known here." if described is None else said.trained(described, findings)
            ),
            Fact("On whom", "", said.cohort(described, films, predictions)),
            Fact(
                "Privacy",
                f"ε = {', '.join(f'{e:g}' for e in budgets)}" if budgets else "none",
                f"{promised}. Publishing several models of one cohort adds up (scripts/account.py --sweep)."
                if promised
                else "",
            ),
        ),
        overview=_overview(evaluations, summary, comparisons, facts, untouched),
        conclusions=sweep_conclusions(evaluations, comparisons, correlations),
        how=as_sentence(how(evaluations)),
        sections=tuple(sections),
    )


def _overview(
    evaluations: pd.DataFrame,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame | None,
    facts: Mapping[float, Facts],
    untouched: pd.DataFrame | None,
) -> Table:
    paper = paper_results() if same_findings_as_paper(summary) else paper_results().iloc[:0]
    paper = paper.loc[(paper["finding"] == "average") & (paper["metric"] == "auroc")].set_index("epsilon")[
        "mean"
    ]
    lines = []
    for epsilon in sorted({float(e) for e in evaluations["epsilon"]}, reverse=True):
        own = evaluations.loc[evaluations["epsilon"] == epsilon]
        paired = None
        if comparisons is not None and math.isfinite(epsilon):
            paired = estimate(comparisons.loc[comparisons["epsilon"] == epsilon], "auroc")
        spent = facts[epsilon].spent if epsilon in facts else None
        lines.append(
            (
                Cell("without privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}", key=epsilon),
                Cell(f"{spent.upper:.4g}" if spent else "–", key=spent.upper if spent else np.nan),
                estimated(estimate(own, "auroc")),
                Cell("–", key=np.nan) if paired is None else estimated(paired, "difference", with_sign=True),
                *(_worst_cell(own, metric) for metric in ("auroc", "accuracy")),
                Cell(number(paper[epsilon], 2), key=float(paper[epsilon]))
                if epsilon in paper.index
                else Cell("–", key=np.nan),
            )
        )
    if untouched is not None:
        blank = Cell("–", key=np.nan)
        worst = tuple(_worst_cell(untouched, metric) for metric in ("auroc", "accuracy"))
        lines.append(
            (
                Cell("before training", key=np.nan),
                blank,
                estimated(estimate(untouched, "auroc")),
                blank,
                *worst,
                blank,
            )
        )
    return Table(
        "Models",
        "Average AUROC with its 95 % interval; non-private minus private on the same films and redraws; and "
        "the group furthest "
        "below all others. A difference whose interval holds zero is not distinguishable from zero. The "
        "paper's patients are "
        "others.",
        (
            "Budget",
            "ε spent",
            "AUROC",
            "AUROC lost",
            "Worst-off by AUROC",
            "Worst-off by accuracy",
            "AUROC in the paper",
        ),
        tuple(lines),
    )


def _worst_cell(evaluation: pd.DataFrame, metric: str) -> Cell:
    worst = worst_off(evaluation, metric)
    if worst is None or float(worst["difference"]) >= 0:
        return Cell("–", key=np.nan)
    value, low, high = (float(worst[key]) for key in ("difference", "ci_low", "ci_high"))
    return Cell(str(worst["label"]), f"{signed(value)} [{signed(low)}, {signed(high)}]", value)


SWEEP_FIGURES: Mapping[str, tuple[str, str]] = {
    "figure_2": (
        "Figure 2",
        "Averages over findings against the privacy budget, with 95 % intervals; the paper's in grey.",
    ),
    "figures/figure_3": (
        "Figure 3",
        "AUROC of the private model against training films with the finding; its loss in colour.",
    ),
    "figures/figure_4": ("Figure 4", "Averages over findings by sex, against the privacy budget."),
    "figures/figure_4_age": ("Figure 4 by age", "Averages over findings by age, against the privacy budget."),
    "figures/heat_map": (
        "Heat map",
        "Averages over findings by group and budget, each with its 95 % interval.",
    ),
    "figures/figure_s1": ("Figure S1", "Ages by sex and split."),
    "figures/figure_s2": ("Figure S2", "Comorbidities by group, all films."),
    "figures/figure_s3": ("Figure S3", "Comorbidities by group, training films."),
    "figures/figure_s4": ("Figure S4", "Comorbidities by group, test films."),
}


def _sweep_sections(
    evaluations: pd.DataFrame,
    summary: pd.DataFrame,
    findings: Sequence[str],
    films: pd.DataFrame | None,
    comparisons: pd.DataFrame | None,
    correlations: pd.DataFrame | None,
    folder: Path | None,
) -> list[Section]:
    drawn = (
        drawings({folder / f"{stem}.svg": text for stem, text in SWEEP_FIGURES.items()})
        if folder is not None
        else ()
    )
    of_films = tuple(d for d in drawn if d.name.startswith("Figure S"))
    # Groups have four columns each in the paper's layout: too wide for a screen, so that budgets are the
    # columns here.
    by_group = table_3(evaluations).T.rename_axis("Group and metric")
    sections = [
        Section("Figures", figures=tuple(d for d in drawn if d not in of_films)),
        Section(
            "AUROC by finding",
            (text_table("Table 2", CAPTIONS["table_2"], table_2(evaluations, comparisons)),),
        ),
        Section(
            "Groups of patients",
            (text_table("Table 3", CAPTIONS["table_3"], by_group),) if len(by_group) else (),
        ),
    ]
    if comparisons is not None:
        tables = [
            dataclasses.replace(table, name=f"{budget(epsilon)}: {table.name}")
            for epsilon in sorted(set(comparisons["epsilon"]), reverse=True)
            for table in comparison_tables(
                comparisons.loc[comparisons["epsilon"] == epsilon], "Non-private", "Private"
            )
        ]
        sections.append(Section("Against the non-private model", tuple(tables)))
    if correlations is not None and not correlations.empty:
        sections.append(Section("Correlations", (correlation_table(correlations),)))
    models = sorted(set(summary["epsilon"]), reverse=True)
    each = [text_table(budget(e), caption(summary, e), supplementary_table(summary, e)) for e in models]
    sections.append(Section("Each model (Tables S1 to S7)", tuple(each)))
    sections.append(Section("Films", film_tables(films, findings), of_films))
    return [section for section in sections if section.tables or section.figures]
