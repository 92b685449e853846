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
    """One linear layer, y = apply(x, kernel) (+ bias), seen from outside.

    Attributes:
        path: where its parameters lie in the `params` collection.
        apply: the layer as a function of (input, kernel), linear in each; takes one example or a batch.
        unfold: input of one example -> matrix [positions, inputs a position]; the kernel's gradient is its transpose times the
            cotangent, `multiplicity` times over.
        multiplicity: how many identical copies of that gradient the kernel holds (see `layers.Conv.input_copies`).
        output: shape and dtype of one example's output.
    """

    path: Path
    apply: Callable[[Any, Any], Any]
    unfold: Callable[[Any], Any]
    multiplicity: int
    output: jax.ShapeDtypeStruct


def _tap(module: nn.Module, output: Any) -> Tap | None:
    """The tap of one module, or None if it is none that can be tapped."""
    struct = jax.ShapeDtypeStruct(output.shape, output.dtype)
    if type(module) is layers.Conv:
        # A free copy in float32: input and cotangent are rounded to the layer's precision already, and products of rounded
        # numbers are to be summed without rounding again, or the clipped sum would not have the norm that was computed for it.
        free = dataclasses.replace(module, parent=None, name=None, dtype=jnp.float32)
        rounded = module.dtype

        def apply(x: Float[Array, "*batch h w c"], kernel: Float[Array, "k k c_copies o"]) -> Float[Array, "*batch i j o"]:
            return free.apply_kernel(x.astype(rounded), kernel)

        def unfold(x: Float[Array, "h w c"]) -> Float[Array, "t p"]:
            columns = layers.patches(x.astype(rounded), free.kernel_size, free.stride, free.padding)
            return columns.reshape(-1, columns.shape[-1]).astype(jnp.float32)

        return Tap(module.path, apply, unfold, free.input_copies, struct)
    if type(module) is nn.Dense:
        return Tap(module.path, lambda x, kernel: x @ kernel, lambda x: x.reshape(-1, x.shape[-1]), 1, struct)
    return None


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
