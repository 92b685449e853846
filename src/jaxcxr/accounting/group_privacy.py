"""What an image-level guarantee is worth to a patient who has several films.

Guarantee: `patient_bounds` holds for adding or removing all films of one patient at once. Each of the
patient's k films joins a step independently, so j of them do with binomial probability and move the sum by at
most j clip norms: a mixture of Gaussians that dominates every step (Ganesh 2024), composed exactly. k times
the epsilon of one image is no
bound: the true epsilon is often larger.
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
    """What the run costs one patient of the cohort.

    Attributes:
        patient: which one: `median`, `95th percentile` or `maximum`, by films a patient.
        films: how many films that patient has.
        epsilon: bounds; the upper one is infinity if there is no guarantee.
    """

    patient: str
    films: int
    epsilon: Bounds


def films_per_patient(patient_ids: Sequence[object], source: str) -> Int[np.ndarray, " patients"]:
    """How many films each patient has.

    Raises:
        InputError: a film has no patient id; `source` is named, and the row, counted from 1.
    """
    for row, patient in enumerate(patient_ids, start=1):
        if not isinstance(patient, str) or not patient.strip():
            raise InputError(
                f"{source}: row {row}, column 'patient_id': found {patient!r}, expected an id; "
                "without it no figure for patients holds"
            )
    return np.unique(np.asarray(patient_ids, dtype=str), return_counts=True)[1]


def patient_bounds(spendings: Sequence[Spending], delta: float, films: int) -> Bounds:
    """Bounds on epsilon for a patient with `films` films in a run whose unit is the film."""
    return loss_distribution.epsilon_bounds(releases_of(spendings, films), delta)


def patient_epsilons(
    spendings: Sequence[Spending], delta: float, counts: Int[np.ndarray, " patients"]
) -> tuple[PatientEpsilon, ...]:
    """Bounds for the median, 95th-percentile and maximum patient of a cohort with these films a patient."""
    if len(counts) == 0:
        raise ValueError("counts: expected at least one patient")
    found: dict[int, Bounds] = {}
    rows = []
    for name, share in (("median", 0.5), ("95th percentile", 0.95), ("maximum", 1.0)):
        films = int(np.quantile(counts, share, method="inverted_cdf"))
        if films not in found:
            found[films] = patient_bounds(spendings, delta, films)
        rows.append(PatientEpsilon(name, films, found[films]))
    return tuple(rows)
