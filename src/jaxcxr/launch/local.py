"""Jobs as processes of this machine, each with its share of the processors, or with GPUs of its own."""

import ctypes
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxcxr.errors import InputError
from jaxcxr.launch.board import Board, duration
from jaxcxr.launch.jobs import Ended, Job, last_words, log_of, sentence_of
from jaxcxr.signals import StoppedError, deferred

_LOOK = 0.2
"""Seconds between two looks at the processes."""
_GPU_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_PR_SET_PDEATHSIG = 1
_STARTED_BY = "JAXCXR_STARTED_BY"
"""Variable that names the process whose job this one is."""


class LocalPool:
    """Processes side by side.

    Each is bound to its share of the processors, so that XLA and the linear algebra take as many threads, and
    sees its share of the GPUs. A job that is asked to end finishes its step and saves; a second Ctrl-C kills.
    """

    def __init__(self, at_once: int | None, logs: Path, for_seconds: float | None = None) -> None:
        """Share this machine.

        Args:
            at_once: jobs at the same time; one for each GPU unless given.
            logs: folder of their log files.
            for_seconds: begin no job after so many.

        Raises:
            InputError: there are not so many GPUs or processors.
        """
        self._shares = shares(at_once, processors(), visible_gpus(os.environ))
        self._logs, self._for_seconds = logs, for_seconds

    def run(self, jobs: Sequence[Job], board: Board) -> dict[str, Ended]:
        """As `jobs.Pool` says."""
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        waiting, ended, began = list(jobs), {}, time.monotonic()
        running: dict[int, _Process] = {}
        with deferred() as told:
            try:
                while waiting or running:
                    if signum := told():
                        _stop(running.values(), board)
                        raise StoppedError(signum)
                    if self._for_seconds is not None and time.monotonic() - began > self._for_seconds:
                        waiting.clear()
                    for slot in [slot for slot in range(len(self._shares)) if slot not in running]:
                        if waiting:
                            running[slot] = _Process(waiting.pop(0), self._shares[slot], self._logs, board)
                    for slot, process in list(running.items()):
                        if (end := process.look(board)) is not None:
                            ended[running.pop(slot).job.name] = end
                    time.sleep(_LOOK)
            except BaseException:
                for process in running.values():
                    process.kill()
                raise
        return ended


@dataclasses.dataclass(frozen=True)
class Share:
    """What a job may use of this machine.

    Attributes:
        processors: their numbers.
        gpus: as CUDA_VISIBLE_DEVICES names them; None where there are none.
    """

    processors: tuple[int, ...]
    gpus: tuple[str, ...] | None


def shares(at_once: int | None, processors: Sequence[int], gpus: Sequence[str]) -> list[Share]:
    """An equal share of the machine for each of the jobs that run at once.

    Raises:
        InputError: there are not so many GPUs or processors, or neither GPUs nor a number are given.
    """
    if at_once is None and not gpus:
        raise InputError("-j: how many jobs at once? There is no GPU here to count them by; expected -j 2")
    n = len(gpus) if at_once is None else at_once
    most, kind = (len(gpus), "GPU") if gpus else (len(processors), "processor")
    if not 1 <= n <= most:
        raise InputError(
            f"-j {n}: expected 1 to {most} jobs at once, each on a {kind} of its own; found {most} of them"
        )
    cores = np.array_split(np.asarray(processors), min(n, len(processors)))
    of_gpus = np.array_split(np.asarray(gpus), n)
    return [
        Share(tuple(cores[i % len(cores)].tolist()), tuple(map(str, of_gpus[i])) if gpus else None)
        for i in range(n)
    ]


def processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def _bound_to(numbers: Sequence[int]) -> Iterator[None]:
    """Bind what is started within the block to some processors, before it counts them; on Linux alone."""
    if sys.platform != "linux":
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that JAX would see, as CUDA_VISIBLE_DEVICES names them; asks the driver, not JAX, which would
    take their memory.
    """
    if environment.get("JAX_PLATFORMS") == "cpu" or not any(map(_is_installed, _GPU_PLUGINS)):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


class _Process:
    """A job that runs."""

    def __init__(self, job: Job, share: Share, logs: Path, board: Board) -> None:
        self.job, self._log, self._began = job, log_of(logs, job), time.monotonic()
        self._since = self._log.stat().st_size if self._log.exists() else 0
        environment = {**os.environ, _STARTED_BY: str(os.getpid())}
        if share.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
        with _bound_to(share.processors), self._log.open("ab") as log:
            self._process = subprocess.Popen(
                job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
            )
        self._running = f"running, process {self._process.pid}, {self._log}"
        board.show(job.name, self._running)

    def look(self, board: Board) -> Ended | None:
        """How it ended; None while it runs."""
        code, passed = self._process.poll(), duration(time.monotonic() - self._began)
        said = last_words(self._log, self._since)
        if code is None:
            board.show(self.job.name, self._running, f"{passed}  {said}")
            return None
        ended = Ended(code if code >= 0 else 128 - code, said)
        board.show(self.job.name, sentence_of(ended, passed))
        return ended

    def stop(self, board: Board) -> None:
        """Ask it to end in order."""
        self._process.send_signal(signal.SIGTERM)
        self._running = "asked to finish its step and save"
        board.show(self.job.name, self._running)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def _stop(processes: Iterable[_Process], board: Board) -> None:
    """End jobs in order, and wait until they have saved."""
    left = list(processes)
    for process in left:
        process.stop(board)
    while left := [process for process in left if process.look(board) is None]:
        time.sleep(_LOOK)


def end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the one ends whose job it is, be it killed; call it before
    the work begins. No effect in a process that is nobody's job, and on other systems.
    """
    starter = os.environ.get(_STARTED_BY)
    if starter is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(starter):  # it has ended before
        os.kill(os.getpid(), signal.SIGTERM)
