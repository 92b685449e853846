"""The layers of the network, each for one example and exact to its plain version, written so that XLA is fast on them.

Every layer here computes the textbook function; what differs is the formulation. The measured reasons stand in the docstrings
(two CPU cores, float32, 32 examples of 64 x 64 pixels, inside a whole training step). Batching is `jax.vmap`.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

SMALL_MAP = 4
"""Largest side of a map whose convolution is written as patches times a matrix (see `convolve`)."""


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x tanh(softplus(x)) (Misra 2019), as x n / (n + 2) with n = e^x (e^x + 2): one exponential instead of three.

    Above 15 the factor is 1 to float32 precision, so the exponential is held there to keep it finite.

    XLA on the CPU writes out a map that ends in a division, and computes one that ends in a product anew for each of its
    readers, of which pooling has many: a tenth of the step. On a GPU the writing costs more than the computing.
    """
    _, n = _powers(x, 15.0)
    return jax.lax.platform_dependent(x, n, cpu=lambda x, n: x * n / (n + 2.0), default=lambda x, n: x * (n / (n + 2.0)))


def _powers(x: Any, held_at: float) -> tuple[Any, Any]:
    """e = e^x and n = e (e + 2), as they are at `held_at` beyond it."""
    e = jnp.exp(jnp.minimum(x, held_at))
    return e, e * (e + 2.0)


def _mish_transposed(x: Any, dy: Any) -> Any:
    """dy times the derivative of `mish`, (n + 4 x e (e + 1) / (n + 2)) / (n + 2)."""

    def on_cpu(x: Any, dy: Any) -> Any:
        # Held at another place than in `mish`: were it the same exponential, XLA would keep the forward pass's, a whole map.
        e, n = _powers(x, 14.0)
        return dy * (n * (n + 2.0) + 4.0 * x * e * (e + 1.0)) / jnp.square(n + 2.0)

    def elsewhere(x: Any, dy: Any) -> Any:
        e, n = _powers(x, 15.0)
        r = 1.0 / (n + 2.0)
        return dy * ((n + 4.0 * x * e * (e + 1.0) * r) * r)

    return jax.lax.platform_dependent(x, dy, cpu=on_cpu, default=elsewhere)


ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "mish": (mish, _mish_transposed),
    "relu": (jax.nn.relu, lambda x, dy: jnp.where(x > 0, dy, 0.0)),
    "identity": (lambda x: x, lambda x, dy: dy),  # noqa: ARG005 - one signature
}
"""Each activation by name, with its transposed derivative: (x, gradient of the output) -> gradient of x."""


def convolve(
    x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c o"], stride: int, padding: int
) -> Float[Array, "*batch i j o"]:
    """Convolution without bias, symmetric zero padding, as in torch.

    Where the window is larger than the map (3 x 3 on 2 x 2, the last stage at 64 pixels), XLA on the CPU leaves its fast
    kernels for a naive loop: 270 ms instead of 4. Such small maps are written as gathered patches times the kernel matrix.
    """
    if kernel.shape[0] > 1 and max(x.shape[-3], x.shape[-2]) <= SMALL_MAP:
        columns = patches(x, kernel.shape[0], stride, padding)
        return columns @ kernel.reshape(-1, kernel.shape[-1])
    batch = x.shape[:-3]
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]),
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*batch, *y.shape[1:])


CPU_POSITIONS = 2048
"""Output positions in one weight gradient on the CPU (see `kernel_gradient`)."""


def kernel_gradient(apply: Callable[[Any, Any], Any], kernel: Any, x: Float[Array, "n ..."], dy: Float[Array, "n ..."]) -> Any:
    """Gradient of <dy, apply(x, kernel)> with respect to the kernel of a layer that is linear in it, summed over the batch.

    XLA on the CPU slows down two- to fourfold where the sum runs over many thousand output positions (8 maps of 64 x 64 x 64:
    75 ms, one by one 22, forward 18), so there it is cut into sums over some examples each.
    """

    def whole(kernel: Any, x: Any, dy: Any) -> Any:
        (gradient,) = jax.linear_transpose(lambda k: apply(x, k), kernel)(dy)
        return gradient

    def in_parts(kernel: Any, x: Any, dy: Any) -> Any:
        positions = dy[0].size // dy.shape[-1]
        size = max(1, CPU_POSITIONS // positions)
        return sum(whole(kernel, x[i : i + size], dy[i : i + size]) for i in range(0, len(x), size))

    return jax.lax.platform_dependent(kernel, x, dy, cpu=in_parts, default=whole)


def shifted(x: Float[Array, "*batch h w c"], k: int, stride: int) -> list[Float[Array, "*batch i j c"]]:
    """The k * k strided views of a map that a k x k window visits, row by row of the window."""
    h, w = x.shape[-3], x.shape[-2]
    rows, columns = (h - k) // stride + 1, (w - k) // stride + 1
    return [
        x[..., i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride, :]
        for i in range(k)
        for j in range(k)
    ]


def pad_map(x: Float[Array, "*batch h w c"], padding: int, value: float = 0.0) -> Float[Array, "*batch i j c"]:
    """Symmetric constant padding of the two spatial axes."""
    widths = [(0, 0)] * (x.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
    return jnp.pad(x, widths, constant_values=value) if padding else x


def patches(x: Float[Array, "*batch h w c"], k: int, stride: int, padding: int) -> Float[Array, "*batch i j p"]:
    """The k * k * c inputs of each output position, in the order of a flattened [k, k, c] kernel."""
    return jnp.concatenate(shifted(pad_map(x, padding), k, stride), axis=-1)


def patch_gram(x: Float[Array, "r h w c"], k: int, stride: int, padding: int) -> Float[Array, "t t"]:
    """Inner products of the `patches` of some maps, each with each.

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
        products = (flat @ flat.T).reshape(records, i, j, records, i, j)
        down, right = ([moved for moved, rest in places if rest == own] for own in (a, b))
        edges = [_edges(down, i, rows), _edges(right, j, columns)]
        products = jnp.pad(products, [(0, 0), *edges, (0, 0), *edges])
        for y, z in itertools.product((d + edges[0][0] for d in down), (r + edges[1][0] for r in right)):
            terms.append(products[:, y : y + rows, z : z + columns, :, y : y + rows, z : z + columns])
    return sum(terms[1:], start=terms[0]).reshape(records * rows * columns, -1)


def _edges(moves: list[int], there: int, wanted: int) -> tuple[int, int]:
    """How many zeros to put before and after a side, so that `wanted` of its places can be taken after each move."""
    return max(0, -min(moves)), max(0, max(moves) + wanted - there)


class Conv(nn.Module):
    """A bias-free square convolution of one map.

    Attributes:
        features: output channels.
        kernel_size, stride, padding: in pixels; padding is symmetric.
        dtype: of the arithmetic; the kernel is float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """Convolve one map."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        return self.apply_kernel(x, kernel)

    def apply_kernel(self, x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c o"]) -> Float[Array, "*batch i j o"]:
        """The layer as a function of input and kernel, linear in each; serves one map or a batch."""
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)


class Stem(nn.Module):
    """The first convolution, 7 x 7 with stride 2 and padding 3 on a grey film, its output sorted by parity of row and column.

    The maximum that follows takes every second place; sorted, it and its gradient are whole maps, not every second number of
    one (23 of 200 ms otherwise). Each parity is a convolution with stride 4 of the film moved by two pixels.

    The kernel spans identical copies of the film, as in the paper, which copies its grey films to three channels to suit
    pretrained weights. Convolving one with the kernel summed over its inputs gives the same output for a third of the work,
    and by the chain rule each copy receives the same gradient, as if the copies had been made.

    Attributes:
        features: output channels.
        input_copies: identical copies of the film that the kernel spans.
        dtype: of the arithmetic; the kernel is float32.
    """

    features: int
    input_copies: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "h w"]) -> Float[Array, "4 i j o"]:
        """Place (2 i + a, 2 j + b) of the convolution is at [2 a + b, i, j]; sides must be multiples of 4."""
        kernel = self.param("kernel", nn.initializers.he_normal(), (7, 7, self.input_copies, self.features), jnp.float32)
        return self.apply_kernel(x, kernel)

    def apply_kernel(
        self, x: Float[Array, "*batch h w"], kernel: Float[Array, "7 7 copies o"]
    ) -> Float[Array, "*batch 4 i j o"]:
        """The layer as a function of input and kernel, linear in each; serves one film or a batch."""
        h, w = x.shape[-2:]
        if h % 4 or w % 4:
            raise ValueError(f"expected sides that are multiples of 4, found {h} x {w}")
        padded = pad_map(x.astype(self.dtype)[..., None], 3)
        moved = [padded[..., 2 * a : 2 * a + h + 3, 2 * b : 2 * b + w + 3, :] for a in (0, 1) for b in (0, 1)]
        grey = kernel.sum(axis=2, keepdims=True).astype(self.dtype)
        return convolve(jnp.stack(moved, axis=-4), grey, stride=4, padding=0)


def _group_statistics(x: Float[Array, "*places c"], groups: int, epsilon: float) -> tuple[Any, Any]:
    """Per-channel mean and reciprocal standard deviation of each channel's group, float32.

    One pass over the map. Sums are of differences from the group's mean at the first place: the variance is a difference of
    squares, which would lose its digits where the mean is large against the spread.
    """
    *places, c = range(x.ndim)
    width = x.shape[c] // groups

    def over_group(v: Any) -> Any:
        return v.reshape(groups, width).sum(axis=-1)

    origin = over_group(x[(0,) * len(places)].astype(jnp.float32)) / width
    offset = x.astype(jnp.float32) - jnp.repeat(origin, width)
    size = x.size // groups
    mean = over_group(offset.sum(axis=places)) / size
    variance = jnp.maximum(over_group(jnp.square(offset).sum(axis=places)) / size - jnp.square(mean), 0.0)
    return jnp.repeat(origin + mean, width), jnp.repeat(jax.lax.rsqrt(variance + epsilon), width)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def group_norm(
    x: Float[Array, "*places c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    residual: Float[Array, "*places c"] | None,
    activation: str,
    groups: int,
    epsilon: float,
) -> Float[Array, "*places c"]:
    """activation(group normalisation of one map (Wu & He 2018) + residual).

    Only the arguments are kept for the backward pass, which has a closed form and computes the normalised map and the
    activation's slope anew: reading a map costs more than an exponential, on a GPU by far. 16.7 ms forward and backward of
    the norm alone on 32 maps of 32 x 32 x 64 with autodiff, 6.8 ms so.
    """
    return _group_norm_forward(x, scale, bias, residual, activation, groups, epsilon)[0]


def _before_activation(x: Any, gain: Any, shift: Any, residual: Any) -> Any:
    z = x.astype(jnp.float32) * gain + shift
    return z if residual is None else z + residual.astype(jnp.float32)


def _group_norm_forward(x: Any, scale: Any, bias: Any, residual: Any, activation: str, groups: int, epsilon: float) -> Any:
    mean, rstd = _group_statistics(x, groups, epsilon)
    z = _before_activation(x, scale * rstd, bias - mean * scale * rstd, residual)
    return ACTIVATIONS[activation][0](z).astype(x.dtype), (x, scale, bias, residual, mean, rstd)


def _group_norm_backward(activation: str, groups: int, epsilon: float, saved: Any, dy: Any) -> Any:  # noqa: ARG001 - custom_vjp's signature
    x, scale, bias, residual, mean, rstd = saved
    *places, _ = range(x.ndim)
    gain = scale * rstd
    if residual is None:  # after a residual dy is a sum, which is quick to compute within the loop
        gain = _once_written(gain, dy)
    z = _before_activation(x, gain, bias - mean * gain, residual)
    dz = ACTIVATIONS[activation][1](z, dy.astype(jnp.float32))
    if x.dtype != jnp.float32:
        # Rounded as the gradient of any map is, and written out once, in half the memory: three loops read it.
        dz = jax.lax.optimization_barrier(dz.astype(x.dtype)).astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * rstd
    d_bias = dz.sum(axis=places)
    d_scale = (dz * normalised).sum(axis=places)

    def over_group(v: Any) -> Any:
        return jnp.repeat(v.reshape(groups, -1).sum(axis=-1), v.size // groups) / (x.size // groups)

    # dx = gain dz - rstd (mean of scale dz) - rstd xhat (mean of scale dz xhat), means over the group
    dx = dz * gain - rstd * (over_group(scale * d_bias) + normalised * over_group(scale * d_scale))
    return dx.astype(x.dtype), d_scale, d_bias, None if residual is None else dz.astype(residual.dtype)


def _once_written(x: Any, dy: Any) -> Any:
    """x, on the CPU only once dy is written out.

    The gradient that comes from `max_pool` is put together from shifted pieces. Within the loop over the norm's gradient that
    keeps the loop from being vectorised: 18 ms instead of 3 and 4.
    """
    first = (0,) * (dy.ndim - 1)
    return jax.lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: x + 0.0 * dy[first].astype(x.dtype),
        default=lambda x, dy: x,  # noqa: ARG005 - one signature
    )


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """Group normalisation with learned scale and bias, and what follows it; epsilon is torch's 1e-5 (Flax's is 1e-6)."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "*places c"], residual: Float[Array, "*places c"] | None = None, activation: str = "identity"
    ) -> Float[Array, "*places c"]:
        """Normalise one map over each group of channels and all positions, add a residual, activate."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, residual, activation, self.groups, self.epsilon)


@jax.custom_vjp
def max_pool(x: Float[Array, "4 i j c"]) -> Float[Array, "i j c"]:
    """3 x 3 maximum with stride 2 and padding 1 of a map sorted by parity (see `Stem`): along the rows, then across them.

    XLA's backward pass (select-and-scatter) takes 48 ms; handing each gradient back to the one of three values that was the
    largest takes a few. Ties, which zeros after a ReLU make common, go to the first maximum in the window's reading order,
    as in torch: the first row that holds the maximum, and its first place in that row.
    """
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: Any) -> Any:
    rows = _maximum(x[0], x[1], 1), _maximum(x[2], x[3], 1)
    return _maximum(*rows, 0), x


def _max_pool_backward(x: Any, dy: Any) -> Any:
    rows = _maximum(x[0], x[1], 1), _maximum(x[2], x[3], 1)
    d_even, d_odd = _maximum_transposed(*rows, 0, dy)
    return (jnp.stack([*_maximum_transposed(x[0], x[1], 1, d_even), *_maximum_transposed(x[2], x[3], 1, d_odd)]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _maximum(even: Any, odd: Any, axis: int) -> Any:
    """Maximum of places 2i - 1, 2i and 2i + 1 along an axis, given its even and its odd places."""
    return jnp.maximum(jnp.maximum(_moved(odd, axis, 1, -jnp.inf), even), odd)


def _maximum_transposed(even: Any, odd: Any, axis: int, dy: Any) -> tuple[Any, Any]:
    """The gradients of even and odd places, given that of their maximum."""
    before = _moved(odd, axis, 1, -jnp.inf)
    is_before = (before >= even) & (before >= odd)
    is_even = ~is_before & (even >= odd)
    zero = jnp.zeros((), dy.dtype)
    d_odd = jnp.where(is_before | is_even, zero, dy) + _moved(jnp.where(is_before, dy, zero), axis, -1, 0.0)
    return jnp.where(is_even, dy, zero), d_odd


def _moved(x: Any, axis: int, by: int, filling: float) -> Any:
    """The map moved by one place along an axis, forwards (1) or backwards (-1)."""
    edges = [((by, -by, 0) if i == axis else (0, 0, 0)) for i in range(x.ndim)]
    return jax.lax.pad(x, jnp.asarray(filling, x.dtype), edges)
