"""Test-time augmentation: probabilities from the mean logits over flipped and shifted copies of an image.

It is post-processing of released weights, hence free of privacy cost. `mirrored` doubles the arithmetic of a
prediction, `mirrored_moved` multiplies it by ten; training is not affected.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxcxr.config import Views
from jaxcxr.per_example.gradients import quick

MOVED_BY = 1 / 32
"""Shift of an image, as a share of its side."""


def predictor(
    network: nn.Module, views: Views, other_side: Sequence[int] | None = None, any_batch: bool = False
) -> Callable[[Any, UInt8[Array, "n h w"]], Float[Array, "n findings"]]:
    """The function (parameters, images) -> probabilities, not yet compiled.

    Args:
        network: from one image to the logits of its findings.
        views: `one`: the image alone; `mirrored`: also flipped left to right, with the findings of the two
            sides swapped; `mirrored_moved`: both of these also shifted up, down, left and right.
        other_side: index of each finding's counterpart in a flipped image
            (`data.findings.mirror_permutation`).
        any_batch: for any number of images (an export); otherwise convolutions use the fastest form for the
            platform.

    Raises:
        ValueError: images must be flipped, but `other_side` is not given.
    """
    if views != "one" and other_side is None:
        raise ValueError(f"other_side: needed for views {views!r}")

    apply: Any = network.apply if any_batch else quick(network.apply)

    def logits(params: Any, image: Any) -> Any:
        if views == "one":
            return apply(params, image)
        seen = jnp.concatenate(both_sides(image, views))
        found: Any = jax.vmap(apply, in_axes=(None, 0))(params, seen)
        half = len(seen) // 2
        return jnp.concatenate([found[:half], found[half:, jnp.asarray(other_side)]]).mean(axis=0)

    return lambda params, images: jax.nn.sigmoid(jax.vmap(logits, in_axes=(None, 0))(params, images))


def both_sides(image: Any, views: Views) -> list[Any]:
    """The views of an image that a prediction averages: the upright ones [v, h, w], and as many mirrored ones
    unless the image alone is predicted.
    """
    upright = jnp.stack([image] if views != "mirrored_moved" else [image, *_moved(image)])
    return [upright] if views == "one" else [upright, upright[..., ::-1]]


def _moved(image: Any) -> list[Any]:
    """The image shifted in four directions, edges repeated."""
    by = max(1, round(MOVED_BY * image.shape[0]))
    wide = jnp.pad(image, by, mode="edge")
    h, w = image.shape
    return [wide[by + i : by + i + h, by + j : by + j + w] for i, j in ((-by, 0), (by, 0), (0, -by), (0, by))]
