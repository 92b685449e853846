"""NAdam as torch implements it, which is what the paper ran, and the learning-rate schedules."""

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
    learning_rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, momentum_decay: float = 4e-3
) -> optax.GradientTransformation:
    """NAdam (Dozat 2016) with torch's momentum schedule, mu_t = b1 (1 - 0.96^(t psi) / 2), psi = `momentum_decay`.

    optax's variant keeps mu constant; over the paper's run the two differ, so parity with the paper needs this one.
    """

    def init(params: PyTree) -> NAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NAdamState(jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(gradients: PyTree, state: NAdamState, params: PyTree | None = None) -> tuple[PyTree, NAdamState]:
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


def schedule(learning_rate: float, decay: str, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant (`none`) or a cosine to zero at the last step (`cosine`)."""
    after = max(1, steps - warmup_steps)
    main = optax.cosine_decay_schedule(learning_rate, after) if decay == "cosine" else optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return main
    # (k + 1) / (warmup + 1) of the rate at step k: the first step moves too
    first = learning_rate / (warmup_steps + 1)
    return optax.join_schedules([optax.linear_schedule(first, learning_rate, warmup_steps), main], [warmup_steps])
