from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.per_example import convolutions, jaxprs
from jaxcxr.per_example.convolutions import (
    Convolution,
    convolve_small,
    is_small,
    kernel_gradient,
    kernel_gradients,
    patches_are_small,
    rule_of,
)
from jaxcxr.per_example.geometry import Geometry, convolve, convolve_transposed, patch_gram, rows
from tests.models.arrays import assert_all_close, normal, output_and_gradients, plain_convolution


def rule_for(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int, dtype: Any = jnp.float32
) -> Convolution:
    """The rule of a convolution of one map."""
    arguments = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
    program = jaxprs.trace(lambda x, w: plain_convolution(x, w, stride, padding), *arguments)
    (found,) = (rule_of(e, 1) for e in program.jaxpr.eqns if e.primitive is jax.lax.conv_general_dilated_p)
    assert found is not None
    return found


def shape_of(x: tuple[int, ...], k: int, stride: int, padding: int) -> Geometry:
    return rule_for(x, (k, k, x[-1], 1), stride, padding).shape


@pytest.mark.parametrize(
    ("height", "width", "k", "stride", "padding"),
    [
        (1, 1, 3, 1, 1),
        (2, 2, 3, 1, 1),
        (2, 2, 3, 2, 1),
        (4, 4, 3, 1, 1),
        (4, 4, 3, 2, 1),
        (3, 4, 3, 2, 1),
        (4, 2, 3, 1, 1),
        (4, 4, 3, 1, 0),  # no padding: every place of the window is on the map
        (5, 5, 3, 1, 1),  # one more than SMALL_MAP
        (4, 6, 3, 2, 1),  # one side small, the other not
        (2, 2, 1, 2, 0),  # the shortcut's
        (9, 8, 7, 2, 3),  # the first layer's
    ],
)
def test_a_rules_convolution_is_the_plain_one(
    height: int, width: int, k: int, stride: int, padding: int
) -> None:
    x, kernel = normal(0, height, width, 3), normal(1, k, k, 3, 5)
    rule = rule_for(x.shape, kernel.shape, stride, padding)
    assert is_small(rule.shape) == (k > 1 and max(height, width) <= convolutions.SMALL_MAP)
    found = output_and_gradients(lambda x: rule.apply(x[None], kernel)[0], x)
    assert_all_close(found, output_and_gradients(lambda x: plain_convolution(x, kernel, stride, padding), x))


def test_small_maps_are_convolved_with_other_edges_too() -> None:
    """As Flax pads them with stride 2: nothing before, a row after."""
    x, kernel = normal(0, 2, 4, 3, 3), normal(1, 3, 3, 3, 5)
    shape = Geometry((4, 3), 3, (3, 3), 5, (2, 2), ((0, 1), (1, 1)), (1, 1), (1, 1), 1, (2, 2))
    found = output_and_gradients(lambda x, w: convolve_small(x, w, shape), x, kernel)

    def plain(x: Any, w: Any) -> Any:
        padding, numbers = ((0, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=numbers)

    assert_all_close(found, output_and_gradients(plain, x, kernel))


PATCHES = pytest.mark.parametrize(
    ("records", "height", "width", "k", "stride", "padding"),
    [
        (1, 4, 4, 3, 1, 1),
        (2, 7, 5, 3, 2, 1),
        (1, 8, 8, 1, 2, 0),
        (2, 6, 7, 5, 2, 2),
        (1, 9, 8, 3, 3, 0),  # no place of the window outside, and a row that no window meets
        (1, 1, 2, 7, 2, 3),  # a window larger than the map
        (3, 6, 6, 2, 3, 0),  # rows and columns that no window meets
    ],
)


def patches(x: Any, k: int, stride: int, padding: int) -> Any:
    """The inputs of each output position, by the indices of what each place of the window meets."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    down, right = ((side - k) // stride + 1 for side in padded.shape[1:3])
    met = [
        padded[:, i : i + stride * (down - 1) + 1 : stride, j : j + stride * (right - 1) + 1 : stride]
        for i in range(k)
        for j in range(k)
    ]
    return np.concatenate(met, axis=-1)


@PATCHES
def test_patches(records: int, height: int, width: int, k: int, stride: int, padding: int) -> None:
    x = normal(0, records, height, width, 3)
    found = rows(x, shape_of(x.shape[1:], k, stride, padding))[:, 0]
    np.testing.assert_array_equal(found, patches(x, k, stride, padding).reshape(found.shape))


@pytest.mark.parametrize(
    ("side", "channels", "k", "stride", "features", "small"),
    [  # layers of the paper's network at 512 pixels, from the first stage to the third, and the first stage at 128
        (128, 64, 3, 1, 64, False),
        (128, 64, 3, 2, 128, True),
        (128, 64, 1, 2, 128, True),
        (64, 128, 3, 1, 128, False),
        (64, 128, 3, 2, 256, True),
        (32, 256, 3, 1, 256, False),
        (32, 64, 3, 1, 64, True),
    ],
)
def test_patches_are_for_small_maps_and_windows_that_overlap_little(
    side: int, channels: int, k: int, stride: int, features: int, small: bool
) -> None:
    shape = rule_for((side, side, channels), (k, k, channels, features), stride, k // 2, jnp.bfloat16).shape
    assert shape.outputs == (side // stride, side // stride)
    assert patches_are_small(shape, 2) == small


@PATCHES
def test_the_gram_matrix_of_patches(
    records: int, height: int, width: int, k: int, stride: int, padding: int
) -> None:
    x = normal(0, records, height, width, 3)
    unfolded = patches(x, k, stride, padding).reshape(-1, k * k * 3)
    found = np.asarray(jax.jit(lambda x: patch_gram(x, shape_of(x.shape[1:], k, stride, padding)))(x))
    np.testing.assert_allclose(found, unfolded @ unfolded.T, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("side", "positions"), [(8, 64), (16, 256)])
def test_the_kernel_gradient_in_parts_is_that_of_all_maps(
    side: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        convolutions, "CPU_POSITIONS", 2 * positions
    )  # two maps a part, the last part one map
    x, dy, kernel = normal(0, 5, side, side, 3), normal(1, 5, side, side, 4), normal(2, 3, 3, 3, 4)

    def summed(kernel: Any) -> Any:
        return sum((plain_convolution(x[i], kernel, 1, 1) * dy[i]).sum() for i in range(5))

    shape = rule_for(x.shape[1:], kernel.shape, 1, 1).shape
    found = jax.jit(lambda x, dy: kernel_gradient(x[None], dy[None], shape))(x, dy)
    np.testing.assert_allclose(found, jax.grad(summed)(kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sides", "window", "strides", "padding", "input_dilation", "window_dilation"),
    [
        ((9,), (3,), (2,), ((2, 0),), (1,), (3,)),
        ((8, 7), (3, 3), (2, 3), ((1, 1), (1, 0)), (1, 1), (1, 1)),  # pixels that no window meets
        ((6, 5), (3, 2), (1, 2), ((-1, 2), (0, -1)), (2, 1), (1, 2)),
        ((4, 5, 3), (2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 2, 1), (2, 1, 1)),
    ],
)
def test_the_transposed_convolution_is_the_transpose(
    sides: Any, window: Any, strides: Any, padding: Any, input_dilation: Any, window_dilation: Any
) -> None:
    outputs = tuple(
        (gap * (side - 1) + 1 + sum(edges) - (gap_of_window * (k - 1) + 1)) // step + 1
        for side, k, step, edges, gap, gap_of_window in zip(
            sides, window, strides, padding, input_dilation, window_dilation, strict=True
        )
    )
    shape = Geometry(sides, 3, window, 5, strides, padding, input_dilation, window_dilation, 1, outputs)
    x, dy = normal(0, 2, *sides, 3), normal(1, 2, *outputs, 5)
    like = jax.ShapeDtypeStruct(shape.kernel_shape, dy.dtype)
    (expected,) = jax.linear_transpose(lambda kernel: convolve(x, kernel, shape), like)(dy)
    np.testing.assert_allclose(convolve_transposed(x, dy, shape), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", [64, 96])
def test_the_program_does_not_grow_with_the_batch(features: int) -> None:
    """Neither for gradients of single examples nor for their sum, whose maps are more than a part."""

    def lines(batch: int) -> int:
        shape = rule_for((64, 64, 64), (3, 3, 64, features), 1, 1).shape
        x, dy = (jax.ShapeDtypeStruct((batch, 1, 64, 64, c), jnp.float32) for c in (64, features))
        both = lambda x, dy: (kernel_gradients(x, dy, shape), kernel_gradient(x, dy, shape))  # noqa: E731
        return len(jax.jit(both).lower(x, dy).as_text().splitlines())

    assert lines(16) == lines(64)  # a turn of the loop takes eight
