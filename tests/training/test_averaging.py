from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxcxr import inference
from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.records.ledger import read_ledger
from jaxcxr.training import build, loop, parameters
from jaxcxr.training.averaging import weights_to_use, with_ema, with_tail
from jaxcxr.training.plan import RunPlan, make_plan
from tests.conftest import changed, declared
from tests.training.parts import Tiny
from tests.training.tiny import MAKE_NETWORK


def path_of(optimizer: optax.GradientTransformation, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameter and average after each of some steps with random gradients."""
    gradients = np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)
    params = {"a": jnp.asarray([5.0, -3.0, 0.5])}
    state: Any = optimizer.init(params)
    parameters, averages = [], []
    for g in gradients:
        updates, state = jax.jit(optimizer.update)({"a": jnp.asarray(g)}, state, params)
        params = cast(Any, optax.apply_updates(params, updates))
        parameters.append(np.asarray(params["a"]))
        averages.append(np.asarray(state.average["a"]))
    return np.stack(parameters), np.stack(averages)


def test_ema_is_numpys() -> None:
    parameters, found = path_of(with_ema(optax.sgd(0.3), 0.8), 60)
    average, expected = np.asarray([5.0, -3.0, 0.5]), []
    for t, p in enumerate(parameters.astype(np.float64), start=1):
        d = min(0.8, t / (t + 9))
        average = d * average + (1 - d) * p
        expected.append(average)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("share", "counted"), [(0.5, 5), (0.25, 3), (1.0, 10), (1e-6, 1)])
def test_tail_is_the_mean_of_the_last_parameters(share: float, counted: int) -> None:
    parameters, found = path_of(with_tail(optax.sgd(0.3), share, 10), 10)
    np.testing.assert_allclose(found[-1], parameters[-counted:].mean(axis=0), rtol=1e-5)
    for step in range(10 - counted):  # a run that stops early gives its last weights
        np.testing.assert_array_equal(found[step], parameters[step])


def test_the_optimiser_itself_moves_as_without_an_average() -> None:
    plain = optax.adam(0.1)
    params = {"a": jnp.asarray([5.0, -3.0, 0.5])}
    alone, state = [], plain.init(params)
    for g in np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32):
        updates, state = jax.jit(plain.update)({"a": jnp.asarray(g)}, state, params)
        params = cast(Any, optax.apply_updates(params, updates))
        alone.append(np.asarray(params["a"]))
    np.testing.assert_array_equal(path_of(with_ema(plain, 0.9), 20)[0], np.stack(alone))


def test_which_weights_are_used() -> None:
    params = {"params": {"trunk": {"kernel": np.ones(2)}, "head": {"kernel": np.zeros(2)}}}
    average = {"params": {"head": {"kernel": np.full(2, 0.5)}}}
    used = weights_to_use({"params": params, "optimizer": {"average": average, "inner": {}}})
    np.testing.assert_array_equal(used["params"]["head"]["kernel"], [0.5, 0.5])
    np.testing.assert_array_equal(used["params"]["trunk"]["kernel"], [1, 1])
    assert weights_to_use({"params": params, "optimizer": {"first": {}}}) is params


@pytest.fixture(scope="module")
def plan(tiny_config: Experiment, tiny_store: Store, tiny_plan: RunPlan) -> RunPlan:
    config = changed(
        tiny_config, "training", scope="head", averaging="ema", learning_rate=0.05, **declared(tiny_plan)
    )
    return make_plan(changed(config, "privacy", noise_multiplier=2.0), tiny_store)


def test_a_resumed_average_is_the_uninterrupted_one_and_is_what_is_used(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MAKE_NETWORK, lambda *_: Tiny(3))
    functions = build.step_of(plan)
    monkeypatch.setattr(build, "step_of", lambda _: functions)
    whole = loop.train(plan, tmp_path / "whole", progress=False)
    assert plan.mechanism is not None
    original = type(plan.mechanism).noise_key

    def noise_key(self: Any, secret: bytes, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return original(self, secret, step)

    with monkeypatch.context() as patch:
        patch.setattr(type(plan.mechanism), "noise_key", noise_key)
        with pytest.raises(KeyboardInterrupt):
            loop.train(plan, tmp_path / "cut", progress=False)
    resumed = loop.train(plan, tmp_path / "cut", resume=True, progress=False)
    assert len(read_ledger(tmp_path / "cut" / "ledger.jsonl")[1]) == 6
    head, again = (np.asarray(outcome.params["params"]["head"]["kernel"]) for outcome in (whole, resumed))
    assert head.tobytes() == again.tobytes()
    # what a checkpoint stands for is the average, for whoever reads it, and not the last weights
    checkpoints = tmp_path / "cut" / "checkpoints"
    read: Any = inference._from_checkpoint(checkpoints, resumed.params)
    assert np.asarray(read["params"]["head"]["kernel"]).tobytes() == head.tobytes()
    with ocp.StandardCheckpointer() as checkpointer:
        last: Any = checkpointer.restore((checkpoints / "6" / "default").resolve())["params"]
    assert not np.allclose(last["params"]["head"]["kernel"], head, rtol=1e-3)
    released: Any = weights_to_use(
        {"params": last, "optimizer": {"average": parameters.trained(plan.config, read)}}
    )
    assert np.asarray(released["params"]["head"]["kernel"]).tobytes() == head.tobytes()
