"""What is minimised, the class-weighted binary cross-entropy of one film, and what a step releases of it:
gradients.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxcxr.models.network import Network
from jaxcxr.models.trainable import join, split
from jaxcxr.per_example import gradients
from jaxcxr.privacy.mechanism import Mechanism

Microbatch = Mapping[str, Any]
"""n units of k films: `image` [n, k, h, w] uint8, `label` [n, k, findings] float32 with NaN for unknown,
`is_image` [n, k] bool, False where a unit has fewer films, and `is_real` [n] bool, False for padding. Where
the image is the unit, k is 1.

In place of `image` there may be `index` [n, k] int32 and `films` [m, h, w], all films there are
(`with_images`).
"""
FILMS = "films"
UnitLoss = Callable[[PyTree, Any], Float[Array, ""]]
"""(parameters, one unit: its images, labels and which of them are films) -> its loss."""


def weighted_cross_entropy(
    logits: Float[Array, "findings"],
    labels: Float[Array, "findings"],
    positive_weights: Float[Array, "findings"],
) -> Float[Array, ""]:
    """Mean over findings of -(w y log p + (1 - y) log(1 - p)), p = sigmoid(logit); an unknown label (NaN)
    adds zero.

    The divisor is the number of findings, known or not, so that the mean over films equals torch's
    `BCEWithLogitsLoss(pos_weight=w)` (the paper's).
    """
    known = ~jnp.isnan(labels)
    y = jnp.where(known, labels, 0.0)
    terms = positive_weights * y * jax.nn.softplus(-logits) + (1 - y) * jax.nn.softplus(logits)
    return jnp.sum(jnp.where(known, terms, 0.0)) / labels.shape[0]


def positive_weights(rates: Float[np.ndarray, "findings"]) -> Float[np.ndarray, "findings"]:
    """(1 - p) / p: how many negatives there are to a positive, for positive rates p (the paper's inverted
    class frequencies).
    """
    rates = np.asarray(rates, np.float32)
    return ((1 - rates) / rates).astype(np.float32)


def curvature(weights: Float[np.ndarray, "findings"]) -> Float[np.ndarray, "findings"]:
    """Bound on the expected second derivative by the logit of a calibrated head's loss, for each weight."""
    return (weights / np.square(1 + np.sqrt(weights))).astype(np.float32)


def positive_rates(
    labels: Float[np.ndarray, "n findings"], findings: tuple[str, ...]
) -> Float[np.ndarray, "findings"]:
    """Share of positives among the known labels of each finding: a statistic of private data."""
    known = ~np.isnan(labels)
    positives, totals = np.where(known, labels, 0).sum(axis=0), known.sum(axis=0)
    for finding, positive, total in zip(findings, positives, totals, strict=True):
        if not 0 < positive < total:
            raise ValueError(
                f"{finding}: class weights need both labels; found {int(positive)} positives among "
                f"{int(total)}"
            )
    return (positives / totals).astype(np.float32)


def with_images(batch: Microbatch) -> Microbatch:
    """The microbatch with its images, gathered from all films if it has only their indices; black where there
    is no film.
    """
    if FILMS not in batch:
        return batch
    images = jnp.where(batch["is_image"][..., None, None], batch[FILMS][batch["index"]], 0)
    return {"image": images, **{key: batch[key] for key in ("label", "is_image", "is_real")}}


def mean_over_images(losses: Float[Array, "k"], is_image: Bool[Array, "k"]) -> Float[Array, ""]:
    """The loss of a unit."""
    return jnp.sum(jnp.where(is_image, losses, 0.0)) / jnp.maximum(jnp.sum(is_image), 1)


def unit_loss(model: Network, weights: Float[np.ndarray, "findings"]) -> UnitLoss:
    """The loss of a unit: the mean over its films of theirs."""

    def of_film(params: PyTree, image: Array, label: Array) -> Array:
        logits: Any = model.apply(params, image)
        return weighted_cross_entropy(logits, label, jnp.asarray(weights))

    # What weight gradients need is kept, and the rest of a film's forward pass computed anew
    # (`per_example.gradients.KEPT`).
    of_film = jax.checkpoint(of_film) if getattr(model, "remat", False) else of_film

    def of_unit(params: PyTree, unit: Any) -> Array:
        images, labels, is_image = unit
        return mean_over_images(jax.vmap(of_film, in_axes=(None, 0, 0))(params, images, labels), is_image)

    return of_unit


@dataclasses.dataclass(frozen=True)
class Gradients:
    """The kind of release that a step makes of gradients (`training.step`).

    Attributes:
        loss: of a unit.
        mechanism: of a private run, else None.
        trained: mask of the parameters that move (`models.trainable`); None for all. Frozen parameters do not
            enter the norm; back-propagation stops at the lowest trained layer.
    """

    loss: UnitLoss
    mechanism: Mechanism | None = None
    trained: PyTree | None = None

    def empty(self, params: PyTree) -> PyTree:
        """The sum of no unit, in floating point."""
        return jax.tree.map(jnp.zeros_like, split(params, self.trained)[0])

    def summed(
        self, params: PyTree, batch: Microbatch, clipping: PyTree | None = None
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """The sum over a microbatch, clipped and exact if private, and sums for the log; `clipping` is the
        state of an adaptive clip rule (`Mechanism.start`).
        """
        moving, fixed = split(params, self.trained)
        units, is_real = (batch["image"], batch["label"], batch["is_image"]), batch["is_real"]

        def loss(moving: PyTree, unit: Any) -> Array:
            return self.loss(join(moving, fixed), unit)

        if self.mechanism is None:
            total, losses = gradients.plain_sum(loss, moving, units, is_real.astype(jnp.float32))
            return total, log_sums(batch, losses=losses)
        total, losses, norms = self.mechanism.clipped_sum(loss, moving, units, is_real, clipping)
        clipped = norms > self.mechanism.clip_norm(clipping)
        return total, log_sums(batch, losses=losses, norm=norms, clipped=clipped)

    def direction(self, params: PyTree, released: PyTree) -> PyTree:  # noqa: ARG002 - one signature
        """What an optimiser takes for the gradient: the released mean."""
        return released


def log_sums(batch: Microbatch, losses: Array, **of_units: Array) -> Mapping[str, Array]:
    """Sums over the real units for the operator's log."""
    is_real = batch["is_real"]
    sums = {
        key: jnp.sum(jnp.where(is_real, values, 0.0)) for key, values in (("loss", losses), *of_units.items())
    }
    return {**sums, "count": jnp.sum(is_real), "films": jnp.sum(batch["is_image"] & is_real[:, None])}
