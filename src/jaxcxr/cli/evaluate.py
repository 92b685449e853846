"""Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness.

Examples:
  jaxcxr evaluate runs/demo/predictions.parquet --out runs/demo
  jaxcxr evaluate theirs.csv --out judged --groups sex age:0,40,60,80
  jaxcxr evaluate runs/demo --private-epsilon 3 --private-patients 500

The last one writes an evaluation that may be published: AUROC, accuracy, sensitivity and specificity from
noised counts, under an (epsilon, delta) of the held-out patients' own, which the ledger of their store
(evaluations.jsonl) records. All evaluations of the same patients add up; one beyond the budget is refused.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.config import EvaluationConfig
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError
from jaxcxr.run_folder import EVALUATION, FIGURES, PREDICTIONS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness, as
    evaluation.csv, figures, report.html and on the screen.

    Attributes:
        predictions: .parquet or .csv with image_id, patient_id, split, y_<finding> (1, 0, empty) and
            p_<finding> (probability); or a run folder, which has them.
        out: folder for evaluation.csv, calibration.json, figures/ and report.html; by default the run folder.
        private_epsilon: instead of all that, write noised_evaluation.json and .csv, which may be published:
            each held-out patient is protected by this epsilon.
        private_delta: the delta that goes with it, less than 1 / private_patients.
        private_patients: declared number of test patients, such as 500; public, and need not be exact.
        private_images: the most that a patient's images weigh together; more make more noise.
        private_budget: epsilon that all evaluations of these patients may cost together; by default as
            declared last, at first that of this evaluation.
        store: of the images, if it is not where the run's configuration says; for private_epsilon.
        evaluation: how the predictions are judged.
    """

    predictions: tyro.conf.Positional[Path]
    out: Path | None = None
    private_epsilon: float | None = None
    private_delta: float = 6e-6
    private_patients: int | None = None
    private_images: int = 1
    private_budget: float | None = None
    store: Path | None = None
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(
        default_factory=EvaluationConfig
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    source = arguments.predictions
    out = arguments.out or (source if source.is_dir() else None)
    if out is None:
        raise InputError(f"{source}: expected --out, the folder to write to")
    if arguments.private_epsilon is not None:
        _with_noise(arguments, arguments.private_epsilon, out)
    else:
        _exact(source / PREDICTIONS if source.is_dir() else source, out, arguments.evaluation)


def _with_noise(arguments: Arguments, epsilon: float, out: Path) -> None:
    if arguments.private_patients is None:
        raise InputError(
            "--private-patients: expected the declared number of test patients; it is public, need not be "
            "exact, and says whether they are enough for this epsilon"
        )
    say(f"reading {arguments.predictions}, then counting with noise")
    from jaxcxr.report.screen import noised_text
    from jaxcxr.workflows.noised_evaluation import Allowance, evaluate_with_noise

    allowance = Allowance(
        epsilon,
        arguments.private_delta,
        arguments.private_patients,
        arguments.private_images,
        arguments.private_budget,
    )
    found = evaluate_with_noise(arguments.predictions, out, arguments.evaluation, allowance, arguments.store)
    for remark in found.remarks:
        say(f"warning: {remark}")
    print(noised_text(found.table))
    print(
        f"{out}: noised_evaluation.json, noised_evaluation.csv; they may be published: each held-out patient "
        f"is protected by epsilon {found.record.epsilon:.4g} at delta {found.record.delta:g}, and by "
        f"{found.record.epsilon_together:.4g} in all {found.record.evaluations} evaluations together"
    )


def _exact(path: Path, out: Path, config: EvaluationConfig) -> None:
    say(f"reading {path}")
    from jaxcxr.eval.calibrate import write_calibration
    from jaxcxr.eval.evaluate import evaluate, read_predictions
    from jaxcxr.eval.start import with_start
    from jaxcxr.report.screen import groups_text, screen_table, start_text, validation_text

    predictions, findings = read_predictions(path)
    with progress_bar(len(findings), "finding", f"{config.redraws} replicates") as bar:
        evaluation = evaluate(predictions, findings, config, progress=bar.update)
    evaluation = with_start(evaluation, predictions, findings, config, path.parent)
    out.mkdir(parents=True, exist_ok=True)
    with sealed(out / EVALUATION) as part:
        evaluation.to_csv(part, index=False)
    write_calibration(predictions, findings, config, out)
    say("drawing figures and the page")
    _write_page(path, out, config, evaluation, predictions, findings)
    print(screen_table(evaluation))
    print(f"\n{groups_text(evaluation)}\n")
    for said in filter(None, (validation_text(evaluation), start_text(evaluation))):
        print(f"{said}\n")
    print(
        f"{out}: evaluation.csv ({len(evaluation)} rows), calibration.json, report.html, "
        "figures/roc.png, figures/calibration.png (and .svg)"
    )


def _write_page(
    path: Path,
    out: Path,
    config: EvaluationConfig,
    evaluation: Any,
    predictions: Any,
    findings: Sequence[str],
) -> None:
    from jaxcxr.report.page.run_page import run_page, write_page
    from jaxcxr.report.run_facts import read_facts
    from jaxcxr.report.run_report import against_non_private, draw_curves

    draw_curves(predictions, findings, out / FIGURES, config)
    folder = path.parent
    facts = read_facts(folder) if path.name == PREDICTIONS else None
    page = run_page(
        path.name if facts is None else facts.name,
        evaluation,
        predictions,
        findings,
        facts=facts,
        comparison=against_non_private(folder, facts, config),
        figures=out / FIGURES,
    )
    write_page(page, out)
