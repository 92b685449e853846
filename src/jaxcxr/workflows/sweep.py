"""A sweep: one run per privacy budget in one folder, and what they show together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from jaxcxr.atomic import BusyError, exclusive_lock, writing
from jaxcxr.config import Experiment
from jaxcxr.data.store import open_store
from jaxcxr.digests import sealed
from jaxcxr.report.evaluated_runs import finished_runs
from jaxcxr.report.figures.sweep_figures import figure_2
from jaxcxr.report.gains import bought_and_paid
from jaxcxr.report.paper.supplementary_tables import summarise, write_tables
from jaxcxr.report.screen import sweep_text
from jaxcxr.report.sweep_privacy import write_cost
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.run_folder import CONFIG, SUMMARY, UNTOUCHED, budget_name
from jaxcxr.training.cpu_allocator import keep_memory
from jaxcxr.workflows.experiment import evaluate_untouched, run_experiment

WRITES = (
    "report.html, summary.csv, privacy.json, evaluations.csv, comparisons.csv, gains.csv, correlations.csv, "
    "figure_2.png, figure_2.svg, tables/, figures/, and a run folder for each budget"
)

_A_DAY = 86_400.0


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
    first = next(iter(experiments.values()))
    untouched = None
    if _predicts_untouched(first):
        with claimed(out, UNTOUCHED, patience=_A_DAY):
            untouched = evaluate_untouched(first, out / UNTOUCHED)
    left: list[float] = list(experiments)
    for last_try in (False, True):  # what another launcher was at work on may be finished by now
        busy = []
        for epsilon in left:
            folder = out / budget_name(epsilon)
            told, resume = (chosen or {}).get(epsilon, ()), (folder / CONFIG).exists()
            try:
                with claimed(out, folder.name):
                    run_experiment(experiments[epsilon], folder, resume=resume, beside=False, chosen=told)
            except BusyError as error:
                busy.append(epsilon)
                if last_try:
                    print(f"{error}; summary and figures are written by whoever finishes last")
        left = busy
    if not left:
        _write(first, out, beside, untouched)


@contextmanager
def claimed(sweep: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    """Have one of a sweep's folders for this process, however many launchers share the sweep.

    Raises:
        BusyError: another one has it.
    """
    with ExitStack() as held:
        with writing(sweep):
            sweep.mkdir(parents=True, exist_ok=True)
            busy = f"{sweep / name}: another process is at work on it"
            held.enter_context(exclusive_lock(sweep / f".{name}.lock", busy, patience))
        yield


def _predicts_untouched(config: Experiment) -> bool:
    """Whether there is a model before training: weights whose head is kept."""
    has_head = not config.training.keeps_features or config.head.start != "zero"
    return config.model.weights is not None and has_head


def _write(first: Experiment, out: Path, beside: Path | None, untouched: pd.DataFrame | None) -> None:
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
    tables = {
        path.stem: pd.read_csv(path) for path in written if path.parent == out and path.suffix == ".csv"
    }
    if "gains" in tables:
        print("\n".join([*bought_and_paid(tables["gains"], tables.get("comparisons")), ""]))
