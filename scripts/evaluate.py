"""Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness.

python scripts/evaluate.py runs/demo/predictions.parquet --out runs/demo
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.config import EvaluationConfig
from jaxcxr.console import run


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Evaluate a predictions file of any model: metrics with intervals, groups of patients and fairness, as evaluation.csv,
    figures and on the screen.

    Attributes:
        predictions: .parquet or .csv with image_id, patient_id, split, y_<finding> (1, 0, empty) and p_<finding> (probability).
        out: folder for evaluation.csv and figures/.
        evaluation: how the predictions are judged.
    """

    predictions: tyro.conf.Positional[Path]
    out: Path
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(default_factory=EvaluationConfig)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    from jaxcxr.eval.evaluate import evaluate, read_predictions
    from jaxcxr.report.curves import calibration_figure, roc_figure
    from jaxcxr.report.screen import groups_text, screen_table

    predictions, findings = read_predictions(arguments.predictions)
    evaluation = evaluate(predictions, findings, arguments.evaluation)
    arguments.out.mkdir(parents=True, exist_ok=True)
    evaluation.to_csv(arguments.out / "evaluation.csv", index=False)
    resample = arguments.evaluation.resample
    roc_figure(predictions, findings, arguments.out / "figures", resample=resample, seed=arguments.evaluation.seed)
    calibration_figure(predictions, findings, arguments.out / "figures", resample=resample, seed=arguments.evaluation.seed)
    print(screen_table(evaluation))
    print(f"\n{groups_text(evaluation)}\n")
    print(f"{arguments.out}: evaluation.csv ({len(evaluation)} rows), figures/roc.png, figures/calibration.png (and .svg)")


if __name__ == "__main__":
    run(main)
