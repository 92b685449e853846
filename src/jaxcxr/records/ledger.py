"""The privacy ledger, written as the budget is spent: a line with the terms, then one per release, and one
per checkpoint with the SHA-256 of what it holds.

The ledger, not the plan, says what a run has cost. A line is written before its release takes effect, and is
never removed: a step repeated after a crash is the same release (same batch, same noise, same result) and
must find its own line.

Every line is chained to those before it (`chain`). To detect a forger who rewrites the whole file, or lines
cut off the end, keep the `head` of the finished ledger elsewhere; the privacy card prints it.
`spent.spent_of` compares the ledger with the rest of a run.
"""

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from jaxcxr.accounting import Spending
from jaxcxr.atomic import writing
from jaxcxr.errors import InputError
from jaxcxr.records.chain import CHARACTERS, chained, mark_of, read_chain, require_mark

KIND = "ledger"


@dataclasses.dataclass(frozen=True)
class Terms:
    """Terms of the accounting: its unit, adjacency, declared N and data set.

    Attributes:
        unit: `image`: the guarantee protects one image, not all images of a patient; `patient`,
            `patient_one_image`: it protects a patient.
        adjacency: `add_remove`: neighbouring data sets differ in the presence of one unit.
        dataset_size: the declared, public number of units N.
        data_fingerprint: fingerprint of the store.
        seeded: whether a seed was given, so that the randomness is repeatable; such a run is not for release.
        run: public name of the run (`run_name` of its secret), which tells it from another run with the same
            terms; empty if unknown.
        binding: digest of everything that determines what the run releases (`binding.Binding`); empty in
            ledgers of earlier versions, whose noise was not bound.
    """

    unit: str
    adjacency: str
    dataset_size: int
    data_fingerprint: str
    seeded: bool
    run: str = ""
    binding: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One release: step `step` of the Poisson-subsampled Gaussian mechanism."""

    step: int
    sample_rate: float
    noise_multiplier: float
    l2_clip_norm: float

    @property
    def spending(self) -> Spending:
        """The spending for the accountant."""
        return Spending(self.sample_rate, self.noise_multiplier, 1)

    @property
    def turn(self) -> tuple[int, int]:
        """How many groups of units take turns, and whose turn the step is: of one group that all are in."""
        return 1, 0


@dataclasses.dataclass(frozen=True)
class BandedEntry(Entry):
    """One release whose noise is correlated with that of steps before, of one of several groups that take
    turns (`accounting.banded`).

    Attributes:
        bands: over how many steps noise is correlated, and how many groups there are.
        group: whose units the step drew from, with the probability `sample_rate`; others had no part in it.
    """

    bands: int
    group: int

    @property
    def turn(self) -> tuple[int, int]:
        """As of `Entry`."""
        return self.bands, self.group


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One release of a statistic of all units by the Gaussian mechanism, such as noised class counts.

    Attributes:
        statistic: its name, such as `class_counts`.
        noise_multiplier: noise standard deviation over `l2_sensitivity`.
        l2_sensitivity: largest change of the exact statistic by one unit.
    """

    statistic: str
    noise_multiplier: float
    l2_sensitivity: float

    @property
    def spending(self) -> Spending:
        """The spending for the accountant: every unit takes part."""
        return Spending(1.0, self.noise_multiplier, 1)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that is about to be written; it costs nothing.

    Attributes:
        checkpoint: number of steps done.
        sha256: of all that it holds (`training.checkpoint.state_digest`).
    """

    checkpoint: int
    sha256: str


AnyEntry = Entry | Statistic
_Line = TypeVar("_Line", Terms, Entry, BandedEntry, Statistic, Saved)


def run_name(secret: bytes) -> str:
    """Public name of the run with this secret: 128 bits of a one-way function of the 256-bit secret."""
    return hashlib.sha256(b"jaxcxr run name" + secret).hexdigest()[:CHARACTERS]


class Ledger:
    """The ledger of one run, open for appending.

    Raises:
        InputError: the file has other terms or belongs to another run, a line is missing, moved, changed or
            damaged, or a repeated release contradicts its line.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self.terms = terms
        read = _read(path)
        if read.terms is not None and read.terms != terms:
            _refuse_terms(path, read.terms, terms)
        self._entries = {_key(entry): entry for entry in read.entries}
        self._saved = list(read.saved)
        require_mark(path, read.heads)
        self._chain, self._lines = read.heads[-1] if read.heads else "", len(read.heads)
        if path.exists():
            with writing(path):  # drops an incomplete line, of a crash before its release took effect
                os.truncate(path, read.complete)
        with writing(path):
            self._file: IO[str] = path.open("a", encoding="utf-8")
        if read.terms is None:
            self._write(dataclasses.asdict(terms))

    @property
    def head(self) -> str:
        """Chain value of the last line, which covers the whole ledger."""
        return self._chain

    def record(self, entry: AnyEntry) -> None:
        """Record a release before it takes effect; a repeated release must equal its recorded line."""
        known = self._entries.get(_key(entry))
        if known is None:
            self._write(dataclasses.asdict(entry))
            self._entries[_key(entry)] = entry
        elif known != entry:
            raise InputError(
                f"{self._path}: {_name(entry)} was already spent with other parameters ({known}); found "
                f"{entry}"
            )

    def saving(self, saved: Saved) -> None:
        """Record what a checkpoint holds before it is written; one that is repeated has its line already."""
        if saved not in self._saved:
            self._write(dataclasses.asdict(saved))
            self._saved.append(saved)

    def saved(self, steps_done: int) -> frozenset[str]:
        """Digests that a checkpoint of this step may have; none if the ledger has no line of it."""
        return frozenset(line.sha256 for line in self._saved if line.checkpoint == steps_done)

    def mark(self) -> dict[str, Any]:
        """Number of lines and the last one's chain value, to be kept elsewhere: lines cut off the end are
        then missed (`chain.require_mark`).
        """
        return mark_of(self._lines, self._chain)

    def spendings(self, before_step: int | None = None) -> list[Spending]:
        """Everything spent so far, or by statistics and steps below `before_step`, for the accountant."""
        return spendings_of(list(self._entries.values()), before_step)

    def covers(self, steps: int) -> bool:
        """Whether every step below `steps` is recorded."""
        return all(step in self._entries for step in range(steps))

    def sync(self) -> None:
        """Force the lines to the disk: a checkpoint must not survive without the record of its cost."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        text, chain = chained(KIND, self._chain, self._lines + 1, values)
        with writing(self._path):
            self._file.write(text)
            self._file.flush()
        self._lines, self._chain = self._lines + 1, chain


def spendings_of(entries: Sequence[AnyEntry], before_step: int | None = None) -> list[Spending]:
    """Spendings of entries (all statistics; steps below `before_step`, if given), equal ones merged.

    Of steps whose groups take turns those of the group with the most count: each unit is in one group alone.
    """
    counts: dict[tuple[float, float, int], collections.Counter[int]] = {}
    for entry in entries:
        if before_step is None or isinstance(entry, Statistic) or entry.step < before_step:
            spent = entry.spending
            bands, group = entry.turn if isinstance(entry, Entry) else (1, 0)
            key = (spent.sample_rate, spent.noise_multiplier, bands)
            counts.setdefault(key, collections.Counter())[group] += 1
    return [Spending(q, sigma, max(by_group.values())) for (q, sigma, _), by_group in counts.items()]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a ledger file holds.

    Attributes:
        terms: of the accounting.
        entries: everything that was released, in order.
        saved: the checkpoints, in order.
        heads: chain value of every line, that of the terms first; the last one covers the whole file.
    """

    terms: Terms
    entries: Sequence[AnyEntry]
    saved: Sequence[Saved]
    heads: Sequence[str]


def read_ledger(path: Path) -> tuple[Terms, Sequence[AnyEntry]]:
    """Terms and entries of a ledger file; errors as of `read_contents`."""
    found = read_contents(path)
    return found.terms, found.entries


def read_contents(path: Path) -> Contents:
    """All that a ledger file holds.

    Raises:
        InputError: there is no ledger, a line is missing, moved, changed or damaged (the message names it),
            or lines were cut off its end.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such ledger")
    read = _read(path)
    if read.terms is None:
        raise InputError(f"{path}: the ledger has no complete first line")
    require_mark(path, read.heads)
    return Contents(read.terms, read.entries, read.saved, read.heads)


def has_entries(path: Path) -> bool:
    """Whether the ledger exists and records any release."""
    return bool(_read(path).entries)


@dataclasses.dataclass(frozen=True)
class _Read:
    terms: Terms | None
    entries: list[AnyEntry]
    saved: list[Saved]
    heads: tuple[str, ...]
    complete: int


def _key(entry: AnyEntry) -> int | str:
    return entry.step if isinstance(entry, Entry) else entry.statistic


def _name(entry: AnyEntry) -> str:
    return f"step {entry.step}" if isinstance(entry, Entry) else f"statistic {entry.statistic!r}"


def _refuse_terms(path: Path, there: Terms, wanted: Terms) -> None:
    differing = [
        f.name for f in dataclasses.fields(Terms) if getattr(there, f.name) != getattr(wanted, f.name)
    ]
    if differing == ["run"]:
        raise InputError(
            f"{path}: the ledger belongs to another run (its secret is not the one in this folder); put "
            "back the ledger that was written with these checkpoints"
        )
    if differing == ["binding"]:
        raise InputError(
            f"{path}: the ledger says what another release has cost (with another configuration, starting "
            "weights, data, code, library versions or platform); put back the files that were written with "
            "it, or begin a new run in another folder"
        )
    raise InputError(
        f"{path}: the ledger belongs to a run with other terms; they differ in {', '.join(differing)}"
    )


def _read(path: Path) -> _Read:
    chain = read_chain(path, KIND)
    terms: Terms | None = None
    entries: list[AnyEntry] = []
    saved: list[Saved] = []
    for number, values in enumerate(chain.lines, start=1):
        try:
            if number == 1:
                terms = _typed(Terms(**values))
            elif "checkpoint" in values:
                saved.append(_typed(Saved(**values)))
            else:
                entries.append(_entry(values))
        except TypeError as error:
            raise InputError(f"{path}: line {number} is not a ledger entry ({error})") from error
    return _Read(terms, entries, saved, chain.heads, chain.complete)


def _entry(values: dict[str, Any]) -> AnyEntry:
    if "statistic" in values:
        return _typed(Statistic(**values))
    return _typed(BandedEntry(**values)) if "bands" in values else _typed(Entry(**values))


def _typed(line: _Line) -> _Line:
    """The line, with every field's type checked; numbers must be finite and not negative."""
    for field in dataclasses.fields(line):
        value = getattr(line, field.name)
        right = (
            isinstance(value, int | float) and not isinstance(value, bool)
            if field.type is float
            else type(value) is field.type
        )
        if not right or (isinstance(value, int | float) and not 0 <= value < math.inf):
            raise TypeError(f"{field.name} is {value!r}")
    return line
