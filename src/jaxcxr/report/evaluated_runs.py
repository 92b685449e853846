"""The evaluated models of a sweep, as rows of its tables and points of its figures."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.eval.evaluate import read_evaluation
from jaxcxr.records.spent import spent_of
from jaxcxr.run_folder import EVALUATION, evaluated_budgets, read_facts


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated model of a sweep.

    Attributes:
        evaluation: its `evaluation.csv` (`jaxcxr.eval.evaluate`).
        epsilon: its budget; infinity if it was trained without privacy, the other fields then being None.
        delta, noise_multiplier, sample_rate, steps: of its training.
    """

    evaluation: pd.DataFrame
    epsilon: float = np.inf
    delta: float | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None


def read_run(folder: Path) -> Run:
    """The model in a finished run folder, with the number of steps recorded in its ledger.

    Raises:
        InputError: a file is missing or damaged, or contradicts the others.
    """
    spent, evaluation = spent_of(folder), read_evaluation(folder / EVALUATION)
    if spent is None:
        return Run(evaluation, steps=read_facts(folder).get("steps"))
    steps = spent.steps  # fewer than planned after a budget stop
    rate = spent.sample_rate / spent.bands  # of each unit in any step
    return Run(evaluation, spent.budget, spent.delta, spent.noise_multiplier, rate, steps)


def finished_runs(sweep: Path) -> list[Run]:
    """The models of all evaluated budgets in the folder of a sweep, those of earlier calls too."""
    return [read_run(folder) for folder in evaluated_budgets(sweep)]
