"""Runs by two and four processes that are killed at random moments and go on with another number:

    python -m tests.training.kills --times 20

Each run is begun by `jaxcxr train` in 2 or 4 processes. After a step drawn at random one of them, or all, is killed
without warning; the seconds until the others have ended are taken; `--resume` goes on with 1, 2 or 4. At the end the
ledger has to list each step once, with the batches of a run that nobody disturbed, and the weights are set against
those of that run. Prints a line per run, and ends with 1 if one failed.
"""

import argparse
import dataclasses
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from jaxcxr.config_files import dump
from jaxcxr.inference import load_model
from jaxcxr.records.ledger import Entry, read_ledger
from tests.launch.slurm import tiny_experiment

STEPS, LIMIT_S = 60, 60.0


def started(folder: Path, run: Path, processes: int, *options: str) -> list[subprocess.Popen[str]]:
    """The processes of a run; one alone has no company."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    if processes > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    command = [
        sys.executable,
        "-m",
        "jaxcxr",
        "train",
        "--config",
        str(folder / "run.yaml"),
        "--out",
        str(run),
    ]
    return [
        subprocess.Popen(
            [*command, *options],
            env=env | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=(run.parent / f"{run.name}.{index}.log").open("a"),
            text=True,
        )
        for index in range(processes)
    ]


def steps_of(run: Path) -> int:
    """Lines of steps that the ledger has."""
    path = run / "ledger.jsonl"
    return path.read_text().count('"step"') if path.exists() else 0


def ended(children: list[subprocess.Popen[str]], limit_s: float) -> float:
    """Seconds until the last process has ended; those that have not by then are killed, and that is an error."""
    began = time.monotonic()
    try:
        for child in children:
            child.wait(max(0.1, limit_s - (time.monotonic() - began)))
    finally:
        for child in children:
            child.kill()
            child.wait()
    return time.monotonic() - began


def killed(folder: Path, run: Path, processes: int, after: int, all_of_them: bool, which: int) -> float:
    """Begin a run, kill one of its processes or all, and see how long the others stay."""
    children = started(folder, run, processes)
    while steps_of(run) < after:
        if any(child.poll() is not None for child in children):
            ended(children, 1.0)
            raise RuntimeError(f"ended before step {after}: {(run.parent / f'{run.name}.0.log').read_text()}")
        time.sleep(0.01)
    for child in children if all_of_them else [children[which]]:
        child.kill()
    return ended(children, LIMIT_S)


def finished(folder: Path, run: Path, processes: int, *options: str) -> None:
    children = started(folder, run, processes, *options)
    ended(children, 300.0)
    if any(child.returncode for child in children):
        raise RuntimeError((run.parent / f"{run.name}.0.log").read_text())


def batches_of(run: Path) -> list[Entry]:
    return [entry for entry in read_ledger(run / "ledger.jsonl")[1] if isinstance(entry, Entry)]


def farthest(run: Path, other: Path) -> float:
    """The largest difference of two runs' weights, as a share of the largest weight of its leaf."""
    pairs = zip(*(jax.tree.leaves(load_model(folder).params) for folder in (run, other)), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, outcomes = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = tiny_experiment(folder)
        training = dataclasses.replace(config.training, steps=STEPS, checkpoint_every=7, seed=1)
        dump(dataclasses.replace(config, training=training), folder / "run.yaml")
        finished(folder, folder / "alone", 1)
        expected = batches_of(folder / "alone")
        for time_of in range(arguments.times):
            run, processes, after = (
                folder / f"run{time_of}",
                draw.choice((2, 4)),
                draw.randrange(1, STEPS - 5),
            )
            everybody, which, then = draw.random() < 0.25, draw.randrange(processes), draw.choice((1, 2, 4))
            told = f"{processes} processes, {'all' if everybody else f'number {which}'} killed after step {after}"
            try:
                seconds = killed(folder, run, processes, after, everybody, which)
                reached = steps_of(run)
                finished(folder, run, then, "--resume")
                assert batches_of(run) == expected, "other batches in the ledger"
                gap = farthest(run, folder / "alone")
                assert gap < 1e-5, f"weights differ by {gap:.1e}"
                same = "the same bits" if gap == 0 else f"weights within {gap:.1e}"
                outcome = f"others ended in {seconds:.0f} s; at step {reached} resumed by {then}: {same}"
                outcomes["the same bits" if gap == 0 else "within rounding"] += 1
            except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
                outcome = f"FAILED: {error!r}"
                outcomes["failed"] += 1
            print(f"{told}: {outcome}", flush=True)
    print(", ".join(f"{number} {what}" for what, number in sorted(outcomes.items())))
    sys.exit(outcomes["failed"] > 0)


if __name__ == "__main__":
    main()
