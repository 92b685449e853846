"""From a run or sweep folder to its risk assessment, and its pages."""

from collections.abc import Callable
from pathlib import Path

from jaxcxr.data.store import open_store
from jaxcxr.report.evaluated_runs import finished_runs
from jaxcxr.report.page.risk_page import write_risk_page
from jaxcxr.report.risk_files import RISK
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.run_folder import budget_name, is_run, read_config
from jaxcxr.workflows.risk import Asked, assess
from jaxcxr.workflows.risk_inputs import store_of_targets
from jaxcxr.workflows.risk_price import price

Say = Callable[[str], None]


def assess_and_report(
    folder: Path, *, models: int, seed: int, store: Path | None = None, say: Say = print
) -> tuple[tuple[str, ...], list[Path]]:
    """Write `risk/` with its page, and the report of a sweep anew.

    Returns:
        Sentences that follow from the figures, and what was written for the reader.
    """
    risk = assess(folder, Asked(models, seed), store, say)
    config, data = store_of_targets(risk.targets, store)
    say("what each budget costs whom")
    price(folder, risk, config.evaluation, config.data.findings)
    page, sentences = write_risk_page(folder)
    written = [page]
    if not is_run(folder):
        say("writing the report of the sweep")
        runs = finished_runs(folder)
        folders = {run.epsilon: folder / budget_name(run.epsilon) for run in runs}
        evaluation = read_config(folders[max(folders)]).evaluation
        images = open_store(data.path).manifest
        write_sweep(folder, runs, folders, evaluation, images, config.data.findings)
        written.append(folder / "report.html")
    return sentences, [*written, folder / RISK]
