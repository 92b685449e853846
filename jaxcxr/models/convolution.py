"""The convolution of the network's layers and its gradients, exact to the plain ones, written so that XLA is fast on them.

Measured on two CPU cores, float32, inside a whole training step, where nothing else is said. Batching is `jax.vmap`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SMALL_MAP = 4
"""Largest side of a map whose convolution is written as products of its places (see `convolve`)."""


def convolve(
    x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c o"], stride: int, padding: int
) -> Float[Array, "*batch i j o"]:
    """Convolution without bias, symmetric zero padding, as in torch.

    Where the window is larger than the map (3 x 3 on 2 x 2, the last stage at 64 pixels), XLA on the CPU leaves its fast
    kernels for a naive loop: 270 ms instead of 4. Such small maps are handled place by place of the window.
    """
    if kernel.shape[0] > 1 and max(x.shape[-3], x.shape[-2]) <= SMALL_MAP:
        return _by_places(x, kernel, stride, padding)
    return plain_convolution(x, kernel, stride, padding)


def plain_convolution(
    x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c o"], stride: int, padding: int
) -> Float[Array, "*batch i j o"]:
    """XLA's own convolution."""
    batch = x.shape[:-3]
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]),
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*batch, *y.shape[1:])


def _by_places(
    x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c o"], stride: int, padding: int
) -> Float[Array, "*batch i j o"]:
    """The sum over the window's places of the pixels that each meets times its matrix.

    Pixels that lie outside the map are left out, not multiplied as zeros: of 36 products on a 2 x 2 map 16 are left, 17 ms
    instead of 24 for the three passes over 32 maps of 2 x 2 x 512 (one core).
    """
    k = len(kernel)
    sides = x.shape[-3:-1]
    outputs = [(side + 2 * padding - k) // stride + 1 for side in sides]
    total = jnp.zeros((*x.shape[:-3], *outputs, kernel.shape[-1]), x.dtype)
    # Cut by `split`, whose transpose puts the places' gradients side by side; that of indexing adds k * k padded kernels up.
    matrices = jax.lax.split(kernel.reshape(-1, kernel.shape[-1]), [kernel.shape[2]] * k**2)
    for matrix, place in zip(matrices, itertools.product(range(k), repeat=2), strict=True):
        rows, columns = (_met(sides[i], outputs[i], place[i] - padding, stride) for i in (0, 1))
        if rows and columns:
            top, left = (met[0] * stride + at - padding for met, at in zip((rows, columns), place, strict=True))
            pixels = x[..., top::stride, left::stride, :][..., : len(rows), : len(columns), :]
            edges = [(met[0], n - met[-1] - 1) for met, n in zip((rows, columns), outputs, strict=True)]
            total += jnp.pad(pixels @ matrix, [*[(0, 0)] * (x.ndim - 3), *edges, (0, 0)])
    return total


def _met(side: int, outputs: int, offset: int, stride: int) -> range:
    """The outputs along a side for which the place at `offset` from the window's first pixel lies on the map."""
    inside = [i for i in range(outputs) if 0 <= i * stride + offset < side]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


CPU_POSITIONS = 2048
"""Output positions in one weight gradient on the CPU (see `kernel_gradient`)."""


def kernel_gradient(apply: Callable[[Any, Any], Any], kernel: Any, x: Float[Array, "n ..."], dy: Float[Array, "n ..."]) -> Any:
    """Gradient of <dy, apply(x, kernel)> with respect to the kernel of a layer that is linear in it, summed over the batch.

    XLA on the CPU slows down two- to fourfold where the sum runs over many thousand output positions (8 maps of 64 x 64 x 64:
    75 ms, one by one 22, forward 18), so there it is cut into sums over some examples each.
    """

    def whole(kernel: Any, x: Any, dy: Any) -> Any:
        (gradient,) = jax.vjp(lambda k: apply(x, k), kernel)[1](dy)
        return gradient

    def in_parts(kernel: Any, x: Any, dy: Any) -> Any:
        positions = dy[0].size // dy.shape[-1]
        size = max(1, CPU_POSITIONS // positions)
        return sum(whole(kernel, x[i : i + size], dy[i : i + size]) for i in range(0, len(x), size))

    return jax.lax.platform_dependent(kernel, x, dy, cpu=in_parts, default=whole)


def pad_map(x: Float[Array, "*batch h w c"], padding: int, value: float = 0.0) -> Float[Array, "*batch i j c"]:
    """Symmetric constant padding of the two spatial axes."""
    widths = [(0, 0)] * (x.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
    return jnp.pad(x, widths, constant_values=value) if padding else x


PATCH_BYTES = 4 << 20
"""Memory traffic by which the patches of a film may exceed what a convolution of its own needs (see `patches_are_small`)."""


def patches(x: Float[Array, "n h w c"], k: int, stride: int, padding: int) -> Float[Array, "n i j kkc"]:
    """The k * k * c inputs of each output position."""
    rows, columns = ((side + 2 * padding - k) // stride + 1 for side in x.shape[1:3])
    padded = pad_map(x, padding)
    met = [padded[:, i::stride, j::stride][:, :rows, :columns] for i, j in itertools.product(range(k), repeat=2)]
    return jnp.concatenate(met, axis=-1)


def patches_are_small(x: Sequence[int], kernel: Sequence[int], output: jax.ShapeDtypeStruct) -> bool:
    """Whether a GPU should compute the kernel's gradient of each film from patches, one product for all films.

    Patches are written and read. A convolution for each film has its input and cotangents copied out of the batch, and is
    three launches, whose time the patches' additional traffic should not exceed: 4 MiB are 1.3 microseconds of an H100's
    bandwidth. (Compiled for one, not measured: docs/performance.md.)

    Args:
        x: shape of one film's input.
        kernel: shape of the kernel.
        output: of one film.
    """
    positions, inputs = output.size // output.shape[-1], math.prod(kernel[:-1])
    by_products = 2 * positions * inputs + output.size
    one_by_one = 3 * (math.prod(x) + output.size)
    return (by_products - one_by_one) * output.dtype.itemsize <= PATCH_BYTES


def positions_are_few(kernel: Sequence[int], output: jax.ShapeDtypeStruct) -> bool:
    """Whether the kernel's gradient of one film is larger than its patches and cotangents together, so that a CPU should
    compute it as one product: 1.3 ms instead of 5.1 for 3 x 3 x 512 x 512 on a map of 2 x 2, 3.4 instead of 6.6 on 8 x 8.
    """
    positions, inputs, outputs = output.size // output.shape[-1], math.prod(kernel[:-1]), kernel[-1]
    return positions * (inputs + outputs) < inputs * outputs


def patch_gram(x: Float[Array, "r h w c"], k: int, stride: int, padding: int) -> Float[Array, "t t"]:
    """Inner products of the patches of some maps, each with each, float32: the k * k * c inputs of each output position.

    Two patches' product is the sum of the products of their pixels, and a product of two pixels serves up to (k / stride)^2
    pairs of patches. So the pixels' products are computed once and added up, place by place of the window: 0.8 ms instead of
    2.2 for 32 maps of 8 x 8 x 128, and an eighth of the memory traffic on a GPU.
    """
    records, h, w, channels = x.shape
    rows, columns = ((side + 2 * padding - k) // stride + 1 for side in (h, w))
    places = [divmod(place - padding, stride) for place in range(k)]  # of the window: by how many strides moved, and the rest
    terms = []
    for a, b in itertools.product({rest for _, rest in places}, repeat=2):
        pixels = x[:, a::stride, b::stride]  # those that meet in any window: the others of their kind
        _, i, j, _ = pixels.shape
        flat = pixels.reshape(-1, channels)
        products = jnp.matmul(flat, flat.T, preferred_element_type=jnp.float32).reshape(records, i, j, records, i, j)
        down, right = ([moved for moved, rest in places if rest == own] for own in (a, b))
        edges = [_edges(down, i, rows), _edges(right, j, columns)]
        products = jnp.pad(products, [(0, 0), *edges, (0, 0), *edges])
        for y, z in itertools.product((d + edges[0][0] for d in down), (r + edges[1][0] for r in right)):
            terms.append(products[:, y : y + rows, z : z + columns, :, y : y + rows, z : z + columns])
    return sum(terms[1:], start=terms[0]).reshape(records * rows * columns, -1)


def _edges(moves: list[int], there: int, wanted: int) -> tuple[int, int]:
    """How many zeros to put before and after a side, so that `wanted` of its places can be taken after each move."""
    return max(0, -min(moves)), max(0, max(moves) + wanted - there)
