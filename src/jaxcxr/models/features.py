"""The features of an image: the input of a network's head."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxcxr.models.backbone import HEAD, Network


def with_features(
    model: nn.Module, params: PyTree, image: Any
) -> tuple[Float[Array, "findings"], Float[Array, "features"]]:
    """Logits of an image, and its features: the input of the dense layer named `HEAD`."""
    seen: list[Any] = []

    def look(
        call: Callable[..., Any], arguments: Any, options: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.module.path == (HEAD,):
            seen.append(arguments[0])
        return call(*arguments, **options)

    if isinstance(model, Network):
        logits: Any = model.apply(params, image, looking=look)
    else:
        with nn.intercept_methods(look):
            logits = model.apply(params, image)
    (features,) = seen
    return logits, features


def features(model: nn.Module, params: PyTree, image: Any) -> Float[Array, "features"]:
    """The features of one grey image, uint8 or float [h, w] in [0, 255]: the vector that the head sees.

    Batching is `jax.vmap` over images. `network.n_features(params)` is its length.
    """
    return with_features(model, params, image)[1]
