"""What the paper's run asks of the machine beside its network: the first steps of its plan, with kills.

    python -m tests.workflows.papers_run --steps 3000 --kills 4

The plan is that of configs/paper_private.yaml (N = 153,502 images, batches of 128 on average, noise for 179,885 steps
at epsilon 7.89), on a store of that size with images of 32 pixels and on a tiny network, so that a step is the host's
work: drawing and reading the batch, the ledger, checkpoints. The run is killed without warning at random steps and
resumed, goes on to the last of the steps, and is released. Prints what each part took, how seconds and memory grew
between the first and the last third, and what the ledger would have at the end of the plan.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr import accounting
from jaxcxr.config import EvaluationConfig, Experiment
from jaxcxr.config_files import dump, load
from jaxcxr.data.store import write_store

SIZE, HELD_OUT = 32, 2000


def store_of_the_papers_size(folder: Path, config: Experiment) -> None:
    """Random images and labels: what is in them does not matter here."""
    assert config.privacy is not None
    n, findings, rng = config.privacy.dataset_size or 0, config.data.findings, np.random.default_rng(0)
    rows = n + 2 * HELD_OUT
    table = {"image_id": [f"image{i:06d}" for i in range(rows)]}
    table |= {
        "patient_id": [f"patient{i // 3:06d}" for i in range(rows)],
        "path": [f"{i}.png" for i in range(rows)],
    }
    frame = pd.DataFrame(table | {"age": 60.0, "sex": "F"})
    frame["split"] = np.repeat(["train", "valid", "test"], [n, HELD_OUT, HELD_OUT])
    patients = frame.groupby("patient_id")["split"].transform("first")  # no patient in two splits
    frame = frame.assign(split=patients, **{f: (rng.random(rows) < 0.15).astype(float) for f in findings})
    images = (rng.integers(0, 256, (SIZE, SIZE), np.uint8) for _ in range(rows))
    write_store(folder, frame, images, size=SIZE, findings=findings, preprocessing={"made": "at random"})


def plan_of_the_paper(folder: Path, steps: int) -> tuple[Experiment, int]:
    """The paper's configuration, its noise for the whole plan, and the first steps of it; the steps of all."""
    config = load(Experiment, "configs/paper_private.yaml")
    privacy, training = config.privacy, config.training
    assert privacy is not None
    assert privacy.dataset_size is not None
    assert training.epochs is not None
    rate = training.expected_batch_size / privacy.dataset_size
    whole = accounting.steps_of_epochs(training.epochs, privacy.dataset_size, training.expected_batch_size)
    noise = accounting.calibrated_noise(privacy.epsilon, privacy.delta, rate, whole)
    first = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, store=str(folder / "store"), size=SIZE),
        model=dataclasses.replace(config.model, weights=None, network="tests.training.tiny:TinyNet"),
        privacy=dataclasses.replace(privacy, noise_multiplier=noise),
        training=dataclasses.replace(
            training, epochs=None, steps=steps, class_weights="none", checkpoint_every=100, log_every=20
        ),
        evaluation=EvaluationConfig(redraws=100),
    )
    return first, whole


def command(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcxr", *arguments], stdout=log.open("ab"), stderr=subprocess.STDOUT
    )


def lines_of(ledger: Path) -> int:
    return ledger.read_bytes().count(b'"step"') if ledger.exists() else 0


class Watched:
    """Memory and processor time of a process by the steps that its ledger has."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []

    def look(self, process: subprocess.Popen[bytes], ledger: Path) -> None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            return
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if memory:
            self.rows.append((lines_of(ledger), seconds, int(memory[1]) / 1024))


def run_with_kills(folder: Path, at: list[int], last: int) -> Watched:
    """Train to the last step; killed after each of the steps `at`, and watched from the last kill on."""
    ledger, watched = folder / "run" / "ledger.jsonl", Watched()
    for number, stop in enumerate([*at, last]):
        resume = ("--resume",) if number else ()
        process = command(
            "train",
            "--config",
            str(folder / "run.yaml"),
            "--out",
            str(folder / "run"),
            *resume,
            log=folder / "log",
        )
        while process.poll() is None:
            if stop < last and lines_of(ledger) >= stop:
                process.send_signal(signal.SIGKILL)
                process.wait()
            elif stop == last:
                watched.look(process, ledger)
            time.sleep(0.2)
        if stop == last and process.returncode:
            raise RuntimeError((folder / "log").read_text()[-2000:])
    return watched


def timed(what: str, act: Callable[[], None]) -> None:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {spent:.1f} s of processor time, {time.perf_counter() - began:.1f} s", flush=True)


def checked(folder: Path, *arguments: str) -> None:
    log = folder / f"{arguments[0]}.log"
    if command(*arguments, log=log).wait():
        raise RuntimeError(log.read_text()[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, whole = plan_of_the_paper(folder, arguments.steps)
        dump(config, folder / "run.yaml")
        store_of_the_papers_size(folder / "store", config)
        first_half = range(1, arguments.steps // 2)
        at = sorted(random.Random(arguments.seed).sample(first_half, arguments.kills))
        watched = run_with_kills(folder, at, arguments.steps)
        ledger = folder / "run" / "ledger.jsonl"
        steps = [json.loads(line).get("step") for line in ledger.read_text().splitlines()]
        numbered = [step for step in steps if step is not None]
        assert numbered == list(range(arguments.steps)), "a step is missing, or there twice"
        print(f"killed after steps {at}: every step once")
        begun = watched.rows[0][0]
        during = [row for row in watched.rows if begun < row[0] < arguments.steps]
        third = len(during) // 3
        for what, rows in (("first", during[:third]), ("last", during[-third:])):
            a, b = rows[0], rows[-1]
            each = 1000 * (b[1] - a[1]) / (b[0] - a[0])
            print(f"{what} third (steps {a[0]} to {b[0]}): {each:.1f} ms of processor time per step, "
                  f"{a[2]:.0f} to {b[2]:.0f} MiB")  # fmt: skip
        size = ledger.stat().st_size
        print(
            f"ledger: {size / arguments.steps:.0f} bytes per step, {size / arguments.steps * whole / 1e6:.0f} MB at the end of the plan"
        )
        timed("release", lambda: checked(folder, "release", str(folder / "run")))
        timed("account", lambda: checked(folder, "account", "--run", str(folder / "run")))
        timed("check", lambda: checked(folder, "check", str(folder / "run")))


if __name__ == "__main__":
    main()
