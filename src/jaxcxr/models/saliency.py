"""Saliency: where in an image a finding's logit comes from.

Integrated gradients (Sundararajan et al. 2017) attribute the difference between the logits of the image and
of a black image to the pixels; the attributions add up to the difference. The class activation map (Zhou et
al. 2016; equal to Grad-CAM, Selvaraju et al. 2017, in a network that ends in a mean and a dense layer)
attributes the logit to the cells of the last map (2 x 2 at 64 pixels, 16 x 16 at 512).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from jaxcxr.errors import InputError
from jaxcxr.models.backbone import HEAD, LAST_MAP, Network


def integrated_gradients(
    model: Network, params: PyTree, image: UInt8[np.ndarray, "h w"], finding: int, steps: int = 64
) -> Float[np.ndarray, "h w"]:
    """Each pixel's share of logit(image) - logit(black image), by the midpoint rule.

    Args:
        model: the network.
        params: its parameters.
        image: prepared as for training.
        finding: index of the output.
        steps: number of images between black and `image`; the error of the sum decreases with its square.
    """
    return np.asarray(_shares(model, params, jnp.asarray(image, jnp.float32), jnp.asarray(finding), steps))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _shares(model: Network, params: PyTree, image: Any, finding: Any, steps: int) -> Any:
    """Compiled once for all images and findings, and for all models of one network."""

    def logit(image: Any) -> Any:
        return model.apply(params, image)[finding]  # type: ignore[index]

    def add(total: Any, fraction: Any) -> tuple[Any, None]:
        return total + jax.grad(logit)(fraction * image), None

    fractions = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    total, _ = jax.lax.scan(add, jnp.zeros_like(image), fractions)
    return image * total / steps


def activation_map(
    model: Network, params: PyTree, image: UInt8[np.ndarray, "h w"], finding: int
) -> Float[np.ndarray, "i j"]:
    """Contribution of each cell of the last map to the logit; the sum is the logit without its bias, and
    without what the head takes from a thumbnail (`models.thumbnail`).

    Raises:
        InputError: the features of this network are not the mean over the places of a map.
    """
    _, state = model.apply(params, jnp.asarray(image), mutable=["intermediates"])
    maps: Any = state.get("intermediates", {}).get(LAST_MAP)
    if maps is None:
        raise InputError(
            f"activation_map: {type(model).__name__} has no map whose mean the head sees; expected the "
            "method integrated_gradients, which explains any network"
        )
    features = jnp.asarray(maps[0], jnp.float32)
    kernel = params["params"][HEAD]["kernel"][: features.shape[-1], finding]
    return np.asarray(features @ kernel) / (features.shape[0] * features.shape[1])
