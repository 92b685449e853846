"""The record of what was spent, written as it is spent: one JSON line a release, after a first line that states the terms.

The ledger, not the plan, is what a run has cost. A line is written before the step that it pays for takes effect, and never
removed: a step that is repeated after a crash is the same release (same batch, same noise, same result) and must find its
own line here.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from jaxcxr.errors import InputError
from jaxcxr.privacy.accounting import Spending


@dataclasses.dataclass(frozen=True)
class Terms:
    """What one unit of the accounting is, and for which data set.

    Attributes:
        unit: `image`: the guarantee is about one film, not about all films of a patient.
        adjacency: `add_remove`: neighbouring data sets differ by one unit being there or not.
        dataset_size: the declared, public number of units N.
        data_fingerprint: of the store.
        seeded: True if the randomness was asked to be repeatable; such a run is not for release.
    """

    unit: str
    adjacency: str
    dataset_size: int
    data_fingerprint: str
    seeded: bool


@dataclasses.dataclass(frozen=True)
class Entry:
    """One release: step `step` of the Poisson-subsampled Gaussian mechanism."""

    step: int
    sample_rate: float
    noise_multiplier: float
    l2_clip_norm: float


class Ledger:
    """An append-only file of entries, open for one run.

    Raises:
        InputError: the file belongs to other terms, is damaged before its last line, or contradicts a repeated step.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self.terms = terms
        first, entries, complete = _read(path) if path.exists() and path.stat().st_size else (None, [], 0)
        if first is not None and first != terms:
            differing = [f.name for f in dataclasses.fields(Terms) if getattr(first, f.name) != getattr(terms, f.name)]
            raise InputError(f"{path}: the ledger belongs to a run with other terms; they differ in {', '.join(differing)}")
        self._entries = {entry.step: entry for entry in entries}
        if path.exists():
            os.truncate(path, complete)  # drops half a line: a crash in the middle of writing, before its step took effect
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if first is None:
            self._write(dataclasses.asdict(terms))

    def record(self, entry: Entry) -> None:
        """Write down a release before it takes effect; a repeated step must be the release that was written down."""
        known = self._entries.get(entry.step)
        if known is None:
            self._write(dataclasses.asdict(entry))
            self._entries[entry.step] = entry
        elif known != entry:
            raise InputError(
                f"{self._path}: step {entry.step} was already spent with other parameters ({known}); found {entry}"
            )

    def spendings(self, before_step: int | None = None) -> list[Spending]:
        """Everything spent so far (or by steps below `before_step`), for the accountant."""
        counts: dict[tuple[float, float], int] = {}
        for entry in self._entries.values():
            if before_step is None or entry.step < before_step:
                key = (entry.sample_rate, entry.noise_multiplier)
                counts[key] = counts.get(key, 0) + 1
        return [Spending(q, sigma, steps) for (q, sigma), steps in counts.items()]

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

    def _write(self, values: dict[str, object]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def read_ledger(path: Path) -> tuple[Terms, Sequence[Entry]]:
    """Terms and entries of a ledger file."""
    if not path.is_file():
        raise InputError(f"{path}: no such ledger")
    terms, entries, _ = _read(path)
    if terms is None:
        raise InputError(f"{path}: the ledger has no complete first line")
    return terms, entries


def _read(path: Path) -> tuple[Terms | None, list[Entry], int]:
    """Terms, entries, and the length in bytes of the complete lines."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    terms: Terms | None = None
    entries: list[Entry] = []
    for number, line in enumerate(content[:complete].splitlines(), start=1):
        try:
            values = json.loads(line)
            if number == 1:
                terms = Terms(**values)
            else:
                entries.append(Entry(**values))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: line {number} is no ledger entry ({error})") from error
    return terms, entries, complete
