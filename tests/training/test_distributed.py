"""Real processes, each with its own devices, that train one model together over loopback."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.config_files import dump
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError, OthersEndedError
from jaxcxr.records.ledger import read_ledger
from jaxcxr.training import build, distributed, plan
from jaxcxr.training.distributed import connect
from jaxcxr.training.loop import train
from tests.conftest import changed
from tests.training.tiny import MAKE_NETWORK, tiny_network

CHILD = Path(__file__).with_name("one_process.py")
PROCESSES = 2


def start(
    folder: Path, config: Experiment, processes: int = PROCESSES, devices: int = 1
) -> list[subprocess.Popen[str]]:
    """Start the processes of a run in `folder`, each with so many virtual devices."""
    (folder / "occupied").mkdir(parents=True)
    (folder / "occupied" / "stranger.txt").write_text("mine")
    dump(config, folder / "config.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = os.environ | {
        "XLA_FLAGS": "",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(str(CHILD.parents[2] / place) for place in ("src", ".")),
    }
    env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(folder)],
            env=env | {"JAX_PROCESS_ID": str(index)},
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
            assert ("done" in out.splitlines()) == (
                index == 0
            )  # XLA itself says on each that it is connected
    finally:
        for child in children:
            child.kill()


@dataclasses.dataclass(frozen=True)
class Worlds:
    """The same run by two processes, and by one device in this one."""

    together: Path
    alone: Path
    params: Any


@pytest.fixture(scope="module")
def worlds(tiny_config: Experiment, tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    config = changed(
        tiny_config, "training", steps=4, expected_batch_size=3, checkpoint_every=2, class_weights="none"
    )
    config = changed(config, "privacy", noise_multiplier=1.0)
    out = tmp_path_factory.mktemp("worlds")
    children = start(out / "together", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        patch.setattr("jaxcxr.training.loop.bound_secret", lambda secret, _: secret)
        on_all = build.step_of
        patch.setattr(build, "step_of", lambda plan: on_all(plan, jax.local_devices()[:1]))
        outcome = train(plan.make_plan(config, tiny_store), out / "alone", progress=False)
    finish(children)
    return Worlds(out / "together", out / "alone", outcome.params)


def seen(worlds: Worlds, index: int = 0) -> dict[str, Any]:
    return json.loads((worlds.together / f"seen.{index}.json").read_text())


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_do_what_one_device_does(worlds: Worlds) -> None:
    for index in range(PROCESSES):
        assert [seen(worlds, index)[key] for key in ("processes", "devices", "several", "steps")] == [
            2,
            2,
            True,
            4,
        ]
    together, alone = worlds.together / "run", worlds.alone
    assert read_ledger(together / "ledger.jsonl") == read_ledger(alone / "ledger.jsonl")
    assert (alone / "ledger.jsonl").read_text().count('"step"') == 4
    logged = [
        [[row[key] for key in ("step", "images", "epsilon")] for row in rows(run)]
        for run in (together, alone)
    ]
    assert logged[0] == logged[1]
    found, expected = (
        np.load(worlds.together / "params.npz"),
        jax.tree_util.tree_leaves_with_path(worlds.params),
    )
    assert set(found.files) == {jax.tree_util.keystr(path) for path, _ in expected}
    for path, leaf in expected:
        np.testing.assert_allclose(found[jax.tree_util.keystr(path)], leaf, rtol=1e-4, atol=1e-6)


def test_a_process_with_nothing_drawn_takes_part(worlds: Worlds) -> None:
    shares = [seen(worlds, index)["shares"] for index in range(PROCESSES)]
    assert [step for step, _ in shares[0]] == [step for step, _ in shares[1]]
    assert any(first > 0 and second == 0 for (_, first), (_, second) in zip(*shares, strict=True)), (
        "choose another seed"
    )
    films = sum(films for share in shares for _, films in share)  # of the steps after the accident
    assert films == rows(worlds.together / "run")[-1]["images"]


def test_what_the_first_process_refuses_ends_all_with_its_sentence(worlds: Worlds) -> None:
    """Before a run, and in its third step, after which the run goes on from its checkpoint."""
    for index in range(PROCESSES):
        assert seen(worlds, index)["refused"] == "the ledger's disk is full"
        occupied = f"{worlds.together / 'occupied'}: the folder holds files but no run; expected a new or empty folder"
        assert seen(worlds, index)["occupied"] == occupied


def test_a_process_alone_joins_nobody() -> None:
    assert connect({}) is False
    assert connect({"SLURM_NTASKS": "4"}) is False  # the batch script of a job, not a step of it
    assert connect({"SLURM_STEP_NUM_TASKS": "1"}) is False


def test_a_wrong_number_of_processes_is_named() -> None:
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES: expected a whole number, found 'two'"):
        connect({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "two"})


def test_process_0_listens_where_it_is_told_to() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        named = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": "0"}
        with pytest.raises(
            InputError, match=rf"JAX_COORDINATOR_ADDRESS: process 0 cannot listen on 127.0.0.1:{port}"
        ):
            distributed._bind_address(named)
        assert distributed._bind_address(named | {"JAX_PROCESS_ID": "1"}) is None
    assert distributed._bind_address(named) == f"127.0.0.1:{port}"
    told = named | {"JAX_COORDINATOR_BIND_ADDRESS": f"0.0.0.0:{port}"}
    assert distributed._bind_address(told) == f"0.0.0.0:{port}"
    assert distributed._bind_address({}) is None  # JAX finds the address itself
    elsewhere = named | {"JAX_COORDINATOR_ADDRESS": f"192.0.2.1:{port}"}  # an address that no machine has
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):
        distributed._bind_address(elsewhere)
    with pytest.raises(InputError, match="expected host:port, found 'head'"):
        distributed._bind_address(named | {"JAX_COORDINATOR_ADDRESS": "head"})


def test_a_process_that_ends_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(message: str, kind: type[Exception] = jax.errors.JaxRuntimeError) -> None:
        with distributed.all_alive():
            raise kind(message)

    with pytest.raises(jax.errors.JaxRuntimeError):  # alone: a defect
        lost("INTERNAL: x")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for kind in (jax.errors.JaxRuntimeError, ValueError):  # what a CPU's connection that is closed raises
        with pytest.raises(
            OthersEndedError,
            match=r"another process of this job has ended.*start all processes again with --resume",
        ) as said:
            lost(
                "UNKNOWN: Gloo allreduce failed: Connection closed by peer [127.0.0.1]:1\nstack\nstack", kind
            )
        assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="another defect"):
        lost("another defect", ValueError)
    with pytest.raises(jax.errors.JaxRuntimeError):  # its own sentence
        lost("RESOURCE_EXHAUSTED: Out of memory")
