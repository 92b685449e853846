"""Whole runs with the head by least squares, on a network with a trunk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.accounting import Spending, epsilon_pld
from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.ledger import Entry, read_ledger
from jaxcxr.training import build, loop, parameters
from jaxcxr.training.least_squares import LeastSquares
from jaxcxr.training.plan import RunPlan, make_plan
from tests.conftest import changed, declared
from tests.training.parts import Tiny, moved_and_kept, noised_draws
from tests.training.tiny import MAKE_NETWORK

pytestmark = pytest.mark.usefixtures("quick_compilation")

MOMENTS = 33 * 34 // 2 + 33 * 3


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, lambda data, _: Tiny(len(data.findings)))


@pytest.fixture(scope="module")
def config(tiny_config: Experiment, tiny_plan: RunPlan) -> Experiment:
    fields = {"optimizer": "least_squares", "scope": "head", "expected_batch_size": 50, "learning_rate": 1.0}
    config = changed(
        tiny_config,
        "training",
        steps=1,
        checkpoint_every=1,
        microbatch_size=16,
        **fields,
        **declared(tiny_plan),
    )
    config.check()
    return config


def run(plan: RunPlan, out: Path, **how: Any) -> Any:
    return loop.train(plan, out, progress=False, **how)


def test_one_release_of_everybody_is_what_is_spent(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(config, tiny_store)
    noised = noised_draws(monkeypatch)
    outcome = run(plan, tmp_path / "run")
    assert outcome.finished
    mechanism = plan.mechanism
    assert mechanism is not None
    assert read_ledger(tmp_path / "run" / "ledger.jsonl")[1] == [
        Entry(0, 1.0, mechanism.noise_multiplier, 1.0)
    ]
    assert 8.0 * 0.998 <= epsilon_pld([Spending(1.0, mechanism.noise_multiplier, 1)], 1e-4) <= 8.0
    assert noised == [(MOMENTS, mechanism.noise_multiplier * 1.0)]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (row["images"], row["epsilon"] <= 8.0) == (50, True)
    start = build.initial_params(plan, (tmp_path / "run" / "checkpoints" / "secret.key").read_bytes())
    assert moved_and_kept(outcome.params, start) == ({"head"}, set(start["params"]) - {"head"})


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_a_step_sums_what_is_clipped_as_configured_and_takes_the_direction(
    config: Experiment, tiny_store: Store, clipping: str
) -> None:
    privacy = {"clipping": clipping, "stability": 0.5, "l2_clip_norm": 0.05}
    plan = make_plan(changed(config, "privacy", **privacy), tiny_store)
    functions, mechanism = build.step_of(plan), plan.mechanism
    assert mechanism is not None
    assert plan.weights is not None
    start = parameters.random_params(plan.config, bytes(32))
    rows = np.arange(functions.microbatch_size)
    batch = {
        "image": plan.split.read(rows)[:, None],
        "label": plan.split.labels[rows][:, None].astype(np.float32),
        "is_image": np.ones((len(rows), 1), bool),
        "is_real": np.ones(len(rows), bool),
    }
    squares = LeastSquares(
        parameters.network_of(plan.config),
        plan.weights,
        (32, 32),
        mechanism,
        stability=0.5 if clipping == "automatic" else None,
    )
    exact, log = jax.jit(squares.summed)(start, batch)
    assert float(log["clipped"]) > len(rows) / 2
    params = functions.replicate(start)
    total, _ = functions.collect(
        functions.accumulate(params, functions.start(params), functions.place(batch))
    )
    step = mechanism.step_size(exact.high)
    for found, wanted in zip(exact_sum.value(total, step), exact_sum.value(exact, step), strict=True):
        np.testing.assert_allclose(
            found, wanted, atol=0.01 * 0.05
        )  # features are rounded otherwise in a microbatch of another size
    lengths = [float(np.sum(np.square(np.asarray(part)))) for part in exact_sum.value(exact, step)]
    assert np.sqrt(sum(lengths)) <= 0.05 * len(rows)
    key = mechanism.noise_key(bytes(32), 0)
    direction = jax.jit(squares.direction)(start, jax.jit(mechanism.release)(exact, key))["params"]["head"]
    head = {name: np.asarray(leaf) for name, leaf in start["params"]["head"].items()}
    state = functions.replicate(build.optimizer_of(plan).init(parameters.trained(plan.config, start)))
    moved, _, finite, _ = functions.finish(
        functions.replicate(jax.tree.map(np.asarray, start)), state, total, key
    )
    assert bool(finite)
    for name, before in head.items():
        after = np.asarray(moved["params"]["head"][name])
        scale = np.abs(direction[name]).max()
        np.testing.assert_allclose(before - after, direction[name], rtol=1e-2, atol=1e-2 * scale)


def test_a_resumed_run_ends_in_the_same_bits(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = make_plan(changed(config, "training", steps=3), tiny_store)
    whole = run(three, tmp_path / "whole")
    original = Mechanism.noise_key

    def noise_key(self: Any, secret: bytes, step: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return original(self, secret, step)

    with monkeypatch.context() as patch:
        patch.setattr(Mechanism, "noise_key", noise_key)
        with pytest.raises(KeyboardInterrupt):
            run(three, tmp_path / "cut")
    assert len(read_ledger(tmp_path / "cut" / "ledger.jsonl")[1]) == 2
    resumed = run(three, tmp_path / "cut", resume=True)
    for u, v in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        assert np.asarray(u).tobytes() == np.asarray(v).tobytes()
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (
        tmp_path / "whole" / "ledger.jsonl"
    ).read_bytes()


def test_discrete_noise_has_a_draw_for_each_moment(
    config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    gaussian = make_plan(config, tiny_store)
    plan = make_plan(changed(config, "privacy", noise="discrete"), tiny_store)
    assert plan.mechanism is not None
    assert plan.mechanism.discrete_coordinates == MOMENTS
    assert run(plan, tmp_path / "run").finished
    assert json.loads((tmp_path / "run" / "run.json").read_text())["discrete_coordinates"] == MOMENTS
    assert dataclasses.replace(plan.mechanism, discrete_coordinates=None) == gaussian.mechanism


@pytest.mark.parametrize(
    "section", [{"unit": "patient", "images_per_patient": 2}, {"clipping": "automatic"}, None]
)
def test_other_units_clippings_and_no_privacy_run(
    config: Experiment, tiny_store: Store, tmp_path: Path, section: dict[str, Any] | None
) -> None:
    if section is None:
        config = dataclasses.replace(config, privacy=None)
    else:
        config = changed(config, "privacy", **section)
        if "unit" in section:
            config = changed(config, "training", expected_batch_size=25)
    outcome = run(make_plan(config, tiny_store), tmp_path / "run")
    assert outcome.finished
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["images"] == 50


def test_nothing_below_the_head_is_differentiated(config: Experiment, tiny_store: Store) -> None:
    """Counted in convolutions of the traced program: one for the images, one for the centre."""
    plan = make_plan(config, tiny_store)
    params = parameters.random_params(plan.config, bytes(32))
    images = plan.split.read(np.arange(2))
    batch = {
        "image": images[:, None],
        "label": plan.split.labels[:2, None],
        "is_image": np.ones((2, 1), bool),
        "is_real": np.ones(2, bool),
    }
    assert plan.weights is not None
    squares = LeastSquares(parameters.network_of(plan.config), plan.weights, (32, 32), plan.mechanism)
    assert str(jax.make_jaxpr(squares.summed)(params, batch)).count("conv_general_dilated[") == 2
