"""What the models of a sweep folder cost together in privacy, from the ledgers of its runs, in numbers and in
a sentence.

The guarantee, and what it asks of the sweep, stand in `jaxcxr.accounting.selection`.
"""

import dataclasses
import math
from pathlib import Path

from jaxcxr.accounting import Bounds, Spending, epsilon_pld
from jaxcxr.accounting.selection import Repetitions, choose_best, publish_all
from jaxcxr.digests import write_json
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import Terms
from jaxcxr.records.spent import spent_of
from jaxcxr.records.tuning import TUNING
from jaxcxr.report.bounds import lower_text, upper_text
from jaxcxr.run_folder import SWEEP_COST, is_trained, runs_in


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One private run of a sweep: its name, its ledger's spendings and its own epsilon."""

    name: str
    spendings: tuple[Spending, ...]
    epsilon: float


@dataclasses.dataclass(frozen=True)
class SweepCost:
    """What the private runs of a sweep cost.

    Attributes:
        runs: each of them.
        unprotected: names of runs without a ledger: publishing one of those has no guarantee at all.
        unit: of the guarantee, the same in all runs.
        delta: at which every epsilon here holds.
        publish_all: bounds on epsilon if every private model is published, or the best of them picked.
        choose_best: upper bound on epsilon if the number of runs had been sampled beforehand, with the number
            of runs here as its mean.
        repetitions: distribution of that number, whichever of the two costs less.
    """

    runs: tuple[SweepRun, ...]
    unprotected: tuple[str, ...]
    unit: str
    delta: float
    publish_all: Bounds
    choose_best: float
    repetitions: Repetitions


def sweep_cost(folder: Path) -> SweepCost:
    """Read every run folder in a sweep folder and say what its models cost together, finished or not: the
    ledgers decide.

    Raises:
        InputError: there is no private run, a ledger is damaged, the runs differ in cohort, unit, adjacency
            or size, or their randomness is not independent, so that their costs do not compose.
    """
    if (folder / TUNING).is_file():
        raise InputError(
            f"{folder}: holds a tuning, of which one run may leave; `jaxcxr account --run` says what the "
            "chosen one costs with the choice"
        )
    runs: list[SweepRun] = []
    unprotected: list[str] = []
    terms: dict[str, Terms] = {}
    deltas: dict[str, float] = {}
    for path in runs_in(folder):
        spent = spent_of(path)
        if spent is not None:
            terms[path.name], deltas[path.name] = spent.terms, spent.delta
            spendings = tuple(spent.spendings)
            runs.append(SweepRun(path.name, spendings, epsilon_pld(spendings, spent.delta)))
        elif is_trained(path):
            unprotected.append(path.name)
    if not runs:
        raise InputError(f"{folder}: expected run folders with a ledger.jsonl, found none")
    _require_one_cohort(folder, terms, deltas)
    _require_independence(folder, terms)
    delta = next(iter(deltas.values()))
    spent_by_run = [run.spendings for run in runs]
    kinds: tuple[Repetitions, ...] = ("poisson", "geometric")
    costs = {kind: choose_best(spent_by_run, delta, repetitions=kind) for kind in kinds}
    kind = min(kinds, key=lambda k: costs[k])
    unit = next(iter(terms.values())).unit
    return SweepCost(
        tuple(runs), tuple(unprotected), unit, delta, publish_all(spent_by_run, delta), costs[kind], kind
    )


def _require_independence(folder: Path, terms: dict[str, Terms]) -> None:
    seeded = [name for name, other in terms.items() if other.seeded]
    if seeded:
        raise InputError(
            f"{folder}: no joint epsilon holds: {', '.join(seeded)} had a seed (training.seed), so that the "
            "runs share their noise, which cancels between them, and anyone who knows the seed can compute "
            "it; run the sweep without a seed"
        )
    first: dict[str, str] = {}
    for name, other in terms.items():
        if other.run and other.run in first:
            raise InputError(
                f"{folder}: no joint epsilon holds: {first[other.run]} and {name} come from the same secret; "
                "is one a copy of the other?"
            )
        first[other.run] = name


def write_cost(folder: Path) -> str:
    """Write `privacy.json`, what a sweep folder's models cost together, and say it in a sentence; where no
    joint claim holds, both say why.
    """
    try:
        cost = sweep_cost(folder)
    except InputError as error:
        said = str(error).removeprefix(f"{folder}: ")
        described: dict[str, object] = {"claim": None, "why": said}
    else:
        described, said = _described(cost), _said(cost)
    write_json(folder / SWEEP_COST, described)
    return said


def _described(cost: SweepCost) -> dict[str, object]:
    return {
        "claim": {
            "unit": cost.unit,
            "delta": cost.delta,
            "publish_all": {
                "epsilon_upper": _finite(cost.publish_all.upper),
                "epsilon_lower": cost.publish_all.lower,
            },
            "choose_best_of_a_fixed_list": {"epsilon_upper": _finite(cost.publish_all.upper)},
            "choose_best_of_a_random_number": {
                "epsilon_upper": _finite(cost.choose_best),
                "number_of_runs": cost.repetitions,
                "mean": len(cost.runs),
            },
        },
        "models": [{"run": run.name, "epsilon_upper": _finite(run.epsilon)} for run in cost.runs],
        "without_any_guarantee": list(cost.unprotected),
    }


def _said(cost: SweepCost) -> str:
    bare = (
        f" {', '.join(cost.unprotected)} has no guarantee: publishing it gives its images away."
        if cost.unprotected
        else ""
    )
    return (
        f"privacy of the sweep, unit {cost.unit}, delta {cost.delta:g}: publishing "
        f"{_models(len(cost.runs))} costs epsilon {upper_text(cost.publish_all.upper)} (at least "
        f"{lower_text(cost.publish_all.lower)}), "
        "and so does publishing the best of this list; had the number of models been sampled beforehand "
        f"({cost.repetitions} distribution, mean {len(cost.runs)}), the best one alone would cost "
        f"{upper_text(cost.choose_best)}.{bare}"
    )


def _models(count: int) -> str:
    return f"all {count} private models" if count > 1 else "the one private model"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _require_one_cohort(folder: Path, terms: dict[str, Terms], deltas: dict[str, float]) -> None:
    first = next(iter(terms))
    for name, other in terms.items():
        for field in ("data_fingerprint", "unit", "adjacency", "dataset_size"):
            if getattr(other, field) != getattr(terms[first], field):
                raise InputError(
                    f"{folder}: runs {first} and {name} differ in {field} ({getattr(terms[first], field)!r}, "
                    f"{getattr(other, field)!r}); expected runs on one cohort with one unit"
                )
        if deltas[name] != deltas[first]:
            raise InputError(
                f"{folder}: runs {first} and {name} have delta {deltas[first]:g} and {deltas[name]:g}; "
                "expected one"
            )
