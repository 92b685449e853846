"""The layers of the network, each for one example and exact to its plain version, written so that XLA is fast on them.

Every layer here computes the textbook function; what differs is the formulation. The measured reasons stand in the docstrings
(two CPU cores, float32, 32 examples of 64 x 64 pixels, inside a whole training step). Batching is `jax.vmap`.
"""

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

    Above 20 the factor is 1 to float32 precision, so the exponential is held there to keep it finite.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


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


class Conv(nn.Module):
    """A bias-free square convolution of one map.

    Attributes:
        features: output channels.
        kernel_size, stride, padding: in pixels; padding is symmetric.
        input_copies: the kernel spans this many identical copies of the input. The paper copies its grey films to three
            channels to suit pretrained weights; convolving one channel with the kernel summed over its inputs gives the
            same output for a third of the work, and by the chain rule each copy receives the same gradient, as if the
            copies had been made.
        dtype: of the arithmetic; the kernel is float32.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    input_copies: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """Convolve one map."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] * self.input_copies, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        return self.apply_kernel(x, kernel)

    def apply_kernel(
        self, x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c_copies o"]
    ) -> Float[Array, "*batch i j o"]:
        """The layer as a function of input and kernel, linear in each; serves one map or a batch."""
        if self.input_copies > 1:
            k, _, c, o = kernel.shape
            kernel = kernel.reshape(k, k, self.input_copies, c // self.input_copies, o).sum(axis=2)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)


def _normalise(x: Float[Array, "h w c"], groups: int, epsilon: float) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Per-channel mean and reciprocal standard deviation of each channel's group, float32."""
    h, w, c = x.shape
    x = x.astype(jnp.float32)
    size = h * w * (c // groups)
    sums = x.sum(axis=(0, 1)).reshape(groups, -1).sum(axis=-1)
    squares = (x * x).sum(axis=(0, 1)).reshape(groups, -1).sum(axis=-1)
    mean = sums / size
    variance = jnp.maximum(squares / size - mean * mean, 0.0)
    return jnp.repeat(mean, c // groups), jnp.repeat(jax.lax.rsqrt(variance + epsilon), c // groups)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int, epsilon: float
) -> Float[Array, "h w c"]:
    """Group normalisation of one map (Wu & He 2018), from per-channel sums and with a closed-form backward pass.

    16.7 ms forward and backward on 32 maps of 32 x 32 x 64 with autodiff, 6.8 ms so: the map is read once a direction for
    all sums.
    """
    return _group_norm_forward(x, scale, bias, groups, epsilon)[0]


def _group_norm_forward(x: Any, scale: Any, bias: Any, groups: int, epsilon: float) -> Any:
    mean, rstd = _normalise(x, groups, epsilon)
    gain = scale * rstd
    y = x.astype(jnp.float32) * gain + (bias - mean * gain)
    return y.astype(x.dtype), (x, scale, mean, rstd)


def _group_norm_backward(groups: int, epsilon: float, saved: Any, dy: Any) -> Any:  # noqa: ARG001 - custom_vjp's signature
    x, scale, mean, rstd = saved
    h, w, c = x.shape
    size = h * w * (c // groups)
    dy32, x32 = dy.astype(jnp.float32), x.astype(jnp.float32)
    d_sum = dy32.sum(axis=(0, 1))
    d_dot_x = (dy32 * x32).sum(axis=(0, 1))
    d_scale = rstd * (d_dot_x - mean * d_sum)

    def over_group(v: Any) -> Any:
        return jnp.repeat(v.reshape(groups, -1).sum(axis=-1), c // groups) / size

    # dx = gain dy - rstd (mean of scale dy) - rstd xhat (mean of scale dy xhat), means over the group: an affine map of dy
    # and x
    shift, slope = over_group(scale * d_sum), over_group(scale * d_scale)
    dx = dy32 * (scale * rstd) - x32 * (rstd * rstd * slope) + rstd * (rstd * mean * slope - shift)
    return dx.astype(x.dtype), d_scale, d_sum


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """Group normalisation with learned scale and bias; epsilon is torch's 1e-5 (Flax's default is 1e-6)."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Normalise one map over each group of channels and all positions."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, self.groups, self.epsilon)


@jax.custom_vjp
def max_pool(x: Float[Array, "h w c"]) -> Float[Array, "i j c"]:
    """3 x 3 maximum with stride 2 and padding 1, as nine shifted slices.

    XLA's backward pass (select-and-scatter) takes 48 ms; comparing the input with its window's maximum takes 4.6 ms. Ties,
    which zeros after a ReLU make common, go to the first maximum in the window's reading order, as in torch.
    """
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: Any) -> Any:
    views = shifted(pad_map(x, 1, -jnp.inf), 3, 2)
    best = views[0]
    for view in views[1:]:
        best = jnp.maximum(best, view)
    return best, (x, best)


def _max_pool_backward(saved: Any, dy: Any) -> Any:
    x, best = saved
    h, w, _ = x.shape
    padded = pad_map(x, 1, -jnp.inf)
    views = shifted(padded, 3, 2)
    taken = jnp.zeros(best.shape, bool)
    total = jnp.zeros(padded.shape, dy.dtype)
    rows, columns = best.shape[0], best.shape[1]
    for index, view in enumerate(views):
        i, j = divmod(index, 3)
        first = (view == best) & ~taken
        taken = taken | first
        share = jnp.where(first, dy, jnp.zeros((), dy.dtype))
        after = (padded.shape[0] - i - 2 * (rows - 1) - 1, padded.shape[1] - j - 2 * (columns - 1) - 1)
        zero = jnp.zeros((), dy.dtype)
        total = total + jax.lax.pad(share, zero, ((i, after[0], 1), (j, after[1], 1), (0, 0, 0)))
    return (total[1 : h + 1, 1 : w + 1],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
