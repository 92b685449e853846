"""The layers of the network that Flax lacks, or computes slowly: each for one example and exact to its plain
version.

Every layer here computes the textbook function; what differs is the formulation. (Convolutions are Flax's
own: fast formulations of them are found by their shape where gradients are made, `per_example.convolutions`.)
The measured reasons stand in the docstrings (two CPU cores, float32, 32 examples of 64 x 64 pixels, inside a
whole training step). Batching is `jax.vmap`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x tanh(softplus(x)) (Misra 2019), as x n / (n + 2) with n = e^x (e^x + 2): one exponential instead of
    three.

    Above 15 the factor is 1 to float32 precision, so the exponential is held there to keep it finite.

    XLA on the CPU writes out a map that ends in a division, and computes one that ends in a product anew for
    each of its
    readers, of which pooling has many: a tenth of the step. On a GPU the writing costs more than the
    computing.
    """
    _, n = _powers(x, 15.0)
    return jax.lax.platform_dependent(
        x, n, cpu=lambda x, n: x * n / (n + 2.0), default=lambda x, n: x * (n / (n + 2.0))
    )


def _powers(x: Any, held_at: float) -> tuple[Any, Any]:
    """e = e^x and n = e (e + 2), as they are at `held_at` beyond it."""
    e = jnp.exp(jnp.minimum(x, held_at))
    return e, e * (e + 2.0)


def _mish_transposed(x: Any, dy: Any) -> Any:
    """dy times the derivative of `mish`, (n + 4 x e (e + 1) / (n + 2)) / (n + 2)."""

    def on_cpu(x: Any, dy: Any) -> Any:
        # Held at another place than in `mish`: were it the same exponential, XLA would keep the forward
        # pass's, a whole map.
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


class Stem(nn.Module):
    """The first convolution, 7 x 7 with stride 2 and padding 3 on a grey film, its output sorted by parity of
    row and column.

    The maximum that follows takes every second place; sorted, it and its gradient are whole maps, not every
    second number of one (23 of 200 ms otherwise). Each parity is a convolution with stride 4 of the film
    moved by two pixels.

    The kernel spans identical copies of the film, as in the paper, which copies its grey films to three
    channels to suit pretrained weights. Convolving one with the kernel summed over its inputs gives the same
    output for a third of the work, and by the chain rule each copy receives the same gradient, as if the
    copies had been made.

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
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (7, 7, self.input_copies, self.features), jnp.float32
        )
        grey = kernel.sum(axis=2, keepdims=True).astype(self.dtype)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            self._moved(x)[..., None], grey, (4, 4), "VALID", dimension_numbers=numbers
        )

    def _moved(self, x: Float[Array, "h w"]) -> Float[Array, "4 h+3 w+3"]:
        h, w = x.shape
        if h % 4 or w % 4:
            raise ValueError(f"expected sides that are multiples of 4, found {h} x {w}")
        padded = jnp.pad(x.astype(self.dtype), 3)
        return jnp.stack([padded[2 * a :, 2 * b :][: h + 3, : w + 3] for a in (0, 1) for b in (0, 1)])


def _group_statistics(x: Float[Array, "*places c"], groups: int, epsilon: float) -> tuple[Any, Any]:
    """Per-channel mean and reciprocal standard deviation of each channel's group, float32.

    One pass over the map. Sums are of differences from the group's mean at the first place: the variance is a
    difference of squares, which would lose its digits where the mean is large against the spread.
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

    Only the arguments are kept for the backward pass, which has a closed form and computes the normalised map
    and the activation's slope anew: reading a map costs more than an exponential, on a GPU by far. 16.7 ms
    forward and backward of the norm alone on 32 maps of 32 x 32 x 64 with autodiff, 6.8 ms so.
    """
    return _group_norm_forward(x, scale, bias, residual, activation, groups, epsilon)[0]


def _before_activation(x: Any, gain: Any, shift: Any, residual: Any) -> Any:
    z = x.astype(jnp.float32) * gain + shift
    return z if residual is None else z + residual.astype(jnp.float32)


def _group_norm_forward(
    x: Any, scale: Any, bias: Any, residual: Any, activation: str, groups: int, epsilon: float
) -> Any:
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
        # Rounded as the gradient of any map is, and written out once, in half the memory: three loops read
        # it.
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

    The gradient that comes from `max_pool` is put together from shifted pieces. Within the loop over the
    norm's gradient that
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
    """Group normalisation with learned scale and bias, and what follows it; epsilon is torch's 1e-5 (Flax's
    is 1e-6).
    """

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*places c"],
        residual: Float[Array, "*places c"] | None = None,
        activation: str = "identity",
    ) -> Float[Array, "*places c"]:
        """Normalise one map over each group of channels and all positions, add a residual, activate."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, residual, activation, self.groups, self.epsilon)


@jax.custom_vjp
def max_pool(x: Float[Array, "4 i j c"]) -> Float[Array, "i j c"]:
    """3 x 3 maximum with stride 2 and padding 1 of a map sorted by parity (see `Stem`): along the rows, then
    across them.

    XLA's backward pass (select-and-scatter) takes 48 ms; handing each gradient back to the one of three
    values that was the largest takes a few. Ties, which zeros after a ReLU make common, go to the first
    maximum in the window's reading order,
    as in torch: the first row that holds the maximum, and its first place in that row.
    """
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: Any) -> Any:
    rows = _maximum(x[0], x[1], 1), _maximum(x[2], x[3], 1)
    return _maximum(*rows, 0), x


def _max_pool_backward(x: Any, dy: Any) -> Any:
    rows = _maximum(x[0], x[1], 1), _maximum(x[2], x[3], 1)
    d_even, d_odd = _maximum_transposed(*rows, 0, dy)
    return (
        jnp.stack([*_maximum_transposed(x[0], x[1], 1, d_even), *_maximum_transposed(x[2], x[3], 1, d_odd)]),
    )


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
