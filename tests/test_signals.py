"""Signals end a process like Ctrl-C: what was begun is put in order, and the exit status names the signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcxr.cli import console
from jaxcxr.errors import InputError
from jaxcxr.signals import BY_SCHEDULERS, StoppedError, deferred


@pytest.mark.parametrize("signum", [signal.SIGINT, *BY_SCHEDULERS])
def test_a_signal_waits_until_it_is_asked_for(signum: int) -> None:
    before = signal.signal(signum, signal.default_int_handler)  # under nohup, SIGHUP would be ignored
    with deferred() as came:
        assert came() == 0
        os.kill(os.getpid(), signum)
        assert came() == signum
        if signum != signal.SIGINT:  # schedulers repeat theirs
            os.kill(os.getpid(), signum)
            assert came() == signum
        else:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signum)
    assert signal.signal(signum, before) == signal.default_int_handler


def test_what_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert came() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


COMMAND = """
import os, sys
from jaxcxr.cli import console
def main():
    {act}
console.run(main)
"""
ENDS = {
    "SIGTERM": ("os.kill(os.getpid(), 15)", 143, "stopped by SIGTERM"),
    "SIGUSR1": ("os.kill(os.getpid(), 10)", 138, "stopped by SIGUSR1"),
    "full disk": ("raise OSError(28, 'No space left on device', '/data/x.csv')", 2, "error: /data/x.csv: cannot be read or written (No space left on device); "),
    "memory": ("raise MemoryError", 2, "error: out of memory"),
    "XLA's memory": ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes')", 2, "error: out of memory (RESOURCE_EXHAUSTED"),
    "others ended": (  # what is done at the end of a process, as JAX waits for the others then, is not done
        "import atexit; from jaxcxr.errors import OthersEndedError; atexit.register(print, 'waited', file=sys.stderr); raise OthersEndedError('gone')",
        2,
        "error: gone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_command_says_in_one_line_why_it_ended(end: str) -> None:
    act, status, said = ENDS[end]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(act=act)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_child_ends_by_the_signal_as_usual() -> None:
    act = "pid = os.fork(); (os.kill(os.getpid(), 15), os._exit(7)) if pid == 0 else print(os.waitpid(pid, 0)[1])"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(act=act)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("15\n", "")


def test_a_limit_on_addresses_is_refused_where_xla_would_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "memory_limit", lambda: None)
    monkeypatch.setattr(console.resource, "getrlimit", lambda _: (console.resource.RLIM_INFINITY, -1))
    console.require_room()
    monkeypatch.setattr(console.resource, "getrlimit", lambda _: (3_000_000 * 1024, -1))
    with pytest.raises(InputError, match=r"ulimit -v: at least \d+ MiB .* found 2929 MiB; give more"):
        console.require_room()


def test_the_memory_of_a_job_or_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, job = tmp_path / "of", tmp_path / "slurm" / "job_7"
    (job / "step").mkdir(parents=True)
    of.write_text("0::/slurm/job_7/step\n")
    assert console.memory_limit(tmp_path, of) is None
    (job / "step" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text(f"{512 << 20}\n")
    assert console.memory_limit(tmp_path, of) == 512 << 20
    (tmp_path / "memory" / "docker").mkdir(parents=True)
    (tmp_path / "memory" / "docker" / "memory.limit_in_bytes").write_text(f"{256 << 20}\n")
    of.write_text("4:memory:/docker\n3:cpu:/docker\n")
    assert console.memory_limit(tmp_path, of) == 256 << 20
    monkeypatch.setattr(console, "memory_limit", lambda: 256 << 20)
    monkeypatch.setattr(console.resource, "getrlimit", lambda _: (console.resource.RLIM_INFINITY, -1))
    with pytest.raises(InputError, match=r"has 256 MiB of memory, and at least 1024 MiB are needed"):
        console.require_room()


def test_status() -> None:
    assert [StoppedError(signum).status for signum in (signal.SIGINT, signal.SIGTERM)] == [130, 143]
