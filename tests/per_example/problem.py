"""A loss, its parameters and a batch, with the sums of the package beside their definition."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.per_example import gradients

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling takes most of the time here; the program is the same."""


def filled(like: Any, seed: int = 0, scale: float = 0.4) -> Any:
    """Random numbers in the shapes of `like`, in 64 bits where these are enabled."""
    rng = np.random.default_rng(seed)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), dtype), like)


def error(found: Any, expected: Any) -> float:
    """Largest error of a leaf, in parts of its largest entry or of a hundredth of the largest of all."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    whole = max((float(np.max(np.abs(e), initial=0.0)) for _, e in pairs), default=0.0)
    return max(
        float(np.max(np.abs(np.asarray(f) - np.asarray(e)), initial=0.0))
        / max(float(np.max(np.abs(e), initial=0.0)), 1e-2 * whole, 1e-300)
        for f, e in pairs
    )


def weigh(squared: Any) -> Any:
    """Factors that depend on the norm of the whole gradient, and on the parameter's own."""
    whole = sum(jax.tree.leaves(squared))
    return jax.tree.map(lambda own: 1 / (1 + jnp.sqrt(whole)) + 1 / (2 + jnp.sqrt(own)), squared)


def expected(loss: Callable[[Any, Any], Any], params: Any, examples: Any) -> Any:
    """Each gradient, their squared norms, the weighted and the plain sum, by their definition."""

    @partial(jax.jit, compiler_options=QUICK)
    def reference(params: Any, examples: Any) -> Any:
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, examples)
        squared = jax.tree.map(lambda g: jnp.sum(jnp.square(g).reshape(len(g), -1), axis=1), each)
        weighted = jax.tree.map(lambda f, g: jnp.tensordot(f, g, 1), weigh(squared), each)
        return each, squared, weighted, jax.tree.map(lambda g: g.sum(axis=0), each)

    return reference(params, examples)


def check(
    loss: Callable[[Any, Any], Any],
    params: Any,
    examples: Any,
    tolerance: float = 1e-11,
    reference: Any = None,
) -> dict[str, Any]:
    """That all the package's sums are those of `vmap(grad)` (`reference`, where that has been computed), leaf by leaf; which
    parameters are differentiated directly.
    """

    @partial(jax.jit, compiler_options=QUICK)
    def found(params: Any, examples: Any) -> Any:
        ones = jnp.ones(len(jax.tree.leaves(examples)[0]))
        weighted, _, squared = gradients.weighted_sum(loss, params, examples, weigh)
        each, _ = gradients.each_gradient(loss, params, examples)
        return each, squared, weighted, gradients.plain_sum(loss, params, examples, ones)[0]

    for name, ours, theirs in zip(
        ("each", "squared norms", "weighted sum", "plain sum"),
        found(params, examples),
        expected(loss, params, examples) if reference is None else reference,
        strict=True,
    ):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert error(ours, theirs) <= tolerance, name
    one = jax.tree.map(lambda x: jax.typeof(x[0]), examples)
    return gradients.directly_differentiated(loss, params, one)
