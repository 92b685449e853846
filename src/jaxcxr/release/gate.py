"""The gate through which weights leave the hospital: releases, exports and conversions all ask here.

What passes: the weights of a finished private run whose privacy card gives no reason against release; a
release that passes its check; folders and files of public weights, which carry no guarantee. What does not:
everything else, and whatever was made from it. `watermark` lets that through with a mark in its name and
content, by which this gate recognises it.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcxr.errors import InputError
from jaxcxr.models.marks import REASONS, RECORD, WATERMARK, marks_of
from jaxcxr.records.spent import Spent, saved_in, spent_of
from jaxcxr.release.check import check_registered, check_release, manifest_of
from jaxcxr.release.register import Register, held
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_run
from jaxcxr.report.card.card_schema import NOT_FOR_RELEASE, PrivacyCard
from jaxcxr.run_folder import CHECKPOINTS, CONFIG, has_facts, newest_checkpoint, read_config
from jaxcxr.training.averaging import weights_to_use
from jaxcxr.training.checkpoint import DamagedCheckpointError, read_checkpoint
from jaxcxr.training.weights import weights_digest, weights_folder

NO_PRIVACY = "trained without privacy: there is no promise to anybody whose images were used"
STARTED_FROM_ITS_OWN = (
    "it started from a released model of its own cohort, so that its own epsilon is not all that its "
    "weights tell of the images"
)
MARK = "not-for-release"
"""Part of the names of marked files and folders."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """The gate's answer about a source of weights.

    Attributes:
        source: run, release or weights folder, or a file.
        kind: kind of source.
        against: reasons against letting the weights leave; if there is none, they pass unmarked.
        card: privacy card of a private run.
    """

    source: Path
    kind: Literal["run", "release", "weights", "file"]
    against: tuple[str, ...] = ()
    card: PrivacyCard | None = None
    _register: Callable[[], None] = lambda: None

    def named(self, out: Path) -> Path:
        """The file or folder to write for `out`; a marked one says so in its name."""
        if not self.against or MARK in out.name:
            return out
        return out.with_name(f"{out.stem}.{MARK}{out.suffix}")

    @property
    def mark(self) -> dict[str, str]:
        """Metadata that mark a file; empty if the weights pass."""
        return {WATERMARK: NOT_FOR_RELEASE, REASONS: json.dumps(self.against)} if self.against else {}

    def register(self) -> None:
        """Record that the weights of a private run leave; call it last, just before the final renaming."""
        self._register()


@contextmanager
def passage(source: Path, watermark: bool = False, store: Path | None = None) -> Iterator[Passage]:
    """Ask whether weights may leave; within the context no other model of the cohort can leave.

    Args:
        source: run, release or weights folder, or a file of weights.
        watermark: let weights that must not leave through, marked.
        store: of the run's cohort, if it is not where the run's configuration says.

    Raises:
        InputError: the weights must not leave (the message gives the reasons) and no watermark was asked for;
            the source is damaged, or its files contradict each other; or the release cannot be registered.
    """
    with _judged(source, store) as found:
        if found.against and not watermark:
            raise InputError(f"{source}: {NOT_FOR_RELEASE}: {'; '.join(found.against)}")
        yield found


@contextmanager
def _judged(source: Path, store: Path | None) -> Iterator[Passage]:
    source = weights_folder(source)
    if source.is_file():
        yield Passage(source, "file", marks_of(source))
    elif not source.is_dir():
        raise InputError(
            f"{source}: no such file or folder; expected weights, a run, a weights folder or a release"
        )
    elif has_facts(source) or (source / CHECKPOINTS).exists():
        spent = spent_of(source)
        if spent is None:
            yield Passage(source, "run", (NO_PRIVACY,))
        else:
            with _private_run(source, spent, store) as found:
                yield found
    elif (source / CONFIG).is_file():
        of_cohort = manifest_of(source, store)
        wrong = (
            *check_release(source, of_cohort, leaves=False).wrong,
            *check_registered(source, store).wrong,
        )
        yield Passage(source, "release", wrong)
    elif (source / RECORD).is_file():
        yield Passage(source, "weights", marks_of(source))
    else:
        raise InputError(
            f"{source}: expected {CONFIG} or {RECORD} there, which say what the network looks like"
        )


@contextmanager
def _private_run(run: Path, spent: Spent, store: Path | None) -> Iterator[Passage]:
    facts = facts_of_run(run, spent)
    if facts.reasons:  # it stays in the hospital, whatever else was released
        card = card_of(facts)
        yield Passage(run, "run", tuple(card.reasons_against_release), card)
        return
    with held(store or Path(read_config(run).data.store), spent, run) as register:
        weights = weights_digest(final_params(run))
        reasons = (STARTED_FROM_ITS_OWN,) if register.knows(facts.fingerprints.initial_weights) else ()
        siblings = tuple(register.siblings_of(run, spent, weights))
        day = register.released_on(spent, weights)
        card = card_of(dataclasses.replace(facts, siblings=siblings, reasons=reasons, released=day))
        yield Passage(
            run,
            "run",
            tuple(card.reasons_against_release),
            card,
            _registration(register, spent, weights, card),
        )


def _registration(register: Register, spent: Spent, weights: str, card: PrivacyCard) -> Callable[[], None]:
    return lambda: register.add(spent, weights, card.mechanisms, card.tuning) if card.for_release else None


def final_params(run: Path) -> PyTree:
    """Weights of a run's newest checkpoint, whichever devices it was written on.

    Raises:
        InputError: there is no checkpoint, or it is damaged: not what was saved, or not what the ledger
            names.
    """
    folder, done = run / CHECKPOINTS, newest_checkpoint(run)
    if done is None:
        raise InputError(f"{folder}: no checkpoint there; expected a finished run")
    try:
        state = read_checkpoint(folder, done, saved_in(run).get(done, ()))
    except DamagedCheckpointError as error:
        raise InputError(
            f"{error}; resume the run, which repeats its last steps from an earlier checkpoint"
        ) from error
    return jax.tree.map(np.asarray, weights_to_use(state))


def marked(record: Mapping[str, Any], found: Passage) -> dict[str, Any]:
    """The record of a weights folder, marked if the weights must not leave."""
    return {**record, **({WATERMARK: NOT_FOR_RELEASE, REASONS: list(found.against)} if found.against else {})}
