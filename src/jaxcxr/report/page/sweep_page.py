"""The page of a sweep: the models side by side, what privacy costs and who pays, and the paper's tables and
figures from our numbers.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.report import run_facts as said
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.evaluation_facts import estimate, how, suppressed, suppressed_sentence, worst_off
from jaxcxr.report.how_trained import differences
from jaxcxr.report.page import alt_texts
from jaxcxr.report.page.comparison_tables import budget_tables
from jaxcxr.report.page.page_tables import Cell, Table, correlation_table, estimated, text_table
from jaxcxr.report.page.risk_page import risk_sections
from jaxcxr.report.page.run_page import (
    STAYS,
    SYNTHETIC,
    Drawing,
    Fact,
    Page,
    Section,
    as_sentence,
    drawings,
    film_tables,
)
from jaxcxr.report.paper.paper_tables import CAPTIONS, budget, sample_sizes, table_2, table_3
from jaxcxr.report.paper.supplementary_tables import (
    caption,
    paper_results,
    same_findings_as_paper,
    supplementary_table,
)
from jaxcxr.report.run_facts import Facts
from jaxcxr.report.sweep_conclusions import sweep_conclusions
from jaxcxr.report.verdicts import against_guessing
from jaxcxr.report.wording import number, signed


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the page of a sweep over budgets is made from; budgets are epsilons, infinity without privacy.

    Attributes:
        name: of the sweep.
        evaluations: table of `supplementary_tables.stack`.
        summary: table of `supplementary_tables.summarise`.
        facts: of each model, by its budget.
        findings: what is predicted.
        predictions: of any of the models, for whom it was tested on.
        featured: budget of Figure 3.
        films: manifest of the store, or None.
        comparisons: the non-private model minus each private one, with `epsilon`, or None.
        correlations: rows of `eval.correlations.privacy_correlations`, or None.
        untouched: evaluation of the weights before training, or None.
        starts: for each budget the row of `eval.compare.compare` for the average AUROC of the weights before
            training minus the model; empty if they were not evaluated.
        folder: where the figures of the sweep lie, or None.
    """

    name: str
    evaluations: pd.DataFrame
    summary: pd.DataFrame
    facts: Mapping[float, Facts]
    findings: tuple[str, ...]
    predictions: pd.DataFrame
    featured: float
    films: pd.DataFrame | None = None
    comparisons: pd.DataFrame | None = None
    correlations: pd.DataFrame | None = None
    untouched: pd.DataFrame | None = None
    starts: Mapping[float, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    folder: Path | None = None

    @property
    def budgets(self) -> list[float]:
        """Budgets of all models, falling; infinity is the non-private one."""
        return sorted({float(epsilon) for epsilon in self.evaluations["epsilon"]}, reverse=True)


def sweep_page(sweep: Sweep) -> Page:
    """The page of a sweep over budgets."""
    private = [
        facts for epsilon, facts in sorted(sweep.facts.items(), reverse=True) if math.isfinite(epsilon)
    ]
    described = private[0] if private else next(iter(sweep.facts.values()), None)
    text = "One model per privacy budget" + (", and one without privacy" if math.inf in sweep.budgets else "")
    first = sweep.evaluations.loc[sweep.evaluations["epsilon"] == sweep.budgets[0]]
    trained = "Not known here." if described is None else said.trained(described, sweep.findings)
    differing = differences(sweep.facts)
    risk, told = ((), ()) if sweep.folder is None else risk_sections(sweep.folder)
    return Page(
        title=f"Sweep {sweep.name}: report",
        lead=f"{text}: what privacy costs, and who pays.",
        stays=SYNTHETIC if described is not None and described.synthetic else STAYS,
        facts=(
            Fact("Trained", "", trained),
            Fact("On whom", "", said.cohort(described, sweep.films, sweep.predictions)),
            _privacy_fact(sweep.budgets, private),
        ),
        overview=_overview(sweep),
        conclusions=(
            *sweep_conclusions(sweep.evaluations, sweep.comparisons, sweep.correlations, sweep.starts),
            *([differing] if differing else []),
            *told,
        ),
        how=as_sentence(how(sweep.evaluations)),
        sections=(*risk, *_sections(sweep)),
        suppressed=suppressed_sentence(first),
        too_small=suppressed(first),
    )


def _privacy_fact(budgets: list[float], private: list[Facts]) -> Fact:
    finite = [f"{epsilon:g}" for epsilon in budgets if math.isfinite(epsilon)]
    if not private:
        return Fact("Privacy", f"ε = {', '.join(finite)}" if finite else "none")
    deltas = sorted({f"{facts.run['delta']:g}" for facts in private})
    units = sorted({said.UNITS.get(facts.unit, "") for facts in private})
    return Fact(
        "Privacy",
        f"ε = {', '.join(finite)}",
        f"Budgets at δ = {', '.join(deltas)}, for {' or '.join(units)} added or removed, and for each model "
        "on its own. Publishing several models of one cohort adds up (scripts/account.py --sweep).",
    )


def _overview(sweep: Sweep) -> Table:
    paper = paper_results() if same_findings_as_paper(sweep.summary) else paper_results().iloc[:0]
    paper = paper.loc[(paper["finding"] == "average") & (paper["metric"] == "auroc")]
    printed = {float(row["epsilon"]): float(row["bootstrap_mean"]) for row in paper.to_dict("records")}
    lines = [_overview_line(sweep, epsilon, printed.get(epsilon)) for epsilon in sweep.budgets]
    blank = Cell("–", key=np.nan)
    if sweep.untouched is not None:
        lines.append(
            (
                Cell("before training", key=np.nan),
                blank,
                blank,
                _auroc_cell(sweep.untouched),
                blank,
                *(_worst_cell(sweep.untouched, metric) for metric in ("auroc", "accuracy")),
                blank,
            )
        )
    return Table(
        "Models",
        "Average AUROC with its 95 % interval; non-private minus private on the same images and bootstrap "
        "replicates; and the group furthest below all others. A difference whose interval holds zero is not "
        "distinguishable from zero. A promise is weak if it does not rule out an attacker who finds half of "
        "those used while accusing 1 of every 100 others wrongly, and strong if no such attacker finds more "
        "than 2 of every 100. The paper's patients are others.",
        (
            "Budget",
            "ε spent",
            "Promise",
            "AUROC",
            "AUROC lost",
            "Worst-off by AUROC",
            "Worst-off by accuracy",
            "AUROC in the paper",
        ),
        tuple(lines),
    )


def _overview_line(sweep: Sweep, epsilon: float, paper: float | None) -> tuple[Cell, ...]:
    own = sweep.evaluations.loc[sweep.evaluations["epsilon"] == epsilon]
    paired = None
    if sweep.comparisons is not None and math.isfinite(epsilon):
        paired = estimate(sweep.comparisons.loc[sweep.comparisons["epsilon"] == epsilon], "auroc")
    facts = sweep.facts.get(epsilon)
    spent = None if facts is None else facts.spent
    blank = Cell("–", key=np.nan)
    return (
        Cell("without privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}", key=epsilon),
        Cell(upper_text(spent.upper), key=spent.upper) if spent else blank,
        blank if facts is None else _promise_cell(facts),
        _auroc_cell(own),
        blank if paired is None else estimated(paired, "difference", with_sign=True),
        *(_worst_cell(own, metric) for metric in ("auroc", "accuracy")),
        blank if paper is None else Cell(number(paper, 2), key=paper),
    )


def _promise_cell(facts: Facts) -> Cell:
    if facts.found is None or facts.seeded:
        return Cell("none", "seeded" if facts.seeded and facts.found is not None else "", key=np.nan)
    return Cell(said.verdict(facts), f"at most {upper_text(100 * facts.found, 3)} of 100 found", facts.found)


def _auroc_cell(evaluation: pd.DataFrame) -> Cell:
    row = estimate(evaluation, "auroc")
    cell, verdict = estimated(row), against_guessing(row)
    return dataclasses.replace(cell, detail=f"{cell.detail}\n{verdict}") if verdict else cell


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
        "AUROC of the private model against training images with the finding; its loss in colour.",
    ),
    "figures/figure_4": ("Figure 4", "Averages over findings by sex, against the privacy budget."),
    "figures/figure_4_age": ("Figure 4 by age", "Averages over findings by age, against the privacy budget."),
    "figures/heat_map": (
        "Heat map",
        "Averages over findings by group and budget, each with its 95 % interval.",
    ),
    "figures/figure_s1": ("Figure S1", "Ages by sex and split."),
    "figures/figure_s2": ("Figure S2", "Comorbidities by group, all images."),
    "figures/figure_s3": ("Figure S3", "Comorbidities by group, training images."),
    "figures/figure_s4": ("Figure S4", "Comorbidities by group, test images."),
}


def _alts(sweep: Sweep) -> dict[str, str]:
    texts = {
        "Figure 2": alt_texts.figure_2_text(sweep.summary),
        "Figure 4": alt_texts.figure_4_text(sweep.evaluations, "sex"),
        "Figure 4 by age": alt_texts.figure_4_text(sweep.evaluations, "age"),
        "Heat map": alt_texts.heat_map_text(sweep.evaluations),
    }
    if sweep.films is None:
        return texts
    samples = sample_sizes(sweep.films, sweep.findings)
    texts["Figure 3"] = alt_texts.figure_3_text(sweep.evaluations, samples, sweep.featured)
    return texts | alt_texts.cohort_texts(sweep.films, sweep.findings)


def _sections(sweep: Sweep) -> tuple[Section, ...]:
    drawn: tuple[Drawing, ...] = ()
    if sweep.folder is not None:
        drawn = drawings({sweep.folder / f"{s}.svg": text for s, text in SWEEP_FIGURES.items()}, _alts(sweep))
    of_cohort = tuple(drawing for drawing in drawn if drawing.name.startswith("Figure S"))
    # Groups have four columns each in the paper's layout: too wide for a screen, so that budgets are the
    # columns here.
    by_group = table_3(sweep.evaluations).T.rename_axis("Group and metric")
    second = text_table("Table 2", CAPTIONS["table_2"], table_2(sweep.evaluations, sweep.comparisons))
    sections = [
        Section("Figures", figures=tuple(drawing for drawing in drawn if drawing not in of_cohort)),
        Section("AUROC by finding", (second,)),
        Section(
            "Groups of patients",
            (text_table("Table 3", CAPTIONS["table_3"], by_group),) if len(by_group) else (),
        ),
    ]
    if sweep.comparisons is not None:
        sections.append(Section("Against the non-private model", budget_tables(sweep.comparisons)))
    if sweep.correlations is not None and not sweep.correlations.empty:
        sections.append(Section("Correlations", (correlation_table(sweep.correlations),)))
    summary = sweep.summary
    each = [
        text_table(budget(e), caption(summary, e), supplementary_table(summary, e)) for e in sweep.budgets
    ]
    sections.append(Section("Each model (Tables S1 to S7)", tuple(each)))
    sections.append(Section("Images", film_tables(sweep.films, sweep.findings), of_cohort))
    return tuple(section for section in sections if section.tables or section.figures)
