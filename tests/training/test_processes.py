"""Real processes, each with its own devices, that train one model together over loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcxr.config import Experiment, dump
from jaxcxr.errors import InputError
from jaxcxr.training.processes import connect
from tests.conftest import changed

CHILD = Path(__file__).with_name("one_process.py")
WORLDS = {"one": (1, 1), "eight devices": (1, 8), "two processes": (2, 1)}
"""Processes, and devices of each."""


def start(folder: Path, config: Experiment, processes: int, devices: int) -> list[subprocess.Popen[str]]:
    """Start the processes of a run in `folder`."""
    (folder / "occupied").mkdir(parents=True)
    (folder / "occupied" / "stranger.txt").write_text("mine")
    dump(config, folder / "config.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(CHILD.parents[2])}
    if processes > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(folder)],
            env=env | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def finish(children: list[subprocess.Popen[str]]) -> None:
    """Wait for the processes; only the first one speaks."""
    try:
        for index, child in enumerate(children):
            out, complaints = child.communicate(timeout=240)
            assert child.returncode == 0, complaints
            assert out == ("done\n" if index == 0 else "")
    finally:
        for child in children:
            child.kill()


@pytest.fixture(scope="module")
def worlds(tiny_config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the same run in each world."""
    config = changed(tiny_config, "training", steps=4, expected_batch_size=3, checkpoint_every=2, class_weights="none")
    config = changed(config, "privacy", noise_multiplier=1.0)
    out = tmp_path_factory.mktemp("worlds")
    started = {name: start(out / name, config, *size) for name, size in WORLDS.items()}
    for children in started.values():
        finish(children)
    return {name: out / name for name in WORLDS}


def seen(folder: Path, index: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"seen.{index}.json").read_text())


@pytest.mark.parametrize("name", ["eight devices", "two processes"])
def test_many_do_what_one_does(worlds: dict[str, Path], name: str) -> None:
    alone, together = worlds["one"], worlds[name]
    processes, devices = WORLDS[name]
    assert (seen(together)["processes"], seen(together)["devices"]) == (processes, processes * devices)
    assert (seen(alone)["processes"], seen(alone)["devices"]) == (1, 1)
    assert seen(together)["steps"] == seen(alone)["steps"] == 4
    assert (together / "run" / "ledger.jsonl").read_bytes() == (alone / "run" / "ledger.jsonl").read_bytes()
    rows = [
        [json.loads(line) for line in (world / "run" / "metrics.jsonl").read_text().splitlines()] for world in (alone, together)
    ]
    assert [[row[key] for key in ("step", "images", "epsilon")] for row in rows[0]] == [
        [row[key] for key in ("step", "images", "epsilon")] for row in rows[1]
    ]
    one, many = (np.load(world / "params.npz") for world in (alone, together))
    assert set(one.files) == set(many.files)
    for leaf in one.files:
        np.testing.assert_allclose(many[leaf], one[leaf], rtol=1e-4, atol=1e-6, err_msg=leaf)


def test_a_process_with_nothing_drawn_takes_part(worlds: dict[str, Path]) -> None:
    shares = [seen(worlds["two processes"], index)["shares"] for index in (0, 1)]
    assert [step for step, _ in shares[0]] == [step for step, _ in shares[1]]
    assert any(first > 0 and second == 0 for (_, first), (_, second) in zip(*shares, strict=True)), "choose another seed"
    drawn = [
        row["images"] for row in map(json.loads, (worlds["two processes"] / "run" / "metrics.jsonl").read_text().splitlines())
    ]
    assert sum(films for share in shares for _, films in share) == drawn[-1]  # of the steps after the accident


def test_what_the_first_process_refuses_ends_all_with_its_sentence(worlds: dict[str, Path]) -> None:
    """Before a run, and in its third step, after which the run goes on from its checkpoint."""
    folder = worlds["two processes"]
    for index in (0, 1):
        assert seen(folder, index)["refused"] == "the ledger's disk is full"
        occupied = f"{folder / 'occupied'}: the folder holds files but no run; expected a new or empty folder"
        assert seen(folder, index)["occupied"] == occupied


def test_a_process_alone_joins_nobody() -> None:
    assert connect({}) is False
    assert connect({"SLURM_NTASKS": "4"}) is False  # the batch script of a job, not a step of it
    assert connect({"SLURM_STEP_NUM_TASKS": "1"}) is False


def test_a_wrong_number_of_processes_is_named() -> None:
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES: expected a whole number, found 'two'"):
        connect({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "two"})
