"""Per-example gradients, clipped in global L2 norm and summed: what one microbatch contributes to a private step.

Guarantee: for every example i the summed contribution is `is_real[i] * min(1, C / |g_i|) * g_i`, of L2 norm at most C, so
that adding or removing one example moves the sum by at most C (Abadi et al. 2016, Algorithm 1). The sum is exact: nothing
is divided here. An example is whatever the claim protects: one film, or one patient with the mean loss of their films.

Clipped layer by layer, the factor is one for each of the L layers that have parameters, min(1, C / (sqrt(L) |g_i,l|)) for the
part g_i,l of the gradient: each part has norm at most C / sqrt(L), so that the whole has at most C again (McMahan et al. 2018,
arXiv 1710.06963, 'per-layer clipping').

A gradient that is not finite is not hidden: the sum, and with it the weights, become not finite and training stops. Films are
bytes and labels 0, 1 or unknown, so that no single example can bring that about; only weights that have run away can.

Norms and sums are float32 at full precision (on a GPU, XLA's default would round the factors of a product to ten bits, and
the sum would not have the norm that was computed for it); the network's own arithmetic may be as coarse as it likes.

Two ways compute the same sum. `vmap` differentiates every example's loss and holds all gradients at once; it is the
definition and the reference. `layerwise` makes one backward pass, takes norms layer by layer and never holds a whole
network's gradient of one example.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

Path = tuple[str, ...]
Scalar = float | Float[Array, ""]
Loss = Callable[[Any, Any], Float[Array, ""]]
"""(parameters, one example) -> its loss."""
TappedLoss = Callable[[Any, Any, Any], tuple[Float[Array, ""], Mapping[Path, Any]]]
"""(parameters, zeros, one example) -> its loss with zeros added to the linear layers' outputs, and those layers' inputs;
zeros and inputs have a leading axis of the example's records."""

CLIP_MARGIN = 1e-5
"""Contributions are clipped this fraction below the clip norm, so that float32 rounding cannot carry the sum's sensitivity
above it."""

GRAM_ALLOWANCE = 5e-7
"""Added to a squared Gram norm, in parts of the terms' absolute sum (four float32 roundings): where terms of both signs cancel,
their rounding is many times the result's, and a norm that came out too small would clip too little."""


@runtime_checkable
class LinearLayer(Protocol):
    """A layer that is linear in its kernel.

    `input_gram(x)` holds the inner products of the rows of a matrix U(x) such that the kernel's gradient for one example is
    U(x)^T dy, with a row for each position of each of its records; None if there is no such matrix.

    `kernel_gradient(kernel, x, dy)` is the sum over a batch of the gradients of <dy, layer(x, kernel)> with respect to the
    kernel, in the precision of dy. `kernel_gradients` has those gradients example by example, from inputs and cotangents with a
    second axis of an example's records.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def kernel_gradient(self) -> Callable[[Any, Any, Any], Any]: ...  # noqa: D102
    @property
    def kernel_gradients(self) -> Callable[[Any, Any, Any], Any]: ...  # noqa: D102
    @property
    def input_gram(self) -> Callable[[Any], Any] | None: ...  # noqa: D102
    @property
    def output(self) -> jax.ShapeDtypeStruct: ...  # noqa: D102


def clip_factors(
    squared_norms: Float[Array, "n"], is_real: Bool[Array, "n"], l2_clip_norm: Scalar, stability: Scalar | None = None
) -> Float[Array, "n"]:
    """min(1, C / norm) for real examples, 0 for padding; a gradient that is not finite stays not finite, and is caught by
    the step.

    With `stability` gamma the factor is C / (norm + gamma) instead (automatic clipping, Bu et al. 2023, arXiv 2206.07136): it
    lengthens short gradients too, and the product is again shorter than C whatever the gradient.
    """
    norms = jnp.sqrt(squared_norms)
    bound = l2_clip_norm * (1.0 - CLIP_MARGIN)
    if stability is not None:
        return jnp.where(is_real, bound / (norms + stability), 0.0)
    return jnp.where(is_real, jnp.minimum(1.0, bound / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)), 0.0)


def layer_of(path: Sequence[Any]) -> Path:
    """The layer to which the parameter at `path` of a tree belongs: the node that holds it."""
    return tuple(str(getattr(key, "key", key)) for key in path[:-1])


def _squared_norms(gradients: PyTree) -> dict[Path, Float[Array, "n"]]:
    """Squared L2 norms of each layer's gradient, one number an example (leaves have a leading example axis)."""
    squared: dict[Path, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        own = jnp.sum(jnp.square(leaf.astype(jnp.float32)).reshape(leaf.shape[0], -1), axis=1)
        squared[layer_of(path)] = squared[layer_of(path)] + own if layer_of(path) in squared else own
    return squared


def total_of_layers(squared: Mapping[Path, Float[Array, "n"]]) -> Float[Array, "n"]:
    """Squared norms of whole gradients."""
    first, *others = squared.values()
    return sum(others, start=first)


def clip_factors_of_layers(
    squared: Mapping[Path, Float[Array, "n"]],
    is_real: Bool[Array, "n"],
    l2_clip_norm: Scalar,
    stability: Scalar | None,
    per_layer: bool,
) -> dict[Path, Float[Array, "n"]]:
    """The factors of each layer's gradients: the same for all layers, or each layer's own."""
    if not per_layer:
        return dict.fromkeys(squared, clip_factors(total_of_layers(squared), is_real, l2_clip_norm, stability))
    share = l2_clip_norm / math.sqrt(len(squared))
    return {layer: clip_factors(own, is_real, share, stability) for layer, own in squared.items()}


def clipped_sum_vmap(
    loss: Loss,
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    l2_clip_norm: Scalar,
    *,
    stability: Scalar | None = None,
    per_layer: bool = False,
) -> tuple[PyTree, Float[Array, "n"], Float[Array, "n"]]:
    """The reference: `vmap(grad)`, every example's whole gradient, clipped and summed.

    Args:
        loss: of one example.
        params: float32 leaves.
        examples: leaves with a leading axis of n examples.
        is_real: False for padding, which contributes exactly zero.
        l2_clip_norm: C.
        stability: gamma of automatic clipping (`clip_factors`); None clips without.
        per_layer: clip each layer's gradient to its share of C instead of the whole gradient to C.

    Returns:
        The sum (same tree as `params`), and the n losses and gradient norms before clipping (private; for the operator's eyes).
    """
    losses, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(params, examples)
    gradients = _fixed(gradients)
    squared = _squared_norms(gradients)
    factors = clip_factors_of_layers(squared, is_real, l2_clip_norm, stability, per_layer)
    return _weighted_sum(factors, gradients), losses, jnp.sqrt(total_of_layers(squared))


def _fixed(values: Any) -> Any:
    """The same numbers for all that use them.

    XLA leaves out a rounding to 16 bits where it computes in 32, and does so for each use of a value apart
    (`xla_allow_excess_precision`): a norm may then be that of other numbers than those that are summed. Measured on a CPU: a
    contribution 2e-5 longer than the clip norm.
    """
    return jax.lax.optimization_barrier(values)


def _flat(x: Float[Array, "n records *shape"]) -> Float[Array, "films *shape"]:
    """The records of all examples in a row."""
    return x.reshape(-1, *x.shape[2:])


def _weighted_sum(factors: Mapping[Path, Float[Array, "n"]], gradients: PyTree) -> PyTree:
    def of_leaf(path: Any, gradient: Any) -> Any:
        return jnp.tensordot(factors[layer_of(path)], gradient.astype(jnp.float32), axes=(0, 0))

    with jax.default_matmul_precision("highest"):
        return jax.tree_util.tree_map_with_path(of_leaf, gradients)


def clipped_sum_layerwise(
    loss: TappedLoss,
    layers: Sequence[LinearLayer],
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    l2_clip_norm: Scalar,
    records: int = 1,
    *,
    stability: Scalar | None = None,
    per_layer: bool = False,
) -> tuple[PyTree, Float[Array, "n"], Float[Array, "n"]]:
    """The same sum from one forward and one backward pass over the whole microbatch.

    For a linear layer with T output positions, P inputs a position and O outputs, an example's squared gradient norm comes
    either from two T x T Gram matrices, 2 T^2 (P + O) flops (Goodfellow 2015; Bu et al. 2022, 'ghost norm'), or from the P
    x O gradient itself, 2 T P O flops. The cheaper is taken. After a Gram norm the sum is one ordinary weight gradient of
    the clipped cotangents. Parameters outside the given layers (norm scales, biases, anything unknown) are differentiated
    example by example as in `vmap`.

    Arguments and result as in `clipped_sum_vmap`, but for `loss` and `layers`; each example consists of `records` inputs of
    the network (the films of a patient), whose number is the leading axis of the zeros and of the layers' inputs.
    """
    one = _backward_pass(loss, layers, params, examples, records)
    with jax.default_matmul_precision("highest"):
        in_32_bits = all(v.dtype == jnp.float32 for v in jax.tree.leaves((one.inputs, one.cotangents)))
        fixed = (lambda values: values) if in_32_bits else _fixed
        instantiated: dict[Path, Any] = {}
        by_gram: dict[Path, tuple[Any, Any]] = {}
        gram_norms: dict[Path, Any] = {}
        for layer in layers:
            kernel, x, dy = one.kernels[layer.path], one.inputs[layer.path], one.cotangents[layer.path]
            if layer.input_gram is not None and _gram_is_cheaper(layer, kernel.shape, records):
                x, dy = by_gram[layer.path] = fixed((x, dy))
                gram_norms[_name(layer)] = jax.vmap(partial(_gram_squared_norm, layer.input_gram))(x, dy)
            else:
                instantiated[layer.path] = layer.kernel_gradients(kernel, x, dy)
        gradients = fixed(_with_kernels(one.direct_grads, instantiated))
        squared = _squared_norms(gradients)
        for name, own in gram_norms.items():
            squared[name] = squared[name] + own if name in squared else own
        factors = clip_factors_of_layers(squared, is_real, l2_clip_norm, stability, per_layer)
        # Within the precision of the norms: what is summed must have the norm that was computed for it.
        sums = {}
        for layer in layers:
            if layer.path in by_gram:
                x, dy = by_gram[layer.path]
                scaled = jax.vmap(jnp.multiply)(factors[_name(layer)], dy.astype(jnp.float32))
                sums[layer.path] = layer.kernel_gradient(one.kernels[layer.path], _flat(x.astype(jnp.float32)), _flat(scaled))
        total = _with_kernels(_weighted_sum(factors, gradients), sums)
    return total, one.losses, jnp.sqrt(total_of_layers(squared))


def _name(layer: LinearLayer) -> Path:
    """The layer's name among those of all parameters."""
    return ("params", *layer.path)


def instantiated_gradients(
    loss: TappedLoss, layers: Sequence[LinearLayer], params: PyTree, examples: PyTree, records: int = 1
) -> tuple[PyTree, Float[Array, "n"]]:
    """Every example's whole gradient, with a leading axis of n, and the n losses: from one backward pass over the microbatch.

    Arguments as in `clipped_sum_layerwise`. Whoever takes norms of them fixes their rounding first (`hardened_sum`).
    """
    one = _backward_pass(loss, layers, params, examples, records)
    with jax.default_matmul_precision("highest"):
        each = {
            layer.path: layer.kernel_gradients(one.kernels[layer.path], one.inputs[layer.path], one.cotangents[layer.path])
            for layer in layers
        }
    return _with_kernels(one.direct_grads, each), one.losses


def plain_sum_layerwise(
    loss: TappedLoss,
    layers: Sequence[LinearLayer],
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    records: int = 1,
) -> tuple[PyTree, Float[Array, "n"]]:
    """The sum without clipping, for training without privacy, in the same way: its weight gradients are the fast ones of the
    private step (`LinearLayer.kernel_gradient`). Returns the sum and the n losses, zero for padding.
    """
    one = _backward_pass(loss, layers, params, examples, records, is_real.astype(jnp.float32))
    with jax.default_matmul_precision(None):
        sums = {
            layer.path: layer.kernel_gradient(
                one.kernels[layer.path], _flat(one.inputs[layer.path]), _flat(one.cotangents[layer.path])
            ).astype(jnp.float32)
            for layer in layers
        }
        # As a product: XLA on the CPU would merge a sum with the one over a map's places, which the cotangents need apart, and
        # compute both (80 of 740 ms at 256 pixels).
        direct = jax.tree.map(lambda g: jnp.tensordot(jnp.ones(len(g)), g, 1, precision="highest"), one.direct_grads)
        return _with_kernels(direct, sums), one.losses


class _Pass(NamedTuple):
    """One backward pass over a microbatch: everything of which the gradients of its examples are made."""

    kernels: Mapping[Path, Any]
    losses: Float[Array, "n"]
    inputs: Mapping[Path, Any]
    cotangents: Mapping[Path, Any]
    direct_grads: PyTree


def _backward_pass(
    loss: TappedLoss,
    layers: Sequence[LinearLayer],
    params: PyTree,
    examples: PyTree,
    records: int,
    weights: Float[Array, "n"] | None = None,
) -> _Pass:
    """The pass, of each example's loss or of the loss times its weight."""
    kernels = {layer.path: _get(params, layer.path)["kernel"] for layer in layers}
    direct = _without_kernels(params, set(kernels))
    zeros = {layer.path: jnp.zeros((records, *layer.output.shape), layer.output.dtype) for layer in layers}

    def of_parts(direct: PyTree, zeros: PyTree, example: PyTree, weight: Any) -> Any:
        value, inputs = loss(_with_kernels(direct, kernels), zeros, example)
        return (value if weight is None else weight * value), inputs

    differentiate = jax.vmap(jax.value_and_grad(of_parts, argnums=(0, 1), has_aux=True), in_axes=(None, None, 0, 0))
    (losses, inputs), (direct_grads, cotangents) = differentiate(direct, zeros, examples, weights)
    return _Pass(kernels, losses, inputs, cotangents, direct_grads)


def _gram_is_cheaper(layer: LinearLayer, kernel_shape: tuple[int, ...], records: int) -> bool:
    outputs = layer.output.shape[-1]
    positions = records * layer.output.size // outputs
    inputs = 1
    for side in kernel_shape[:-1]:
        inputs *= side
    return positions * (inputs + outputs) < inputs * outputs


def _gram_squared_norm(input_gram: Callable[[Any], Any], x: Any, dy: Any) -> Float[Array, ""]:
    """|U(x)^T dy|^2 of one example, all its records together, as the inner product of two T x T Gram matrices."""
    b = dy.reshape(-1, dy.shape[-1])
    products = input_gram(x) * jnp.matmul(b, b.T, preferred_element_type=jnp.float32)
    return jnp.sum(products) + GRAM_ALLOWANCE * jnp.sum(jnp.abs(products))


def _get(params: Any, path: Path) -> Any:
    node = params["params"]
    for name in path:
        node = node[name]
    return node


def _without_kernels(params: Any, paths: set[Path]) -> Any:
    """Parameters without the kernels at `paths`."""

    def walk(node: Any, here: Path) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {k: walk(v, (*here, k)) for k, v in node.items() if not (k == "kernel" and here in paths)}

    return {"params": walk(params["params"], ())}


def _with_kernels(direct: Any, kernels: Mapping[Path, Any]) -> Any:
    """Inverse of `_without_kernels`."""

    def walk(node: Any, here: Path) -> Any:
        if not isinstance(node, Mapping):
            return node
        merged = {k: walk(v, (*here, k)) for k, v in node.items()}
        return {**merged, "kernel": kernels[here]} if here in kernels else merged

    return {"params": walk(direct["params"], ())}
