"""3 x 3 convolutions with stride 1 and padding 1, most of the network's arithmetic, quick on a CPU in
float32.

Wide ones take Winograd's F(2 x 2, 3 x 3) (Winograd 1980; Lavin & Gray 2016, arXiv 1509.09308): four
neighbouring outputs need 36 products a pair of channels, but only 16 of sums and differences of their 16
inputs and of the 9 kernel entries. The result is that of the plain convolution to float32 rounding; no factor
but 1/2 occurs.

Narrow ones are computed with one row more than is wanted. XLA gives convolutions to YNNPACK, which runs those
with 64 output channels on one thread, but leaves to Eigen, which uses all threads, those whose output is
larger than their input: 3.7 ms instead of 6.0 for 32 maps of 16 x 16 x 64, 15 instead of 24 for 8 of 64 x 64
x 64 (two cores).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcxr.per_example.geometry import Geometry

Line = Callable[..., Sequence[Any]]
"""A transform along one axis: so many arrays in, so many out."""
WIDE, NARROW = 128, 16
"""Convolutions of at least so many channels are wide; those between (YNNPACK refuses narrower ones) are
narrow.
"""
LEAST_SIDE = 4
"""Narrow convolutions of smaller maps are none of XLA's fast ones."""
BACKWARDS = (3, 1, 2, 0)
"""Order in which `_of_kernel` gives the results of a kernel that is read backwards."""


def _of_kernel(a: Any, b: Any, c: Any) -> Sequence[Any]:
    outer, inner = 0.5 * (a + c), 0.5 * b
    return a, outer + inner, outer - inner, c


def _of_kernel_transposed(p: Any, q: Any, r: Any, s: Any) -> Sequence[Any]:
    inner = 0.5 * (q + r)
    return p + inner, 0.5 * (q - r), inner + s


def _of_inputs(a: Any, b: Any, c: Any, d: Any) -> Sequence[Any]:
    return a - c, b + c, c - b, b - d


def _of_products(p: Any, q: Any, r: Any, s: Any) -> Sequence[Any]:
    return p + q + r, q - r - s


def _of_products_transposed(a: Any, b: Any) -> Sequence[Any]:
    return a, a + b, a - b, -b


def _on_both_axes(line: Line, square: Any) -> list[list[Any]]:
    """The transform of each column of a square of arrays, `square[row][column]`, then of each row of what
    comes out.
    """
    columns = [line(*[row[j] for row in square]) for j in range(len(square[0]))]
    return [list(line(*row)) for row in zip(*columns, strict=True)]


def _stacked(square: Sequence[Sequence[Any]]) -> Any:
    return jnp.stack([square[i][j] for i in range(4) for j in range(4)])


def _square(stacked: Any) -> list[list[Any]]:
    return [[stacked[4 * i + j] for j in range(4)] for i in range(4)]


def _tiles(x: Float[Array, "n h w c"]) -> Float[Array, "16 tiles c"]:
    """The transformed 4 x 4 inputs of each 2 x 2 outputs."""
    _, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    square = [[padded[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)]
    return _stacked(_on_both_axes(_of_inputs, square)).reshape(16, -1, c)


def _kernels(kernel: Float[Array, "3 3 c o"], order: Sequence[int] = range(4)) -> Float[Array, "16 c o"]:
    return _combined(_matrix(_of_kernel, 3, order), kernel.reshape(9, *kernel.shape[2:]))


def _outputs(products: Float[Array, "16 tiles o"], n: int, h: int, w: int) -> Float[Array, "n h w o"]:
    square = _on_both_axes(_of_products, _square(products.reshape(16, n, h // 2, w // 2, -1)))
    return jnp.stack([jnp.stack(row, axis=3) for row in square], axis=2).reshape(n, h, w, -1)


def _products_transposed(dy: Float[Array, "n h w o"]) -> Float[Array, "16 tiles o"]:
    n, h, w, o = dy.shape
    by_place = jnp.transpose(dy.reshape(n, h // 2, 2, w // 2, 2, o), (2, 4, 0, 1, 3, 5))
    return _combined(_matrix(_of_products_transposed, 2), by_place.reshape(4, -1, o))


def _matrix(line: Line, side: int, order: Sequence[int] = range(4)) -> Float[np.ndarray, "16 square"]:
    """The transform of both axes of a square with that side as one matrix, its rows in the given order."""
    of_line = np.stack([np.asarray(v) for v in line(*np.eye(side, dtype=np.float32))])[list(order)]
    return np.kron(of_line, of_line)


def _combined(matrix: Float[np.ndarray, "k q"], arrays: Float[Array, "q a b"]) -> Float[Array, "k a b"]:
    """A transform as one product. As sums each row would be a loop of its own, in which XLA on the CPU
    computes anew what the arrays are made of: processor time of 0.95 and 0.99 of the step at 64 px x 32 and
    256 px x 8 so, and 2 of 15 s less to compile it.
    """
    return jnp.einsum("kq,qab->kab", matrix, arrays, precision="highest")


def _forward(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"]) -> Float[Array, "n h w o"]:
    n, h, w, _ = x.shape
    return _outputs(jnp.einsum("ptc,pco->pto", _tiles(x), _kernels(kernel)), n, h, w)


def _input_gradient(dy: Float[Array, "n h w o"], kernel: Float[Array, "3 3 c o"]) -> Float[Array, "n h w c"]:
    """The convolution of dy with the kernel read backwards, its inputs and outputs exchanged."""
    n, h, w, _ = dy.shape
    return _outputs(jnp.einsum("pto,pco->ptc", _tiles(dy), _kernels(kernel, BACKWARDS)), n, h, w)


def _plain(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"], more: int = 0
) -> Float[Array, "n h+{more} w o"]:
    padding = [(1, 1 + more), (1, 1)]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _plain_input_gradient(
    dy: Float[Array, "n h w o"], kernel: Float[Array, "3 3 c o"]
) -> Float[Array, "n h w c"]:
    like = jax.ShapeDtypeStruct((*dy.shape[:3], kernel.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _plain(x, kernel), like)(dy)[0]


def _backwards(kernel: Float[Array, "3 3 c o"]) -> Float[Array, "3 3 o c"]:
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _one_row_more(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"]) -> Float[Array, "n h w o"]:
    return _plain(x, kernel, more=1)[:, :-1]


def _one_row_more_back(
    dy: Float[Array, "n h w o"], kernel: Float[Array, "3 3 c o"]
) -> Float[Array, "n h w c"]:
    return _one_row_more(dy, _backwards(kernel))


def _of_all_maps(
    fast: Callable[[Any, Any], Any], plain: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    """`fast` on the CPU and `plain` elsewhere; mapped over maps that share a kernel, one call for all of
    them: a product for each map would be many small ones.
    """

    @jax.custom_batching.custom_vmap
    def run(maps: Any, kernel: Any) -> Any:
        return jax.lax.platform_dependent(maps, kernel, cpu=fast, default=plain)

    @run.def_vmap
    def mapped(size: int, is_mapped: Any, maps: Any, kernel: Any) -> Any:
        if is_mapped[1]:
            return jax.vmap(plain, [0 if axis else None for axis in is_mapped])(maps, kernel), True
        flat = run(maps.reshape(-1, *maps.shape[2:]), kernel)
        return flat.reshape(size, -1, *flat.shape[1:]), True

    return run


_winograd, _winograd_back = (
    _of_all_maps(_forward, _plain),
    _of_all_maps(_input_gradient, _plain_input_gradient),
)
_narrow, _narrow_back = (
    _of_all_maps(_one_row_more, _plain),
    _of_all_maps(_one_row_more_back, _plain_input_gradient),
)


@jax.custom_vjp
def convolve(
    x: Float[Array, "*batch h w c"], kernel: Float[Array, "3 3 c o"]
) -> Float[Array, "*batch h w o"]:
    """The convolution of maps that it `serves` with a kernel that is not differentiated; `kernel_gradient`
    has its gradient.

    Raises:
        ValueError: it is differentiated with respect to the kernel: such a gradient would be computed map by
            map first.
    """
    run = _winograd if _channels_are_wide(kernel) else _narrow
    return run(x.reshape(-1, *x.shape[-3:]), kernel).reshape(*x.shape[:-1], -1)


def _channels_are_wide(kernel: Any) -> bool:
    return min(kernel.shape[-2:]) >= WIDE


def _convolve_forward(x: Any, kernel: Any) -> Any:
    if kernel.perturbed:
        raise ValueError(
            "kernel: same_convolution.convolve takes it for a constant; expected the plain convolution here"
        )
    return convolve(x.value, kernel.value), kernel.value


def _convolve_backward(kernel: Any, dy: Any) -> Any:
    run = _winograd_back if _channels_are_wide(kernel) else _narrow_back
    dx = run(dy.reshape(-1, *dy.shape[-3:]), kernel)
    return dx.reshape(*dy.shape[:-1], -1), None


convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)


def kernel_gradient(x: Float[Array, "n h w c"], dy: Float[Array, "n h w o"]) -> Float[Array, "3 3 c o"]:
    """The kernel's gradient of wide convolutions, summed over the maps; on the CPU."""
    return _of_kernel_products(jnp.einsum("ptc,pto->pco", _tiles(x), _products_transposed(dy)))


def kernel_gradients(
    x: Float[Array, "n maps h w c"], dy: Float[Array, "n maps h w o"]
) -> Float[Array, "n 3 3 c o"]:
    """The kernel's gradient of wide convolutions summed over each example's maps; on the CPU."""
    tiles, products = _tiles(x.reshape(-1, *x.shape[2:])), _products_transposed(dy.reshape(-1, *dy.shape[2:]))
    tiles, products = (v.reshape(16, len(x), -1, v.shape[-1]) for v in (tiles, products))
    return jnp.moveaxis(_of_kernel_products(jnp.einsum("pntc,pnto->pnco", tiles, products)), 2, 0)


def _of_kernel_products(products: Float[Array, "16 *any"]) -> Float[Array, "3 3 *any"]:
    square = _on_both_axes(_of_kernel_transposed, _square(products))
    return jnp.stack([jnp.stack(row) for row in square])


def is_wide(shape: Geometry) -> bool:
    """Whether it is such a convolution, of maps with even sides, and Winograd's products save more than the
    sums cost.
    """
    channels = min(shape.channels, shape.features)
    return (
        shape.is_same(3)
        and channels >= WIDE
        and min(shape.sides) >= 4
        and not any(side % 2 for side in shape.sides)
    )


def serves(shape: Geometry, dtype: Any) -> bool:
    """Whether `convolve` can compute such a convolution, and is faster on the CPU than XLA's."""
    channels = (shape.channels, shape.features)
    is_narrow = min(channels) > NARROW and max(channels) < WIDE and min(shape.sides) > LEAST_SIDE
    return dtype == jnp.float32 and shape.is_same(3) and (is_narrow or is_wide(shape))
