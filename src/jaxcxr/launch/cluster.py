"""Jobs as an array of SLURM, by submitit (extra `launch`).

A job that is preempted, or reaches its time limit, is told beforehand: it finishes its step, saves, and is
put into the queue again, where the same command goes on.
"""

import importlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcxr.errors import InputError
from jaxcxr.launch.board import Board, duration
from jaxcxr.launch.jobs import Ended, Job, last_words, log_of, sentence_of
from jaxcxr.signals import BY_SCHEDULERS, StoppedError, deferred

MINUTES = 240
"""Time limit of a job, after which it is put into the queue again, unless --slurm time= gives another."""
_WARNING_SECONDS = 120
"""Between the signal and the end, at the time limit."""
_REPEATS = 1000
"""How often a job may reach its time limit."""
_LOOK, _GRACE = 2.0, 60.0
"""Seconds between two looks at the queue, and until a job that is in it no more must have a result."""
_OUR_SIGNAL = signal.SIGUSR2
"""By which submitit saves a job and puts it into the queue again."""


class Command:
    """A job as submitit runs it: in the array's task, the command is a process of its own."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        """Describe it.

        Args:
            command: program and arguments.
            log: of its output.
            folder: in which it runs.
        """
        self._command, self._log, self._folder = tuple(command), log, folder
        self._process: Any = None

    def __call__(self) -> tuple[int, str]:
        """Run it; exit status and last words."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        since = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            code = self._process.wait()
        status = code if code >= 0 else 128 - code
        if status - 128 in BY_SCHEDULERS and _is_to_go_on():
            os.kill(os.getpid(), _OUR_SIGNAL)  # submitit's handler, which ends this process
        return status, last_words(self._log, since)

    def checkpoint(self) -> Any:
        """Called by submitit before the job is put into the queue again: the command has ended in order."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(_OUR_SIGNAL)
            # The handler may have come into Popen's own waiting, which holds a lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return _submitit().helpers.DelayedSubmission(Command(self._command, self._log, self._folder))


def _is_to_go_on() -> bool:
    """Whether SLURM still means this job to run, so that a signal was the warning before a preemption; a job
    that was cancelled is completing.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() in ("RUNNING", "PREEMPTED", "SUSPENDED")


class ClusterPool:
    """An array of jobs in the queue of a cluster; each ends in order when the launcher is asked to end."""

    def __init__(self, executor: Any, logs: Path) -> None:
        """Use a cluster.

        Args:
            executor: of submitit.
            logs: folder of the jobs' log files.
        """
        self._executor, self._logs = executor, logs.absolute()

    def run(self, jobs: Sequence[Job], board: Board) -> dict[str, Ended]:
        """As `jobs.Pool` says."""
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        commands = [Command(job.command, log_of(self._logs, job), Path.cwd()) for job in jobs]
        with deferred() as told:
            try:
                with self._executor.batch():
                    submitted = [self._executor.submit(command) for command in commands]
            except Exception as error:  # submitit's own and those of sbatch have no common kind
                said = getattr(error, "stderr", None) or str(error)
                raise InputError(
                    f"--launcher slurm: the jobs were refused: {' '.join(str(said).split())}"
                ) from error
            waiting = {
                job.name: _Submitted(own, log_of(self._logs, job))
                for job, own in zip(jobs, submitted, strict=True)
            }
            ended: dict[str, Ended] = {}
            while waiting:
                if signum := told():
                    _cancel(waiting, board)
                    raise StoppedError(signum)
                states = _states([one.job for one in waiting.values()])
                for name, one in list(waiting.items()):
                    if (end := one.look(name, states.get(one.job.job_id), board)) is not None:
                        ended[name] = end
                        del waiting[name]
                time.sleep(_LOOK if waiting else 0)
        return ended


class _Submitted:
    """A job that is in the queue, or runs."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self._log = job, log
        self._since = log.stat().st_size if log.exists() else 0
        self._began, self._missed = time.monotonic(), None

    def look(self, name: str, state: str | None, board: Board) -> Ended | None:
        """How it ended, if it did; `state` is the queue's, None if it is not in it."""
        passed = duration(time.monotonic() - self._began)
        if self.job.paths.result_pickle.exists():
            ended = self._result()
        elif state is not None:
            self._missed = None
            told, said = (
                f"{state.lower()}, job {self.job.job_id}, {self._log}",
                last_words(self._log, self._since),
            )
            board.show(name, told, f"{passed}  {said}")
            return None
        else:
            self._missed = self._missed or time.monotonic()
            if time.monotonic() - self._missed < _GRACE:
                return None
            ended = Ended(
                1,
                f"ended without a word (killed, out of memory?); see {self.job.paths.stderr} and {self._log}",
            )
        board.show(name, sentence_of(ended, passed))
        return ended

    def _result(self) -> Ended:
        try:
            return Ended(*self.job.result())
        except Exception as error:  # noqa: BLE001 - what submitit raises for a job that failed
            return Ended(1, " ".join(str(error).split())[-300:])


def _states(jobs: Sequence[Any]) -> dict[str, str]:
    """State of each job in the queue; asked of the queue itself, since not every cluster keeps accounts."""
    if not isinstance(jobs[0], _submitit().SlurmJob):
        return {job.job_id: job.state for job in jobs if job.state == "RUNNING"}
    arrays = ",".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={arrays}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(line.split() for line in asked.stdout.splitlines() if len(line.split()) == 2)


def _cancel(waiting: Mapping[str, _Submitted], board: Board) -> None:
    """Have the jobs ended in order, and wait until they are."""
    for name, one in waiting.items():
        one.job.cancel(check=False)
        board.show(name, f"job {one.job.job_id} is cancelled: it finishes its step and saves")
    left = {one.job.job_id for one in waiting.values()}
    while left & _states([one.job for one in waiting.values()]).keys():
        time.sleep(_LOOK)
    for name, one in waiting.items():
        one.look(name, None, board)


def slurm_pool(options: Sequence[str], at_once: int | None, logs: Path) -> ClusterPool:
    """A pool on SLURM.

    Args:
        options: of sbatch, each as NAME=VALUE.
        at_once: most jobs of the array that run at the same time; as many as there are unless given.
        logs: folder of log files, on a file system that the nodes share.

    Raises:
        InputError: there is no SLURM here, submitit is not installed, or an option is refused.
    """
    submitit = _submitit()
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "--launcher slurm: found no sbatch and srun; expected a machine that submits to SLURM"
        )
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(logs.absolute() / "slurm", max_num_timeout=_REPEATS)
    given = {
        "job_name": "jaxcxr",
        "time": MINUTES,
        "signal_delay_s": _WARNING_SECONDS,
        **_parameters(options),
    }
    if at_once is not None:
        given["array_parallelism"] = at_once
    known = set(executor._valid_parameters())
    further = {name: given.pop(name) for name in list(given) if name not in known}
    try:
        executor.update_parameters(**given, additional_parameters=further)
    except (TypeError, ValueError) as error:
        raise InputError(f"--slurm: {' '.join(str(error).split())[:300]}") from error
    return ClusterPool(executor, logs)


def _parameters(options: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.removeprefix("--").partition("=")
        if not (name and equals and value):
            raise InputError(
                f"--slurm {option}: expected NAME=VALUE, an option of sbatch such as partition=gpu"
            )
        name = name.replace("-", "_")
        found[name] = int(value) if value.isdecimal() and name != "mem" else value
    if "time" in found:
        found["time"] = minutes_of(str(found["time"]))
    return found


def minutes_of(limit: str) -> int:
    """A time limit of sbatch in minutes: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(r"(\d+-\d+(:\d+){0,2})|(\d+(:\d+){0,2})", limit):
        raise InputError(f"--slurm time={limit}: expected minutes, H:M:S or D-H:M:S")
    days, _, clock = limit.rpartition("-")
    fields = [int(field) for field in clock.split(":")]
    if days or len(fields) == 3:
        hours, minutes, _ = [*fields, 0, 0][:3]
    else:
        hours, minutes = 0, fields[0]
    return max(1, int(days or 0) * 1440 + hours * 60 + minutes)


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise InputError(
            "--launcher slurm: needs submitit; install it (python -m pip install 'jaxcxr[launch]')"
        ) from error
