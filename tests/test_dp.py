"""The public functions for models and loops of one's own."""

import dataclasses
import doctest
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxcxr import accounting, dp
from jaxcxr.accounting import Spending
from jaxcxr.records.ledger import read_ledger

pytestmark = pytest.mark.usefixtures("quick_compilation")

DOCS = Path(__file__).parents[1] / "docs"
N, BATCH, STEPS, CLIP = 200, 40, 3, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 6)).astype(np.float32), RNG.integers(0, 3, N)
PLAN = dp.calibrate(
    epsilon=4.0,
    delta=1e-3,
    n_units=N,
    expected_batch_size=BATCH,
    steps=STEPS,
    l2_clip_norm=CLIP,
    rule=dp.Flat(),
)


def error(logits: Any, label: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def linear(params: Any, example: Any) -> Any:
    return error(example[0] @ params["w"] + params["b"], example[1])


def start() -> Any:
    return {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}


def test_the_pages_example_runs_as_it_stands_and_is_short() -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "own_models.md").read_text(encoding="utf-8"), flags=re.S
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    names: dict[str, Any] = {}
    exec(code, names)  # the page's own words
    assert names["gradients"].epsilon().upper <= 3
    assert len(names["gradients"].entries) == 20


def test_docstrings_say_what_happens() -> None:
    assert doctest.testmod(dp).failed == 0
    assert doctest.testmod(dp).attempted > 0


def linen() -> Any:
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), X[0])
    return params, lambda params, example: error(model.apply(params, example[0]), example[1])


def from_nnx() -> Any:
    graph, state = nnx.split(nnx.Linear(6, 3, rngs=nnx.Rngs(0)))
    return state, lambda state, example: error(nnx.merge(graph, state)(example[0]), example[1])


def from_equinox() -> Any:
    arrays, rest = eqx.partition(eqx.nn.Linear(6, 3, key=jax.random.key(0)), eqx.is_inexact_array)
    return arrays, lambda arrays, example: error(eqx.combine(arrays, rest)(example[0]), example[1])


@pytest.mark.parametrize("make", [linen, from_nnx, from_equinox])
def test_a_loop_of_ones_own_with_any_library(make: Any) -> None:
    params, loss = make()
    gradients = PLAN.gradients(loss, (X, Y), microbatch_size=16)
    optimizer = optax.sgd(0.1)
    state = optimizer.init(params)
    for step in range(STEPS):
        gradient = gradients(params)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        m = PLAN.mechanism
        assert gradients.epsilon() == accounting.epsilon_bounds(
            [Spending(m.sample_rate, m.noise_multiplier, step + 1)], m.delta
        )
    assert gradients.epsilon().upper <= 4
    with pytest.raises(ValueError, match="steps: all 3 of the plan are spent"):
        gradients(params)


def quiet(**changed: Any) -> dp.Plan:
    """A plan with hardly any noise, to see what is summed."""
    return dataclasses.replace(
        PLAN, mechanism=dataclasses.replace(PLAN.mechanism, noise_multiplier=1e-6, **changed)
    )


@jax.jit
def clipped_by_jax_privacy(clip_to: Any, is_drawn: Any) -> Any:
    """The sum over the drawn of all N: one compilation for all batches."""
    clipped = jax_privacy.clipped_grad(linear, l2_clip_norm=clip_to, batch_argnums=1, keep_batch_dim=False)
    return clipped(start(), (jnp.asarray(X), jnp.asarray(Y)), is_padding_example=~is_drawn)


def drawn_mean(gradients: dp.PrivateGradients, step: int) -> Any:
    """What the first step's gradient is without noise, by jax-privacy's clipping."""
    drawn = gradients.plan.mechanism.draw(gradients._secret, step, N)
    assert 10 < len(drawn) < 100
    clip_to = gradients.plan.mechanism.clip_to  # less what is kept free for rounding
    return jax.tree.map(lambda g: g / BATCH, clipped_by_jax_privacy(clip_to, np.isin(np.arange(N), drawn)))


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(f, e, atol=tolerance)


@pytest.mark.parametrize(("devices", "size"), [(1, 16), (2, 16), (1, 128), (2, 7)])
def test_a_gradient_is_that_of_the_drawn_examples_clipped(devices: int, size: int) -> None:
    gradients = quiet().gradients(linear, (X, Y), size, jax.local_devices()[:devices])
    for step in range(2):
        assert_near(gradients(start()), drawn_mean(gradients, step), 2e-6)


def test_discrete_noise_has_the_same_mean() -> None:
    plan = dataclasses.replace(
        PLAN, noise="discrete", mechanism=dataclasses.replace(PLAN.mechanism, noise_multiplier=0.5)
    )
    gradients = plan.gradients(linear, (X, Y), 4)
    found, expected = gradients(start()), drawn_mean(gradients, 0)
    assert_near(found, expected, 6 * 0.5 * CLIP / BATCH)
    assert (
        max(
            float(jnp.abs(f - e).max())
            for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        )
        > 1e-5
    )


def test_noise_has_its_deviation_and_never_comes_twice() -> None:
    wide = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3), "unused": jnp.zeros(20_000)}
    one, other = (PLAN.gradients(lambda p, e: linear(p, e) + 0.0 * p["unused"][0], (X, Y)) for _ in range(2))
    draws = [one(wide)["unused"], one(wide)["unused"], other(wide)["unused"]]
    deviation = PLAN.mechanism.noise_multiplier * CLIP / BATCH
    for draw in draws:
        assert float(jnp.std(draw)) == pytest.approx(deviation, rel=0.03)
    correlation = np.corrcoef(np.stack(draws)) - np.eye(3)
    assert np.abs(correlation).max() < 0.03


def test_one_step_as_a_pure_function_and_in_optaxs_shape() -> None:
    key, real = jnp.asarray(PLAN.mechanism.noise_key(bytes(32), 0)), jnp.arange(8) < 6
    batch = (jnp.asarray(X[:8]), jnp.asarray(Y[:8]))
    expected = jax.jit(lambda p: dp.noised_gradient(linear, p, batch, real, PLAN.mechanism, key))(start())
    optimizer = optax.chain(dp.privately(linear, PLAN.mechanism), optax.sgd(1.0))
    updates, state = jax.jit(optimizer.update)(batch, optimizer.init(start()), start(), is_real=real, key=key)
    assert_near(updates, jax.tree.map(jnp.negative, expected), 1e-6)
    assert int(state[0].made) == 1  # type: ignore[index]
    with pytest.raises(ValueError, match="expected Gaussian noise"):
        dp.noised_gradient(
            linear, start(), batch, real, dataclasses.replace(PLAN.mechanism, discrete_coordinates=21), key
        )


ADAPTIVE = dp.calibrate(
    epsilon=4.0,
    delta=1e-3,
    n_units=N,
    expected_batch_size=BATCH,
    steps=STEPS,
    l2_clip_norm=CLIP,
    rule=dp.Adaptive(0.9),
)


@pytest.mark.parametrize("noise", ["gaussian", "discrete"])
def test_a_clip_norm_that_adapts_costs_nothing_and_goes_on_where_it_was_left(noise: Any) -> None:
    assert ADAPTIVE.mechanism == dataclasses.replace(PLAN.mechanism, rule=dp.Adaptive(0.9))
    plan = dataclasses.replace(ADAPTIVE, noise=noise)
    whole, broken = (plan.gradients(linear, (X, Y), size) for size in (8, 4))
    broken._secret = whole._secret
    norms = [whole.clip_norm]
    for _ in range(STEPS):
        whole(start())
        norms.append(whole.clip_norm)
    assert len(set(norms)) == STEPS + 1
    assert whole.epsilon() == accounting.epsilon_bounds(
        [Spending(plan.mechanism.sample_rate, PLAN.mechanism.noise_multiplier, STEPS)], 1e-3
    )
    broken(start())
    assert broken.clip_norm == norms[1]  # the count is exact, however the batch is cut
    again = plan.gradients(linear, (X, Y), 4)
    again._secret, again.entries, again.clipping = whole._secret, broken.entries, broken.clipping
    again(start())
    again(start())
    assert again.clip_norm == norms[3]


def test_the_state_of_a_clip_rule_is_the_loops_own() -> None:
    mechanism = ADAPTIVE.mechanism
    key, real = jnp.asarray(mechanism.noise_key(bytes(32), 0)), jnp.arange(8) < 6
    batch = (jnp.asarray(X[:8]), jnp.asarray(Y[:8]))
    step = jax.jit(lambda p, state: dp.noised_step(linear, p, batch, real, mechanism, key, state))
    gradient, state = step(start(), mechanism.start())
    assert float(state) not in (0.0, 1.0)
    optimizer = dp.privately(linear, mechanism)
    first, made = jax.jit(optimizer.update)(batch, optimizer.init(start()), start(), is_real=real, key=key)
    assert_near(first, gradient, 1e-6)
    assert float(made.clipping) == pytest.approx(float(state), rel=1e-6)  # type: ignore[attr-defined]
    other, _ = step(start(), state)  # the same batch and noise
    scale = float(state) * CLIP
    assert any(
        float(jnp.abs(o - g).max()) > 1e-3 * scale
        for o, g in zip(*map(jax.tree.leaves, (other, gradient)), strict=True)
    )
    with pytest.raises(ValueError, match="expected a clip rule without a state, found one that adapts"):
        dp.noised_gradient(linear, start(), batch, real, mechanism, key)


def test_every_step_is_in_the_ledger(tmp_path: Path) -> None:
    gradients = PLAN.gradients(linear, (X, Y), ledger=tmp_path / "ledger.jsonl")
    gradients(start())
    gradients(start())
    terms, entries = read_ledger(tmp_path / "ledger.jsonl")
    assert (terms.unit, terms.dataset_size) == ("example", N)
    assert list(entries) == gradients.entries == [PLAN.mechanism.entry(0), PLAN.mechanism.entry(1)]
    with pytest.raises(ValueError, match="ledger"):
        PLAN.gradients(linear, (X, Y), ledger=tmp_path / "ledger.jsonl")  # of another run


def test_what_cannot_be_is_refused_by_name() -> None:
    budget: Any = {
        "epsilon": 1.0,
        "delta": 1e-4,
        "n_units": N,
        "expected_batch_size": 10,
        "steps": 5,
        "l2_clip_norm": 1.0,
    }
    for changed, message in (
        ({"delta": 0.01}, "delta: expected less than 1/N = 0.005, found 0.01"),
        ({"expected_batch_size": 201}, "expected_batch_size: expected 1 to N = 200, found 201"),
        ({"epsilon": -1.0}, "epsilon: expected a positive number"),
        ({"l2_clip_norm": 0.0}, "l2_clip_norm: expected at least 1e-06, found 0.0"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.calibrate(**budget | changed)
    with pytest.raises(ValueError, match=r"lengths \[199, 200\]"):
        PLAN.gradients(linear, (X[1:], Y))
    with pytest.raises(ValueError, match="microbatch_size: expected at least 1"):
        PLAN.gradients(linear, (X, Y), microbatch_size=0)
    few = dataclasses.replace(
        PLAN, mechanism=dataclasses.replace(PLAN.mechanism, n_units=2, expected_batch_size=2)
    )
    with pytest.raises(ValueError, match="n_units: at a declared N of 2 a step drew 200 units"):
        few.gradients(linear, (X, Y))(start())
