"""Access to the inputs and output cotangents of a network's linear layers, without a change to the network.

A tapped forward pass adds a zero to the output of each convolution and dense layer and returns each layer's input. The
gradient with respect to a zero is the cotangent of that layer's output; with the input it determines the weight gradient of
one example (Goodfellow 2015; Bu et al. 2022), which is what per-example clipping needs. Works on any Flax Linen module
through `nn.intercept_methods`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.models import layers

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tap:
    """One linear layer, seen from outside.

    Attributes:
        path: where its parameters lie in the `params` collection.
        kernel_gradient: (kernel, inputs, cotangents of the outputs), both with a batch axis -> sum over the batch of the
            kernel's gradients, float32.
        unfold: input of one example -> matrix [positions, inputs a position]; the kernel's gradient is its transpose times the
            cotangent. None where there is no such matrix.
        output: shape and dtype of one example's output.
    """

    path: Path
    kernel_gradient: Callable[[Any, Any, Any], Any]
    unfold: Callable[[Any], Any] | None
    output: jax.ShapeDtypeStruct


def _tap(module: nn.Module, output: Any) -> Tap | None:
    """The tap of one module, or None if it is none that can be tapped."""
    struct = jax.ShapeDtypeStruct(output.shape, output.dtype)
    if isinstance(module, layers.Conv | layers.Stem):
        # A free copy in float32: input and cotangent are rounded to the layer's precision already, and products of rounded
        # numbers are to be summed without rounding again, or the clipped sum would not have the norm that was computed for it.
        free = dataclasses.replace(module, parent=None, name=None, dtype=jnp.float32)
        rounded = module.dtype

        def kernel_gradient(kernel: Any, x: Any, dy: Any) -> Any:
            return layers.kernel_gradient(lambda x, k: free.apply_kernel(x.astype(rounded), k), kernel, x, dy)

        if isinstance(free, layers.Stem):
            return Tap(module.path, kernel_gradient, None, struct)

        def unfold(x: Float[Array, "h w c"]) -> Float[Array, "t p"]:
            columns = layers.patches(x.astype(rounded), free.kernel_size, free.stride, free.padding)
            return columns.reshape(-1, columns.shape[-1]).astype(jnp.float32)

        return Tap(module.path, kernel_gradient, unfold, struct)
    if type(module) is nn.Conv and not module.mask:
        return Tap(module.path, *_of_flax_conv(module), struct)
    if type(module) is nn.Dense:
        return Tap(
            module.path,
            lambda kernel, x, dy: x.reshape(-1, kernel.shape[0]).T @ dy.reshape(-1, kernel.shape[1]),
            lambda x: x.reshape(-1, x.shape[-1]),
            struct,
        )
    return None


def _of_flax_conv(module: nn.Conv) -> tuple[Callable[[Any, Any, Any], Any], Callable[[Any], Any] | None]:
    """Kernel gradient and unfolding of Flax's own convolution, in any number of dimensions."""
    free = dataclasses.replace(module, parent=None, name=None, dtype=jnp.float32, use_bias=False)
    rounded = module.dtype or jnp.float32

    def kernel_gradient(kernel: Any, x: Any, dy: Any) -> Any:
        return layers.kernel_gradient(lambda x, k: free.apply({"params": {"kernel": k}}, x.astype(rounded)), kernel, x, dy)

    kernel_size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)
    dimensions = len(kernel_size)
    if module.feature_group_count != 1 or (isinstance(module.padding, str) and module.padding not in ("SAME", "VALID")):
        return kernel_gradient, None

    def sides(value: Any) -> tuple[int, ...]:
        return (1 if value is None else value,) * dimensions if value is None or isinstance(value, int) else tuple(value)

    def unfold(x: Any) -> Any:
        padding: Any = module.padding
        if not isinstance(padding, str):
            each = (padding,) * dimensions if isinstance(padding, int) else padding
            padding = [(side, side) if isinstance(side, int) else tuple(side) for side in each]
        letters = "DHW"[-dimensions:]
        columns = jax.lax.conv_general_dilated_patches(
            x.astype(rounded).astype(jnp.float32)[None],
            kernel_size,
            sides(module.strides),
            padding,
            sides(module.input_dilation),
            sides(module.kernel_dilation),
            (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        return columns.reshape(-1, columns.shape[-1])

    return kernel_gradient, unfold


def find_taps(model: nn.Module, example: Any) -> tuple[Tap, ...]:
    """The layers of `model` that can be tapped, in the order of the forward pass.

    A layer that is called more than once is left out (its weight gradient is a sum over calls, whose norm the factors of one
    call do not give), as is any module that is no convolution or dense layer: their parameters keep the direct path.
    """
    found: dict[Path, Tap] = {}
    repeated: set[Path] = set()

    def interceptor(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, nn.Module):
            path = context.module.path
            tap = _tap(context.module, y) if isinstance(y, jax.Array) else None
            if tap is not None and path in found:
                repeated.add(path)
            elif tap is not None:
                found[path] = tap
        return y

    def trace(x: Any) -> Any:
        with nn.intercept_methods(interceptor):
            return model.init_with_output(jax.random.key(0), x)[0]

    jax.eval_shape(trace, example)
    return tuple(tap for path, tap in found.items() if path not in repeated)


def apply_tapped(
    model: nn.Module, taps: tuple[Tap, ...], params: Any, zeros: Mapping[Path, Any], x: Any
) -> tuple[Any, dict[Path, Any]]:
    """The forward pass with `zeros[path]` added to each tapped layer's output.

    Returns:
        The model's output and the input of each tapped layer.
    """
    tapped = {tap.path for tap in taps}
    inputs: dict[Path, Any] = {}

    def interceptor(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path in tapped:
            inputs[context.module.path] = args[0]
            y = y + zeros[context.module.path]
        return y

    with nn.intercept_methods(interceptor):
        output = model.apply(params, x)
    return output, inputs
