"""A head on kept features: what its steps release, and how they move it.

The network below the head is fixed. Its features of every image are computed once (`kept_features`), and the
head moves along directions that public images say (`directions`): for an image with features f, coordinates
x and logits l of the head as it is, a step takes the gradient, by v at 0, of the loss at the logits l + x v,
a matrix x r^T of k + 1 times findings numbers, r being minus the residuals. Units' gradients (the mean over
a patient's images) are clipped, intercept included, summed and noised like any others by
`privacy.mechanism`; one release of one step gives the moments of residuals, or, from a zero head with even
residuals, the difference of clipped means; many steps of everybody (sample rate 1) are logistic regression
by full-batch private descent.

Everything after the release is linear and public: `direction` turns the released mean into a step of kernel
and bias whose largest curvature is 1, so that a learning rate of 1 suits any number of directions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcxr.models.network import HEAD
from jaxcxr.per_example import gradients
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.directions import Directions
from jaxcxr.training.objective import (
    Microbatch,
    curvature,
    log_sums,
    mean_over_images,
    weighted_cross_entropy,
)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadGradients:
    """The kind of release that a step makes of a head's gradients in public directions (`training.step`).

    In place of images, a microbatch has rows of features and coordinates (`rows_of`).

    Attributes:
        directions: public.
        weights: of positive labels, one per finding.
        mechanism: of a private run, else None.
        trained: mask of the head's parameters.
    """

    directions: Directions
    weights: Float[np.ndarray, "findings"]
    mechanism: Mechanism | None = None
    trained: PyTree | None = None

    def empty(self, params: PyTree) -> PyTree:
        """The sum of no unit, in floating point."""
        return empty_coordinates(params, len(self.directions.spread))

    def summed(
        self, params: PyTree, batch: Microbatch, clipping: PyTree | None = None
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """The sum over a microbatch, clipped and exact if private, and sums for the log."""
        logits, x = logits_and_coordinates(params, batch["image"])
        units, is_real = (x, logits, batch["label"], batch["is_image"]), batch["is_real"]
        weights = jnp.asarray(self.weights)

        def loss(moved: PyTree, unit: Any) -> Array:
            x, logits, labels, is_image = unit
            seen = logits + x @ moved["coordinates"]
            return mean_over_images(
                jax.vmap(weighted_cross_entropy, (0, 0, None))(seen, labels, weights), is_image
            )

        unmoved = self.empty(params)
        if self.mechanism is None:
            total, losses = gradients.plain_sum(loss, unmoved, units, jnp.asarray(is_real, jnp.float32))
            return total, log_sums(batch, losses=losses)
        total, losses, norms = self.mechanism.clipped_sum(loss, unmoved, units, is_real, clipping)
        clipped = norms > self.mechanism.clip_norm(clipping)
        return total, log_sums(batch, losses=losses, norm=norms, clipped=clipped)

    def direction(self, params: PyTree, released: PyTree) -> PyTree:  # noqa: ARG002 - one signature
        """What an optimiser takes for the gradient of kernel and bias.

        The loss is a mean over findings, and its curvature along a coordinate at most `curvature` of a
        calibrated head times the coordinate's mean square, over public images.
        """
        findings = len(self.weights)
        steepest = float(np.max(np.square(self.directions.spread))) * curvature(self.weights) / findings
        return in_features(self.directions, released["coordinates"] / steepest)


def empty_coordinates(params: Any, count: int) -> PyTree:
    """What a step of a head like that of `params` sums of no unit, with `count` coordinates."""
    return {"coordinates": jnp.zeros((count, params["params"][HEAD]["kernel"].shape[1]))}


def logits_and_coordinates(
    params: PyTree, rows: Float[Array, "*n row"]
) -> tuple[Float[Array, "*n findings"], Float[Array, "*n coordinates"]]:
    """Of images that are given as rows of features, then coordinates."""
    head = params["params"][HEAD]
    d = head["kernel"].shape[0]
    with jax.default_matmul_precision("highest"):
        return rows[..., :d] @ head["kernel"] + head["bias"], rows[..., d:]


def in_features(directions: Directions, moved: Float[Array, "coordinates findings"]) -> PyTree:
    """The change of kernel and bias that changes every image's logits by its coordinates times `moved`."""
    with jax.default_matmul_precision("highest"):
        kernel = jnp.asarray(directions.axes) @ moved[:-1]
        bias = directions.constant * moved[-1] - jnp.asarray(directions.centre) @ kernel
    return {"params": {HEAD: {"kernel": kernel, "bias": bias}}}


def rows_of(directions: Directions, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n row"]:
    """What stands in place of images: features, then coordinates."""
    return np.concatenate([np.asarray(features, np.float32), directions.coordinates(features)], axis=1)
