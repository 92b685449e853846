"""Jobs by submitit: its executor for one machine in the place of SLURM. The jobs are small Python programs."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.errors import InputError
from jaxcxr.launch import cluster
from jaxcxr.launch.cluster import ClusterPool, minutes_of, slurm_pool
from jaxcxr.launch.jobs import Job, run_all

PREEMPTED = """
import os, pathlib, signal, sys, time
begun = pathlib.Path("begun")
if begun.exists():
    print("resumed"); sys.exit(0)
def save(*_):
    begun.write_text("saved"); print("a checkpoint is saved", flush=True); sys.exit(140)
signal.signal(signal.SIGUSR2, save)
os.kill(os.getppid(), signal.SIGUSR2)
while True: time.sleep(0.02)
"""


def test_a_preempted_job_saves_and_goes_on_and_a_failure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_LOOK", 0.2)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    said: list[str] = []
    pool = ClusterPool(submitit.LocalExecutor(tmp_path / "logs" / "cluster"), tmp_path / "logs")
    jobs = [
        Job("a", (sys.executable, "-S", "-c", PREEMPTED)),
        Job("b", (sys.executable, "-S", "-c", "raise SystemExit('error: no such store')")),
    ]
    with pytest.raises(InputError, match=r"1 of 2 jobs failed \(b: no such store\)"):
        run_all(jobs, pool, said.append)
    assert (tmp_path / "logs" / "a.log").read_text() == "a checkpoint is saved\nresumed\n"
    assert [line.partition(" in ")[0] for line in said if line.startswith("a: ")][-1] == "a: finished"


def test_sbatch_has_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\ncp "$1" "$(dirname "$0")/submitted"\necho Submitted batch job 7\n')
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = ("partition=gpu", "gpus-per-node=1", "--time=1-02:30:00", "mem=16G", "reservation=night")
    pool = slurm_pool(options, 2, tmp_path / "logs")
    with pool._executor.batch():
        submitted = [pool._executor.submit(print, name) for name in ("a", "b", "c")]
    assert [job.job_id for job in submitted] == ["7_0", "7_1", "7_2"]
    lines = (tmp_path / "submitted").read_text().splitlines()
    wanted = [
        "array=0-2%2",
        "partition=gpu",
        "gpus-per-node=1",
        "time=1590",
        "mem=16G",
        "reservation=night",
        "signal=USR2@120",
    ]
    assert {f"#SBATCH --{option}" for option in wanted} <= set(lines)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("90", 90), ("90:30", 90), ("8:00:00", 480), ("2-0", 2880), ("1-2:30", 1590), ("0", 1)],
)
def test_a_time_limit_of_sbatch(limit: str, minutes: int) -> None:
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("partition",), r"--slurm partition: expected NAME=VALUE"),
        (("time=soon",), r"--slurm time=soon: expected minutes, H:M:S or D-H:M:S"),
    ],
)
def test_an_option_that_is_none_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster.shutil, "which", lambda _: "/usr/bin/true")
    with pytest.raises(InputError, match=message):
        slurm_pool(options, None, tmp_path)


def test_without_slurm_or_submitit_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)

    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cluster.importlib, "import_module", fail)
    with pytest.raises(InputError, match=r"needs submitit; install it .*jaxcxr\[launch\]"):
        slurm_pool((), None, tmp_path)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="found no sbatch and srun"):
        slurm_pool((), None, tmp_path)
