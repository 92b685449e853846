"""What an image-level guarantee is worth to a patient with several images.

Guarantee: `patient_bounds` holds for adding or removing all images of one patient at once. Each of the
patient's k images is in a batch independently, so the number j in the batch is binomial and moves the sum by
at most j clip norms: a mixture of Gaussians that dominates every step (Ganesh 2024), composed exactly. k
times the epsilon of one image is not a bound: the true epsilon is often larger.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxcxr.accounting import loss_distribution
from jaxcxr.accounting.epsilon import Spending, releases_of
from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class PatientEpsilon:
    """Epsilon of one patient of the cohort.

    Attributes:
        patient: which one: `median`, `95th percentile` or `maximum`, by images per patient.
        images: number of that patient's images.
        epsilon: bounds; the upper one is infinity if there is no guarantee.
    """

    patient: str
    images: int
    epsilon: Bounds


def images_per_patient(patient_ids: Sequence[object], source: str) -> Int[np.ndarray, " patients"]:
    """Number of images of each patient.

    Raises:
        InputError: an image has no patient id; the message names `source` and the row, counted from 1.
    """
    for row, patient in enumerate(patient_ids, start=1):
        if not isinstance(patient, str) or not patient.strip():
            raise InputError(
                f"{source}: row {row}, column 'patient_id': found {patient!r}, expected an id; without it "
                "no figure for patients holds"
            )
    return np.unique(np.asarray(patient_ids, dtype=str), return_counts=True)[1]


def patient_bounds(spendings: Sequence[Spending], delta: float, images: int) -> Bounds:
    """Bounds on epsilon for a patient with `images` images, in a run whose unit is the image."""
    return loss_distribution.epsilon_bounds(releases_of(spendings, images), delta)


def patient_epsilons(
    spendings: Sequence[Spending], delta: float, counts: Int[np.ndarray, " patients"]
) -> tuple[PatientEpsilon, ...]:
    """Bounds for the median, 95th-percentile and maximum patient, by `counts` of images per patient."""
    if len(counts) == 0:
        raise ValueError("counts: expected at least one patient")
    found: dict[int, Bounds] = {}
    rows = []
    for name, share in (("median", 0.5), ("95th percentile", 0.95), ("maximum", 1.0)):
        images = int(np.quantile(counts, share, method="inverted_cdf"))
        if images not in found:
            found[images] = patient_bounds(spendings, delta, images)
        rows.append(PatientEpsilon(name, images, found[images]))
    return tuple(rows)
