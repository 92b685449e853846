"""Statistics of private labels that training needs, released by the Gaussian mechanism on whole numbers.

Guarantee: `noised_class_counts` releases (sum of the units' contributions) + (noise), both whole numbers of
grid steps. A unit's contribution is a function of that unit alone: to each finding either one positive, one
negative or nothing, a patient counting as the mean of their images, and rounded to the grid once. So one unit
more or less moves the sum by exactly its own rounded contribution, of length at most sqrt(findings) / step +
sqrt(2 findings) / 2 steps; the noise is accounted at sqrt(findings) / step + sqrt(2 findings) steps
(`rounded_noise.grid_for`). No digit of the result tells more than the Gaussian mechanism's (`rounded_noise`),
and everything computed from it is post-processing. Its ledger entry says what it costs.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int, Int64

from jaxcxr.privacy import noise, rounded_noise
from jaxcxr.records.ledger import Statistic

CLASS_COUNTS = "class_counts"


@dataclasses.dataclass(frozen=True)
class NoisedCounts:
    """Numbers of positive and negative units of each finding, with noise; they may be negative.

    Attributes:
        positives, negatives: one per finding, whole multiples of `step`.
        step: of the grid that counts and noise are whole numbers of, a power of two.
        entry: what they cost, for the ledger; to be recorded before they are used.
    """

    positives: Float[np.ndarray, "findings"]
    negatives: Float[np.ndarray, "findings"]
    step: float
    entry: Statistic


def class_counts_entry(n_findings: int, noise_multiplier: float) -> Statistic:
    """The ledger entry of the counts; its `spending` goes into the calibration of the training noise."""
    return Statistic(CLASS_COUNTS, noise_multiplier, math.sqrt(n_findings))


def class_counts_grid(entry: Statistic) -> rounded_noise.Grid:
    """The grid that counts are rounded to and noised on.

    Raises:
        ValueError: noise so small or so large does not fit.
    """
    coordinates = 2 * round(entry.l2_sensitivity**2)
    return rounded_noise.grid_for(entry.l2_sensitivity, entry.noise_multiplier, coordinates)


def rounded_counts(
    labels: Float[np.ndarray, "images findings"],
    step: float,
    patients: Int[np.ndarray, " images"] | None = None,
) -> Int64[np.ndarray, "both"]:
    """Sum of the units' contributions, rounded one by one: positives of every finding, then negatives.

    Args:
        labels: 1, 0 or NaN (unknown).
        step: of the grid.
        patients: number of each image's patient, if the unit is the patient; each then counts once, as the
            mean of their images.
    """
    each = np.concatenate([labels == 1, labels == 0], axis=1).astype(np.int64)
    if patients is None:
        of_units, sizes = each, np.ones(len(each), np.int64)
    else:
        _, unit, sizes = np.unique(patients, return_inverse=True, return_counts=True)
        of_units = np.zeros((len(sizes), each.shape[1]), np.int64)
        np.add.at(of_units, unit, each)
    return np.rint(of_units / sizes[:, None] / step).astype(np.int64).sum(axis=0)


def noised_class_counts(
    labels: Float[np.ndarray, "images findings"],
    noise_multiplier: float,
    secret: bytes,
    patients: Int[np.ndarray, " images"] | None = None,
) -> NoisedCounts:
    """Count positive and negative labels of each finding, and add noise, all in whole grid steps.

    Args:
        labels: 1, 0 or NaN (unknown).
        noise_multiplier: noise standard deviation over the sensitivity sqrt(findings).
        secret: of the run, bound (`binding.bound_secret`): a resumed run repeats the release and adds none.
        patients: number of each image's patient, if the unit is the patient; each then counts once.

    Raises:
        ValueError: the noise multiplier does not fit the grid.
    """
    n_findings = labels.shape[1]
    entry = class_counts_entry(n_findings, noise_multiplier)
    grid = class_counts_grid(entry)
    key = noise.derive_key(secret, CLASS_COUNTS, 0)
    drawn = rounded_noise.rounded_gaussian(key, grid.deviation, 2 * n_findings)
    noised = (rounded_counts(labels, grid.step, patients) + drawn) * grid.step
    return NoisedCounts(noised[:n_findings], noised[n_findings:], grid.step, entry)
