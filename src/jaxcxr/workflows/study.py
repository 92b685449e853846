"""A study: one experiment varied along a grid, several seeds each, and what the variations are worth.

Every run has a folder named by the digest of its configuration, so that a study goes on where it stopped, and
questions that share a run share it.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from jaxcxr.atomic import BusyError
from jaxcxr.config import STRICT, EvaluationConfig, Experiment
from jaxcxr.config_files import load, validate
from jaxcxr.errors import InputError
from jaxcxr.eval.estimates import measure
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.launch.jobs import claimed
from jaxcxr.run_folder import CHECKPOINTS, CONFIG, PREDICTIONS, read_facts
from jaxcxr.workflows.recipes import Rule, by_recipe

GROUPS = ("age:0,30,60,70,80,100", "sex")
"""Groups of patients whose gaps are compared (the paper's Table 3)."""
ESTIMATES = {
    "auroc": ("all", "auroc"),
    "auroc_gap_age": ("age", "auroc_gap"),
    "auroc_gap_sex": ("sex", "auroc_gap"),
}
"""What is compared, each averaged over the findings, by group and metric of an evaluation; a gap is that
between the groups furthest apart.
"""
REDRAWS = 400
OF_SEED = "{seed}"
DIFFERENCE = ("difference", "ci_low", "ci_high", "films_low", "films_high", "seeds_std")
"""What is said of an arm beside its question's reference; empty for the reference itself."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A variation of the experiment.

    Attributes:
        set: `section.key` -> value, in place of the experiment's; `section` alone replaces a whole section.
        by_budget: the same for one budget, on top.
        recipe: `paper` takes the training as it stands, `recommended` and `head` replace it by the rule's
            before `set` is applied, `untouched` does not train at all.
    """

    __pydantic_config__ = STRICT
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    by_budget: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    recipe: Literal["paper", "recommended", "head", "untouched"] = "paper"


@dataclasses.dataclass(frozen=True)
class Question:
    """Arms that differ in one thing, and the one that the others are compared with."""

    __pydantic_config__ = STRICT
    asks: str
    reference: str
    arms: dict[str, Arm]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """Questions about one experiment.

    Attributes:
        experiment: configuration that is varied. Where `data.store` has `{seed}` in its name, each seed has a
            store of its own: other patients for training and test (draw.seed of `jaxcxr prepare`).
        rule: configuration of the recommended recipe.
        questions: by name.
    """

    __pydantic_config__ = STRICT
    experiment: str
    rule: str
    questions: dict[str, Question]

    def check(self) -> None:
        """Refuse a question whose reference is none of its arms."""
        for name, question in self.questions.items():
            if question.reference not in question.arms:
                raise InputError(
                    f"questions.{name}.reference: expected one of {', '.join(question.arms)}; found "
                    f"{question.reference!r}"
                )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study."""

    question: str
    arm: str
    epsilon: float
    seed: int
    config: Experiment
    trains: bool

    @property
    def title(self) -> str:
        """What is varied in it."""
        return f"{self.question}, {self.arm}, epsilon {self.epsilon:g}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """Name of the run's folder; a field at its default does not count, so that a new field leaves old
        runs their names.
        """
        sections = {
            name: found
            for name in dataclasses.asdict(self.config)
            if (found := _not_default(getattr(self.config, name))) or name != "head"
        }
        text = json.dumps([sections, self.trains], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _not_default(section: Any) -> dict[str, Any] | None:
    if section is None:
        return None
    values = dataclasses.asdict(section)
    return {
        f.name: values[f.name] for f in dataclasses.fields(section) if getattr(section, f.name) != f.default
    }


def cells(study: Study) -> Iterator[Cell]:
    """Every run that the questions ask for, seed by seed; those of several questions come once for each."""
    study.check()
    base, rule = load(Experiment, study.experiment), load(Rule, study.rule)
    for name, question in study.questions.items():
        for seed in question.seeds:
            for epsilon in question.budgets:
                for arm_name, arm in question.arms.items():
                    config = _varied(base, rule, arm, epsilon, seed, f"questions.{name}.arms.{arm_name}")
                    yield Cell(name, arm_name, epsilon, seed, config, arm.recipe != "untouched")


def _varied(base: Experiment, rule: Rule, arm: Arm, epsilon: float, seed: int, source: str) -> Experiment:
    cohort, privacy = base.data.synthetic, base.privacy
    n_units = cohort.n_train if cohort is not None else privacy.dataset_size if privacy is not None else None
    if privacy is None or n_units is None:
        raise InputError(
            "a study varies a private experiment, on an embedded cohort or with a declared "
            "privacy.dataset_size"
        )
    data = dataclasses.replace(base.data, store=base.data.store.replace(OF_SEED, str(seed)))
    base = dataclasses.replace(base, data=data)
    if arm.recipe != "untouched":  # which are the same whatever the budget and the seed
        training = dataclasses.replace(base.training, seed=seed)
        budget = None if math.isinf(epsilon) else dataclasses.replace(privacy, epsilon=epsilon)
        base = dataclasses.replace(base, privacy=budget, training=training)
    config = base
    if arm.recipe in ("recommended", "head"):
        config, _ = by_recipe(arm.recipe, config, n_units, rule)
    values = dataclasses.asdict(config)
    for place, value in {**arm.set, **arm.by_budget.get(f"{epsilon:g}", {})}.items():
        section, _, key = place.partition(".")
        if section not in values or (key and key not in (values[section] or {})):
            raise InputError(f"{source}: no such field {place!r}")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return validate(Experiment, values, source)


def run(study: Study, out: Path, minutes: float | None = None, say: Callable[[str], None] = print) -> bool:
    """Run what is not there yet, one after the other; whether nothing is left. Several launchers may share
    the folder: each run is made by one of them.

    Args:
        study: what to run.
        out: folder of the run folders. Weights are not kept.
        minutes: begin no run after so many.
        say: where progress goes.
    """
    todo, busy = unfinished(study, out), 0
    began = time.monotonic()
    for number, (digest, cell) in enumerate(todo.items()):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            say(f"{len(todo) - number} runs are left")
            return False
        say(f"{number + 1} of {len(todo)}: {cell.title} ({digest})")
        try:
            run_cell(cell, out)
        except BusyError as error:
            say(str(error))
            busy += 1
    return not busy or not unfinished(study, out)


def unfinished(study: Study, out: Path) -> dict[str, Cell]:
    """The runs of a study that are not complete, by the names of their folders."""
    return {cell.digest: cell for cell in cells(study) if not is_finished(out / cell.digest)}


def cell_of(study: Study, digest: str) -> Cell:
    """The run of a study whose folder has a name.

    Raises:
        InputError: the study has none.
    """
    for cell in cells(study):
        if cell.digest == digest:
            return cell
    raise InputError(f"--part {digest}: the study has no such run")


def run_cell(cell: Cell, out: Path) -> None:
    """Make one run of a study, if it is not complete.

    Raises:
        BusyError: another process is at work on it.
        StoppedError: a signal ended the run.
    """
    from jaxcxr.workflows.experiment import evaluate_untouched, run_experiment

    folder = out / cell.digest
    with claimed(out, cell.digest):
        if is_finished(folder):
            return
        if not cell.trains:
            evaluate_untouched(cell.config, folder, say=lambda _: None)
        else:
            run_experiment(cell.config, folder, (folder / CONFIG).exists(), say=lambda _: None)
        draws_of(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Whether a run of a study is complete."""
    return (folder / "draws.npz").exists()


def draws_of(folder: Path) -> dict[str, Float[np.ndarray, " draws"]]:
    """`ESTIMATES` of a run's predictions, on the test films (first) and their redraws by patient, equal for
    all runs.
    """
    path = folder / "draws.npz"
    if not path.exists():
        predictions, findings = read_predictions(folder / PREDICTIONS)
        config = EvaluationConfig(redraws=REDRAWS, groups=GROUPS, threshold="fixed")
        found = measure(predictions, findings, config)
        rows = found.rows.reset_index(drop=True)
        draws = {}
        for name, (group, metric) in ESTIMATES.items():
            is_it = (rows["group"] == group) & (rows["metric"] == metric) & (rows["finding"] == "average")
            draws[name] = found.draws[int(np.flatnonzero(is_it.to_numpy())[0])]
        part = folder / "draws.part.npz"
        np.savez(part, **draws)
        part.rename(path)
    with np.load(path) as file:
        return {name: file[name] for name in ESTIMATES}


def results(study: Study, out: Path) -> pd.DataFrame:
    """A row a finished run: question, arm, epsilon, seed, what was trained how, and the estimates."""
    rows = []
    for cell in cells(study):
        folder = out / cell.digest
        if not is_finished(folder):
            continue
        facts = read_facts(folder)
        t = cell.config.training
        described = {"scope": t.scope, "expected_batch_size": t.expected_batch_size}
        described["steps"] = t.steps if cell.trains else 0
        described |= {"learning_rate": t.learning_rate, "averaging": t.averaging}
        described["noise_multiplier"] = facts.get("noise_multiplier", np.nan)
        estimates = {name: float(draws[0]) for name, draws in draws_of(folder).items()}
        key = {"question": cell.question, "arm": cell.arm, "epsilon": cell.epsilon, "seed": cell.seed}
        rows.append(key | described | estimates | {"run": cell.digest})
    return pd.DataFrame(rows)


def comparisons(study: Study, out: Path) -> pd.DataFrame:
    """Each arm minus its question's reference, mean over the seeds that both have.

    `ci_low` and `ci_high` (95 %) cover both reasons why the difference might come out otherwise: other test
    patients (redraws that all runs share) and other training randomness (differences by seed). Their
    variances add up; the degrees of freedom are Welch and Satterthwaite's, so that few seeds make a wide
    interval. `films_low` to `films_high` covers patients alone. `value_low` and `value_high` are the same for
    the arm's own estimate: wider, since nothing is paired.
    """
    by_key = {(cell.question, cell.arm, cell.epsilon, cell.seed): out / cell.digest for cell in cells(study)}
    rows = []
    for name, question in study.questions.items():
        for epsilon in question.budgets:
            for arm in question.arms:
                pairs = [
                    (by_key[name, arm, epsilon, seed], by_key[name, question.reference, epsilon, seed])
                    for seed in question.seeds
                ]
                pairs = [pair for pair in pairs if all(is_finished(folder) for folder in pair)]
                if not pairs:
                    continue
                for estimate in ESTIMATES:
                    own, reference = (
                        np.stack([draws_of(pair[i])[estimate] for pair in pairs]) for i in (0, 1)
                    )
                    row = {"question": name, "arm": arm, "reference": question.reference, "epsilon": epsilon}
                    row |= {"estimate": estimate, "value": own[:, 0].mean(), "seeds": len(pairs)}
                    spread = interval_of(own)
                    row |= {"value_low": spread["ci_low"], "value_high": spread["ci_high"]}
                    row |= (
                        dict.fromkeys(DIFFERENCE, np.nan)
                        if arm == question.reference
                        else interval_of(own - reference)
                    )
                    rows.append(row)
    return pd.DataFrame(rows)


def interval_of(draws: Float[np.ndarray, "seeds draws"]) -> Mapping[str, float]:
    """Mean and intervals of estimates, or of their differences, by seed (rows), on the test films (column 0)
    and redraws of them.
    """
    seeds = len(draws)
    mean, redrawn = float(draws[:, 0].mean()), draws[:, 1:].mean(axis=0)
    films, training = (
        float(redrawn.var(ddof=1)),
        float(draws[:, 0].var(ddof=1) / seeds) if seeds > 1 else np.nan,
    )
    variance = films + training
    freedom = variance**2 * (seeds - 1) / max(training**2, 1e-30) if seeds > 1 else np.nan
    reach = float(stats.t.ppf(0.975, freedom) * np.sqrt(variance)) if seeds > 1 else np.nan
    low, high = np.percentile(redrawn, [2.5, 97.5])
    return {
        "difference": mean,
        "ci_low": mean - reach,
        "ci_high": mean + reach,
        "films_low": float(low),
        "films_high": float(high),
        "seeds_std": float(draws[:, 0].std(ddof=1)) if seeds > 1 else np.nan,
    }
