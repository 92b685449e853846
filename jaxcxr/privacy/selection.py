"""What several models of one cohort cost together: all of them published, or only the best one.

Guarantee: `publish_all` is the composition of every run's ledger. `choose_best` holds if the number of runs was itself drawn
from a Poisson or geometric distribution before any result was seen, each run's settings were drawn afresh from the candidates,
and only the best run's model is published (Papernot & Steinke 2022, Theorems 6 and 2); the score that decides must be computed
inside the run or from other people's films. For a fixed list of runs, of which the best is picked, only `publish_all` holds.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon

from jaxcxr.errors import InputError
from jaxcxr.privacy import accounting
from jaxcxr.privacy.accounting import Spending
from jaxcxr.privacy.ledger import Terms, read_ledger, spendings_of
from jaxcxr.privacy.loss_distribution import Bounds, quiet

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
    with quiet():
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
    """Read every run folder in a sweep folder and say what its models cost together.

    Raises:
        InputError: there is no private run, a ledger is damaged, or the runs differ in cohort, unit, adjacency or size.
    """
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    runs: list[SweepRun] = []
    unprotected: list[str] = []
    terms: dict[str, Terms] = {}
    deltas: dict[str, float] = {}
    for path in found:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if "delta" not in facts:
            unprotected.append(path.name)
            continue
        terms[path.name], entries = read_ledger(path / "ledger.jsonl")
        deltas[path.name] = float(facts["delta"])
        spent = tuple(spendings_of(entries))
        runs.append(SweepRun(path.name, spent, accounting.epsilon_pld(spent, deltas[path.name])))
    if not runs:
        raise InputError(f"{folder}: expected run folders with a ledger.jsonl, found none")
    _require_one_cohort(folder, terms, deltas)
    delta = next(iter(deltas.values()))
    spendings = [run.spendings for run in runs]
    kinds: tuple[Repetitions, ...] = ("poisson", "geometric")
    costs = {kind: choose_best(spendings, delta, repetitions=kind) for kind in kinds}
    kind = min(kinds, key=lambda k: costs[k])
    unit = next(iter(terms.values())).unit
    return SweepCost(tuple(runs), tuple(unprotected), unit, delta, publish_all(spendings, delta), costs[kind], kind)


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
