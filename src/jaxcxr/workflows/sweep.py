"""A sweep: one run a privacy budget in one folder, and what they show together."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from jaxcxr.config import Experiment
from jaxcxr.data.store import open_store
from jaxcxr.report.figures.sweep_figures import figure_2
from jaxcxr.report.paper.supplementary_tables import (
    Run,
    paper_results,
    same_findings_as_paper,
    summarise,
    write_tables,
)
from jaxcxr.report.sweep_privacy import write_cost
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.training.cpu_allocator import keep_memory
from jaxcxr.workflows.experiment import evaluate_untouched, read_run, run_experiment

WRITES = (
    "report.html, summary.csv, privacy.json, evaluations.csv, comparisons.csv, correlations.csv, "
    "figure_2.png, figure_2.svg, tables/, figures/, and a run folder for each budget"
)


def run_name(epsilon: float) -> str:
    """The folder of a budget's run, below the sweep's."""
    return "non_private" if math.isinf(epsilon) else f"epsilon_{epsilon:g}"


def sweep(experiments: Mapping[float, Experiment], out: Path, beside: Path | None = None) -> bool:
    """Run the experiments, one folder a budget, and write the summary, tables and figures over all that the
    sweep folder holds.

    Returns:
        Whether it was finished; False if a run was interrupted, which the same call goes on with.
    """
    keep_memory()
    first = next(iter(experiments.values()))
    untouched = None if first.model.weights is None else evaluate_untouched(first, out / "untouched")
    for epsilon, config in experiments.items():
        folder = out / run_name(epsilon)
        if run_experiment(config, folder, resume=(folder / "config.yaml").exists(), beside=False) is None:
            return False
    _write(first, out, beside, untouched)
    return True


def _write(first: Experiment, out: Path, beside: Path | None, untouched: pd.DataFrame | None) -> None:
    runs = finished_runs(out)
    summary = summarise(runs)
    summary.to_csv(out / "summary.csv", index=False)
    write_tables(summary, out / "tables")
    other = None if beside is None else (beside.resolve().name, pd.read_csv(beside / "summary.csv"))
    figure_2(summary, out, beside=other)
    folders = {run.epsilon: out / run_name(run.epsilon) for run in runs}
    images = open_store(Path(first.data.store)).manifest
    write_sweep(out, runs, folders, first.evaluation, images, first.data.findings)
    print(f"\n{_screen(summary, untouched)}\n")
    if any(math.isfinite(run.epsilon) for run in runs):
        print(f"{write_cost(out)}\n")
    print(f"{out}: {WRITES}")


def finished_runs(out: Path) -> list[Run]:
    """Every finished budget of a sweep folder, also those of earlier calls."""
    folders = sorted([*out.glob("epsilon_*"), *out.glob("non_private")])
    return [read_run(folder) for folder in folders if (folder / "evaluation.csv").exists()]


def _screen(summary: pd.DataFrame, untouched: pd.DataFrame | None) -> str:
    """Average AUROC of each budget, with the paper's value beside it and the untouched weights' below."""
    paper = (
        _average_auroc(paper_results()).set_index("epsilon")["mean"]
        if same_findings_as_paper(summary)
        else pd.Series(dtype=float)
    )
    lines = []
    for row in _average_auroc(summary).to_dict("records"):
        private, known = math.isfinite(row["epsilon"]), row["epsilon"] in paper.index
        lines.append(
            {
                "epsilon": f"{row['epsilon']:g}" if private else "no privacy",
                "noise multiplier": f"{row['noise_multiplier']:.4g}" if private else "",
                "average AUROC": _interval(row, "mean"),
                "paper (another cohort)": f"{paper[row['epsilon']]:.2f}" if known else "",
            }
        )
    if untouched is not None:
        row = _average_auroc(untouched).to_dict("records")[0]
        lines.append({"epsilon": "before training", "average AUROC": _interval(row, "bootstrap_mean")})
    return pd.DataFrame(lines).fillna("").to_string(index=False)


def _average_auroc(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[(frame["finding"] == "average") & (frame["metric"] == "auroc")]


def _interval(row: dict, value: str) -> str:
    return f"{row[value]:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
