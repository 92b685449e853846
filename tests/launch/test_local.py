"""Jobs as processes of this machine: shares, failures, retries, signals. The jobs are small Python programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxcxr.errors import InputError
from jaxcxr.launch import local
from jaxcxr.launch.board import Board, duration
from jaxcxr.launch.jobs import BUSY, Ended, Job, claimed, last_words, run_all, sentence_of
from jaxcxr.launch.local import LocalPool, Share, shares, visible_gpus


def job(name: str, program: str) -> Job:
    return Job(name, (sys.executable, "-S", "-c", program))


@pytest.fixture
def said() -> list[str]:
    return []


def test_each_job_has_its_share_of_the_processors(tmp_path: Path, said: list[str]) -> None:
    before = os.sched_getaffinity(0)
    jobs = [job(name, "import os; print(sorted(os.sched_getaffinity(0)))") for name in ("a", "b", "c")]
    assert run_all(jobs, LocalPool(min(2, len(before)), tmp_path), said.append)
    assert os.sched_getaffinity(0) == before
    seen = [frozenset(eval((tmp_path / f"{name}.log").read_text())) for name in "abc"]
    expected = {frozenset(share.processors) for share in shares(min(2, len(before)), sorted(before), ())}
    assert set(seen) <= expected
    assert {seen[0], seen[1]} == expected
    assert next(line for line in said if line.startswith("a: ")).startswith("a: running, process ")
    assert sum(": finished in 0:0" in line for line in said) == 3


def test_a_share_is_equal_and_of_its_own() -> None:
    assert shares(2, range(5), ()) == [Share((0, 1, 2), None), Share((3, 4), None)]
    assert shares(None, range(2), ["0", "3", "GPU-7"]) == [
        Share((0,), ("0",)),
        Share((1,), ("3",)),
        Share((0,), ("GPU-7",)),
    ]
    assert [share.gpus for share in shares(2, range(8), ["0", "1", "2", "3"])] == [("0", "1"), ("2", "3")]


@pytest.mark.parametrize(
    ("at_once", "gpus", "message"),
    [
        (None, [], r"-j: how many jobs at once\? There is no GPU"),
        (3, [], r"-j 3: expected 1 to 2 jobs at once, each on a processor of its own; found 2"),
        (2, ["0"], r"-j 2: expected 1 to 1 jobs at once, each on a GPU of its own; found 1"),
    ],
)
def test_more_jobs_than_the_machine_has_are_refused(
    at_once: int | None, gpus: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        shares(at_once, range(2), gpus)


def test_gpus_are_those_that_jax_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_is_installed", lambda name: name.endswith("cuda12"))
    listed = subprocess.CompletedProcess(
        (), 0, "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g\nGPU 1: NVIDIA H200\n"
    )
    monkeypatch.setattr(local.subprocess, "run", lambda *_, **__: listed)
    assert visible_gpus({}) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-1"}) == ["3", "GPU-1"]
    assert visible_gpus({"JAX_PLATFORMS": "cpu"}) == visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    monkeypatch.setattr(local, "_is_installed", lambda _: False)
    assert visible_gpus({}) == []


def test_a_gpu_is_named_to_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda _: ["5", "7"])
    jobs = [job(name, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])") for name in ("a", "b")]
    assert run_all(jobs, LocalPool(None, tmp_path), said.append)
    assert [(tmp_path / f"{name}.log").read_text() for name in "ab"] == ["5\n", "7\n"]


def test_what_fails_is_named_with_its_sentence_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    fails = "import sys; print('error: the store is gone', file=sys.stderr); print('goodbye'); sys.exit(2)"
    jobs = [job("a", fails), job("b", "raise SystemExit(3)"), job("c", "open('c', 'w')")]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        run_all(jobs, LocalPool(1, tmp_path / "logs"), said.append)
    assert str(raised.value).startswith(
        "2 of 3 jobs failed (a: the store is gone; b: exit status 3); what the "
    )
    assert (tmp_path / "c").exists()
    assert any(line.startswith("a: FAILED after 0:0") and line.endswith("the store is gone") for line in said)


def test_a_job_whose_work_another_process_has_is_tried_again_at_the_end(
    tmp_path: Path, said: list[str]
) -> None:
    there = f"import os, sys; p = {str(tmp_path / 'free')!r}; sys.exit(0 if os.path.exists(p) else {BUSY})"
    frees = f"open({str(tmp_path / 'free')!r}, 'w')"
    assert run_all([job("a", there), job("b", frees)], LocalPool(1, tmp_path), said.append)
    assert not run_all([job("a", f"raise SystemExit({BUSY})")], LocalPool(1, tmp_path), said.append)
    assert [line for line in said if "another process is at work on it" in line]


def test_no_job_is_begun_after_the_time_is_over(tmp_path: Path, said: list[str]) -> None:
    jobs = [job(name, "") for name in ("a", "b")]
    assert not run_all(jobs, LocalPool(1, tmp_path, for_seconds=0.0), said.append)
    assert len([line for line in said if "finished" in line]) < 2


LAUNCHER = """
import sys
from pathlib import Path
from jaxcxr.cli import console
from jaxcxr.launch.jobs import Job, run_all
from jaxcxr.launch.local import LocalPool
waits = (
    "import signal, sys, time, pathlib\\n"
    "def end(*_):\\n    print('stopped after step 3 of 9; a checkpoint is saved'); sys.exit(143)\\n"
    "signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, lambda *_: sys.exit(9))\\n"
    "from jaxcxr.launch.local import end_with_parent; end_with_parent()\\n"
    "print('there', flush=True)\\n"
    "while True: time.sleep(0.05)\\n"
)
jobs = [Job("a", (sys.executable, "-c", waits)), Job("b", (sys.executable, "-c", waits))]
console.run(lambda: run_all(jobs, LocalPool(1, Path(sys.argv[1])), console.say))
"""


def launched(folder: Path) -> subprocess.Popen[str]:
    """A launcher whose first job is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in a terminal is for the whole group
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("a: running, process ")
    while not (folder / "a.log").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_jobs_in_order(tmp_path: Path, signum: int, status: int) -> None:
    process = launched(tmp_path)
    os.killpg(process.pid, signum)
    _, told = process.communicate(timeout=60)
    assert process.returncode == status
    lines = told.splitlines()
    assert lines[0] == "a: asked to finish its step and save"
    assert lines[1].startswith("a: stopped after 0:")
    assert lines[1].endswith(": stopped after step 3 of 9; a checkpoint is saved")
    assert lines[2:] == [f"stopped by {signal.Signals(signum).name}"]
    assert not (tmp_path / "b.log").exists()


def test_the_jobs_of_a_launcher_that_is_killed_end_in_order(tmp_path: Path) -> None:
    process = launched(tmp_path)
    process.kill()
    process.communicate()
    for _ in range(3000):  # a minute
        if "a checkpoint is saved" in (tmp_path / "a.log").read_text():
            return
        time.sleep(0.02)
    pytest.fail("the job went on")


def test_the_last_words_are_the_error_or_the_last_line_of_this_time(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert last_words(log) == ""
    log.write_text("error: of old\n")
    since = log.stat().st_size
    with log.open("a") as file:
        file.write("headline\nstep 1\rstep 2\rstep 3\n╰───╯\nstopped by SIGTERM\n")
    assert last_words(log, since) == "step 3"
    assert last_words(log) == "of old"


def test_a_part_is_one_process_at_a_time(tmp_path: Path) -> None:
    from jaxcxr.atomic import BusyError

    with claimed(tmp_path / "new", "x"):
        with claimed(tmp_path / "new", "y"):
            pass
        with (
            pytest.raises(BusyError, match="new/x: another process is at work on it"),
            claimed(tmp_path / "new", "x"),
        ):
            pass


def test_the_board_rewrites_its_lines_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    board = Board(["a", "long"], said.append, live=True)
    board.show("a", "running", "step 3")
    assert said == []
    assert capsys.readouterr().err.endswith("\x1b[2Fa     running  step 3\x1b[K\nlong  waiting\x1b[K\n")
    board = Board(["a"], said.append, live=False)
    for detail in ("step 3", "step 4"):
        board.show("a", "running", detail)
    assert said == ["a: running"]


def test_spans_and_ends() -> None:
    assert [duration(seconds) for seconds in (0.9, 61.0, 3723.0)] == ["0:00", "1:01", "1:02:03"]
    assert sentence_of(Ended(143), "0:05") == "stopped after 0:05: nothing was begun"
    assert Ended(130).stopped
    assert not Ended(137).stopped
