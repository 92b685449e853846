"""Writes the curves and the page of a finished run folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.compare import compare, read_pair
from jaxcxr.eval.evaluate import read_evaluation
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.report.evaluation_facts import estimate
from jaxcxr.report.figures.model_curves import calibration_figure, roc_figure
from jaxcxr.report.page.run_page import run_page, write_page
from jaxcxr.report.run_facts import Facts, read_facts, read_sections
from jaxcxr.run_folder import (
    EVALUATION,
    FIGURES,
    PREDICTIONS,
    UNTOUCHED,
    has_facts,
    is_evaluated,
    is_private,
    is_run,
    runs_in,
)
from jaxcxr.run_folder import read_facts as run_facts


def report_run(
    folder: Path,
    config: EvaluationConfig,
    films: pd.DataFrame | None = None,
    comparison: pd.DataFrame | None = None,
    *,
    start: Mapping[str, Any] | None = None,
    beside: bool = True,
) -> Path:
    """Write `figures/roc.*` and `figures/calibration.*`, unless they are there, and `report.html`.

    Args:
        folder: a run folder with `predictions.parquet` and `evaluation.csv`.
        config: how models are judged.
        films: manifest of the store, for who was trained on.
        comparison: the non-private model minus this one; None makes it with the one beside this one
            (`non_private_beside`).
        start: what `against_untouched` gave; None asks it.
        beside: False makes no comparison: the caller will write the page again with them.

    Returns:
        The page.
    """
    predictions, findings = read_predictions(folder / PREDICTIONS)
    draw_curves(predictions, findings, folder / FIGURES, config, anew=False)
    facts = read_facts(folder)
    if comparison is None and beside:
        comparison = against_non_private(folder, facts, config)
    if start is None and beside:
        start = against_untouched(folder, config)
    place = folder.resolve()
    page = run_page(
        f"{place.parent.name}/{place.name}",
        read_evaluation(folder / EVALUATION),
        predictions,
        findings,
        facts=facts,
        comparison=comparison,
        films=films,
        figures=folder / FIGURES,
        start=start,
    )
    return write_page(page, folder)


def draw_curves(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    out: Path,
    config: EvaluationConfig,
    *,
    anew: bool = True,
) -> None:
    """ROC and calibration curves as PNG and SVG; if not `anew`, only where they are missing."""
    for stem, draw in (("roc", roc_figure), ("calibration", calibration_figure)):
        if anew or not all((out / f"{stem}.{ending}").is_file() for ending in ("png", "svg")):
            draw(predictions, findings, out, resample=config.resample, seed=config.seed)


def against_non_private(folder: Path, facts: Facts | None, config: EvaluationConfig) -> pd.DataFrame | None:
    """The non-private model beside a private run minus that run, if there is such a model
    (`eval.compare.compare`).
    """
    beside = non_private_beside(folder) if facts is not None and facts.private else None
    if beside is None:
        return None
    a, b, findings = read_pair(beside, folder)
    return compare(a, b, findings, config)


def against_untouched(folder: Path, config: EvaluationConfig) -> dict[str, Any] | None:
    """Average AUROC of the weights that a run started from minus that of the run, paired.

    Returns:
        The row of `eval.compare.compare`; None if those very weights were not evaluated in the run or beside
        it, with predictions that are made as the run's.
    """
    own = run_facts(folder)
    within = has_facts(folder / UNTOUCHED)
    beside = folder / UNTOUCHED if within else folder.resolve().parent / UNTOUCHED
    if not has_facts(beside) or not (beside / PREDICTIONS).is_file():
        return None
    theirs = run_facts(beside)
    start = own.get("initial_weights_sha256")
    if start is None or theirs.get("weights_sha256") != start:
        return None
    if theirs.get("store_fingerprint") != own.get("store_fingerprint"):
        return None
    model = read_sections(folder).get("model", {})
    if theirs.get("prediction_views") != model.get("test_time_augmentation", "one"):
        return None
    a, b, findings = read_pair(beside, folder)
    return estimate(compare(a, b, findings, dataclasses.replace(config, groups=())), "auroc")


def non_private_beside(folder: Path) -> Path | None:
    """The one finished non-private run in the same parent folder that was trained on the same store.

    Returns:
        Its folder; None if there is none, or more than one, between which nobody has chosen.
    """
    own = run_facts(folder).get("store_fingerprint")
    beside = [run for run in runs_in(folder.resolve().parent) if run != folder.resolve()]
    found = [
        run
        for run in beside
        if is_run(run)
        and is_evaluated(run)
        and not is_private(run)
        and run_facts(run).get("store_fingerprint") == own
    ]
    return found[0] if len(found) == 1 else None
