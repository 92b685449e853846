"""Statistics of private labels that training needs, released by the Gaussian mechanism.

Guarantee: `noised_class_counts` is one release of the Gaussian mechanism at L2 sensitivity sqrt(findings) under add/remove of
one unit: a unit adds to each finding either one positive, one negative or nothing, and a patient counts as the mean of their
films. Its ledger entry says what it costs; everything computed from the noised counts is post-processing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxcxr.privacy import accounting, noise, rounded_noise
from jaxcxr.privacy.ledger import Statistic

CLASS_COUNTS = "class_counts"
BUDGET_SHARE = 0.1
"""Part of the budget that the counts would cost if they were released alone."""
LEAST_RATE = 0.01
"""Noised rates are kept between this and 1 - this, so that no class weight runs away."""


@dataclasses.dataclass(frozen=True)
class NoisedCounts:
    """Numbers of positive and negative units of each finding, with noise; they may be negative.

    Attributes:
        positives, negatives: one a finding.
        entry: what they cost, for the ledger; to be recorded before they are used.
    """

    positives: Float[np.ndarray, "findings"]
    negatives: Float[np.ndarray, "findings"]
    entry: Statistic

    def rates(self) -> Float[np.ndarray, "findings"]:
        """Share of positives among the known labels of each finding, within [LEAST_RATE, 1 - LEAST_RATE]."""
        known = np.maximum(self.positives, 0) + np.maximum(self.negatives, 0)
        rates = np.maximum(self.positives, 0) / np.maximum(known, 1)
        return np.clip(rates, LEAST_RATE, 1 - LEAST_RATE).astype(np.float32)


def class_counts_noise(epsilon: float, delta: float, share: float = BUDGET_SHARE) -> float:
    """Noise multiplier with which the counts alone would cost `share` of the budget.

    Raises:
        ValueError: epsilon or delta is out of range.
    """
    return accounting.calibrated_noise(share * epsilon, delta, 1.0, 1)


def class_counts_entry(n_findings: int, noise_multiplier: float) -> Statistic:
    """The ledger entry of the counts; its `spending` goes into the calibration of the training noise."""
    return Statistic(CLASS_COUNTS, noise_multiplier, math.sqrt(n_findings))


def noised_class_counts(
    labels: Float[np.ndarray, "films findings"],
    noise_multiplier: float,
    secret: bytes,
    patients: Int[np.ndarray, " films"] | None = None,
    discrete: bool = False,
) -> NoisedCounts:
    """Count positive and negative labels of each finding, and add noise.

    Args:
        labels: 1, 0 or NaN (unknown).
        noise_multiplier: noise standard deviation over the sensitivity sqrt(findings).
        secret: of the run; the same secret gives the same noise, so that a resumed run repeats the release and adds none.
        patients: number of each film's patient, if the unit is the patient; each then counts once.
        discrete: round to a grid and add `rounded_noise`.
    """
    each = np.concatenate([labels == 1, labels == 0], axis=1).astype(np.float64)
    if patients is not None:
        _, index, sizes = np.unique(patients, return_inverse=True, return_counts=True)
        each /= sizes[index][:, None]
    exact = each.sum(axis=0)
    n_findings = labels.shape[1]
    entry = class_counts_entry(n_findings, noise_multiplier)
    key = noise.derive_key(secret, CLASS_COUNTS, 0)
    if discrete:
        grid = rounded_noise.grid_for(entry.l2_sensitivity, noise_multiplier, len(exact))
        noised = (np.rint(exact / grid.step) + rounded_noise.rounded_gaussian(key, grid.deviation, len(exact))) * grid.step
    else:
        like = jax.ShapeDtypeStruct(exact.shape, jnp.float32)
        drawn = noise.gaussian_noise(jnp.asarray(key), like, noise_multiplier * entry.l2_sensitivity)
        noised = exact + np.asarray(drawn, np.float64)
    return NoisedCounts(noised[:n_findings], noised[n_findings:], entry)
