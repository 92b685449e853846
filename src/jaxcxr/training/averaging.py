"""Averages of the weights over the steps, for prediction and release instead of the noisier last ones.

Averaging is post-processing of the released gradients, hence free of privacy cost. The average is part of the
optimiser's state, so that a checkpoint holds it and a resumed run continues it bit for bit.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxcxr.models.trainable import join


class AveragedState(NamedTuple):
    """Step count, average of the trained parameters, and the state of the optimiser itself."""

    steps: Int[Array, ""]
    average: PyTree
    inner: Any


def with_ema(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """`inner` with an exponential moving average: after step t, average = d average + (1 - d) parameters.

    d = min(decay, t / (t + 9)), so that the starting weights are soon forgotten (De et al. 2022, arXiv
    2204.13650).
    """

    def kept(t: Float[Array, ""]) -> Any:
        return jnp.minimum(decay, t / (t + 9.0))

    return _averaged(inner, kept)


def with_tail(inner: optax.GradientTransformation, share: float, steps: int) -> optax.GradientTransformation:
    """`inner` with the mean of the parameters after each of the last ceil(share * steps) of `steps` steps.

    Before those steps the average is the parameters themselves, so that a run that stops early gives its last
    weights. Source: Shejwalkar et al. 2022, arXiv 2210.01864.
    """
    before = steps - math.ceil(share * steps)

    def kept(t: Float[Array, ""]) -> Any:
        counted = jnp.maximum(t - before, 1.0)
        return 1.0 - 1.0 / counted

    return _averaged(inner, kept)


def _averaged(inner: optax.GradientTransformation, kept: Any) -> optax.GradientTransformation:
    """`inner` that also keeps average = kept(t) average + (1 - kept(t)) parameters; same updates."""

    def init(params: PyTree) -> AveragedState:
        return AveragedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), inner.init(params))

    def update(gradients: PyTree, state: AveragedState, params: PyTree) -> tuple[PyTree, AveragedState]:
        updates, inner_state = inner.update(gradients, state.inner, params)
        moved = optax.apply_updates(params, updates)
        steps = state.steps + 1
        d = kept(steps.astype(jnp.float32))
        average: Any = jax.tree.map(lambda a, p: a + (1.0 - d) * (p - a), state.average, moved)
        return updates, AveragedState(steps, average, inner_state)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def weights_to_use(state: Mapping[str, PyTree]) -> PyTree:
    """The weights to use from a checkpoint (`params` and `optimizer`): the average, if the run keeps one.

    Accepts the state as it was saved, or as orbax restores it without type information.
    """
    optimizer: Any = state["optimizer"]
    average = (
        optimizer.get("average") if isinstance(optimizer, Mapping) else getattr(optimizer, "average", None)
    )
    return state["params"] if average is None else join(average, state["params"])
