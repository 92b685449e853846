"""What is minimised: the class-weighted binary cross-entropy of one film, and its clipped or plain gradient sums over a
microbatch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.scope import Scope, is_trained, join, split, trained_mask
from jaxcxr.models.taps import KEPT, Tap, apply_tapped, find_taps, warn_of_direct_layers
from jaxcxr.privacy import gradients, hardened_sum

Microbatch = Mapping[str, Any]
"""n units of k films: `image` [n, k, h, w] uint8, `label` [n, k, findings] float32 with NaN for unknown, `is_film` [n, k] bool,
False where a unit has fewer films, and `is_real` [n] bool, False for padding. Where the image is the unit, k is 1.

In place of `image` there may be `index` [n, k] int32 and `films` [m, h, w], all films there are (`with_images`)."""
FILMS = "films"
GradientSum = Callable[[PyTree, Microbatch], tuple[PyTree, Mapping[str, Array]]]
"""(parameters, microbatch) -> sum over its real examples of the gradients of the trained parameters, and sums for the log. The
log of a private sum has the sum of the norms, `norm`, which is finite if and only if every contribution is."""


def weighted_cross_entropy(
    logits: Float[Array, "findings"], labels: Float[Array, "findings"], positive_weights: Float[Array, "findings"]
) -> Float[Array, ""]:
    """Mean over findings of -(w y log p + (1 - y) log(1 - p)), p = sigmoid(logit); an unknown label (NaN) adds zero.

    The divisor is the number of findings, known or not, so that the mean over films equals torch's
    `BCEWithLogitsLoss(pos_weight=w)` (the paper's).
    """
    known = ~jnp.isnan(labels)
    y = jnp.where(known, labels, 0.0)
    terms = positive_weights * y * jax.nn.softplus(-logits) + (1 - y) * jax.nn.softplus(logits)
    return jnp.sum(jnp.where(known, terms, 0.0)) / labels.shape[0]


def positive_weights(rates: Float[np.ndarray, "findings"]) -> Float[np.ndarray, "findings"]:
    """(1 - p) / p: how many negatives there are to a positive, for positive rates p (the paper's inverted class
    frequencies).
    """
    rates = np.asarray(rates, np.float32)
    return ((1 - rates) / rates).astype(np.float32)


def positive_rates(labels: Float[np.ndarray, "n findings"], findings: tuple[str, ...]) -> Float[np.ndarray, "findings"]:
    """Share of positives among the known labels of each finding: a statistic of private data."""
    known = ~np.isnan(labels)
    positives, totals = np.where(known, labels, 0).sum(axis=0), known.sum(axis=0)
    for finding, positive, total in zip(findings, positives, totals, strict=True):
        if not 0 < positive < total:
            raise ValueError(f"{finding}: class weights need both labels; found {int(positive)} positives among {int(total)}")
    return (positives / totals).astype(np.float32)


def plain_sum(
    model: ResNet9, weights: Float[np.ndarray, "findings"], image_shape: tuple[int, int], scope: Scope = "all"
) -> GradientSum:
    """The non-private gradient sum, of the parameters in `scope`."""
    tapped_loss, taps = _tapped(model, weights, image_shape, scope)

    def sum_of(params: PyTree, batch: Microbatch) -> tuple[PyTree, Mapping[str, Array]]:
        is_real, records = batch["is_real"], batch["image"].shape[1]
        moving, fixed = _parts(params, scope)
        loss = _beside(tapped_loss, fixed)
        total, losses = gradients.plain_sum_layerwise(loss, taps, moving, _examples(batch), is_real, records)
        return total, log_sums(batch, losses=losses)

    return sum_of


def clipped_sum(
    model: ResNet9,
    weights: Float[np.ndarray, "findings"],
    image_shape: tuple[int, int],
    method: str,
    l2_clip_norm: float,
    scope: Scope = "all",
    stability: float | None = None,
    per_layer: bool = False,
    step: float | None = None,
) -> GradientSum:
    """The private gradient sum: each unit's gradient clipped to `l2_clip_norm`, by `method` (`vmap` or `layerwise`).

    A unit's loss is the mean over its films, and over the views of a film. Its gradient has the parameters in `scope` only:
    the others are constants, which take no part in its norm, and below the lowest of which nothing is differentiated.
    `stability` is gamma of automatic clipping, and `per_layer` clips layer by layer; without them clipping is flat. With a
    `step` each unit's contribution is rounded to whole steps by itself, and the sum is in steps (`privacy.hardened_sum`).
    """

    def loss(params: PyTree, unit: Any) -> Array:
        images, labels, is_film = unit

        def one(image: Array, label: Array) -> Array:
            return weighted_cross_entropy(model.apply(params, image), label, jnp.asarray(weights))  # type: ignore[arg-type]

        return mean_over_films(jax.vmap(one)(images, labels), is_film)

    tapped_loss, taps = _tapped(model, weights, image_shape, scope)

    def sum_of(params: PyTree, batch: Microbatch) -> tuple[PyTree, Mapping[str, Array]]:
        units, is_real, records = _examples(batch), batch["is_real"], batch["image"].shape[1]
        moving, fixed = _parts(params, scope)
        whole, tapped = _beside(loss, fixed), _beside(tapped_loss, fixed)
        how: Any = {"stability": stability, "per_layer": per_layer}
        if method == "layerwise":
            warn_of_direct_layers(moving, taps)
        if step is not None:
            if method == "vmap":
                losses, each = jax.vmap(jax.value_and_grad(whole), in_axes=(None, 0))(moving, units)
            else:
                each, losses = gradients.instantiated_gradients(tapped, taps, moving, units, records)
            total, norms = hardened_sum.rounded_sum(each, is_real, l2_clip_norm, step, **how)
        elif method == "vmap":
            total, losses, norms = gradients.clipped_sum_vmap(whole, moving, units, is_real, l2_clip_norm, **how)
        else:
            total, losses, norms = gradients.clipped_sum_layerwise(
                tapped, taps, moving, units, is_real, l2_clip_norm, records, **how
            )
        return total, log_sums(batch, losses=losses, norm=norms, clipped=norms > l2_clip_norm)

    return sum_of


def with_images(batch: Microbatch) -> Microbatch:
    """The microbatch with its images, gathered from all films if it has only their indices; black where there is no film."""
    if FILMS not in batch:
        return batch
    images = jnp.where(batch["is_film"][..., None, None], batch[FILMS][batch["index"]], 0)
    return {"image": images, **{key: batch[key] for key in ("label", "is_film", "is_real")}}


def _examples(batch: Microbatch) -> tuple[Any, Any, Any]:
    return batch["image"], batch["label"], batch["is_film"]


def mean_over_films(losses: Float[Array, "k"], is_film: Bool[Array, "k"]) -> Float[Array, ""]:
    """The loss of a unit."""
    return jnp.sum(jnp.where(is_film, losses, 0.0)) / jnp.maximum(jnp.sum(is_film), 1)


def _parts(params: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
    """(trained, fixed) parameters."""
    return (params, {}) if scope == "all" else split(params, trained_mask(scope, params))


def _beside(loss: Callable[..., Any], fixed: PyTree) -> Callable[..., Any]:
    """The loss as a function of the trained parameters, beside the fixed ones."""
    return (lambda moving, *others: loss(join(moving, fixed), *others)) if fixed else loss


def _tapped(
    model: ResNet9, weights: Float[np.ndarray, "findings"], image_shape: tuple[int, int], scope: Scope
) -> tuple[gradients.TappedLoss, tuple[Tap, ...]]:
    """The loss with taps on the layers whose kernels are trained."""
    found = find_taps(model, jax.ShapeDtypeStruct(image_shape, jnp.uint8))
    taps = tuple(tap for tap in found if is_trained(scope, (*tap.path, "kernel")))

    def tapped_loss(params: PyTree, zeros: Any, unit: Any) -> tuple[Array, Any]:
        images, labels, is_film = unit

        def one(zeros: Any, image: Array, label: Array) -> tuple[Array, Any]:
            logits, inputs = apply_tapped(model, taps, params, zeros, image)
            return weighted_cross_entropy(logits, label, jnp.asarray(weights)), inputs

        if getattr(model, "remat", False):
            one = jax.checkpoint(one, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
        losses, inputs = jax.vmap(one)(zeros, images, labels)
        return mean_over_films(losses, is_film), inputs

    return tapped_loss, taps


def log_sums(batch: Microbatch, losses: Array, **of_units: Array) -> Mapping[str, Array]:
    """Sums over the real units for the operator's log."""
    is_real = batch["is_real"]
    sums = {key: jnp.sum(jnp.where(is_real, values, 0.0)) for key, values in (("loss", losses), *of_units.items())}
    return {**sums, "count": jnp.sum(is_real), "films": jnp.sum(batch["is_film"] & is_real[:, None])}
