"""Many heads at once on fixed features of images: reference models for membership attacks, with and without
privacy.

A head is a logistic regression per finding on coordinates of an image's features (`training.directions`,
whose centre and axes are here those of all images alike, inside or outside, so that they tell nothing of who
is inside). Hundreds are trained together by matrix products, each on its half of the patients.

The private ones are the Gaussian mechanism on full batches: every image's gradient is clipped, weighted so
that a unit's contribution is at most the clip norm, summed, and noised as the budget demands
(`accounting.calibrated_noise`). They simulate what a budget does to attacks. They are never released, so that
their noise is plain floating-point noise (`privacy.mechanism` is the one for release), and they carry no
guarantee of their own.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxcxr import accounting
from jaxcxr.audit.membership import Said, said_of_patients, stacked

STEPS, PRIVATE_STEPS = 200, 30
"""Full-batch steps without privacy (accelerated) and with it, in which fewer steps need less noise each."""
CLIP = 0.5
"""Clip norm, as a share of the norm of an image's gradient at a head of zeros (half the root of the number of
findings for an image with a mean coordinate length of 1)."""
_BLOCK_BYTES = 1 << 27


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """Images on which heads are trained, all of which are in the pool from which halves are drawn.

    Attributes:
        coordinates: of each image, the constant one last.
        labels: 1, 0 or NaN.
        patients: number of each image's patient, from 0 without gaps.
    """

    coordinates: Float32[np.ndarray, "images coordinates"]
    labels: Float32[np.ndarray, "images findings"]
    patients: Int[np.ndarray, " images"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What private heads may tell.

    Attributes:
        epsilon, delta: of each head.
        by_patient: whether the unit is the patient with all images; else the image.
    """

    epsilon: float
    delta: float
    by_patient: bool

    @property
    def noise_multiplier(self) -> float:
        """Of each of `PRIVATE_STEPS` steps on everybody."""
        return accounting.calibrated_noise(self.epsilon, self.delta, 1.0, PRIVATE_STEPS)


def said_by_heads(
    cohort: Cohort, inside: Bool[np.ndarray, "models patients"], budget: Budget | None, seed: int
) -> Said:
    """What heads that are each trained on the images of the patients in its row of `inside` say of all.

    Args:
        cohort: of all images.
        inside: one row per model.
        budget: of each private head; None without privacy.
        seed: of the noise.
    """
    images, findings = cohort.labels.shape
    at_once = max(1, _BLOCK_BYTES // (4 * images * findings))
    parts = []
    for first in range(0, len(inside), at_once):
        rows = inside[first : first + at_once]
        rng = np.random.default_rng([seed, first])
        heads = _descended(cohort, rows) if budget is None else _noised(cohort, rows, budget, rng)
        logits = _logits(cohort.coordinates, heads)
        parts.append(said_of_patients(logits, cohort.labels, cohort.patients))
    return stacked(parts)


def _logits(
    x: Float32[np.ndarray, "images coordinates"], heads: Float32[np.ndarray, "models coordinates findings"]
) -> Float32[np.ndarray, "models images findings"]:
    models, k, findings = heads.shape
    side_by_side = heads.transpose(1, 0, 2).reshape(k, models * findings)  # one product, not one per model
    return (x @ side_by_side).reshape(len(x), models, findings).transpose(1, 0, 2)


def _gradients(
    x: Float32[np.ndarray, "images coordinates"], residuals: Float32[np.ndarray, "models images findings"]
) -> Float32[np.ndarray, "models coordinates findings"]:
    """Sum over images of the outer products of coordinates and residuals."""
    models, images, findings = residuals.shape
    side_by_side = residuals.transpose(1, 0, 2).reshape(images, models * findings)
    return (x.T @ side_by_side).reshape(x.shape[1], models, findings).transpose(1, 0, 2)


def _residuals(
    cohort: Cohort, heads: Float32[np.ndarray, "models coordinates findings"]
) -> Float32[np.ndarray, "models images findings"]:
    """Derivative of the summed cross-entropy by the logits; 0 where a label is unknown."""
    said = 1 / (1 + np.exp(-np.clip(_logits(cohort.coordinates, heads), -30, 30)))
    known = ~np.isnan(cohort.labels)
    return np.where(known, said - np.where(known, cohort.labels, 0), 0).astype(np.float32)


def _curvature(cohort: Cohort) -> float:
    """Bound on the curvature of the mean cross-entropy of a finding: a quarter of the largest eigenvalue of
    the coordinates' second moments.
    """
    x = cohort.coordinates.astype(np.float64)
    return 0.25 * float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])


def _descended(
    cohort: Cohort, inside: Bool[np.ndarray, "models patients"]
) -> Float32[np.ndarray, "models coordinates findings"]:
    """Without privacy: Nesterov's accelerated descent of the mean loss over the images inside."""
    rate, x = 1 / _curvature(cohort), cohort.coordinates
    there = inside[:, cohort.patients].astype(np.float32)
    weights = (there / np.maximum(there.sum(axis=1, keepdims=True), 1))[..., None]
    heads = np.zeros((len(inside), x.shape[1], cohort.labels.shape[1]), np.float32)
    ahead = heads
    for step in range(STEPS):
        gradient = _gradients(x, weights * _residuals(cohort, ahead))
        moved = ahead - np.float32(rate / 2) * gradient  # half: a half may be steeper than the whole
        ahead = moved + np.float32(step / (step + 3)) * (moved - heads)
        heads = moved
    return heads


def _noised(
    cohort: Cohort,
    inside: Bool[np.ndarray, "models patients"],
    budget: Budget,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "models coordinates findings"]:
    """With privacy: noised sums of clipped gradients. A unit adds at most `clip` to the sum: an image is
    clipped to it, and where the unit is the patient, an image has 1 / (number of the patient's images).
    """
    x, findings = cohort.coordinates, cohort.labels.shape[1]
    clip = CLIP * math.sqrt(findings) / 2
    images = np.bincount(cohort.patients)[cohort.patients]
    share = 1 / images if budget.by_patient else np.ones(len(x))
    units = inside.shape[1] // 2 if budget.by_patient else len(x) // 2
    noise = budget.noise_multiplier * clip
    there = (inside[:, cohort.patients] * share).astype(np.float32)
    lengths = np.linalg.norm(x, axis=1)
    rate = 1 / _curvature(cohort)
    heads = np.zeros((len(inside), x.shape[1], findings), np.float32)
    for _ in range(PRIVATE_STEPS):
        residuals = _residuals(cohort, heads)
        norms = lengths * np.linalg.norm(residuals, axis=-1)
        scale = there * np.minimum(1, clip / np.maximum(norms, 1e-12)).astype(np.float32)
        summed = _gradients(x, scale[..., None] * residuals)
        summed += rng.normal(0, noise, summed.shape).astype(np.float32)
        heads = heads - np.float32(rate / units) * summed
    return heads
