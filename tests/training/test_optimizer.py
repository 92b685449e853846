from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcxr.training.optimizer import adam_bc, nadam, schedule

SETTINGS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "momentum_decay": 4e-3}


def torch_nadam(
    start: float,
    gradients: np.ndarray,
    rates: np.ndarray,
    b1: float,
    b2: float,
    eps: float,
    momentum_decay: float,
) -> list[float]:
    """One scalar parameter by the formulas of torch's documentation, in float64; its value after each step."""
    parameter, m, v, mu_product = float(start), 0.0, 0.0, 1.0
    path = []
    for t, (g, rate) in enumerate(zip(gradients.tolist(), rates.tolist(), strict=True), start=1):
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        mu_product *= mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        denominator = (v / (1 - b2**t)) ** 0.5 + eps
        parameter -= rate * (1 - mu) / (1 - mu_product) * g / denominator
        parameter -= rate * mu_next / (1 - mu_product * mu_next) * m / denominator
        path.append(parameter)
    return path


def run(optimizer: optax.GradientTransformation, start: Any, gradients: list[Any]) -> list[Any]:
    params, state, path = start, optimizer.init(start), []
    update = jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, {"b1": 0.5, "b2": 0.9, "eps": 0.1, "momentum_decay": 0.3}],
    ids=["defaults", "strong"],
)
def test_fifty_steps_are_torchs(settings: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    gradients = (rng.normal(size=(50, 4)) * [1e-3, 0.1, 1.0, 30.0] + [0, 0.05, -1, 0]).astype(np.float32)
    start = np.asarray([0.5, -1, 2, 0], np.float32)
    found = np.stack(run(nadam(1e-2, **settings), jnp.asarray(start), list(jnp.asarray(gradients))))
    expected = np.stack(
        [torch_nadam(s, g, np.full(50, 1e-2), **settings) for s, g in zip(start, gradients.T, strict=True)],
        axis=1,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_torchs() -> None:
    gradients = np.random.default_rng(1).normal(size=20).astype(np.float32)
    found = run(nadam(1e-2), jnp.float32(0), list(jnp.asarray(gradients)))
    np.testing.assert_allclose(
        found, torch_nadam(0, gradients, np.full(20, 1e-2), **SETTINGS), rtol=1e-5, atol=1e-6
    )


def test_first_step_in_closed_form() -> None:
    # m = 0.1 g and sqrt(v / (1 - b2)) = |g|: the step is rate x sign(g) x (1 + 0.1 mu_2 / (1 - mu_1 mu_2)),
    # with mu_1 = 0.450073 and mu_2 = 0.450147
    step = run(nadam(0.01), jnp.zeros(3), [jnp.asarray([5.0, -0.02, 0.0])])[0]
    np.testing.assert_allclose(step, [-0.010564518, 0.010564518, 0.0], rtol=1e-5)


def test_rates_follow_the_schedule_from_step_zero() -> None:
    gradients, rates = np.ones(5, np.float32), np.asarray([0.5, 0.1, 0.3, 0.0, 0.2])
    table = jnp.asarray(rates, jnp.float32)
    found = run(nadam(lambda count: table[count]), jnp.float32(0), list(jnp.asarray(gradients)))
    np.testing.assert_allclose(found, torch_nadam(0, gradients, rates, **SETTINGS), rtol=1e-5)


def test_it_is_not_optaxs_nadam() -> None:
    gradients = list(jnp.asarray(np.random.default_rng(2).normal(size=10).astype(np.float32)))
    ours, theirs = (
        run(nadam(0.01), jnp.float32(0), gradients),
        run(optax.nadam(0.01), jnp.float32(0), gradients),
    )
    assert abs(float(ours[-1] - theirs[-1])) > 1e-3


def test_each_leaf_goes_its_own_way() -> None:
    rng = np.random.default_rng(3)
    gradients = [
        {"a": jnp.asarray(rng.normal(size=2)), "b": {"c": jnp.asarray(rng.normal(size=(2, 2)))}}
        for _ in range(3)
    ]
    together = run(nadam(0.1), jax.tree.map(jnp.zeros_like, gradients[0]), gradients)[-1]
    alone = run(nadam(0.1), jnp.zeros((2, 2)), [g["b"]["c"] for g in gradients])[-1]
    np.testing.assert_allclose(together["b"]["c"], alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "warmup", "values"),
    [
        ("none", 0, {0: 0.1, 10: 0.1, 24: 0.1}),
        ("cosine", 0, {0: 0.1, 6: 0.1 * (1 + np.cos(np.pi / 4)) / 2, 12: 0.05, 24: 0.0}),
        ("none", 4, {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 24: 0.1}),
        ("cosine", 4, {0: 0.02, 3: 0.08, 4: 0.1, 9: 0.1 * (1 + np.cos(np.pi / 4)) / 2, 14: 0.05, 24: 0.0}),
    ],
)
def test_schedule(decay: str, warmup: int, values: dict[int, float]) -> None:
    rate = schedule(0.1, decay, warmup, steps=24)
    assert {k: float(np.asarray(rate(k))) for k in values} == pytest.approx(values, rel=1e-5, abs=1e-8)


def test_no_step_of_a_cosine_run_is_idle() -> None:
    rate = schedule(0.1, "cosine", 4, steps=24)
    assert all(float(np.asarray(rate(k))) > 0 for k in range(24))


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_adam_bc_is_numpys(floor: float) -> None:
    """The first coordinate's gradient is far above the noise, the second's far below, where the floor holds."""
    noise = 0.5
    rng = np.random.default_rng(0)
    gradients = (rng.normal(size=(40, 3)) * noise + [5.0, 0.01, 0.4]).astype(np.float32)
    found = np.stack(run(adam_bc(0.1, noise, floor=floor), jnp.zeros(3), list(jnp.asarray(gradients))))
    x, m, v, expected, held = np.zeros(3), np.zeros(3), np.zeros(3), [], []
    for t, g in enumerate(gradients.astype(np.float64), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        own = v / (1 - 0.999**t) - noise**2
        held.append(own < floor * noise**2)
        x = x - 0.1 * (m / (1 - 0.9**t)) / np.sqrt(np.maximum(own, floor * noise**2))
        expected.append(x)
    assert np.any(held)
    assert not np.all(held)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_adam_bc_steps_by_the_gradient_where_adam_steps_by_the_noise() -> None:
    """Two coordinates with gradients 1 and 0.5 below noise 3: Adam's mean steps keep their ratio, AdamBC's are both the rate."""
    rng = np.random.default_rng(1)
    gradients = list(jnp.asarray((3 * rng.normal(size=(20_000, 2)) + [3.0, 1.5]).astype(np.float32)))
    gradients = [jnp.mean(jnp.stack(gradients[i : i + 10]), axis=0) for i in range(0, 20_000, 10)]
    deviation = 3 / np.sqrt(10)
    steps = {}
    for name, optimizer in (("adam", optax.adam(1e-3)), ("adam_bc", adam_bc(1e-3, deviation))):
        path = np.stack(run(optimizer, jnp.zeros(2), gradients))
        steps[name] = -(path[-1] - path[999]) / 1000
    assert steps["adam_bc"][1] / steps["adam_bc"][0] == pytest.approx(1, abs=0.15)
    assert steps["adam"][1] / steps["adam"][0] < 0.9
