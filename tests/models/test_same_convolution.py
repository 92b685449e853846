"""Winograd's products and the additional row against the plain convolution; shapes on either side of each choice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.models import same_convolution
from jaxcxr.models.layers import Conv
from jaxcxr.models.taps import apply_tapped, find_taps
from tests.models.arrays import normal, plain_convolution

ROUNDING = 2e-6
"""Relative L2 distance of two float32 sums of a few hundred products."""
WIDE, NARROW = 128, 20


def maps(x: Any, kernel: Any) -> Any:
    return jax.vmap(lambda one: plain_convolution(one, kernel, 1, 1))(x)


def assert_near(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= ROUNDING * np.linalg.norm(expected)


@pytest.mark.parametrize(("h", "w", "channels"), [(4, 6, WIDE), (8, 4, WIDE), (5, 7, NARROW), (6, 8, NARROW)])
def test_it_is_the_plain_convolution_and_its_gradients(h: int, w: int, channels: int) -> None:
    x, kernel, dy = normal(0, 3, h, w, channels), normal(1, 3, 3, channels, channels + 1), normal(2, 3, h, w, channels + 1)
    assert same_convolution.serves(x.shape, kernel.shape, 1, 1)

    @jax.jit
    def both(x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda x: jax.vmap(lambda one: same_convolution.convolve(one, kernel))(x), x)
        return y, *pull(dy)

    y, pull = jax.vjp(maps, x, kernel)
    dx, dk = pull(dy)
    for found, expected in zip(both(x, dy), (y, dx), strict=True):
        assert_near(found, expected)
    if channels == WIDE:
        assert_near(jax.jit(same_convolution.kernel_gradient)(x, dy), dk)
        assert_near(jax.jit(same_convolution.kernel_gradients)(x[None], dy[None])[0], dk)
        each = jax.jit(same_convolution.kernel_gradients)(x[:, None], dy[:, None])
        for i in range(3):
            assert_near(each[i], jax.vjp(lambda k, i=i: maps(x[i : i + 1], k), kernel)[1](dy[i : i + 1])[0])


def test_rounding_is_that_of_the_plain_convolution() -> None:
    """Against float64, within four times the plain convolution's own error: no digit is lost to the sums and differences."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 8, WIDE)) + 3.0, rng.normal(size=(3, 3, WIDE, WIDE))  # a mean beside the spread
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    errors = [np.linalg.norm(np.asarray(f(x, kernel), np.float64) - exact) for f in (same_convolution.convolve, maps)]
    assert errors[0] <= 4 * errors[1]


def test_maps_with_their_own_kernels_take_the_plain_convolution() -> None:
    x, kernels = normal(0, 2, 4, 4, WIDE), normal(1, 2, 3, 3, WIDE, WIDE)
    found = jax.jit(jax.vmap(same_convolution.convolve))(x, kernels)
    for i in range(2):
        assert_near(found[i], plain_convolution(x[i], kernels[i], 1, 1))


def test_a_kernel_that_is_differentiated_is_refused() -> None:
    x, kernel = normal(0, 4, 4, WIDE), normal(1, 3, 3, WIDE, WIDE)
    with pytest.raises(ValueError, match="takes it for a constant"):
        jax.grad(lambda k: same_convolution.convolve(x, k).sum())(kernel)


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "padding"),
    [
        ((8, 8, 64), (3, 3, 64, 64), 2, 1),
        ((8, 8, 64), (3, 3, 64, 64), 1, 0),
        ((8, 8, 64), (1, 1, 64, 64), 1, 1),
        ((8, 8, 64), (3, 3, 64, 128), 1, 1),  # one side wide, the other narrow
        ((8, 8, 16), (3, 3, 16, 64), 1, 1),
        ((4, 4, 64), (3, 3, 64, 64), 1, 1),  # a small map
        ((2, 2, 128), (3, 3, 128, 128), 1, 1),
        ((7, 8, 128), (3, 3, 128, 128), 1, 1),  # an odd side
    ],
)
def test_other_shapes_are_not_served(x: Any, kernel: Any, stride: int, padding: int) -> None:
    assert not same_convolution.serves(x, kernel, stride, padding)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_tap_of_a_layer_uses_it_in_float32_alone(dtype: Any) -> None:
    layer = Conv(features=WIDE, kernel_size=3, padding=1, dtype=dtype)
    x = normal(0, 4, 4, WIDE)
    (tap,) = find_taps(layer, x)
    assert (tap.apply is same_convolution.convolve) == (dtype == jnp.float32)
    params = layer.init(jax.random.key(0), x)
    y, inputs = apply_tapped(layer, (tap,), params, {(): jnp.ones((4, 4, WIDE), dtype)}, x)
    expected = layer.apply(params, x)
    np.testing.assert_allclose(np.asarray(y - 1, np.float32), np.asarray(expected, np.float32), rtol=0.05, atol=0.05)
    assert inputs[()].dtype == dtype
