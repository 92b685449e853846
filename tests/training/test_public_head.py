"""A head by public images: it predicts, it is as small as it is worth, and findings say what is unknown."""

import numpy as np
import pytest
from scipy.special import expit

from jaxcxr.training.directions import Directions, directions_of
from jaxcxr.training.public_head import FEWEST, calibrated, fitted

N, FEATURES, K = 400, 12, 8
PATIENTS = [f"p{i // 2}" for i in range(N)]


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(2, 1, (N, FEATURES)) * np.linspace(2, 0.3, FEATURES)


@pytest.fixture(scope="module")
def directions(features: np.ndarray) -> Directions:
    return directions_of(features, K)


@pytest.fixture(scope="module")
def taught(features: np.ndarray) -> np.ndarray:
    """Labels that follow from the first features; of chance alone; of the first with one in twenty positive."""
    rng = np.random.default_rng(1)
    logit = 1.5 * (features[:, 0] - features[:, 0].mean()) / features[:, 0].std()
    uniform = rng.uniform(size=(N, 3))
    return (
        np.stack([uniform[:, 0] < expit(logit), uniform[:, 1] < 0.5, uniform[:, 2] < expit(logit - 4)], 1)
        * 1.0
    )


def test_a_finding_that_features_tell_is_predicted_and_noise_is_not(
    features: np.ndarray, directions: Directions, taught: np.ndarray
) -> None:
    head = fitted(directions, features, taught, PATIENTS)
    assert head.slopes[0] > 0.7
    assert head.slopes[1] < 0.4
    assert head.positives.tolist() == taught.sum(axis=0).astype(int).tolist()
    logits = directions.coordinates(features) @ head.moved
    assert np.corrcoef(logits[:, 0], features[:, 0])[0, 1] > 0.9
    assert np.std(logits[:, 1]) < 0.3 * np.std(logits[:, 0])
    np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-5)  # however rare a finding is there
    assert "effusion 0" in head.sentence(["opacity", "effusion", "mass"])


def test_unknown_labels_add_nothing_and_too_few_of_a_kind_start_at_zero(
    features: np.ndarray, directions: Directions, taught: np.ndarray
) -> None:
    rows = np.flatnonzero(taught[:, 0] == 1)
    few, hidden = taught.copy(), taught.copy()
    few[rows[FEWEST - 1 :], 0] = 0
    hidden[:, 1] = np.nan
    found = fitted(directions, features, few, PATIENTS)
    assert found.slopes[0] == 0
    assert not found.moved[:, 0].any()
    found, whole = (fitted(directions, features, labels, PATIENTS) for labels in (hidden, taught))
    assert not found.moved[:, 1].any()
    np.testing.assert_allclose(found.moved[:, 0], whole.moved[:, 0], rtol=1e-6)
    half = taught.copy()
    half[::2] = np.nan  # with half of the images the fit is another one
    assert np.abs(fitted(directions, features, half, PATIENTS).moved[:, 0] - whole.moved[:, 0]).max() > 1e-3


def test_images_of_a_patient_do_not_judge_the_head_that_they_trained(features: np.ndarray) -> None:
    """Each patient has an image twice, with labels by chance: only patients apart show that nothing is learnt."""
    rng = np.random.default_rng(2)
    twice = np.repeat(rng.normal(size=(60, 40)), 4, axis=0)
    labels = np.repeat(rng.integers(0, 2, (60, 1)), 4, axis=0) * 1.0
    directions = directions_of(twice, 30)
    apart = fitted(directions, twice, labels, [f"p{i // 4}" for i in range(240)])
    mixed = fitted(directions, twice, labels, [f"p{i}" for i in range(240)])
    assert mixed.slopes[0] > 0.7
    assert apart.slopes[0] < 0.3


def test_logits_are_calibrated_by_slope_and_intercept() -> None:
    """Of five findings: too certain and too frequent; too shy; the contrary; few positives; labels unknown in part."""
    rng = np.random.default_rng(3)
    true = rng.normal(-1, 1.5, (4000, 5))
    labels = (rng.uniform(size=true.shape) < expit(true)) * 1.0
    logits = np.stack(
        [2 * true[:, 0] + 2, 0.5 * true[:, 1] - 1, -true[:, 2], true[:, 3] + 2, true[:, 4] + 2], 1
    )
    labels[:, 3] = np.arange(4000) < FEWEST - 1
    labels[::2, 4] = np.nan
    slopes, offsets = calibrated(logits, labels)
    assert slopes[[0, 4]] == pytest.approx([0.5, 1.0], abs=0.08)
    assert slopes[[1, 2, 3]].tolist() == [1, 1, 1]  # never steeper than it was
    assert offsets[[2, 3]].tolist() == [0, 0]
    means = expit(logits * slopes + offsets).mean(axis=0)
    np.testing.assert_allclose(means[:2], labels[:, :2].mean(axis=0), atol=1e-3)
    known = ~np.isnan(labels[:, 4])
    found = expit(logits[known, 4] * slopes[4] + offsets[4]).mean()
    assert found == pytest.approx(labels[known, 4].mean(), abs=1e-3)
