from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.models import convolution
from tests.models.arrays import assert_all_close, normal, output_and_gradients, plain_convolution


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
def test_convolve_is_the_plain_convolution(height: int, width: int, k: int, stride: int, padding: int) -> None:
    x, kernel = normal(0, height, width, 3), normal(1, k, k, 3, 5)
    found = output_and_gradients(lambda x, w: convolution.convolve(x, w, stride, padding), x, kernel)
    expected = output_and_gradients(lambda x, w: plain_convolution(x, w, stride, padding), x, kernel)
    assert_all_close(found, expected)


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
    np.testing.assert_array_equal(convolution.patches(x, k, stride, padding), patches(x, k, stride, padding))


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
    output = jax.ShapeDtypeStruct((side // stride, side // stride, features), jnp.bfloat16)
    assert convolution.patches_are_small((side, side, channels), (k, k, channels, features), output) == small


@PATCHES
def test_the_gram_matrix_of_patches(records: int, height: int, width: int, k: int, stride: int, padding: int) -> None:
    x = normal(0, records, height, width, 3)
    rows = patches(x, k, stride, padding).reshape(-1, k * k * 3)
    found = np.asarray(jax.jit(partial(convolution.patch_gram, k=k, stride=stride, padding=padding))(x))
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("side", [2, 6])
def test_convolve_serves_a_batch(side: int) -> None:
    x, kernel = normal(0, 2, 3, side, side, 2), normal(1, 3, 3, 2, 4)
    found = np.asarray(convolution.convolve(x, kernel, 1, 1))
    assert found.shape == (2, 3, side, side, 4)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(found[i, j], plain_convolution(x[i, j], kernel, 1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "positions"), [(8, 64), (16, 256)])
def test_the_kernel_gradient_in_parts_is_that_of_all_maps(side: int, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "CPU_POSITIONS", 2 * positions)  # two maps a part, the last part one map
    x, dy, kernel = normal(0, 5, side, side, 3), normal(1, 5, side, side, 4), normal(2, 3, 3, 3, 4)

    def summed(kernel: Any) -> Any:
        return sum((plain_convolution(x[i], kernel, 1, 1) * dy[i]).sum() for i in range(5))

    apply = partial(convolution.convolve, stride=1, padding=1)
    found = jax.jit(partial(convolution.kernel_gradient, apply))(kernel, x, dy)
    np.testing.assert_allclose(found, jax.grad(summed)(kernel), rtol=1e-4, atol=1e-4)
