"""Runs whose clip norm adapts: what it costs, what a checkpoint keeps of it, and what does not go with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.adaptive import Adaptive
from jaxcxr.privacy.clipping import Extended
from jaxcxr.records.ledger import read_ledger
from jaxcxr.training import build, objective, parameters
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.loop import Outcome, train
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.step import make_step
from tests.conftest import changed
from tests.training.test_loop import bits, cut_at, linear_loss, microbatches, seven_images

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_network")


@pytest.fixture(scope="module")
def config(tiny_config: Experiment) -> Experiment:
    """A clip norm far from the norms' median, that moves fast."""
    config = changed(tiny_config, "training", log_every=1, class_weights="none")
    config = changed(
        config, "privacy", epsilon=500.0, noise_multiplier=0.2
    )  # randomness differs with the code
    return changed(config, "privacy", clipping="adaptive", l2_clip_norm=0.01, clip_learning_rate=1.0)


@pytest.fixture(scope="module")
def plan(config: Experiment, tiny_store: Store) -> RunPlan:
    return make_plan(config, tiny_store)


@pytest.fixture(scope="module")
def whole(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(plan, out, progress=False)


def clip_norms(out: Path) -> list[float]:
    return [json.loads(line)["clip_norm"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_clip_norm_moves_and_costs_what_a_fixed_one_costs(
    whole: tuple[Path, Outcome], plan: RunPlan, config: Experiment, tiny_store: Store
) -> None:
    flat = make_plan(changed(config, "privacy", clipping="flat"), tiny_store)
    assert flat.mechanism is not None
    assert plan.mechanism == dataclasses.replace(flat.mechanism, rule=Adaptive(learning_rate=1.0))
    assert list(read_ledger(whole[0] / "ledger.jsonl")[1]) == [
        flat.mechanism.entry(step) for step in range(6)
    ]
    norms = clip_norms(whole[0])
    assert len(set(norms)) == len(norms) == 6
    # all gradients are longer than it is, so that each step multiplies it by exp(1/2), but for the drawn number and noise
    assert norms[-1] > 1.5 * 0.01


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_has_the_same_bits_and_clip_norms(
    whole: tuple[Path, Outcome], plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    cut_at(plan, tmp_path / "cut", stop, monkeypatch)
    resumed = train(plan, tmp_path / "cut", resume=True, progress=False)
    assert bits(resumed.params) == bits(whole[1].params)
    assert clip_norms(tmp_path / "cut") == clip_norms(whole[0])
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


def test_the_checkpoint_holds_the_state(whole: tuple[Path, Outcome], plan: RunPlan) -> None:
    checkpoints = Checkpoints(whole[0] / "checkpoints")
    params = build.initial_params(plan, bytes(32))
    like = {"params": params, "optimizer": build.optimizer_of(plan).init(params), "clipping": jnp.ones(())}
    r = checkpoints.restore(6, like)["clipping"]
    checkpoints.close()
    assert plan.mechanism is not None
    assert float(plan.mechanism.clip_norm(r)) == clip_norms(whole[0])[-1]


def test_the_clipped_share_is_that_of_the_clip_norm_in_force(
    whole: tuple[Path, Outcome], plan: RunPlan
) -> None:
    """The log's first step is of the first clip norm; a step at a very large one clips nobody."""
    rows = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["clipped_fraction"] == 1.0
    release = objective.Gradients(linear_loss, plan.mechanism)
    params = {"kernel": jnp.ones((64, 3))}
    (piece,) = microbatches(np.full((2, 8, 8), 9, np.uint8), np.zeros((2, 3), np.float32), 2)
    for r, clipped in ((1.0, 2), (1e6, 0)):
        assert int(jax.jit(release.summed)(params, piece, jnp.float32(r))[1]["clipped"]) == clipped


def test_discrete_noise_counts_the_coordinate_in(
    config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    plan = make_plan(changed(config, "privacy", noise="discrete"), tiny_store)
    params = parameters.random_params(plan.config, bytes(32))
    assert plan.mechanism is not None
    assert plan.mechanism.discrete_coordinates == sum(leaf.size for leaf in jax.tree.leaves(params)) + 1
    train(plan, tmp_path / "run", progress=False)
    assert len(set(clip_norms(tmp_path / "run"))) == 6


def test_two_devices_do_what_one_does(plan: RunPlan) -> None:
    assert plan.mechanism is not None
    images, labels = seven_images()
    release, found = objective.Gradients(linear_loss, plan.mechanism), []
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        functions = make_step(release, build.optimizer_of(plan), 6, 2, devices)
        params, r = functions.replicate(({"kernel": jnp.ones((64, 3))}, jnp.float32(550.0)))
        total = functions.start(params)
        for piece in microbatches(images, labels, functions.microbatch_size):
            total = functions.accumulate(params, total, functions.place(piece), r)
        total, log = functions.collect(total)
        state = functions.replicate(build.optimizer_of(plan).init(params))
        *moved, r = functions.finish(params, state, total, plan.mechanism.noise_key(bytes(32), 0), r)
        coordinate = exact_sum.value(total, plan.mechanism.step_size(total.high)).coordinate
        assert isinstance(total.high, Extended)
        short = 7 - int(log["clipped"])
        assert 0 < short < 7
        assert float(coordinate) == pytest.approx(0.1 * 0.01 * (2 * short - 7), rel=1e-4)
        found.append(bits((moved, r)))
    assert found[0] == found[1]


def test_an_accelerators_memory_is_measured(
    config: Experiment, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcxr.training.memory.device_bytes", lambda _: 10**9)
    free = make_plan(changed(config, "training", microbatch_size=None), tiny_store)
    assert build.with_microbatch_size(free).microbatch_size == 4


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        (
            "training",
            {"optimizer": "adam_bc"},
            "training.optimizer: adam_bc corrects for noise of one deviation",
        ),
        (
            "training",
            {"optimizer": "least_squares", "scope": "head"},
            "privacy.clipping: optimizer 'least_squares' clips moments, not gradients; .* found 'adaptive'",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    config: Experiment, section: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        changed(config, section, **fields).check()
