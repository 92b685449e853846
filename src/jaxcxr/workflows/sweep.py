"""A sweep: one run per privacy budget in one folder, and what they show together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxcxr.atomic import BusyError
from jaxcxr.config import Experiment
from jaxcxr.data.store import open_store
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError
from jaxcxr.eval.evaluate import read_evaluation
from jaxcxr.launch.jobs import claimed
from jaxcxr.report.evaluated_runs import finished_runs
from jaxcxr.report.figures.sweep_figures import figure_2
from jaxcxr.report.gains import bought_and_paid
from jaxcxr.report.paper.supplementary_tables import summarise, write_tables
from jaxcxr.report.screen import sweep_text
from jaxcxr.report.sweep_privacy import write_cost
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.run_folder import CONFIG, EVALUATION, SUMMARY, UNTOUCHED, budget_name, is_evaluated
from jaxcxr.training.cpu_allocator import keep_memory
from jaxcxr.workflows.experiment import evaluate_untouched, has_start, run_experiment

WRITES = (
    "report.html, summary.csv, privacy.json, evaluations.csv, comparisons.csv, gains.csv, correlations.csv, "
    "figure_2.png, figure_2.svg, tables/, figures/, and a run folder for each budget"
)
_WHO_REPORTS = "summary and figures are written by whoever finishes last"


def sweep(
    experiments: Mapping[float, Experiment],
    out: Path,
    beside: Path | None = None,
    chosen: Mapping[float, Sequence[str]] | None = None,
) -> None:
    """Run the experiments, one folder per budget, and write the summary, tables and figures over all that the
    sweep folder holds. Several launchers may share the folder: each budget is trained by one of them.

    Args:
        experiments: by budget.
        out: the sweep folder.
        beside: another sweep, drawn in the same figure.
        chosen: what a recipe chose for each budget and why, for `run.json`.

    Raises:
        StoppedError: a signal ended a run, which the same call goes on with.
    """
    keep_memory()
    left = parts(experiments)
    for last_try in (False, True):  # what another launcher was at work on may be finished by now
        busy = []
        for name in left:
            try:
                run_part(experiments, out, name, chosen)
            except BusyError as error:
                busy.append(name)
                if last_try:
                    print(f"{error}; {_WHO_REPORTS}")
        left = busy
    if not left:
        _write(experiments, out, beside)


def parts(experiments: Mapping[float, Experiment]) -> list[str]:
    """The folders of a sweep, which need nothing of each other: of each budget, and of untouched weights."""
    first = next(iter(experiments.values()))
    return [*([UNTOUCHED] if has_start(first) else []), *map(budget_name, experiments)]


def run_part(
    experiments: Mapping[float, Experiment],
    out: Path,
    name: str,
    chosen: Mapping[float, Sequence[str]] | None = None,
) -> None:
    """Do the work of one folder of a sweep (`parts`), and report nothing beyond it.

    Raises:
        BusyError: another process is at work on it.
        InputError: the sweep has no such part.
        StoppedError: a signal ended the run.
    """
    keep_memory()
    budgets = {budget_name(epsilon): epsilon for epsilon in experiments}
    if name not in parts(experiments):
        raise InputError(f"--part {name}: expected one of {', '.join(parts(experiments))}")
    folder = out / name
    with claimed(out, name):
        if name == UNTOUCHED:
            evaluate_untouched(next(iter(experiments.values())), folder)
            return
        epsilon, resume = budgets[name], (folder / CONFIG).exists()
        told = (chosen or {}).get(epsilon, ())
        run_experiment(experiments[epsilon], folder, resume=resume, beside=False, chosen=told)


def report(experiments: Mapping[float, Experiment], out: Path, beside: Path | None = None) -> None:
    """Write the summary, tables and figures of a sweep whose parts were run elsewhere, if all are finished.

    Args:
        experiments: by budget.
        out: the sweep folder.
        beside: another sweep, drawn in the same figure.
    """
    left = [name for name in parts(experiments) if not is_evaluated(out / name)]
    if left:
        print(f"{out}: {', '.join(left)} {'is' if len(left) == 1 else 'are'} not finished; {_WHO_REPORTS}")
    else:
        _write(experiments, out, beside)


def _write(experiments: Mapping[float, Experiment], out: Path, beside: Path | None) -> None:
    first = next(iter(experiments.values()))
    untouched = read_evaluation(out / UNTOUCHED / EVALUATION) if has_start(first) else None
    runs = finished_runs(out)
    summary = summarise(runs)
    with sealed(out / SUMMARY) as part:
        summary.to_csv(part, index=False)
    write_tables(summary, out / "tables")
    other = None if beside is None else (beside.resolve().name, summarise(finished_runs(beside)))
    figure_2(summary, out, beside=other)
    folders = {run.epsilon: out / budget_name(run.epsilon) for run in runs}
    images = open_store(Path(first.data.store)).manifest
    written = write_sweep(out, runs, folders, first.evaluation, images, first.data.findings)
    print(f"\n{sweep_text(summary, untouched)}\n")
    _print_gains(out, written)
    if any(math.isfinite(run.epsilon) for run in runs):
        print(f"{write_cost(out)}\n")
    print(f"{out}: {WRITES}")


def _print_gains(out: Path, written: Sequence[Path]) -> None:
    """What private training bought and what privacy cost, as far as it was measured."""
    gained, compared = out / "gains.csv", out / "comparisons.csv"
    if gained in written:
        price = pd.read_csv(compared) if compared in written else None
        print("\n".join([*bought_and_paid(pd.read_csv(gained), price), ""]))
