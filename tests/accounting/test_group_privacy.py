import math

import numpy as np
import pytest
from dp_accounting import SelfComposedDpEvent
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.group_privacy import images_per_patient, patient_bounds, patient_epsilons
from jaxcxr.errors import InputError

RATE, STEPS, DELTA = 128 / 153502, 119923, 6e-6
# Noise multipliers that cost 1.06 and 7.89 an image over the paper's cohort in 100 epochs.
SIGMA = {1.06: 1.253, 7.89: 0.5526}


@pytest.mark.parametrize(
    ("image", "images", "patient"), [(1.06, 2, 2.28), (1.06, 4, 5.0), (1.06, 10, 15.1), (7.89, 2, 17.2), (7.89, 4, 40.2), (7.89, 10, 140)]
)  # fmt: skip
def test_patients_of_the_papers_cohort(image: float, images: int, patient: float) -> None:
    bounds = patient_bounds([Spending(RATE, SIGMA[image], STEPS)], DELTA, images)
    assert bounds.lower == pytest.approx(patient, rel=0.02)
    assert bounds.upper == pytest.approx(patient, rel=0.02)
    assert bounds.lower < bounds.upper < bounds.lower * 1.01
    assert bounds.lower > images * image  # a multiple of epsilon would be too small


def test_bounds_enclose_the_librarys_mixture_of_gaussians() -> None:
    sigma, rate, steps, images = 1.5, 0.05, 20, 3
    shares = np.asarray(binom.pmf(range(4), images, rate)).tolist()
    event = MixtureOfGaussiansDpEvent(sigma, [0, 1, 2, 3], shares)
    accountant = PLDAccountant(value_discretization_interval=5e-3)
    accountant.compose(SelfComposedDpEvent(event, steps))
    bounds = patient_bounds([Spending(rate, sigma, steps)], 1e-5, images)
    assert bounds.lower <= accountant.get_epsilon(1e-5) <= bounds.upper * 1.01


def test_statistics_count_for_every_image_of_the_patient() -> None:
    counts = Spending(1.0, 20.0, 1)
    assert patient_bounds([counts], 1e-5, 4).upper == pytest.approx(
        accounting.epsilon_pld([Spending(1.0, 5.0, 1)], 1e-5), rel=0.01
    )


def test_one_image_is_the_image_epsilon() -> None:
    spending = [Spending(0.05, 1.0, 40)]
    assert patient_bounds(spending, 1e-5, 1) == accounting.epsilon_bounds(spending, 1e-5)
    with pytest.raises(ValueError, match="images"):
        patient_bounds(spending, 1e-5, 0)


def test_ten_thousand_images_are_said_to_be_unprotected() -> None:
    bounds = patient_bounds([Spending(RATE, 1.253, STEPS)], DELTA, 10_000)
    assert 500 < bounds.lower < bounds.upper == math.inf
    fewer = patient_bounds([Spending(RATE, 0.5526, STEPS)], DELTA, 60)
    assert 500 < fewer.lower < fewer.upper == math.inf


def test_the_cohorts_median_95th_percentile_and_maximum() -> None:
    counts = images_per_patient(["a"] * 7 + ["b"] * 2 + [f"p{i}" for i in range(18)], "table")
    rows = patient_epsilons([Spending(0.05, 1.5, 20)], 1e-5, counts)
    assert [(row.patient, row.images) for row in rows] == [
        ("median", 1),
        ("95th percentile", 2),
        ("maximum", 7),
    ]
    assert rows[0].epsilon.upper < rows[1].epsilon.lower < rows[1].epsilon.upper < rows[2].epsilon.lower
    assert np.sort(counts).tolist() == [1] * 18 + [2, 7]


@pytest.mark.parametrize("nobody", ["", "  ", None, math.nan])
def test_an_image_without_a_patient_is_refused(nobody: object) -> None:
    with pytest.raises(InputError, match=r"table: row 2, column 'patient_id': found .*, expected an id"):
        images_per_patient(["a", nobody, "b"], "table")
