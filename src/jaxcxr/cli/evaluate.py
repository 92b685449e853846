"""Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness.

Examples:
  jaxcxr evaluate runs/demo/predictions.parquet --out runs/demo
  jaxcxr evaluate theirs.csv --out judged --groups sex age:0,40,60,80
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.config import EvaluationConfig
from jaxcxr.run_folder import EVALUATION, FIGURES, PREDICTIONS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness, as
    evaluation.csv, figures, report.html and on the screen.

    Attributes:
        predictions: .parquet or .csv with image_id, patient_id, split, y_<finding> (1, 0, empty) and
            p_<finding> (probability).
        out: folder for evaluation.csv, calibration.json, figures/ and report.html.
        evaluation: how the predictions are judged.
    """

    predictions: tyro.conf.Positional[Path]
    out: Path
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(
        default_factory=EvaluationConfig
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(f"reading {arguments.predictions}")
    from jaxcxr.eval.calibrate import write_calibration
    from jaxcxr.eval.evaluate import evaluate, read_predictions
    from jaxcxr.report.screen import groups_text, screen_table

    predictions, findings = read_predictions(arguments.predictions)
    with progress_bar(len(findings), "finding", f"{arguments.evaluation.redraws} replicates") as bar:
        evaluation = evaluate(predictions, findings, arguments.evaluation, progress=bar.update)
    arguments.out.mkdir(parents=True, exist_ok=True)
    evaluation.to_csv(arguments.out / EVALUATION, index=False)
    write_calibration(predictions, findings, arguments.evaluation, arguments.out)
    say("drawing figures and the page")
    _write_page(arguments, evaluation, predictions, findings)
    print(screen_table(evaluation))
    print(f"\n{groups_text(evaluation)}\n")
    print(
        f"{arguments.out}: evaluation.csv ({len(evaluation)} rows), calibration.json, report.html, "
        "figures/roc.png, figures/calibration.png (and .svg)"
    )


def _write_page(arguments: Arguments, evaluation: Any, predictions: Any, findings: Sequence[str]) -> None:
    from jaxcxr.report.page.run_page import run_page, write_page
    from jaxcxr.report.run_facts import read_facts
    from jaxcxr.report.run_report import against_non_private, draw_curves

    draw_curves(predictions, findings, arguments.out / FIGURES, arguments.evaluation)
    folder = arguments.predictions.parent
    facts = read_facts(folder) if arguments.predictions.name == PREDICTIONS else None
    page = run_page(
        arguments.predictions.name if facts is None else facts.name,
        evaluation,
        predictions,
        findings,
        facts=facts,
        comparison=against_non_private(folder, facts, arguments.evaluation),
        figures=arguments.out / FIGURES,
    )
    write_page(page, arguments.out)
