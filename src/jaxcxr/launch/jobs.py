"""Independent jobs: what one is, how it ended, and the lock that lets one process at a time do it.

A job is a command line, which runs in a process of its own, here or on another machine, and ends like any
command of this package: exit status 0, or a sentence that begins with 'error:'. What it writes goes to a log
file. A job whose work another process has claimed ends with `BUSY`, and is tried again at the end.
"""

import dataclasses
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from jaxcxr.atomic import exclusive_lock, writing
from jaxcxr.errors import InputError
from jaxcxr.launch.board import Board
from jaxcxr.signals import BY_SCHEDULERS

BUSY: Final = 75
"""Exit status of a job whose work another process is at (EX_TEMPFAIL of sysexits.h)."""
A_DAY: Final = 86_400.0
"""Seconds of patience with another process that makes what this one needs."""
_SIGNALS: Final = frozenset((signal.SIGINT, *BY_SCHEDULERS))
_TAIL = 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """One of several that need nothing of each other.

    Attributes:
        name: of its log file and its line on the screen.
        command: program and arguments.
    """

    name: str
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: exit status; that of a signal as shells count it, 128 and its number.
        said: its error message, or the last line that it wrote.
    """

    status: int
    said: str = ""

    @property
    def stopped(self) -> bool:
        """Whether a signal asked it to end."""
        return self.status - 128 in _SIGNALS


@runtime_checkable
class Pool(Protocol):
    """Where jobs run."""

    def run(self, jobs: Sequence[Job], board: Board) -> dict[str, Ended]:
        """Run jobs side by side; how each ended, without those that were not begun.

        Raises:
            StoppedError: a signal came, and the jobs were ended in order.
        """
        ...


def run_all(jobs: Sequence[Job], pool: Pool, say: Callable[[str], None]) -> bool:
    """Run jobs, those that were busy once more at the end; whether all were begun and are finished.

    Raises:
        InputError: jobs failed; says which and why. The others were finished first.
        StoppedError: a signal came, and the jobs were ended in order.
    """
    left, failed, done = list(jobs), {}, 0
    for _ in range(2):
        if not left:
            break
        ended = pool.run(left, Board([job.name for job in left], say))
        done += sum(end.status == 0 for end in ended.values())
        failed |= {name: end for name, end in ended.items() if end.status not in (0, BUSY)}
        left = [job for job in left if job.name in ended and ended[job.name].status == BUSY]
    if failed:
        told = "; ".join(f"{name}: {end.said or f'exit status {end.status}'}" for name, end in failed.items())
        raise InputError(
            f"{len(failed)} of {len(jobs)} jobs failed ({told}); what the others finished is kept, and the "
            "same command goes on"
        )
    return done == len(jobs)


@contextmanager
def claimed(folder: Path, name: str, patience: float = 0.0) -> Iterator[None]:
    """Have a part of a folder for this process, however many launchers share the folder.

    Args:
        folder: made if it is not there.
        name: of the part.
        patience: seconds to wait for another process that has it.

    Raises:
        BusyError: another process has it.
    """
    with ExitStack() as held:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            busy = f"{folder / name}: another process is at work on it"
            held.enter_context(exclusive_lock(folder / f".{name}.lock", busy, patience))
        yield


def log_of(logs: Path, job: Job) -> Path:
    """Where a job writes."""
    return logs / f"{job.name}.log"


def sentence_of(ended: Ended, passed: str) -> str:
    """What the screen says of a job that ended after a span of time."""
    if ended.status == 0:
        return f"finished in {passed}"
    if ended.status == BUSY:
        return ended.said or "another process is at work on it"
    if ended.stopped:
        return f"stopped after {passed}: {ended.said or 'nothing was begun'}"
    return f"FAILED after {passed}: {ended.said or f'exit status {ended.status}'}"


def last_words(log: Path, since: int = 0) -> str:
    """The error message in a log, or else its last line, in the part after `since` bytes; empty if there is
    none. A progress bar writes its line over and over, each after a carriage return.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if any(map(str.isalnum, line))]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    told = [line for line in lines if not line.startswith("stopped by ")]
    return (errors or told or [""])[-1]
