"""What several models of one cohort cost together: all of them published, or only the best one.

Guarantee: `publish_all` is the composition of every run's ledger. `choose_best` holds if the number of runs was itself drawn
from a Poisson or geometric distribution before any result was seen, each run's settings were drawn afresh from the candidates,
and only the best run's model is published (Papernot & Steinke 2022, Theorems 6 and 2); the score that decides must be computed
inside the run or from other people's films. For a fixed list of runs, of which the best is picked, only `publish_all` holds.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon

from jaxcxr.errors import InputError
from jaxcxr.privacy import accounting
from jaxcxr.privacy.accounting import Spending
from jaxcxr.privacy.ledger import Terms
from jaxcxr.privacy.loss_distribution import Bounds
from jaxcxr.privacy.spent import is_trained, spent_of
from jaxcxr.replacing import write_json

Repetitions = Literal["poisson", "geometric"]


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
        choose_best: upper bound on epsilon if the number of runs was drawn (its mean is the number of runs here).
        repetitions: how it was drawn, whichever of the two costs less.
    """

    runs: tuple[SweepRun, ...]
    unprotected: tuple[str, ...]
    unit: str
    delta: float
    publish_all: Bounds
    choose_best: float
    repetitions: Repetitions


def publish_all(runs: Sequence[Sequence[Spending]], delta: float) -> Bounds:
    """Bounds on epsilon of all runs together, on the same data."""
    return accounting.epsilon_bounds([spent for run in runs for spent in run], delta)


def choose_best(
    runs: Sequence[Sequence[Spending]], delta: float, mean_runs: float | None = None, repetitions: Repetitions = "poisson"
) -> float:
    """Upper bound on epsilon of publishing the best of a random number of runs, each one of `runs` drawn at random.

    Args:
        runs: what each candidate costs.
        delta: of the guarantee.
        mean_runs: expected number of runs, at least 1; the number of candidates if omitted.
        repetitions: distribution of the number of runs.
    """
    mean = float(len(runs)) if mean_runs is None else mean_runs
    if mean < 1:
        raise ValueError(f"mean_runs: expected at least 1, found {mean}")
    if any(s.noise_multiplier == 0 for run in runs for s in accounting.composed(run)):
        return math.inf
    with accounting.quiet():
        accountants = [accounting.rdp_accountant(run) for run in runs]
        # A run that draws its settings at random costs at most the dearest of them at each Rényi order.
        orders = np.asarray(accountants[0]._orders)
        single = np.max([np.asarray(a._rdp) for a in accountants], axis=0)
        used = orders > 1
        orders, single = orders[used], single[used]
        if repetitions == "poisson":
            deltas = np.array(
                [compute_delta(orders.tolist(), single.tolist(), math.log1p(1 / (order - 1)))[0] for order in orders]
            )
            repeated = single + mean * deltas + math.log(mean) / (orders - 1)
        else:
            # Geometric: the truncated negative binomial of shape 1, with gamma = 1 / mean.
            constant = 2 * np.min((1 - 1 / orders) * single + math.log(mean) / orders)
            repeated = single + math.log(mean) / (orders - 1) + constant
        return float(compute_epsilon(orders.tolist(), repeated.tolist(), delta)[0])


def sweep_cost(folder: Path) -> SweepCost:
    """Read every run folder in a sweep folder and say what its models cost together, finished or not: the ledgers decide.

    Raises:
        InputError: there is no private run, a ledger is damaged, the runs differ in cohort, unit, adjacency or size, or they
            were not drawn independently, so that their costs do not compose.
    """
    runs: list[SweepRun] = []
    unprotected: list[str] = []
    terms: dict[str, Terms] = {}
    deltas: dict[str, float] = {}
    for path in sorted(facts.parent for facts in folder.glob("*/run.json")):
        spent = spent_of(path)
        if spent is not None:
            terms[path.name], deltas[path.name] = spent.terms, spent.delta
            spendings = tuple(spent.spendings)
            runs.append(SweepRun(path.name, spendings, accounting.epsilon_pld(spendings, spent.delta)))
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
    return SweepCost(tuple(runs), tuple(unprotected), unit, delta, publish_all(spent_by_run, delta), costs[kind], kind)


def _require_independence(folder: Path, terms: dict[str, Terms]) -> None:
    seeded = [name for name, other in terms.items() if other.seeded]
    if seeded:
        raise InputError(
            f"{folder}: no joint epsilon holds: {', '.join(seeded)} had a seed (training.seed), so that the runs share their "
            "noise, which cancels between them, and anybody who knows the seed can compute it; run the sweep without a seed"
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
    """Write `privacy.json`, what a sweep folder's models cost together, and say it in a sentence; where no joint claim holds,
    both say why.
    """
    try:
        cost = sweep_cost(folder)
    except InputError as error:
        said = str(error).removeprefix(f"{folder}: ")
        described: dict[str, object] = {"claim": None, "why": said}
    else:
        described, said = _described(cost), _said(cost)
    write_json(folder / "privacy.json", described)
    return said


def _described(cost: SweepCost) -> dict[str, object]:
    return {
        "claim": {
            "unit": cost.unit,
            "delta": cost.delta,
            "publish_all": {"epsilon_upper": _finite(cost.publish_all.upper), "epsilon_lower": cost.publish_all.lower},
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
    bare = f" {', '.join(cost.unprotected)} has no guarantee: publishing it gives its films away." if cost.unprotected else ""
    return (
        f"privacy of the sweep, unit {cost.unit}, delta {cost.delta:g}: publishing {_models(len(cost.runs))} costs epsilon "
        f"{cost.publish_all.upper:.4g} (at least {cost.publish_all.lower:.4g}), and so does publishing the best of this list; "
        f"had their number been drawn beforehand ({cost.repetitions}, mean {len(cost.runs)}), the best one alone would cost "
        f"{cost.choose_best:.4g}.{bare}"
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
                f"{folder}: runs {first} and {name} have delta {deltas[first]:g} and {deltas[name]:g}; expected one"
            )
