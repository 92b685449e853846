"""The head by noisy least squares: one release of moments, one Newton-like step from the head that training
starts from.

The network below the head is fixed and only evaluated. Films contribute second moments of their features x
and the products of x with the residuals r of the starting head (`privacy.moments`); the released means A and
B give, for each finding,

    step_k = (A_+ + ridge I)^-1 B_k / curvature_k,

A_+ being A without the negative eigenvalues that only noise can give it. All that follows the release is
post-processing of
public constants: noise multiplier, clip norm, expected batch size, dimension, class weights. The idea of
private least squares on the features of a pretrained network is that of Mehta et al. 2022 (arXiv 2211.13403);
here it is one step of the weighted logistic regression, so that the starting head is kept as far as the films
cannot tell better.

**Curvature.** With y, w, p the label, the weight of a positive one and the predicted probability, the loss
has the second derivative (w y + 1 - y) p (1 - p) by the logit. It is at most max(w, 1) / 4 whatever the head
(Boehning & Lindsay 1988), and steps with this bound never raise the loss; but for w = 12 they are five times
too short, since few labels are positive. Where the head is calibrated, that is p / (1 - p) = w q / (1 - q)
for a positive with probability q, the second derivative expected of a film is w q (1 - q) / (w q + 1 - q), at
most w / (1 + sqrt w)^2: this is `curvature`. For w = 1 both are a quarter.

**Ridge.** The noise of A is symmetric and Gaussian, of deviation noise_multiplier C / N on the diagonal and 1
/ sqrt 2 of it off the diagonal, for an expected batch of N, so that its spectral norm is near e =
noise_multiplier C sqrt(2 d) / N (Wigner); the length of a column of B's noise is e / sqrt 2. C bounds A
itself. The ridge is RIDGE e (1 + e / C): in proportion to the noise while that is small, and beyond it fast
enough that overwhelming noise leaves the head where it is (the step shrinks like 1 / noise_multiplier). It
pulls to the starting head, not to zero.

**Centre and scale.** Pooled features have a large mean that all films share; clipped with it, a film's own
part drowns. A public constant near that mean is subtracted: the mean features of a few films of random
pixels, whose grey values are spread as evenly as an equalised film's. Its length also sets the scale of the
features, which decides how the clip norm is shared between A and B. Neither changes what is solved for
without noise; the step is written back as one of kernel and bias.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcxr.models.features import with_features
from jaxcxr.models.network import HEAD, Network
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.moments import Moments, clipped_steps, moment_sum, symmetric
from jaxcxr.training.objective import Microbatch, log_sums, mean_over_films, weighted_cross_entropy

CENTRE_FILMS = 8
FEATURE_SCALE, CONSTANT = 2.0, 0.2
"""Length of the centre in the scaled features, and the constant feature in whose place the bias stands.
Chosen, like `RIDGE`, on the study's other cohort, where half or twice the scale with half or twice the ridge
did as well.
"""
RIDGE = 0.3
_ROUNDING = 1e-6
"""Least ridge, in parts of the trace of A: without noise, features that are all alike would give eigenvalues
of rounding.
"""


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """What a step sums, and what is made of the released mean.

    Attributes:
        model: the network.
        weights: of positive labels, one a finding.
        image_shape: of a film.
        mechanism: of a private run, else None.
        trained: mask of the head's parameters.
        stability: gamma of automatic clipping, else None.
    """

    model: Network
    weights: Float[np.ndarray, "findings"]
    image_shape: tuple[int, int]
    mechanism: Mechanism | None = None
    trained: PyTree | None = None
    stability: float | None = None

    def empty(self, params: PyTree) -> Moments:
        """The sum of no unit, in floating point."""
        return empty_moments(params)

    def summed(self, params: PyTree, batch: Microbatch) -> tuple[PyTree, Mapping[str, Array]]:
        """The sum of a microbatch's moments, clipped and exact if private, and sums for the log."""
        weights, centre = jnp.asarray(self.weights), self._centre(params)

        def of_film(image: Any, label: Any) -> Any:
            logits, pooled = with_features(self.model, params, image)
            loss, slope = jax.value_and_grad(weighted_cross_entropy)(logits, label, weights)
            # the loss is a mean over findings; the residual belongs to one of them
            return _scaled(pooled, centre), -len(self.weights) * slope, loss

        features, residuals, losses = jax.vmap(jax.vmap(of_film))(batch["image"], batch["label"])
        is_film, is_real = batch["is_film"], batch["is_real"]
        losses = jax.vmap(mean_over_films)(losses, is_film)
        if self.mechanism is None:
            return moment_sum(features, residuals, is_film, is_real)[0], log_sums(batch, losses=losses)
        clip_norm, step = self.mechanism.l2_clip_norm, self.mechanism.step_size(empty_moments(params))
        total, norms = clipped_steps(
            features, residuals, is_film, is_real, clip_norm, step, stability=self.stability
        )
        exact = self.mechanism.counted(total, jnp.all(jnp.isfinite(norms) | ~is_real))
        return exact, log_sums(batch, losses=losses, norm=norms, clipped=norms > clip_norm)

    def direction(self, params: PyTree, released: Moments) -> PyTree:
        """Minus the step, as a tree of the head's parameters: an optimiser takes it like a gradient, and a
        rate of 1 makes the step that is meant.
        """
        centre = self._centre(params)
        d = released.residuals.shape[0]
        eigenvalues, vectors = jnp.linalg.eigh(symmetric(released.features, d))
        kept = jnp.maximum(eigenvalues, 0.0)
        with jax.default_matmul_precision("highest"):
            along = (
                vectors.T @ released.residuals / (kept + self._ridge(d) + _ROUNDING * jnp.sum(kept))[:, None]
            )
            step = vectors @ along / curvature(self.weights)
            kernel = step[:-1] * _scale_of(centre)
            bias = step[-1] * CONSTANT - centre @ kernel
        return {"params": {HEAD: {"kernel": -kernel, "bias": -bias}}}

    def _ridge(self, d: int) -> float:
        m = self.mechanism
        if m is None:
            return 0.0
        noise = m.noise_multiplier * m.l2_clip_norm * math.sqrt(2 * d) / m.expected_batch_size
        return RIDGE * noise * (1 + noise / m.l2_clip_norm)

    def _centre(self, params: PyTree) -> Float[Array, "features"]:
        films = np.random.default_rng(0).integers(0, 256, (CENTRE_FILMS, *self.image_shape)).astype(np.uint8)
        pooled = jax.vmap(lambda film: with_features(self.model, params, film)[1])(jnp.asarray(films))
        return jnp.mean(pooled, axis=0)


def empty_moments(params: Any) -> Moments:
    """The sum of no unit, for a head like that of `params`."""
    features, findings = params["params"][HEAD]["kernel"].shape
    d = features + 1
    return Moments(jnp.zeros(d * (d + 1) // 2), jnp.zeros((d, findings)))


def curvature(weights: Float[np.ndarray, "findings"]) -> Float[np.ndarray, "findings"]:
    """Bound on the expected second derivative of a calibrated head's loss by the logit, for each weight of a
    positive label.
    """
    return (weights / np.square(1 + np.sqrt(weights))).astype(np.float32)


def _scaled(pooled: Float[Array, "features"], centre: Float[Array, "features"]) -> Float[Array, "d"]:
    return jnp.append((pooled - centre) * _scale_of(centre), CONSTANT)


def _scale_of(centre: Float[Array, "features"]) -> Float[Array, ""]:
    return FEATURE_SCALE / jnp.maximum(jnp.linalg.norm(centre), 1e-6)
