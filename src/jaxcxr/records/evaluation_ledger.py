"""What evaluations with noise have told of a store's held-out patients: an append-only file in its folder.

The first line names the store, and the delta at which everything is added up; every later one is a release,
written before the release takes effect and never removed. Evaluations of all models on the same patients
compose. Like the register of released models, the file knows its own store only: images prepared anew have
another store and another ledger.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.atomic import exclusive_lock
from jaxcxr.errors import InputError
from jaxcxr.records.chain import append, entry_of, needed, read_chain, require_mark

EVALUATIONS, LOCK = "evaluations.jsonl", ".evaluations.lock"
_KIND, _WHAT = "evaluations", "the ledger of its held-out patients"
_PATIENCE = 30.0
"""Seconds to wait while another evaluation of the same patients is released."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Terms(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    store: str
    unit: Annotated[str, Field(pattern="^patient$")]
    adjacency: Annotated[str, Field(pattern="^add_remove$")]
    delta: Annotated[float, Field(ge=accounting.LEAST_DELTA, lt=1)]


class _Release(BaseModel):
    """One release: the Gaussian mechanism on counts of all held-out patients.

    Attributes:
        noise_multiplier: noise standard deviation over `l2_sensitivity`.
        l2_sensitivity: the most by which one patient changes the exact counts.
        budget: epsilon that all evaluations together were allowed when this one was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    noise_multiplier: _Positive
    l2_sensitivity: _Positive
    budget: _Positive


@dataclasses.dataclass(frozen=True)
class Spent:
    """What all evaluations of the held-out patients have cost together.

    Attributes:
        epsilon: upper bound at `delta`.
        delta: of the ledger.
        evaluations: how many there were.
    """

    epsilon: float
    delta: float
    evaluations: int


class EvaluationLedger:
    """The ledger of one store's held-out patients, held by this process (`held`).

    Args:
        path: of the file.
        store: fingerprint of the store.
        delta: at which everything is added up, if the ledger has none yet.

    Raises:
        InputError: a line is damaged, the ledger belongs to another store, or it has another delta.
    """

    def __init__(self, path: Path, store: str, delta: float) -> None:
        self._path = path
        self._chain = read_chain(path, _KIND)
        require_mark(path, self._chain.heads)
        self._terms = _Terms(store=store, unit="patient", adjacency="add_remove", delta=delta)
        self._releases: list[_Release] = []
        for number, values in enumerate(self._chain.lines, start=1):
            line = path, number, "no entry of an evaluation ledger"
            if number == 1:
                self._require(entry_of(_Terms, values, *line))
            else:
                self._releases.append(entry_of(_Release, values, *line))

    def _require(self, found: _Terms) -> None:
        if found.store != self._terms.store:
            raise InputError(f"{self._path}: is about the patients of another store")
        if found.delta != self._terms.delta:
            raise InputError(
                f"{self._path}: adds up at delta {found.delta:g}, found {self._terms.delta:g}: give "
                f"--private-delta {found.delta:g}"
            )

    @property
    def budget(self) -> float | None:
        """Epsilon that all evaluations together may cost, as declared last; None before the first."""
        return self._releases[-1].budget if self._releases else None

    def spent(self, more: Spending | None = None) -> Spent:
        """What was spent so far, or would be with one more release."""
        spendings = [Spending(1.0, line.noise_multiplier, 1) for line in self._releases]
        spendings += [more] if more else []
        delta = self._terms.delta
        return Spent(accounting.epsilon_pld(spendings, delta), delta, len(spendings))

    def record(self, noise_multiplier: float, l2_sensitivity: float, budget: float) -> Spent:
        """Record a release on the disk before it takes effect, and say what everything costs with it.

        Raises:
            InputError: the budget does not allow it, in which case nothing is recorded; or the file cannot be
                written to.
        """
        after = self.spent(Spending(1.0, noise_multiplier, 1))
        if after.epsilon > budget:
            before = self.spent()
            raise InputError(
                f"{self._path}: the budget of the held-out patients is epsilon {budget:g}; "
                f"{before.evaluations} evaluations have spent {before.epsilon:.4g} of it, and with this one "
                f"it would be {after.epsilon:.4g}; nothing was released. Publish an earlier one again, or "
                f"declare a larger budget (--private-budget {after.epsilon * 1.001:.4g})"
            )
        line = _Release(
            noise_multiplier=noise_multiplier, l2_sensitivity=l2_sensitivity, budget=float(budget)
        )
        lines = [line] if self._chain.heads else [self._terms, line]
        with needed(self._path.parent, _WHAT):
            append(self._path, _KIND, self._chain, [each.model_dump(mode="json") for each in lines])
        self._chain = read_chain(self._path, _KIND)
        self._releases.append(line)
        return after


@contextmanager
def held(store: Path, fingerprint: str, delta: float) -> Iterator[EvaluationLedger]:
    """Hold the ledger of a store's held-out patients, so that nobody else spends meanwhile.

    Raises:
        InputError: the store cannot be written to, another process holds the lock, or the ledger is damaged,
            another store's or at another delta.
    """
    with needed(store, _WHAT):
        (store / LOCK).touch()
    busy = f"{store}: another evaluation of the same patients is being released; try again"
    with exclusive_lock(store / LOCK, busy, _PATIENCE):
        yield EvaluationLedger(store / EVALUATIONS, fingerprint, delta)
