"""The register of released models of a cohort: an append-only file in the folder of the cohort's store.

A model is registered before it leaves, and its cost is part of every later card of the cohort. A run released
again with the same ledger counts once; a run trained further and released again counts with its longer
ledger, which contains the shorter one; a run deleted and trained anew has a new secret and counts in addition
to the old one, whose model may be anywhere. The register knows its own store only: images prepared anew have
another store and another register.
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jaxcxr.atomic import exclusive_lock
from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.records.chain import append, entry_of, needed, read_chain, require_mark
from jaxcxr.records.provenance import sealed_fingerprint
from jaxcxr.records.spent import Spent
from jaxcxr.report.card.card_schema import Identity, MechanismRow, PrivacyCard, SiblingRow, TuningRow

REGISTER, LOCK = "releases.jsonl", ".releases.lock"
_KIND, _WHAT = "register", "the register of released models"
_PATIENCE = 30.0
"""Seconds to wait while another model of the cohort is being released."""


class _Registered(BaseModel):
    """One line of the register: a released model.

    Attributes:
        run: public name of its run, by which a copy of the run's secret is recognised.
        weights: SHA-256 of its parameters (`training.weights.weights_digest`).
        delta: of its claim.
        date: day on which it was registered; None in lines of earlier versions.
        sibling: its row on later cards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    adjacency: str
    delta: float
    date: datetime.date | None = None
    sibling: SiblingRow


def today() -> datetime.date:
    """The day of a release."""
    return datetime.date.today()


class Register:
    """The register of one store, held by this process.

    Raises:
        InputError: a line is damaged, or the register belongs to another store.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._read()

    def _read(self) -> None:
        path = self._path
        self._chain = read_chain(path, _KIND)
        require_mark(path, self._chain.heads)
        self._lines: list[_Registered] = []
        for number, values in enumerate(self._chain.lines, start=1):
            if number == 1:
                if values != {"store": self._fingerprint}:
                    raise InputError(f"{path}: is the register of another store")
                continue
            self._lines.append(entry_of(_Registered, values, path, number, "not a register entry"))

    def siblings_of(self, run: Path, spent: Spent, weights: str) -> list[SiblingRow]:
        """The other released models of the cohort, in order of release, without earlier states of this run.

        Args:
            run: its folder, for error messages.
            spent: what it has spent.
            weights: SHA-256 of its parameters.

        Raises:
            InputError: no joint epsilon holds: a model shares the run's secret or ledger, or claims another
                adjacency.
        """
        if not spent.terms.run:
            raise InputError(
                f"{run}: the ledger does not name its run, so that a copy of a released one could not be "
                "told; train anew"
            )
        others: dict[str, SiblingRow] = {}
        for line in self._lines:
            if line.run != spent.terms.run:
                others[line.run] = line.sibling  # a later line of the same run is a longer ledger
                if line.adjacency != spent.terms.adjacency:
                    raise InputError(
                        f"{run}: no joint epsilon holds with the released models of this cohort: one claims "
                        f"adjacency {line.adjacency!r}, this run {spent.terms.adjacency!r}"
                    )
            elif line.sibling.ledger not in spent.heads:
                raise InputError(
                    f"{run}: no joint epsilon holds with the released models of this cohort: one with the "
                    f"ledger {line.sibling.ledger} comes from the same secret, and its noise would cancel "
                    "against this one's; is the run a copy?"
                )
            elif line.sibling.ledger == spent.head and line.weights != weights:
                raise InputError(
                    f"{run}: no joint epsilon holds with the released models of this cohort: other weights "
                    "were released with this very ledger, and the noise of both would cancel in their "
                    "difference; is one a copy that was trained on another machine, or on other data?"
                )
        return list(others.values())

    def knows(self, weights: str) -> bool:
        """Whether a model with these parameters (their SHA-256) was released."""
        return any(line.weights == weights for line in self._lines)

    def released_on(self, spent: Spent, weights: str) -> datetime.date | None:
        """The day on which a run's model was registered; today if it is not registered yet.

        A release that is built anew says the same day. None if an earlier version registered it.
        """
        for line in self._lines:
            if (line.run, line.sibling.ledger, line.weights) == (spent.terms.run, spent.head, weights):
                return line.date
        return today()

    def at_odds(self, card: PrivacyCard | Identity, weights: str) -> list[str]:
        """Sentences about how a release differs from what was registered; empty if it does not.

        Args:
            card: of the release.
            weights: SHA-256 of its parameters.
        """
        ledger = card.fingerprints.ledger
        place = next(
            (i for i, line in enumerate(self._lines) if ledger and line.sibling.ledger == ledger), None
        )
        if place is None:
            return [f"{self._path} knows no release with its ledger"]
        own, wrong = self._lines[place], []
        if own.weights != weights:
            wrong.append(f"{self._path}: other weights were registered with its ledger")
        if card.fingerprints.data != sealed_fingerprint(self._fingerprint, own.run):
            wrong.append(f"{self._path}: its card is about other data than was registered")
        if own.date is not None and card.released != own.date:
            wrong.append(
                f"{self._path}: its card gives {card.released} as the day, registered was {own.date}"
            )
        there = (own.sibling.unit, own.sibling.mechanisms, own.sibling.tuning, own.adjacency, own.delta)
        if there != (
            card.claim.unit,
            card.mechanisms,
            card.tuning,
            card.claim.adjacency,
            card.claim.delta,
        ):
            wrong.append(f"{self._path}: its card claims something else than was registered")
        listed = card.siblings or []
        known = [line.sibling for line in self._lines if line.run != own.run]
        wrong += [
            f"{self._path}: knows no model with the ledger {row.ledger}, which its card lists"
            for row in listed
            if row not in known
        ]
        for run in dict.fromkeys(line.run for line in self._lines[:place] if line.run != own.run):
            last = max(i for i, line in enumerate(self._lines[:place]) if line.run == run)
            if not any(line.sibling in listed for line in self._lines[last:] if line.run == run):
                wrong.append(
                    f"{self._path}: its card does not list the model with the ledger "
                    f"{self._lines[last].sibling.ledger}"
                )
        return wrong

    def add(
        self,
        spent: Spent,
        weights: str,
        mechanisms: Sequence[MechanismRow],
        tuning: TuningRow | None = None,
    ) -> None:
        """Record that a run's model leaves, unless it is recorded already.

        Raises:
            InputError: the store's folder cannot be written to.
        """
        sibling = SiblingRow(
            ledger=spent.head,
            unit=spent.terms.unit,  # type: ignore[arg-type]
            mechanisms=list(mechanisms),
            tuning=tuning,
        )
        line = _Registered(
            run=spent.terms.run,
            weights=weights,
            adjacency=spent.terms.adjacency,
            delta=spent.delta,
            date=self.released_on(spent, weights),
            sibling=sibling,
        )
        if line in self._lines:
            return
        first = [] if self._chain.heads else [{"store": self._fingerprint}]
        with needed(self._path.parent, _WHAT):
            append(self._path, _KIND, self._chain, [*first, line.model_dump(mode="json")])
        self._read()


def register_of(store: Path) -> Register:
    """The register of a store, for reading.

    Raises:
        InputError: there is no store, or its register is damaged.
    """
    return Register(store / REGISTER, open_store(store).fingerprint)


@contextmanager
def held(store: Path, spent: Spent, run: Path) -> Iterator[Register]:
    """Hold the register of a run's store, so that no other model of the cohort is released meanwhile.

    Raises:
        InputError: the store is gone, holds another cohort or cannot be written to, or another process holds
            the lock.
    """
    where = "--store names where it lies now"
    if not store.is_dir():
        raise InputError(
            f"{store}: no such store; {run} was trained on it, and its register must know of a release: "
            f"{where}"
        )
    if open_store(store).fingerprint != spent.terms.data_fingerprint:
        raise InputError(f"{store}: holds another cohort than the one that {run} was trained on; {where}")
    busy = f"{store}: another model of this cohort is being released; try again"
    with ExitStack() as held:
        with needed(store, _WHAT):
            held.enter_context(exclusive_lock(store / LOCK, busy, _PATIENCE))
        yield Register(store / REGISTER, spent.terms.data_fingerprint)
