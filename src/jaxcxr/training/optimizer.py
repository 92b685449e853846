"""NAdam as in torch (the paper's optimiser), DP-AdamBC, and learning-rate schedules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class NAdamState(NamedTuple):
    """Step count, product of the momentum coefficients so far, and the two moments."""

    steps: Int[Array, ""]
    momentum_product: Float[Array, ""]
    first: PyTree
    second: PyTree


def nadam(
    learning_rate: float | optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
) -> optax.GradientTransformation:
    """NAdam (Dozat 2016) with torch's schedule, mu_t = b1 (1 - 0.96^(t psi) / 2), psi = `momentum_decay`.

    optax's variant keeps mu constant; over the paper's run the two differ, so parity with the paper needs
    this one.
    """

    def init(params: PyTree) -> NAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NAdamState(
            jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), zeros, jax.tree.map(jnp.zeros_like, params)
        )

    def update(
        gradients: PyTree, state: NAdamState, params: PyTree | None = None
    ) -> tuple[PyTree, NAdamState]:
        del params
        steps = state.steps + 1
        t = steps.astype(jnp.float32)
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = state.momentum_product * mu
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradients)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, gradients)
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        from_gradient = rate * (1 - mu) / (1 - product)
        from_momentum = rate * mu_next / (1 - product * mu_next)
        correction = 1 - b2**t

        def step(g: Any, m: Any, v: Any) -> Any:
            return -(from_gradient * g + from_momentum * m) / (jnp.sqrt(v / correction) + eps)

        return jax.tree.map(step, gradients, first, second), NAdamState(steps, product, first, second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


class AdamState(NamedTuple):
    """Step count and the two moments."""

    steps: Int[Array, ""]
    first: PyTree
    second: PyTree


def adam_bc(
    learning_rate: float | optax.Schedule,
    noise_stddev: float,
    b1: float = 0.9,
    b2: float = 0.999,
    floor: float = 0.1,
) -> optax.GradientTransformation:
    """DP-AdamBC: Adam with the noise's known variance subtracted from the second moment.

    Source: Tang et al. 2024, arXiv 2312.14334, Algorithm 1.

    Step: -rate m_hat / sqrt(max(v_hat - noise_stddev^2, floor * noise_stddev^2)). If the gradient is far
    below the noise, Adam's denominator is the noise's standard deviation, the same for all coordinates; with
    the correction it is the gradient's own scale. The paper's floor is absolute and tuned; here it is a share
    of the noise's variance, so that it means the same at every budget: with 0.1 a step is at most sqrt(10)
    times Adam's.

    Args:
        learning_rate: a number or a schedule.
        noise_stddev: standard deviation of the noise in each coordinate of the released gradient.
        b1: decay of the first moment.
        b2: decay of the second moment.
        floor: smallest squared denominator, in units of the noise's variance.
    """
    variance = noise_stddev**2

    def init(params: PyTree) -> AdamState:
        return AdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(gradients: PyTree, state: AdamState, params: PyTree | None = None) -> tuple[PyTree, AdamState]:
        del params
        steps = state.steps + 1
        t = steps.astype(jnp.float32)
        first: Any = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradients)
        second: Any = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, gradients)
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate

        def step(m: Any, v: Any) -> Any:
            own = jnp.maximum(v / (1 - b2**t) - variance, floor * variance)
            return -(rate * (m / (1 - b1**t))) / jnp.sqrt(own)

        return jax.tree.map(step, first, second), AdamState(steps, first, second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def schedule(learning_rate: float, decay: str, warmup_steps: int, steps: int) -> optax.Schedule:
    """A schedule: linear warm-up, then constant (`none`) or a cosine to zero at the last step (`cosine`)."""
    after = max(1, steps - warmup_steps)
    main = (
        optax.cosine_decay_schedule(learning_rate, after)
        if decay == "cosine"
        else optax.constant_schedule(learning_rate)
    )
    if not warmup_steps:
        return main
    # (k + 1) / (warmup + 1) of the rate at step k: the first step moves too
    first = learning_rate / (warmup_steps + 1)
    return optax.join_schedules(
        [optax.linear_schedule(first, learning_rate, warmup_steps), main], [warmup_steps]
    )
