"""The features of an image: the input of a network's head."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxcxr.models.network import HEAD


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

    with nn.intercept_methods(look):
        logits: Any = model.apply(params, image)
    (features,) = seen
    return logits, features
