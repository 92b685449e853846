"""Reference models: private ones bound and noise what a unit adds, and remember less."""

import numpy as np
import pytest

from jaxcxr.audit import membership, reference_heads
from jaxcxr.audit.reference_heads import Budget, Cohort, said_by_heads

PATIENTS = 60


def cohort(seed: int = 0, dimensions: int = 40) -> Cohort:
    """Two images a patient for half of them, labels that nothing predicts: whatever is known is remembered."""
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(PATIENTS), np.arange(PATIENTS // 2)])
    x = rng.normal(size=(len(patients), dimensions)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = rng.integers(0, 2, (len(patients), 3)).astype(np.float32)
    labels[0, 1] = np.nan
    return Cohort(x, labels, patients)


def recognised(budget: Budget | None) -> float:
    made, inside = cohort(), membership.halves(32, PATIENTS, np.random.default_rng(1))
    said = said_by_heads(made, inside, budget, seed=2)
    scores = membership.lira_among(said, inside)
    threshold = membership.threshold_at(scores[~inside], 0.05)
    return float((scores >= threshold)[inside].mean())


def test_what_is_remembered_is_found_and_privacy_takes_it_away() -> None:
    without, with_it = recognised(None), recognised(Budget(1.0, 1e-4, by_patient=True))
    assert without > 0.5
    assert with_it < 0.15


@pytest.mark.parametrize("by_patient", [True, False])
def test_a_unit_adds_at_most_the_clip_norm_to_a_noised_sum(
    by_patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise, of one step: heads with and without one unit differ by rate / units times clip at most."""
    made = cohort(dimensions=8)
    made = Cohort(made.coordinates * 50, made.labels, made.patients)  # long: all are clipped
    monkeypatch.setattr(reference_heads, "PRIVATE_STEPS", 1)
    monkeypatch.setattr(Budget, "noise_multiplier", 0.0)
    inside = np.ones((2, PATIENTS), bool)
    inside[1, 0] = False  # has two images
    budget = Budget(1.0, 1e-4, by_patient=by_patient)
    heads = reference_heads._noised(made, inside, budget, np.random.default_rng(0))
    units = PATIENTS // 2 if by_patient else len(made.patients) // 2
    rate, clip = 1 / reference_heads._curvature(made), reference_heads.CLIP * np.sqrt(3) / 2
    moved = np.linalg.norm(heads[0] - heads[1]) * units / rate
    images = 1 if by_patient else 2  # of the unit image, two are taken away
    assert moved <= images * clip * (1 + 1e-4)
    assert moved > 0.3 * clip


def test_the_noise_is_that_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cohort()
    monkeypatch.setattr(reference_heads, "PRIVATE_STEPS", 1)
    budget = Budget(0.5, 1e-4, by_patient=True)
    inside = np.ones((200, PATIENTS), bool)
    heads = reference_heads._noised(made, inside, budget, np.random.default_rng(0))
    clip, rate = reference_heads.CLIP * np.sqrt(3) / 2, 1 / reference_heads._curvature(made)
    wanted = budget.noise_multiplier * clip * rate / (PATIENTS // 2)
    assert heads.std(axis=0).mean() == pytest.approx(wanted, rel=0.02)


def test_models_do_not_depend_on_how_many_are_trained_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inside = cohort(), membership.halves(6, PATIENTS, np.random.default_rng(1))
    whole = said_by_heads(made, inside, None, seed=0)
    monkeypatch.setattr(reference_heads, "_BLOCK_BYTES", 1)
    assert np.allclose(
        said_by_heads(made, inside, None, seed=0).confidence, whole.confidence, rtol=1e-3, atol=1e-3
    )
