"""The image itself, made small, beside the features of a network: more for a head to see.

A head on the features of a fixed network sees what that network was trained to see. An image of 16 x 16
grey values beside them adds where it is bright and dark, which a mean over all places has lost. On kept
features (`training.head`) this was worth 0.03 of AUROC on radiographs of 64 pixels (docs/recipes.md). The
head's kernel gets `side` x `side` rows more; a network with zeros in these rows is the network without.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Interceptor = Callable[[Any, Any, Any, nn.module.InterceptorContext], Any]


def thumbnail(image: Any, side: int) -> Float[Array, "places"]:
    """Grey values of an image made `side` x `side` pixels small, row by row, from -1/2 (black) to 1/2.

    Args:
        image: [h, w] grey values from 0 to 255, of any type.
        side: in pixels.
    """
    grey = jnp.asarray(image, jnp.float32) / 255.0 - 0.5
    small = jax.image.resize(
        grey, (side, side), "linear", antialias=True, precision=jax.lax.Precision.HIGHEST
    )
    return small.reshape(-1)


def beside(features: Float[Array, "features"], image: Any, side: int) -> Float[Array, "more"]:
    """The features, then the thumbnail of the image that they are of."""
    return jnp.concatenate([features.astype(jnp.float32), thumbnail(image, side)])


def shown_to(head: str, image: Any, side: int) -> Interceptor:
    """Interceptor for `nn.intercept_methods`: the layer called `head` sees the thumbnail of `image`, too."""

    def look(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.path == (head,) and context.method_name == "__call__":
            arguments = (beside(arguments[0], image, side), *arguments[1:])
        return call(*arguments, **options)

    return look
