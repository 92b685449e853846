"""The record of what was spent, written as it is spent: one JSON line a release, after a first line that
states the terms.

The ledger, not the plan, is what a run has cost. A line is written before the release that it pays for takes
effect, and never
removed: a step that is repeated after a crash is the same release (same batch, same noise, same result) and
must find its own line here.

Every line is chained to those before it (`chain`). Against a forger who writes the whole file anew, and
against lines cut off the end, keep `head` of the finished ledger elsewhere; the privacy card prints it.
`spent.spent_of` compares the ledger with the rest of a run.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from jaxcxr.accounting import Spending
from jaxcxr.errors import InputError
from jaxcxr.records.chain import CHARACTERS, chained, read_chain

KIND = "ledger"


@dataclasses.dataclass(frozen=True)
class Terms:
    """What one unit of the accounting is, and for which data set.

    Attributes:
        unit: `image`: the guarantee is about one film, not about all films of a patient; `patient` and
            `patient_one_image`: about a patient.
        adjacency: `add_remove`: neighbouring data sets differ by one unit being there or not.
        dataset_size: the declared, public number of units N.
        data_fingerprint: of the store.
        seeded: True if the randomness was asked to be repeatable; such a run is not for release.
        run: public name of the run (`run_name` of its secret), so that the ledger of another run with the
            same terms is told apart; empty if unknown.
        binding: digest of everything that decides what the run releases (`binding.Binding`); empty in ledgers
            of earlier versions, whose noise was not bound.
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
        """For the accountant."""
        return Spending(self.sample_rate, self.noise_multiplier, 1)


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One release of a statistic of all units by the Gaussian mechanism, such as noised class counts.

    Attributes:
        statistic: its name, such as `class_counts`.
        noise_multiplier: noise standard deviation over `l2_sensitivity`.
        l2_sensitivity: how far one unit can move the exact statistic.
    """

    statistic: str
    noise_multiplier: float
    l2_sensitivity: float

    @property
    def spending(self) -> Spending:
        """For the accountant: every unit takes part."""
        return Spending(1.0, self.noise_multiplier, 1)


AnyEntry = Entry | Statistic
_Line = TypeVar("_Line", Terms, Entry, Statistic)


def run_name(secret: bytes) -> str:
    """Public name of the run with this secret: 128 bits of a one-way function of its 256 random ones."""
    return hashlib.sha256(b"jaxcxr run name" + secret).hexdigest()[:CHARACTERS]


class Ledger:
    """An append-only file of entries, open for one run.

    Raises:
        InputError: the file belongs to other terms or another run, a line is missing, moved, changed or
            damaged, or a repeated release contradicts its line.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self.terms = terms
        read = _read(path)
        if read.terms is not None and read.terms != terms:
            _refuse_terms(path, read.terms, terms)
        self._entries = {_key(entry): entry for entry in read.entries}
        self._chain, self._lines = read.heads[-1] if read.heads else "", len(read.heads)
        if path.exists():
            os.truncate(
                path, read.complete
            )  # drops half a line: a crash in mid-writing, before its release took effect
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if read.terms is None:
            self._write(dataclasses.asdict(terms))

    @property
    def head(self) -> str:
        """Chain value of the last line: it stands for the whole ledger."""
        return self._chain

    def record(self, entry: AnyEntry) -> None:
        """Write down a release before it takes effect; a repeated one must be the release that was written
        down.
        """
        known = self._entries.get(_key(entry))
        if known is None:
            self._write(dataclasses.asdict(entry))
            self._entries[_key(entry)] = entry
        elif known != entry:
            raise InputError(
                f"{self._path}: {_name(entry)} was already spent with other parameters ({known}); found "
                f"{entry}"
            )

    def spendings(self, before_step: int | None = None) -> list[Spending]:
        """Everything spent so far (or by steps below `before_step`, and by statistics), for the accountant."""
        return spendings_of(list(self._entries.values()), before_step)

    def covers(self, steps: int) -> bool:
        """Whether every step below `steps` has its line."""
        return all(step in self._entries for step in range(steps))

    def sync(self) -> None:
        """Force the lines to the disk; a checkpoint must not outlive the record of what it cost."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        text, chain = chained(KIND, self._chain, self._lines + 1, values)
        self._file.write(text)
        self._file.flush()
        self._lines, self._chain = self._lines + 1, chain


def spendings_of(entries: Sequence[AnyEntry], before_step: int | None = None) -> list[Spending]:
    """What entries cost (only steps below `before_step`, if given, and all statistics), like releases counted
    together.
    """
    counts: dict[tuple[float, float], int] = {}
    for entry in entries:
        if before_step is None or isinstance(entry, Statistic) or entry.step < before_step:
            spent = entry.spending
            counts[spent.sample_rate, spent.noise_multiplier] = (
                counts.get((spent.sample_rate, spent.noise_multiplier), 0) + 1
            )
    return [Spending(q, sigma, steps) for (q, sigma), steps in counts.items()]


def read_ledger(path: Path) -> tuple[Terms, Sequence[AnyEntry]]:
    """Terms and entries of a ledger file.

    Raises:
        InputError: there is none, or a line is missing, moved, changed or damaged; the line is named.
    """
    terms, entries, _ = read_with_heads(path)
    return terms, entries


def read_with_heads(path: Path) -> tuple[Terms, Sequence[AnyEntry], Sequence[str]]:
    """As `read_ledger`, with the chain value of every line, that of the terms first."""
    if not path.is_file():
        raise InputError(f"{path}: no such ledger")
    read = _read(path)
    if read.terms is None:
        raise InputError(f"{path}: the ledger has no complete first line")
    return read.terms, read.entries, read.heads


def has_entries(path: Path) -> bool:
    """Whether a ledger is there and something was spent in it."""
    return bool(_read(path).entries)


@dataclasses.dataclass(frozen=True)
class _Read:
    terms: Terms | None
    entries: list[AnyEntry]
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
            f"{path}: the ledger belongs to another run (its secret is not the one in this folder); "
            "put back the ledger that was written with these checkpoints"
        )
    if differing == ["binding"]:
        raise InputError(
            f"{path}: the ledger says what another release has cost (with another configuration, starting "
            "weights, data, code, "
            "library versions or platform); put back the files that were written with it, or begin a new run "
            "in another folder"
        )
    raise InputError(
        f"{path}: the ledger belongs to a run with other terms; they differ in {', '.join(differing)}"
    )


def _read(path: Path) -> _Read:
    chain = read_chain(path, KIND)
    terms: Terms | None = None
    entries: list[AnyEntry] = []
    for number, values in enumerate(chain.lines, start=1):
        try:
            if number == 1:
                terms = _typed(Terms(**values))
            else:
                entries.append(
                    _typed(Statistic(**values)) if "statistic" in values else _typed(Entry(**values))
                )
        except TypeError as error:
            raise InputError(f"{path}: line {number} is no ledger entry ({error})") from error
    return _Read(terms, entries, chain.heads, chain.complete)


def _typed(line: _Line) -> _Line:
    """The line, if every field has its type; numbers must be finite and not negative."""
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
