"""Access to the inputs and output cotangents of a network's linear layers, without a change to the network.

A tapped forward pass adds a zero to the output of each convolution and dense layer and returns each layer's input. The
gradient with respect to a zero is the cotangent of that layer's output; with the input it determines the weight gradient of
one example (Goodfellow 2015; Bu et al. 2022), which is what per-example clipping needs. Works on any Flax Linen module
through `nn.intercept_methods`.

A layer is tapped only where that determines the whole gradient of its kernel: not if it is called twice, if its kernel is used
elsewhere too, or if the kernel it sees is not the parameter itself (under `nn.remat`, `nn.scan`, `nn.WeightNorm` and the like).
Parameters that are not tapped are differentiated directly, example by example: right for any layer, dear for large ones.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Float

from jaxcxr.models import convolution, layers, same_convolution

Path = tuple[str, ...]

KEPT = "input of a tapped layer"
"""Name, for `jax.checkpoint`, of what a weight gradient needs."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """One linear layer, seen from outside.

    Attributes:
        path: where its parameters lie in the `params` collection.
        kernel_gradient: (kernel, inputs, cotangents of the outputs), both with a batch axis -> sum over the batch of the
            kernel's gradients, in the precision of the cotangents.
        input_gram: inputs of one example's records -> inner products [positions, positions] of the rows of a matrix, float32;
            the kernel's gradient is that matrix, transposed, times the cotangents. None where there is no such matrix.
        kernel_gradients: (kernel, inputs, cotangents), with a second axis of an example's records -> the kernel's gradient of
            each example, in the precision of the cotangents.
        output: shape and dtype of one example's output.
        dtype: to which the layer rounds its inputs; None for no rounding. `apply_tapped` returns them rounded: the functions
            above take them as they are, so that norm and sum are made of the same numbers.
        apply: (input, kernel) -> output, as the layer does but quicker where only the input is differentiated; None if there is
            nothing quicker than the layer.
    """

    path: Path
    kernel_gradient: Callable[[Any, Any, Any], Any]
    kernel_gradients: Callable[[Any, Any, Any], Any]
    input_gram: Callable[[Any], Any] | None
    output: jax.ShapeDtypeStruct
    dtype: Any
    apply: Callable[[Any, Any], Any] | None = None


def _tap(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tap | None:
    """The tap of a module in one call, or None if it is none that can be tapped."""
    if len(arguments) != 1 or not isinstance(output, jax.Array):
        return None
    struct = jax.ShapeDtypeStruct(output.shape, output.dtype)
    if isinstance(module, layers.Conv | layers.Stem):
        # A free copy in float32: input and cotangent are rounded to the layer's precision already, and products of rounded
        # numbers are to be summed without rounding again, or the clipped sum would not have the norm that was computed for it.
        free = dataclasses.replace(module, parent=None, name=None, dtype=jnp.float32)
        own = dataclasses.replace(module, parent=None, name=None)
        of_all = _kernel_gradient(free.apply_kernel, own.apply_kernel)
        if isinstance(own, layers.Stem):
            return _tap_of_stem(own, module.path, of_all, struct)
        return _tap_of_conv(own, module.path, of_all, struct, arguments[0].shape)
    if type(module) is nn.Conv and module.mask is None and not (module.conv_general_dilated or module.conv_general_dilated_cls):
        of_all, gram_of_patches = _of_flax_conv(module)
        return Tap(module.path, of_all, _one_by_one(of_all), gram_of_patches, struct, module.dtype)
    if type(module) is nn.Dense and not (module.dot_general or module.dot_general_cls):

        def rows(x: Any) -> Any:
            return x.astype(jnp.float32).reshape(-1, x.shape[-1])

        def kernel_gradient(kernel: Any, x: Any, dy: Any) -> Any:
            return (rows(x).T @ dy.astype(jnp.float32).reshape(-1, kernel.shape[1])).astype(dy.dtype)

        def gram_of_rows(x: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            return jnp.matmul(flat, flat.T, preferred_element_type=jnp.float32)

        return Tap(module.path, kernel_gradient, _of_matrices(lambda x: x), gram_of_rows, struct, module.dtype)
    return None


def _tap_of_stem(module: layers.Stem, path: Path, kernel_gradient: Callable[..., Any], output: jax.ShapeDtypeStruct) -> Tap:
    from_pixels = _of_arrays(module.kernel_gradients)
    if module.dtype != jnp.float32:
        of_each = _by_platform(cpu=_one_by_one(kernel_gradient), default=from_pixels)
        return Tap(path, kernel_gradient, of_each, None, output, module.dtype)

    def summed(x: Any, dy: Any) -> Any:
        return module.kernel_gradients(x[:, None], dy[:, None]).sum(axis=0)

    return Tap(path, _by_platform(cpu=_of_arrays(summed), default=kernel_gradient), from_pixels, None, output, module.dtype)


def _tap_of_conv(
    module: layers.Conv,
    path: Path,
    kernel_gradient: Callable[..., Any],
    output: jax.ShapeDtypeStruct,
    shape: tuple[int, ...],
) -> Tap:
    kernel_shape = (module.kernel_size, module.kernel_size, shape[-1], module.features)
    window = (module.kernel_size, module.stride, module.padding)
    on_cpu = elsewhere = _one_by_one(kernel_gradient)
    from_patches = _of_matrices(lambda x: convolution.patches(x, *window))
    if convolution.patches_are_small(shape, kernel_shape, output):
        elsewhere = from_patches
    if convolution.positions_are_few(kernel_shape, output):
        on_cpu = from_patches
    apply = None
    if module.dtype == jnp.float32 and same_convolution.serves(shape, kernel_shape, module.stride, module.padding):
        apply = same_convolution.convolve
        if same_convolution.is_wide(shape, kernel_shape):
            kernel_gradient = _by_platform(_of_arrays(same_convolution.kernel_gradient), kernel_gradient)
            on_cpu = _of_arrays(same_convolution.kernel_gradients) if on_cpu is not from_patches else on_cpu

    def gram_of_patches(x: Float[Array, "r h w c"]) -> Float[Array, "t t"]:
        return convolution.patch_gram(x, *window)

    return Tap(path, kernel_gradient, _by_platform(on_cpu, elsewhere), gram_of_patches, output, module.dtype, apply)


def _of_arrays(gradient: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A gradient as a function of kernel, inputs and cotangents that does not need the kernel."""
    return lambda _, x, dy: gradient(x, dy)


def _one_by_one(kernel_gradient: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel's gradient of each example, unrolled: batched, it is a grouped convolution, and XLA has no fast one."""

    def gradients(kernel: Any, x: Any, dy: Any) -> Any:
        return jnp.stack([kernel_gradient(kernel, x[i], dy[i]) for i in range(len(x))])

    return gradients


def _of_matrices(rows: Callable[[Any], Any]) -> Callable[..., Any]:
    """The kernel's gradient of each example as a product of its rows, one for each position, and the cotangents."""

    def gradients(kernel: Any, x: Any, dy: Any) -> Any:
        matrices = rows(x.reshape(-1, *x.shape[2:]))
        matrices = matrices.reshape(len(x), -1, matrices.shape[-1])
        each = jnp.einsum("ntp,nto->npo", matrices, dy.reshape(len(x), -1, dy.shape[-1]))
        return each.reshape(len(x), *kernel.shape)

    return gradients


def _kernel_gradient(exact: Callable[[Any, Any], Any], rounded: Callable[[Any, Any], Any]) -> Any:
    """The kernel's gradient of a layer that computes in 32 bits (`exact`) or in its own precision (`rounded`).

    On an accelerator the gradient of 16-bit cotangents is computed in 16 bits, as in any other training: input and cotangent
    are read as they are, and nothing is written once more in 32 bits. Norm and sum are those of the rounded gradient.
    """

    def gradient(kernel: Any, x: Any, dy: Any) -> Any:
        if dy.dtype == jnp.float32:
            return convolution.kernel_gradient(exact, kernel, x, dy)

        def in_32_bits(kernel: Any, x: Any, dy: Any) -> Any:
            return convolution.kernel_gradient(exact, kernel, x, dy.astype(jnp.float32)).astype(dy.dtype)

        def in_16_bits(kernel: Any, x: Any, dy: Any) -> Any:
            (transposed,) = jax.linear_transpose(lambda k: rounded(x, k), kernel.astype(dy.dtype))(dy)
            return transposed

        return jax.lax.platform_dependent(kernel, x, dy, cpu=in_32_bits, default=in_16_bits)

    return gradient


def _by_platform(cpu: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """One function on the CPU, and another elsewhere."""
    return cpu if cpu is default else lambda *arguments: jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


def _of_flax_conv(module: nn.Conv) -> tuple[Callable[[Any, Any, Any], Any], Callable[[Any], Any] | None]:
    """Kernel gradient and unfolding of Flax's own convolution, in any number of dimensions."""
    free = dataclasses.replace(module, parent=None, name=None, dtype=jnp.float32, use_bias=False)
    own = dataclasses.replace(module, parent=None, name=None, use_bias=False)
    kernel_gradient = _kernel_gradient(
        lambda x, k: free.apply({"params": {"kernel": k}}, x),
        lambda x, k: own.apply({"params": {"kernel": k}}, x),
    )
    kernel_size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)
    dimensions = len(kernel_size)
    if module.feature_group_count != 1 or (isinstance(module.padding, str) and module.padding not in ("SAME", "VALID")):
        return kernel_gradient, None

    def sides(value: Any) -> tuple[int, ...]:
        return (1 if value is None else value,) * dimensions if value is None or isinstance(value, int) else tuple(value)

    def input_gram(x: Any) -> Any:
        padding: Any = module.padding
        if not isinstance(padding, str):
            each = (padding,) * dimensions if isinstance(padding, int) else padding
            padding = [(side, side) if isinstance(side, int) else tuple(side) for side in each]
        letters = "DHW"[-dimensions:]
        columns = jax.lax.conv_general_dilated_patches(
            x.astype(jnp.float32).reshape(-1, *x.shape[-dimensions - 1 :]),
            kernel_size,
            sides(module.strides),
            padding,
            sides(module.input_dilation),
            sides(module.kernel_dilation),
            (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        columns = columns.reshape(-1, columns.shape[-1])
        return columns @ columns.T

    return kernel_gradient, input_gram


def find_taps(model: nn.Module, example: Any) -> tuple[Tap, ...]:
    """The layers of `model` that can be tapped, in the order of the forward pass."""
    found: dict[Path, Tap] = {}
    repeated: set[Path] = set()

    def trace(params: Any, x: Any) -> Any:
        def interceptor(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y = next_call(*args, **kwargs)
            if context.method_name != "__call__" or not isinstance(context.module, nn.Module):
                return y
            path = context.module.path
            if path in found:
                repeated.add(path)
                return y
            tap = None if kwargs else _tap(context.module, args, y)
            if tap is None or not _is_parameter(context.module, params):
                return y
            found[path] = tap
            return jnp.zeros(y.shape, y.dtype)  # so that what depends on the kernel still does so elsewhere

        with nn.intercept_methods(interceptor):
            return model.apply(params, x)

    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), example)
    used = _used_inputs(jax.make_jaxpr(trace)(shapes, example))
    names = [tuple(str(getattr(key, "key", key)) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    elsewhere = {name for name, is_used in zip(names, used, strict=False) if is_used}
    return tuple(tap for path, tap in found.items() if path not in repeated and ("params", *path, "kernel") not in elsewhere)


def _is_parameter(module: nn.Module, params: Any) -> bool:
    """Whether the kernel that a module sees is the float32 parameter of that path itself, not something made of it."""
    node = params["params"]
    for name in (*module.path, "kernel"):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node is not None and node.dtype == jnp.float32 and module.get_variable("params", "kernel") is node


def _used_inputs(program: ClosedJaxpr) -> list[bool]:
    """Which inputs of a program its outputs may depend on; a call inside it is taken to need all that it is given."""
    needed = {id(variable) for variable in program.jaxpr.outvars}
    for equation in reversed(program.jaxpr.eqns):
        if equation.effects or any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars if not isinstance(variable, Literal)}
    return [id(variable) in needed for variable in program.jaxpr.invars]


def warn_of_direct_layers(params: Any, taps: tuple[Tap, ...]) -> None:
    """Name the layers, other than norms, whose parameters have no tap: an example's whole gradient of theirs is held."""
    tapped = {("params", *tap.path, "kernel") for tap in taps}
    paths = [
        tuple(str(getattr(key, "key", key)) for key in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim > 1
    ]
    names = ["/".join(path[1:]) for path in paths if path not in tapped]
    if names:
        warnings.warn(f"no layer-by-layer gradient of {', '.join(names)}: computed whole for each example", stacklevel=2)


def apply_tapped(
    model: nn.Module, taps: tuple[Tap, ...], params: Any, zeros: Mapping[Path, Any], x: Any
) -> tuple[Any, dict[Path, Any]]:
    """The forward pass with `zeros[path]` added to each tapped layer's output.

    The inputs bear the name `KEPT`: `jax.checkpoint` may be told to keep them, since they are needed anyway, and no more.

    Returns:
        The model's output and the input of each tapped layer, rounded as the layer rounds it.
    """
    tapped = {tap.path: tap for tap in taps}
    inputs: dict[Path, Any] = {}

    def interceptor(next_call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path not in tapped:
            return next_call(*args, **kwargs)
        x, tap = checkpoint_name(args[0], KEPT), tapped[path]
        inputs[path] = x if tap.dtype is None else x.astype(tap.dtype)
        y = next_call(x) if tap.apply is None else tap.apply(inputs[path], context.module.get_variable("params", "kernel"))
        return y + zeros[path]

    with nn.intercept_methods(interceptor):
        output = model.apply(params, x)
    return output, inputs
