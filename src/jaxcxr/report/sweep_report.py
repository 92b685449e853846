"""What a sweep leaves beside its summary: comparisons with the non-private model, the paper's tables,
figures, correlations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.compare import compare, read_pair
from jaxcxr.eval.correlations import privacy_correlations
from jaxcxr.eval.estimates import measure
from jaxcxr.eval.evaluate import read_evaluation
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.report.evaluated_runs import Run
from jaxcxr.report.figures.sweep_figures import figure_3, figure_4, heat_map
from jaxcxr.report.page.run_page import write_page
from jaxcxr.report.page.sweep_page import sweep_page
from jaxcxr.report.paper.cohort_tables import figures_s
from jaxcxr.report.paper.paper_tables import sample_sizes, write_paper_tables
from jaxcxr.report.paper.supplementary_tables import stack, summarise
from jaxcxr.report.run_facts import read_facts
from jaxcxr.report.run_report import report_run
from jaxcxr.run_folder import EVALUATION, FIGURES, PREDICTIONS, UNTOUCHED

FEATURED = 7.89
"""The paper's budget in Table 2 and Figure 3; without it the largest one is taken."""


def compare_with_non_private(folders: Mapping[float, Path], config: EvaluationConfig) -> pd.DataFrame | None:
    """The non-private model minus each private one, on the same films and redraws, with `epsilon` in front.

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

    `evaluations.csv` (all evaluations), `comparisons.csv`, `correlations.csv`, `tables/table_1`, `table_2`
    and `table_3`, and `figures/` with the paper's Figures 3, 4 and S1 to S4 and a heat map; `report.html`
    here and in the private runs' folders.

    Args:
        out: sweep folder.
        runs: the evaluated models.
        folders: their run folders by budget.
        config: how models are compared.
        films: the manifest, for sample sizes (of training films) and demographics.
        findings: names of the findings.

    Returns:
        The files written.
    """
    evaluations, comparisons = stack(runs), compare_with_non_private(folders, config)
    samples = sample_sizes(films, findings)
    budgets = [epsilon for epsilon in folders if np.isfinite(epsilon)]
    featured = FEATURED if FEATURED in budgets else max(budgets, default=np.inf)
    tables = {
        "evaluations": evaluations,
        "correlations": privacy_correlations(evaluations, samples, featured),
    }
    if comparisons is not None:
        tables["comparisons"] = comparisons
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
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
        *_pages(out, runs, folders, config, films, evaluations, comparisons, tables["correlations"]),
    ]


def _pages(
    out: Path,
    runs: Sequence[Run],
    folders: Mapping[float, Path],
    config: EvaluationConfig,
    films: pd.DataFrame,
    evaluations: pd.DataFrame,
    comparisons: pd.DataFrame | None,
    correlations: pd.DataFrame,
) -> list[Path]:
    """The page of the sweep, and again those of its private runs, which the non-private one may not have been
    beside yet.
    """
    facts = {
        epsilon: found for epsilon, folder in folders.items() if (found := read_facts(folder)) is not None
    }
    predictions, findings = read_predictions(folders[max(folders)] / PREDICTIONS)
    before = out / UNTOUCHED / EVALUATION
    page = sweep_page(
        out.resolve().name,
        evaluations,
        summarise(runs),
        facts=facts,
        findings=findings,
        films=films,
        comparisons=comparisons,
        correlations=correlations,
        untouched=read_evaluation(before) if before.is_file() else None,
        predictions=predictions,
        folder=out,
    )
    written = [write_page(page, out)]
    if comparisons is not None:
        for epsilon in sorted(facts.keys() & set(comparisons["epsilon"])):
            paired = comparisons.loc[comparisons["epsilon"] == epsilon]
            written.append(report_run(folders[epsilon], config, films, paired))
    return written
