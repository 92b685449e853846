"""Jobs on a real SLURM: `python -m tests.launch.slurm`, on a machine that has one, or as root with Debian's
packages slurmctld, slurmd, slurm-client and munge, of which it starts one of its own (two partitions, preemption).

The jobs save and end at a signal as a run does. Six things are tried: an array; a sweep; a preemption; the time limit; a
job that somebody cancels; Ctrl-C in the launcher. Prints a line for each, and ends with 1 if one failed;
`python -m tests.launch.slurm ctrl_c` tries one. All take about nine minutes: SLURM waits two before it runs a job again.
"""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.config_files import dump
from jaxcxr.data.store import write_store
from jaxcxr.errors import InputError
from jaxcxr.launch.cluster import slurm_pool
from jaxcxr.launch.jobs import Job, run_all

WORK = """
import pathlib, sys, time
from jaxcxr.signals import deferred
state, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with deferred() as told:
    for step in range(int(state.read_text()) if state.exists() else 0, steps):
        print(f"step {step}", flush=True)
        time.sleep(0.2)
        if told():
            state.write_text(str(step + 1))
            print(f"stopped after step {step + 1} of {steps}; a checkpoint is saved", flush=True)
            sys.exit(128 + told())
print("finished")
"""
CONFIGURATION = """
ClusterName=tiny
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16827
SlurmdPort=16828
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


@contextmanager
def own_slurm() -> Iterator[None]:
    """A SLURM of one machine; the one that is there, if there is one."""
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        yield
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("spool", "state"):
            (folder / part).mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder))
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            for place in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
                Path(place).mkdir(exist_ok=True)
                shutil.chown(place, "munge", "munge")
            run("setpriv", "--reuid=munge", "--regid=munge", "--init-groups", "munged")
        run("slurmctld")
        run("slurmd")
        try:
            until(lambda: "idle" in run("sinfo", "--noheader", "--format=%T"), "a node that is idle")
            yield
        finally:
            for daemon in ("slurmd", "slurmctld"):
                pid = folder / f"{daemon}.pid"
                os.kill(int(pid.read_text()), signal.SIGTERM)
                until(lambda pid=pid: not pid.exists(), f"the end of {daemon}")


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def until(true: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def jobs_of(folder: Path, names: str, steps: int) -> list[Job]:
    return [
        Job(name, (sys.executable, "-P", "-c", WORK, str(folder / f"{name}.state"), str(steps)))
        for name in names
    ]


def text(folder: Path, name: str) -> str:
    log = folder / "jobs" / f"{name}.log"
    return log.read_text() if log.exists() else ""


def in_a_process(folder: Path, names: str, steps: int, *options: str) -> subprocess.Popen[str]:
    """A launcher in a process of its own."""
    program = "from tests.launch import slurm; slurm.as_launcher()"
    command = [sys.executable, "-c", program, str(folder), names, str(steps), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def as_launcher() -> None:
    from jaxcxr.cli import console

    folder, names, steps, *options = sys.argv[1:]
    pool = slurm_pool(options, None, Path(folder) / "jobs")

    def launch() -> None:
        run_all(jobs_of(Path(folder), names, int(steps)), pool, console.say)

    console.run(launch)


def an_array(folder: Path) -> str:
    said: list[str] = []
    pool = slurm_pool(("partition=low", "cpus_per_task=1"), 2, folder / "jobs")
    assert run_all(jobs_of(folder, "abc", 5), pool, said.append)
    assert all(text(folder, name).endswith("finished\n") for name in "abc")
    return f"{sum('finished in' in line for line in said)} jobs, two at a time"


def a_preemption(folder: Path) -> str:
    launcher = in_a_process(folder, "a", 150, "partition=low", "cpus_per_task=2")
    until(lambda: "step 5" in text(folder, "a"), "the first steps")
    run("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 5")
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    return once_and_all(folder, 150)


def the_time_limit(folder: Path) -> str:
    launcher = in_a_process(folder, "a", 260, "partition=low", "time=1", "signal_delay_s=20")
    _, said = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, said
    return once_and_all(folder, 260)


def once_and_all(folder: Path, steps: int) -> str:
    """Every step was done once, although the job was ended and went on."""
    lines = text(folder, "a").splitlines()
    assert [line for line in lines if line.startswith("step ")] == [f"step {i}" for i in range(steps)]
    stops = [line for line in lines if line.startswith("stopped after")]
    assert stops
    return f"{'; '.join(stops)}; then the others, each step once"


def somebody_cancels(folder: Path) -> str:
    launcher = in_a_process(folder, "a", 500, "partition=low", "job_name=cancelled")
    until(lambda: "step 5" in text(folder, "a"), "the first steps")
    run("scancel", "--name=cancelled")
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 2, said
    assert "a checkpoint is saved" in text(folder, "a")
    until(lambda: not run("squeue", "--noheader", "--name=cancelled"), "an empty queue")
    return said.splitlines()[-1]


def ctrl_c(folder: Path) -> str:
    launcher = in_a_process(folder, "ab", 500, "partition=low", "job_name=interrupted")
    until(lambda: all("step 5" in text(folder, name) for name in "ab"), "the first steps")
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 130, said
    assert all("a checkpoint is saved" in text(folder, name) for name in "ab")
    assert sum("a checkpoint is saved" in line for line in said.splitlines()) == 2, said
    assert not run("squeue", "--noheader", "--name=interrupted")
    return said.splitlines()[-1]


def a_sweep(folder: Path) -> str:
    """The command itself, with a budget and without privacy, on a tiny network."""
    config = tiny_experiment(folder)
    dump(config, folder / "private.yaml")
    dump(dataclasses.replace(config, privacy=None), folder / "plain.yaml")
    configs = ("--config", str(folder / "private.yaml"), "--nonprivate-config", str(folder / "plain.yaml"))
    where = ("--eps", "8", "inf", "--out", str(folder / "sweep"), "--launcher", "slurm", "-j", "1")
    command = (sys.executable, "-m", "jaxcxr", "sweep", *configs, *where, "--slurm", "partition=low")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "sweep" / "report.html").exists()
    return done.stdout.splitlines()[-1].replace(str(folder), "")


def tiny_experiment(folder: Path) -> Experiment:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 90).astype(float)
    table = {"image_id": [f"i{i}" for i in range(90)], "patient_id": [f"p{i // 2}" for i in range(90)]}
    table |= {
        "path": [f"{i}.png" for i in range(90)],
        "split": np.repeat(["train", "valid", "test"], [50, 20, 20]),
    }
    frame = pd.DataFrame(table | {"age": 50.0, "sex": "F", "cardiomegaly": labels})
    images = np.clip(rng.normal(100 + 40 * labels[:, None, None], 30, (90, 32, 32)), 0, 255).astype(np.uint8)
    findings, store = ("cardiomegaly",), folder / "store"
    write_store(store, frame, iter(images), size=32, findings=findings, preprocessing={"made": "by hand"})
    return Experiment(
        data=DataConfig(store=str(store), size=32, findings=findings),
        model=ModelConfig(network="tests.training.tiny:TinyNet"),
        training=TrainingConfig(expected_batch_size=6, microbatch_size=2, steps=6, learning_rate=1e-3),
        privacy=PrivacyConfig(epsilon=8.0, delta=1e-4, l2_clip_norm=1.0),
        evaluation=EvaluationConfig(redraws=20),
    )


TRIED = (an_array, a_sweep, a_preemption, the_time_limit, somebody_cancels, ctrl_c)


def main() -> None:
    failed = False
    with own_slurm():
        print(run("sinfo", "--version").strip())
        for tried in TRIED if len(sys.argv) == 1 else [globals()[name] for name in sys.argv[1:]]:
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                try:
                    found = tried(Path(folder))
                except (AssertionError, InputError, TimeoutError, subprocess.SubprocessError) as error:
                    failed, found = True, f"FAILED: {error!r}"
                print(
                    f"{tried.__name__.replace('_', ' ')} ({time.monotonic() - began:.0f} s): {found}",
                    flush=True,
                )
    sys.exit(failed)


if __name__ == "__main__":
    main()
