"""Fit the head by noisy least squares: one release of moments, one Newton-like step from the starting head.

The network below the head is frozen and only evaluated. Images contribute second moments of their features x
and the products of x with the residuals r of the starting head (`privacy.moments`); the released means A and
B give, for each finding,

    step_k = (A_+ + ridge I)^-1 B_k / curvature_k,

A_+ being A without its negative eigenvalues, which only noise can cause. Everything after the release is
post-processing, with public constants: noise multiplier, clip norm, expected batch size, dimension, class
weights. Private least squares on the features of a pretrained network is the idea of Mehta et al. 2022 (arXiv
2211.13403); here it is one step of the weighted logistic regression, so that the starting head is kept where
the images say nothing better.

**Curvature.** With label y, weight w of a positive label and predicted probability p, the loss's second
derivative by the logit is (w y + 1 - y) p (1 - p). It is at most max(w, 1) / 4 for any head (Boehning &
Lindsay 1988), and steps with this bound never increase the loss; but for w = 12 they are five times too
short, since few labels are positive. If the head is calibrated, that is p / (1 - p) = w q / (1 - q) for a
positive with probability q, the expected second derivative of an image is w q (1 - q) / (w q + 1 - q), at
most w / (1 + sqrt w)^2: this is `curvature`. For w = 1 both are a quarter.

**Ridge.** The noise of A is symmetric and Gaussian, with standard deviation noise_multiplier C / N on the
diagonal and 1 / sqrt 2 of it off the diagonal, for an expected batch of N, so its spectral norm is near e =
noise_multiplier C sqrt(2 d) / N (Wigner); the length of a column of B's noise is e / sqrt 2. C bounds A
itself. The ridge is RIDGE e (1 + e / C): proportional to the noise while that is small, and growing faster
beyond, so that overwhelming noise leaves the head unchanged (the step shrinks like 1 / noise_multiplier). It
shrinks towards the starting head, not towards zero.

**Centre and scale.** Pooled features have a large mean that all images share; if it were clipped along,
little of an image's own part would remain. A public constant near that mean is subtracted: the mean features
of a few images of random pixels, whose grey values are as uniform as an equalised image's. Its length also
sets the scale of the features, which determines how the clip norm is shared between A and B. Without noise,
neither changes the solution; the step is converted back to kernel and bias.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxcxr.models.features import with_features
from jaxcxr.models.network import HEAD, Network
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.moments import Moments, clipped_steps, upper_triangle
from jaxcxr.training.directions import Directions
from jaxcxr.training.head import in_features, logits_and_coordinates
from jaxcxr.training.objective import (
    Microbatch,
    curvature,
    log_sums,
    mean_over_images,
    weighted_cross_entropy,
)

CENTRE_IMAGES = 8
FEATURE_SCALE, CONSTANT = 2.0, 0.2
"""Length of the centre in the scaled features, and the constant feature that stands for the bias.

Chosen, like `RIDGE`, on the study's other cohort, where half or twice the scale with half or twice the ridge
did as well.
"""
RIDGE = 0.3
_ROUNDING = 1e-6
"""Smallest ridge, as a share of A's trace: without noise, constant features have eigenvalues near 0."""


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """The sum of a step, and the update from the released mean.

    Attributes:
        model: the network.
        weights: weights of positive labels, one per finding.
        image_shape: shape of an image.
        mechanism: the mechanism; None without privacy.
        trained: mask of the trained parameters, the head's.
        stability: gamma of automatic clipping; None for flat clipping.
        directions: of a head on kept features (`training.head`), whose rows a microbatch then has in place of
            images: the moments are those of the rows' coordinates, fewer than the features.
    """

    model: Network
    weights: Float[np.ndarray, "findings"]
    image_shape: tuple[int, int]
    mechanism: Mechanism | None = None
    trained: PyTree | None = None
    stability: float | None = None
    directions: Directions | None = None

    def empty(self, params: PyTree) -> Moments:
        """The moments of an empty batch, in floating point."""
        return empty_moments(params, None if self.directions is None else len(self.directions.spread))

    def summed(
        self,
        params: PyTree,
        batch: Microbatch,
        clipping: PyTree | None = None,  # noqa: ARG002 - one signature
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """The sum of a microbatch's moments (clipped and exact if private), and sums for the log."""
        weights, seen = jnp.asarray(self.weights), self._seen(params)

        def of_image(image: Any, label: Any) -> Any:
            logits, x = seen(image)
            loss, slope = jax.value_and_grad(weighted_cross_entropy)(logits, label, weights)
            # the loss is a mean over findings; the residual belongs to one of them
            return x, -len(self.weights) * slope, loss

        features, residuals, losses = jax.vmap(jax.vmap(of_image))(batch["image"], batch["label"])
        is_image, is_real = batch["is_image"], batch["is_real"]
        losses = jax.vmap(mean_over_images)(losses, is_image)
        if self.mechanism is None:
            total = plain_moments(features, residuals, is_image & is_real[:, None])
            return total, log_sums(batch, losses=losses)
        clip_norm, step = self.mechanism.l2_clip_norm, self.mechanism.step_size(self.empty(params))
        total, norms = clipped_steps(
            features, residuals, is_image, is_real, clip_norm, step, stability=self.stability
        )
        exact = self.mechanism.counted(total, jnp.all(jnp.isfinite(norms) | ~is_real))
        return exact, log_sums(batch, losses=losses, norm=norms, clipped=norms > clip_norm)

    def direction(self, params: PyTree, released: Moments) -> PyTree:
        """Minus the step, as a tree of the head's parameters.

        An optimiser takes it like a gradient; a learning rate of 1 makes the intended step.
        """
        d = released.residuals.shape[0]
        eigenvalues, vectors = jnp.linalg.eigh(symmetric(released.features, d))
        kept = jnp.maximum(eigenvalues, 0.0)
        with jax.default_matmul_precision("highest"):
            along = (
                vectors.T @ released.residuals / (kept + self._ridge(d) + _ROUNDING * jnp.sum(kept))[:, None]
            )
            step = vectors @ along / curvature(self.weights)
            if self.directions is not None:
                return in_features(self.directions, -step)
            centre = self._centre(params)
            kernel = step[:-1] * _scale_of(centre)
            bias = step[-1] * CONSTANT - centre @ kernel
        return {"params": {HEAD: {"kernel": -kernel, "bias": -bias}}}

    def _seen(self, params: PyTree) -> Callable[[Any], tuple[Array, Array]]:
        """The function from an image, or its row, to its logits and to what moments are of."""
        if self.directions is not None:
            return lambda row: logits_and_coordinates(params, row)
        centre = self._centre(params)

        def of_image(image: Any) -> tuple[Array, Array]:
            logits, pooled = with_features(self.model, params, image)
            return logits, _scaled(pooled, centre)

        return of_image

    def _ridge(self, d: int) -> float:
        m = self.mechanism
        if m is None:
            return 0.0
        noise = m.noise_multiplier * m.l2_clip_norm * math.sqrt(2 * d) / m.expected_batch_size
        return RIDGE * noise * (1 + noise / m.l2_clip_norm)

    def _centre(self, params: PyTree) -> Float[Array, "features"]:
        images = (
            np.random.default_rng(0).integers(0, 256, (CENTRE_IMAGES, *self.image_shape)).astype(np.uint8)
        )
        pooled = jax.vmap(lambda image: with_features(self.model, params, image)[1])(jnp.asarray(images))
        return jnp.mean(pooled, axis=0)


def empty_moments(params: Any, coordinates: int | None = None) -> Moments:
    """The moments of an empty batch, for a head like that of `params`, in its features or so many
    coordinates.
    """
    features, findings = params["params"][HEAD]["kernel"].shape
    d = features + 1 if coordinates is None else coordinates
    return Moments(jnp.zeros(d * (d + 1) // 2), jnp.zeros((d, findings)))


def plain_moments(
    features: Float[Array, "n images d"],
    residuals: Float[Array, "n images findings"],
    is_counted: Bool[Array, "n images"],
) -> Moments:
    """The sum over units of the mean moments of their images, without clipping or rounding: not private."""
    x, r = (jnp.where(is_counted[..., None], v, 0.0) for v in (features, residuals))
    scaled = x / jnp.maximum(jnp.sum(is_counted, axis=1), 1)[:, None, None]
    with jax.default_matmul_precision("highest"):
        squares, products = (jnp.einsum("nid,nie->de", scaled, v) for v in (x, r))
    return Moments(upper_triangle(squares), products)


def _scaled(pooled: Float[Array, "features"], centre: Float[Array, "features"]) -> Float[Array, "d"]:
    return jnp.append((pooled - centre) * _scale_of(centre), CONSTANT)


def _scale_of(centre: Float[Array, "features"]) -> Float[Array, ""]:
    return FEATURE_SCALE / jnp.maximum(jnp.linalg.norm(centre), 1e-6)


def symmetric(triangle: Float[Array, "triangle"], d: int) -> Float[Array, "d d"]:
    """The symmetric matrix [d, d] of an upper triangle (`privacy.moments.upper_triangle`)."""
    half = jnp.zeros((d, d), triangle.dtype).at[np.triu_indices(d)].set(triangle)
    return half + jnp.triu(half, 1).T
