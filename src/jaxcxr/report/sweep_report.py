"""Writes what a sweep leaves beside its summary: comparisons with the non-private model, the paper's tables,
figures, correlations, pages.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.digests import sealed
from jaxcxr.eval.compare import compare, read_pair
from jaxcxr.eval.correlations import privacy_correlations
from jaxcxr.eval.estimates import measure
from jaxcxr.eval.evaluate import read_evaluation
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.report.evaluated_runs import Run
from jaxcxr.report.figures.heat_map import heat_map
from jaxcxr.report.figures.sweep_figures import figure_3, figure_4
from jaxcxr.report.gains import gains
from jaxcxr.report.page.run_page import write_page
from jaxcxr.report.page.sweep_page import Sweep, sweep_page
from jaxcxr.report.paper.cohort_tables import figures_s
from jaxcxr.report.paper.paper_tables import sample_sizes, write_paper_tables
from jaxcxr.report.paper.supplementary_tables import stack, summarise
from jaxcxr.report.run_facts import read_facts
from jaxcxr.report.run_report import against_untouched, report_run
from jaxcxr.run_folder import EVALUATION, FIGURES, PREDICTIONS, UNTOUCHED, is_run

FEATURED = 7.89
"""The paper's budget in Table 2 and Figure 3; without it the largest one is taken."""


def compare_with_non_private(folders: Mapping[float, Path], config: EvaluationConfig) -> pd.DataFrame | None:
    """The non-private model minus each private one, on the same images and bootstrap replicates, with
    `epsilon` in front.

    Args:
        folders: run folder (with `predictions.parquet`) of each budget; infinity is the non-private model.
        config: how both are judged.

    Returns:
        Rows of `eval.compare.compare`, or None without the non-private model or a private one.
    """
    private = {epsilon: folder for epsilon, folder in folders.items() if np.isfinite(epsilon)}
    if np.inf not in folders or not private:
        return None
    tables, first = [], None
    for epsilon, folder in sorted(private.items(), reverse=True):
        a, b, findings = read_pair(folders[np.inf], folder)
        if first is None or findings != first[0]:
            first = findings, measure(a, findings, config)
        table = compare(a, b, findings, config, first[1])
        table.insert(0, "epsilon", epsilon)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def write_sweep(
    out: Path,
    runs: Sequence[Run],
    folders: Mapping[float, Path],
    config: EvaluationConfig,
    films: pd.DataFrame,
    findings: Sequence[str],
) -> list[Path]:
    """Write everything that follows from the runs of a sweep, as far as they allow it.

    `evaluations.csv` (all evaluations), `comparisons.csv`, `gains.csv` (the models beside the weights that
    they started from), `correlations.csv`, `tables/table_1`, `table_2`
    and `table_3`, and `figures/` with the paper's Figures 3, 4 and S1 to S4 and a heat map; `report.html`
    here and in the runs' folders.

    Args:
        out: sweep folder.
        runs: the evaluated models.
        folders: their run folders by budget.
        config: how models are compared.
        films: the manifest, for sample sizes (of training images) and demographics.
        findings: names of the findings.

    Returns:
        The files written.
    """
    evaluations, comparisons = stack(runs), compare_with_non_private(folders, config)
    samples = sample_sizes(films, findings)
    budgets = [epsilon for epsilon in folders if np.isfinite(epsilon)]
    featured = _featured(folders)
    tables = {
        "evaluations": evaluations,
        "correlations": privacy_correlations(evaluations, samples, featured),
    }
    if comparisons is not None:
        tables["comparisons"] = comparisons
    starts = _against_their_starts(folders, config)
    if starts:
        tables["gains"] = gains(starts)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        with sealed(out / f"{name}.csv") as part:
            table.to_csv(part, index=False)
    written = [out / f"{name}.csv" for name in tables]
    written += write_paper_tables(out / "tables", evaluations, comparisons, films, findings)
    figures = out / FIGURES
    drawn = [
        figure_4(evaluations, figures),
        figure_4(evaluations, figures, "age", "figure_4_age"),
        heat_map(evaluations, figures),
    ]
    if budgets:
        drawn.append(figure_3(evaluations, samples, featured, figures, comparisons))
    written += [path for pair in drawn if pair is not None for path in pair]
    written += figures_s(films, findings, figures)
    return [
        *written,
        *_pages(out, runs, folders, config, films, tables, starts),
    ]


def _against_their_starts(
    folders: Mapping[float, Path], config: EvaluationConfig
) -> dict[float, dict[str, Any]]:
    """By budget, `against_untouched`; without the budgets whose start was not evaluated in the same way."""
    runs = {epsilon: folder for epsilon, folder in folders.items() if is_run(folder)}
    found = {epsilon: against_untouched(folder, config) for epsilon, folder in runs.items()}
    return {epsilon: row for epsilon, row in found.items() if row is not None}


def _featured(folders: Mapping[float, Path]) -> float:
    budgets = [epsilon for epsilon in folders if np.isfinite(epsilon)]
    return FEATURED if FEATURED in budgets else max(budgets, default=np.inf)


def _pages(
    out: Path,
    runs: Sequence[Run],
    folders: Mapping[float, Path],
    config: EvaluationConfig,
    films: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    starts: Mapping[float, dict[str, Any]],
) -> list[Path]:
    """Write the page of the sweep, and again those of its runs, beside which the other models were not there
    yet.
    """
    facts = {
        epsilon: found for epsilon, folder in folders.items() if (found := read_facts(folder)) is not None
    }
    predictions, findings = read_predictions(folders[max(folders)] / PREDICTIONS)
    before = out / UNTOUCHED / EVALUATION
    comparisons = tables.get("comparisons")
    sweep = Sweep(
        out.resolve().name,
        tables["evaluations"],
        summarise(runs),
        facts,
        tuple(findings),
        predictions,
        _featured(folders),
        films=films,
        comparisons=comparisons,
        correlations=tables["correlations"],
        untouched=read_evaluation(before) if before.is_file() else None,
        starts=starts,
        folder=out,
    )
    written = [write_page(sweep_page(sweep), out)]
    for epsilon in sorted(facts):
        paired = None
        if comparisons is not None and np.isfinite(epsilon):
            paired = comparisons.loc[comparisons["epsilon"] == epsilon]
        start = starts.get(epsilon)
        written.append(report_run(folders[epsilon], config, films, paired, start=start, beside=False))
    return written
