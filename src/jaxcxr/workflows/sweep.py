"""A sweep: one run per privacy budget in one folder, and what they show together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxcxr.config import Experiment
from jaxcxr.data.store import open_store
from jaxcxr.report.evaluated_runs import finished_runs
from jaxcxr.report.figures.sweep_figures import figure_2
from jaxcxr.report.paper.supplementary_tables import summarise, write_tables
from jaxcxr.report.screen import sweep_text
from jaxcxr.report.sweep_privacy import write_cost
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.run_folder import CONFIG, SUMMARY, UNTOUCHED, budget_name
from jaxcxr.training.cpu_allocator import keep_memory
from jaxcxr.workflows.experiment import evaluate_untouched, run_experiment

WRITES = (
    "report.html, summary.csv, privacy.json, evaluations.csv, comparisons.csv, correlations.csv, "
    "figure_2.png, figure_2.svg, tables/, figures/, and a run folder for each budget"
)


def sweep(
    experiments: Mapping[float, Experiment],
    out: Path,
    beside: Path | None = None,
    chosen: Mapping[float, Sequence[str]] | None = None,
) -> bool:
    """Run the experiments, one folder per budget, and write the summary, tables and figures over all that the
    sweep folder holds.

    Args:
        experiments: by budget.
        out: the sweep folder.
        beside: another sweep, drawn in the same figure.
        chosen: what a recipe chose for each budget and why, for `run.json`.

    Returns:
        Whether it was finished; False if a run was interrupted, which the same call goes on with.
    """
    keep_memory()
    first = next(iter(experiments.values()))
    untouched = evaluate_untouched(first, out / UNTOUCHED) if _predicts_untouched(first) else None
    for epsilon, config in experiments.items():
        folder = out / budget_name(epsilon)
        told = (chosen or {}).get(epsilon, ())
        resume = (folder / CONFIG).exists()
        if run_experiment(config, folder, resume=resume, beside=False, chosen=told) is None:
            return False
    _write(first, out, beside, untouched)
    return True


def _predicts_untouched(config: Experiment) -> bool:
    """Whether there is a model before training: weights whose head is kept."""
    has_head = not config.training.keeps_features or config.head.start != "zero"
    return config.model.weights is not None and has_head


def _write(first: Experiment, out: Path, beside: Path | None, untouched: pd.DataFrame | None) -> None:
    runs = finished_runs(out)
    summary = summarise(runs)
    summary.to_csv(out / SUMMARY, index=False)
    write_tables(summary, out / "tables")
    other = None if beside is None else (beside.resolve().name, summarise(finished_runs(beside)))
    figure_2(summary, out, beside=other)
    folders = {run.epsilon: out / budget_name(run.epsilon) for run in runs}
    images = open_store(Path(first.data.store)).manifest
    write_sweep(out, runs, folders, first.evaluation, images, first.data.findings)
    print(f"\n{sweep_text(summary, untouched)}\n")
    if any(math.isfinite(run.epsilon) for run in runs):
        print(f"{write_cost(out)}\n")
    print(f"{out}: {WRITES}")
