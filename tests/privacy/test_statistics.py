import math

import numpy as np
import pytest

from jaxcxr.privacy import accounting
from jaxcxr.privacy.accounting import Spending
from jaxcxr.privacy.statistics import NoisedCounts, class_counts_entry, class_counts_noise, noised_class_counts

NAN = math.nan
LABELS = np.array([[1, 0, NAN], [0, 0, 1], [1, NAN, 1], [1, 1, 1]], np.float32)
SECRET = bytes(range(32))


def secret(i: int) -> bytes:
    return i.to_bytes(32, "little")


def test_without_noise_the_counts_are_exact() -> None:
    counts = noised_class_counts(LABELS, 0.0, SECRET)
    np.testing.assert_array_equal(counts.positives, [3, 1, 3])
    np.testing.assert_array_equal(counts.negatives, [1, 2, 0])
    np.testing.assert_allclose(counts.rates(), [0.75, 1 / 3, 0.99])


def test_noise_has_the_stated_scale_and_comes_from_the_secret() -> None:
    draws = np.array([(c := noised_class_counts(LABELS, 2.0, secret(i))).positives.tolist() + c.negatives.tolist() for i in range(400)])  # fmt: skip
    errors = draws - [3, 1, 3, 1, 2, 0]
    assert errors.std() == pytest.approx(2.0 * math.sqrt(3), rel=0.06)
    assert abs(np.corrcoef(errors.T)[np.triu_indices(6, 1)]).max() < 0.2
    again = noised_class_counts(LABELS, 2.0, secret(5))
    assert again.positives.tolist() + again.negatives.tolist() == draws[5].tolist()


@pytest.mark.parametrize("patients", [None, np.array([0, 1, 1, 2])])
def test_one_unit_moves_the_counts_by_the_sensitivity_at_most(patients: np.ndarray | None) -> None:
    labels = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, NAN, 1]], np.float32)
    everyone = noised_class_counts(labels, 0.0, SECRET, patients)
    entry = class_counts_entry(3, 0.0)
    distances = []
    for unit in range(4 if patients is None else 3):
        kept = np.arange(4) != unit if patients is None else patients != unit
        without = noised_class_counts(labels[kept], 0.0, SECRET, None if patients is None else patients[kept])
        moved = np.concatenate([everyone.positives - without.positives, everyone.negatives - without.negatives])
        distances.append(np.linalg.norm(moved))
    assert max(distances) == pytest.approx(entry.l2_sensitivity)


def test_the_cost_is_that_of_the_gaussian_mechanism_and_part_of_the_budget() -> None:
    sigma = class_counts_noise(2.0, 1e-5)
    entry = class_counts_entry(8, sigma)
    assert entry.spending == Spending(1.0, sigma, 1)
    assert 0.198 < accounting.epsilon_pld([entry.spending], 1e-5) <= 0.2
    training = accounting.calibrated_noise(2.0, 1e-5, 0.05, 100, already=[entry.spending])
    total = accounting.epsilon_pld([entry.spending, Spending(0.05, training, 100)], 1e-5)
    assert 2.0 * 0.998 <= total <= 2.0
    assert training > accounting.calibrated_noise(2.0, 1e-5, 0.05, 100)


def test_statistics_that_cost_more_than_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="the released statistics alone cost epsilon"):
        accounting.calibrated_noise(1.0, 1e-5, 0.05, 100, already=[Spending(1.0, 2.0, 1)])


def test_rates_stay_usable_whatever_the_noise() -> None:
    counts = NoisedCounts(np.array([-5.0, 3.0, 0.2]), np.array([10.0, -4.0, 0.1]), class_counts_entry(3, 1.0))
    np.testing.assert_allclose(counts.rates(), [0.01, 0.99, 0.2], rtol=1e-6)
