"""Winograd's products and the additional row against the plain convolution; shapes on either side of each choice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.per_example import jaxprs, same_convolution
from jaxcxr.per_example.convolutions import Convolution, rule_of
from tests.models.arrays import normal, plain_convolution

ROUNDING = 2e-6
"""Relative L2 distance of two float32 sums of a few hundred products."""
WIDE, NARROW = 128, 20


def rule(x: Any, kernel: Any, stride: int, padding: int, dtype: Any = jnp.float32) -> Convolution:
    """The rule of a convolution of these shapes."""
    arguments = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
    program = jaxprs.trace(lambda x, k: plain_convolution(x, k, stride, padding), *arguments)
    (found,) = (rule_of(e, 1) for e in program.jaxpr.eqns if e.primitive is jax.lax.conv_general_dilated_p)
    assert found is not None
    return found


def maps(x: Any, kernel: Any) -> Any:
    return jax.vmap(lambda one: plain_convolution(one, kernel, 1, 1))(x)


def assert_near(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= ROUNDING * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("h", "w", "channels"),
    [(4, 6, WIDE), pytest.param(8, 4, WIDE, marks=pytest.mark.thorough), (5, 7, NARROW), (6, 8, NARROW)],
)
def test_it_is_the_plain_convolution_and_its_gradients(h: int, w: int, channels: int) -> None:
    x, kernel, dy = (
        normal(0, 3, h, w, channels),
        normal(1, 3, 3, channels, channels + 1),
        normal(2, 3, h, w, channels + 1),
    )
    assert same_convolution.serves(rule(x.shape[1:], kernel.shape, 1, 1).shape, x.dtype)

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
    x, kernel = (
        rng.normal(size=(2, 8, 8, WIDE)) + 3.0,
        rng.normal(size=(3, 3, WIDE, WIDE)),
    )  # a mean beside the spread
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    errors = [
        np.linalg.norm(np.asarray(f(x, kernel), np.float64) - exact)
        for f in (same_convolution.convolve, maps)
    ]
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
    assert not same_convolution.serves(rule(x, kernel, stride, padding).shape, jnp.float32)


def test_it_is_used_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(
        same_convolution,
        "convolve",
        lambda x, kernel: taken.append(x.dtype) or plain_convolution(x[0], kernel, 1, 1)[None],
    )
    for dtype in (jnp.float32, jnp.bfloat16):
        x, kernel = normal(0, 1, 4, 4, WIDE).astype(dtype), normal(1, 3, 3, WIDE, WIDE).astype(dtype)
        rule(x.shape[1:], kernel.shape, 1, 1, dtype).apply(x, kernel)
    assert taken == [jnp.float32]
