"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): a product of two thin factors beside each kernel.

A dense layer computes x W + (x A) B, a convolution W * x + B (A * x), where A leads to `rank` channels and B
from there to all. B starts at zero, so that nothing changes before training. A private run that trains A and
B alone clips and noises a few per cent of the parameters, and each example's gradients are those of two small
products.

The factors stand beside the kernel, as `lora_in` and `lora_out`. Grouped convolutions, layers that are not
Flax's own and the head have none; nor have kernels that are no larger than their factors would be.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

IN, OUT = "lora_in", "lora_out"


def is_factor(leaf: str) -> bool:
    """Whether the parameter of that name is a factor."""
    return leaf in (IN, OUT)


def init_with_factors(init: Callable[[], PyTree], rank: int, key: Any, head: str) -> PyTree:
    """The parameters that `init` makes, with factors: A normal with variance 1 / inputs, B zero."""
    adapted: list[tuple[str, ...]] = []

    def look(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        can = isinstance(module, nn.Dense) or (
            isinstance(module, nn.Conv) and module.feature_group_count == 1
        )
        is_new = module.path != (head,) and module.path not in adapted
        if can and is_new and context.method_name == "__call__":
            adapted.append(module.path)
        return call(*arguments, **options)

    with nn.intercept_methods(look):
        params = init()
    for number, path in enumerate(adapted):
        kernel = _at(params, path)["kernel"]
        *inputs, out = kernel.shape
        if rank * (int(np.prod(inputs)) + out) >= kernel.size:
            continue
        scale = float(np.prod(inputs)) ** -0.5
        first = scale * jax.random.normal(jax.random.fold_in(key, number), (*inputs, rank))
        params = _with(params, path, {IN: first, OUT: jnp.zeros((rank, out))})
    return params


def added(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
    """Interceptor for `nn.intercept_methods`: what a layer with factors puts out."""
    output, module = call(*arguments, **options), context.module
    if context.method_name != "__call__" or not isinstance(module, nn.Dense | nn.Conv):
        return output
    if not module.has_variable("params", IN):
        return output
    first, second = (module.get_variable("params", name) for name in (IN, OUT))
    thin = module.clone(features=second.shape[0], use_bias=False, parent=None, name=None)
    return output + thin.apply({"params": {"kernel": first}}, arguments[0]) @ second.astype(output.dtype)


def merged(params: PyTree) -> PyTree:
    """The parameters without factors: each kernel with the product of its factors added."""

    def walk(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {name: walk(child) for name, child in node.items() if not is_factor(name)}
        if IN in node:
            product = np.asarray(node[IN], np.float64) @ np.asarray(node[OUT], np.float64)
            kept["kernel"] = (np.asarray(node["kernel"], np.float64) + product).astype(np.float32)
        return kept

    return walk(params)


def _at(params: Any, path: tuple[str, ...]) -> Any:
    node = params["params"]
    for name in path:
        node = node[name]
    return node


def _with(params: Any, path: tuple[str, ...], leaves: dict[str, Any]) -> Any:
    def put(node: Any, rest: tuple[str, ...]) -> Any:
        if not rest:
            return {**node, **leaves}
        return {**node, rest[0]: put(node[rest[0]], rest[1:])}

    return put(params, ("params", *path))
