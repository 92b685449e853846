"""Signals that ask a process to end: Ctrl-C, and those that schedulers send before they kill.

SLURM sends SIGTERM at preemption and at the time limit, and any signal beforehand (`--signal=USR1@120`); PBS
and Kubernetes send SIGTERM, LSF and Grid Engine SIGUSR1 or SIGUSR2, and a lost connection SIGHUP.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

BY_SCHEDULERS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StoppedError(KeyboardInterrupt):
    """The process was asked to end, and what it had begun is put in order."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def status(self) -> int:
        """Exit status by which shells and schedulers know the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


def raise_when_told() -> None:
    """Have the schedulers' signals raise `StoppedError`, as Ctrl-C raises KeyboardInterrupt; one that the
    caller ignores (nohup) stays ignored. Processes that are forked from this one end by them as usual.
    """
    own = os.getpid()

    def handler(signum: int, frame: Any) -> None:
        del frame
        if os.getpid() == own:
            raise StoppedError(signum)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    for signum in BY_SCHEDULERS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Keep a signal until it is asked for, so that a step can be finished and saved.

    A second Ctrl-C interrupts at once; schedulers repeat their signals, and mean the same by them.

    Yields:
        Asks for the first signal that came; 0 if none did.
    """
    came: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        del frame
        came.append(signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    kinds = [
        signum
        for signum in (signal.SIGINT, *BY_SCHEDULERS)
        if signum == signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN
    ]
    before: dict[int, Any] = {}
    try:
        before = {signum: signal.signal(signum, handler) for signum in kinds}
    except ValueError:  # not the main thread, which alone is told of signals
        yield lambda: 0
        return
    try:
        yield lambda: came[0] if came else 0
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)
