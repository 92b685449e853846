"""Plants every fault in the real code and audits; then audits right code with secrets of its own, many times.

    python -m tests.audit.planted [NUMBER OF RIGHT RUNS] [FAULT ...]

Prints a row per fault: which check saw it at its level, and the processor seconds that took.
Shares one compilation as the test suite does.
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jaxcxr.audit.audit import FEW_UNITS, checks_of
from jaxcxr.audit.checks import Check
from jaxcxr.audit.recording import Own, Recorder, Recording
from jaxcxr.audit.subject import Subject
from jaxcxr.training import build
from tests.audit import small
from tests.audit.plantings import ALL, CAUGHT, MISSED, Planting
from tests.training.tiny import MAKE_NETWORK, tiny_network


def subject_of(steps: int) -> Subject:
    """The tiny subject with so many steps."""
    return small.subject(size=dataclasses.replace(small.SIZE, steps=steps))


def base(steps: int = small.SIZE.steps) -> Recorder:
    """A recorder of the tiny network that has compiled nothing yet, but will for all."""
    subject = subject_of(steps)
    plan = subject.plan(np.zeros(len(subject.canaries), bool))
    return Recorder(subject.canaries, build.step_of(plan), Own(plan))


def planted_recorder(kind: str, right: Recorder, steps: int) -> Recorder:
    """A recorder whose functions are compiled anew as far as a planted fault is in them."""
    subject = subject_of(steps)
    if kind == "called":
        return Recorder(subject.canaries, right.compiled, right.own)
    plan = subject.plan(np.zeros(len(subject.canaries), bool))
    made = build.step_of(plan)
    if kind == "compiled":
        made = dataclasses.replace(made, start=right.compiled.start, accumulate=right.compiled.accumulate)
    return Recorder(subject.canaries, made, Own(plan, right.own.reference))


def record(recorder: Recorder, steps: int, runs: int = 2, seed: int = 0) -> list[Recording]:
    """Recorded runs, the last one of few units, without attacks."""
    subject, rng = subject_of(steps), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number in range(runs):
            included = rng.random(len(subject.canaries)) < 0.5
            plan, out = subject.plan(included), Path(folder) / f"{number}"
            found.append(recorder.run(plan, out, included, attacked=False))
        nobody = np.zeros(len(subject.canaries), bool)
        plan = subject.plan(nobody, FEW_UNITS)
        return [*found, recorder.run(plan, Path(folder) / "few", nobody, attacked=False)]


def checks(recorder: Recorder, steps: int, seed: int = 0) -> tuple[Check, ...]:
    """All checks of two recorded runs and one of few units."""
    subject = subject_of(steps)
    whole = subject.plan(np.ones(len(subject.canaries), bool))
    return checks_of(recorder, record(recorder, steps, seed=seed), whole, np.random.default_rng(seed))


def planted(kind: str, planting: Planting, right: Recorder, steps: int) -> tuple[Check, ...]:
    """The checks of code with a planted fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        planting(patch)
        return checks(planted_recorder(kind, right, steps), steps)


def main(right_runs: int, faults: Sequence[str]) -> None:
    """Print the table, of all faults unless some are named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        right, steps = base(), small.SIZE.steps
        checks(right, steps)
        print("| fault | noted | seen by | p | seconds |\n|---|---|---|---|---|")
        for name in faults or ALL:
            kind, planting = ALL[name]
            noted = "missed before" if name in MISSED else "caught before" if name in CAUGHT else "own"
            began = time.process_time()
            failed = sorted(
                (c for c in planted(kind, planting, right, steps) if c.failed), key=lambda c: c.p_value
            )
            took = time.process_time() - began
            seen = failed[0] if failed else None
            print(f"| {name} | {noted} | {seen.name if seen else 'NOTHING'} | {seen.p_value if seen else 1:.0e} | {took:.1f} |", flush=True)  # fmt: skip
        accused = 0
        for seed in range(right_runs):
            failed = [check for check in checks(right, steps, seed=seed) if check.failed]
            accused += bool(failed)
            for check in failed:
                print(f"right run {seed}: {check.name}, p = {check.p_value:.2g}; {check.found}", flush=True)
        print(f"{accused} of {right_runs} right runs fail a check")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2:])
