"""Random arrays, and a function beside its gradients, for the tests of layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain_convolution(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """One map through XLA's convolution, which knows nothing of small maps or copies."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=dimensions,
        precision="highest",
    )[0]


def output_and_gradients(function: Any, *arguments: Any, cotangent: Any = None) -> tuple[np.ndarray, ...]:
    """Output, and the gradients of its inner product with `cotangent` (or fixed random numbers) with respect to all arguments."""

    def both(*arguments: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(function, *arguments)
        return y, *pull(normal(99, *y.shape) if cotangent is None else cotangent)

    return tuple(np.asarray(a) for a in jax.jit(both)(*arguments))


def assert_all_close(
    found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        np.testing.assert_allclose(f, e, rtol=rtol, atol=atol)
