"""Mean and spread of a network's earlier maps, beside its features: more for a head to see.

The features of a network that was trained on photographs are about photographs. Its earlier stages see edges
and textures, which radiographs have, too. On kept features (`training.head`) their means and standard
deviations over all places help (docs/recipes.md). The head's kernel gets two rows more for each channel of
the stages; a network with zeros in these rows is the network without.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxcxr.models.thumbnail import Interceptor


def of_map(stage: Float[Array, "h w c"]) -> Float[Array, "2*c"]:
    """Mean of each channel over all places, then standard deviations."""
    exact = stage.astype(jnp.float32)
    return jnp.concatenate([exact.mean(axis=(0, 1)), exact.std(axis=(0, 1))])


def shown_to(head: str, stages: Sequence[str]) -> Interceptor:
    """Interceptor for `nn.intercept_methods`: the layer called `head` sees the statistics of the maps that
    the modules called `stages` give, too.
    """
    seen: dict[str, Any] = {}

    def look(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__" or len(context.module.path) != 1:
            return call(*arguments, **options)
        (name,) = context.module.path
        if name == head:
            more = [seen[stage] for stage in stages]
            arguments = (jnp.concatenate([arguments[0].astype(jnp.float32), *more]), *arguments[1:])
        given = call(*arguments, **options)
        if name in stages:
            seen[name] = of_map(given)
        return given

    return look


def channels(network: nn.Module, params: PyTree, size: int, stages: Sequence[str]) -> tuple[int, ...]:
    """Number of channels of each stage of a network, for images of `size` pixels a side."""
    found: dict[str, int] = {}

    def look(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        given = call(*arguments, **options)
        if context.method_name == "__call__" and context.module.path and context.module.path[0] in stages:
            found[context.module.path[0]] = given.shape[-1]
        return given

    with nn.intercept_methods(look):
        jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((size, size), jnp.uint8))
    return tuple(found[stage] for stage in stages)
