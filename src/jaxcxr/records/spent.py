"""What a run has spent: the only source of a run folder's epsilon.

The ledger says what was spent, `run.json` and `config.yaml` what was promised, the checkpoints how far
training came (`run_folder` reads these), and the secret which run it is. If these contradict the ledger
(lines cut off its end, another run's ledger, an edited figure), no figure is given.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxcxr.accounting import Spending
from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import (
    AnyEntry,
    Entry,
    Saved,
    Terms,
    read_contents,
    run_name,
    spendings_of,
)
from jaxcxr.records.tuning import OfTuning, tuning_of
from jaxcxr.run_folder import (
    CHECKPOINTS,
    CONFIG,
    FACTS,
    LEDGER,
    SECRET,
    Promise,
    has_facts,
    newest_checkpoint,
    promise_of,
    read_config,
    read_facts,
)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a private run has spent so far, and what was promised.

    Attributes:
        terms: of its ledger.
        entries: everything that was released, in the ledger's order.
        heads: chain value of every line of the ledger; the last one covers all of it.
        budget, delta: the epsilon and delta that the run may spend.
        sample_rate, noise_multiplier: of each step.
        bands: over how many steps noise is correlated; 1 if it is not.
        expected_batch_size, steps_planned: declared.
        newest_checkpoint: steps done at the newest checkpoint; None if there is none (checkpoints may be
            deleted).
        saved: what its checkpoints held.
        tuning: of a run that is one of several, among which one is chosen.
    """

    terms: Terms
    entries: tuple[AnyEntry, ...]
    heads: tuple[str, ...]
    budget: float
    delta: float
    sample_rate: float
    noise_multiplier: float
    expected_batch_size: int
    steps_planned: int
    newest_checkpoint: int | None
    saved: tuple[Saved, ...] = ()
    tuning: OfTuning | None = None
    bands: int = 1

    @property
    def spendings(self) -> list[Spending]:
        """The spendings of its own training for the accountant; what is promised is `guarantee`."""
        return spendings_of(self.entries)

    @property
    def steps(self) -> int:
        """Number of steps recorded in the ledger."""
        return sum(isinstance(entry, Entry) for entry in self.entries)

    @property
    def checkpoints(self) -> dict[int, frozenset[str]]:
        """Digests that the checkpoint of a step may have, by step."""
        return checkpoint_digests(self.saved)

    @property
    def head(self) -> str:
        """Chain value of the ledger's last line."""
        return self.heads[-1]

    @property
    def guarantee(self) -> Guarantee:
        """What is promised of its model: of one that was chosen, with the cost of the choice."""
        choice = None if self.tuning is None else self.tuning.terms.choice
        return Guarantee(tuple(self.spendings), choice)

    def bounds(self) -> Bounds:
        """Bounds on epsilon at the run's delta, the cost of a choice among several runs included."""
        return self.guarantee.bounds(self.delta)


def spent_of(run: Path) -> Spent | None:
    """What a run has spent; None if it was trained without privacy (epsilon is infinite).

    Raises:
        InputError: there is no run, a file is damaged, or the files contradict each other; the message names
            what differs.
    """
    promise = promise_of(run)
    if promise is None:
        return None
    ledger = read_contents(run / LEDGER)
    terms, entries = ledger.terms, ledger.entries
    _require_one_promise(run, promise, terms)
    done = newest_checkpoint(run)
    _require_steps(run, promise, [entry for entry in entries if isinstance(entry, Entry)], done)
    secret = run / CHECKPOINTS / SECRET
    if terms.run and secret.is_file() and run_name(secret.read_bytes()) != terms.run:
        raise InputError(f"{run}: {LEDGER} belongs to another run than {CHECKPOINTS}/{SECRET}")
    return Spent(
        terms,
        tuple(entries),
        tuple(ledger.heads),
        promise.epsilon,
        promise.delta,
        promise.sample_rate,
        promise.noise_multiplier,
        promise.expected_batch_size,
        promise.steps,
        done,
        tuple(ledger.saved),
        _tuning(run, terms, ledger.heads[-1], entries),
        promise.bands,
    )


def _tuning(run: Path, terms: Terms, head: str, entries: Sequence[AnyEntry]) -> OfTuning | None:
    fact = read_facts(run).get("tuning")
    return None if fact is None else tuning_of(run, fact, terms.run, head, spendings_of(entries))


def checkpoint_digests(saved: Sequence[Saved]) -> dict[int, frozenset[str]]:
    """Digests that the checkpoint of a step may have, by step."""
    return {
        line.checkpoint: frozenset(other.sha256 for other in saved if other.checkpoint == line.checkpoint)
        for line in saved
    }


def saved_in(run: Path) -> dict[int, frozenset[str]]:
    """Digests of a run's checkpoints, by step, as its ledger says; none of a run without privacy.

    Raises:
        InputError: the ledger of a private run is missing or damaged.
    """
    spent = spent_of(run) if has_facts(run) else None
    return {} if spent is None else spent.checkpoints


def _require_one_promise(run: Path, promise: Promise, terms: Terms) -> None:
    """Refuse a ledger about other data, or with another unit, than the run was begun with."""
    said = {"n_units": terms.dataset_size, "store_fingerprint": terms.data_fingerprint}
    wrong = [
        f"{name} ({value!r} in the ledger)" for name, value in said.items() if getattr(promise, name) != value
    ]
    if wrong:
        raise InputError(
            f"{run}: {LEDGER} and {FACTS} are about different data; they differ in {', '.join(wrong)}"
        )
    privacy = read_config(run).privacy
    if privacy is None or terms.unit != privacy.unit:
        unit = None if privacy is None else privacy.unit
        raise InputError(f"{run}: the ledger's unit is {terms.unit!r}, that of {CONFIG} {unit!r}")


def _require_steps(run: Path, promise: Promise, entries: list[Entry], done: int | None) -> None:
    """Refuse a ledger that lacks a step, has other parameters than planned, or is older than a checkpoint."""
    for place, entry in enumerate(entries):
        if entry.step != place:
            raise InputError(f"{run}: {LEDGER} has step {entry.step} where step {place} belongs")
        for name in ("sample_rate", "noise_multiplier", "l2_clip_norm"):
            if getattr(entry, name) != getattr(promise, name):
                raise InputError(
                    f"{run}: {name} of step {place} is {getattr(entry, name)} in {LEDGER}, "
                    f"{getattr(promise, name)} in {FACTS}"
                )
        bands, group = entry.turn
        if (bands, group) != (promise.bands, place % promise.bands):
            raise InputError(
                f"{run}: step {place} is of group {group} of {bands} in {LEDGER}, of group "
                f"{place % promise.bands} of {promise.bands} by {FACTS}"
            )
    if len(entries) > promise.steps:
        raise InputError(f"{run}: {LEDGER} has {len(entries)} steps, {FACTS} planned {promise.steps}")
    if done is not None and done > len(entries):
        raise InputError(
            f"{run}: a checkpoint is of step {done}, but {LEDGER} has {len(entries)} steps: lines were lost"
        )
