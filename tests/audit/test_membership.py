"""Attacks find what can be found, no more where there is nothing, and judge thresholds exactly."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxcxr.audit import membership
from jaxcxr.audit.membership import Said
from tests.audit.gaussian_toy import RATES, agreement, toy


def test_both_attacks_come_near_the_exact_optimum_and_never_far_above_it() -> None:
    made = toy(3, points=300, dimensions=400, models=96, noise=0.05)
    rates = agreement(made)
    assert rates["optimum"][1] > 0.2
    for attack in ("LiRA", "RMIA"):
        for rate, best, reached in zip(RATES[1:], rates["optimum"][1:], rates[attack][1:], strict=True):
            assert 0.8 * best < reached < 1.1 * best, (attack, rate)


def test_offline_lira_and_rmia_of_a_model_of_another_scale() -> None:
    """The attacked model says the same as a reference, three times as loudly and shifted."""
    made = toy(5, points=300, dimensions=400, models=65, noise=0.02)
    of = Said(3 * made.said.confidence[:1] + 2, made.said.likelihood[:1])
    references = Said(made.said.confidence[1:], made.said.likelihood[1:])
    inside, member = made.inside[1:], made.inside[0]
    scores = membership.lira_offline(of, references, inside)[0]
    others = membership.rmia(of, references, np.ones((1, 300), bool))[0]
    for score in (scores, others):
        assert membership.p_of_members_on_top(score, member, 0.1) < 1e-4
    plain = membership.lira_offline(Said(made.said.confidence[:1], of.likelihood), references, inside)[0]
    # the scale is taken away: the ranking of patients does not depend on it
    assert np.corrcoef(scores.argsort().argsort(), plain.argsort().argsort())[0, 1] > 0.999


def test_members_and_non_members_swapped_at_random_are_accused_at_the_stated_level() -> None:
    """An exact test rejects at 5 % at most as often, although scores have equal values."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=300), 1)
    p = []
    for _ in range(1000):
        member = np.zeros(300, bool)
        member[rng.permutation(300)[:200]] = True
        p.append(membership.p_of_members_on_top(scores, member, 0.05))
    assert (np.array(p) <= 0.05).mean() < 0.065
    assert (np.array(p) <= 0.5).mean() > 0.2  # it is a test, not a constant


def test_single_patients_are_recognised_beyond_chance_only_if_they_are() -> None:
    rng = np.random.default_rng(1)
    inside = membership.halves(60, 2000, rng)
    accused = rng.random(inside.shape) < 0.02
    assert (membership.p_of_patients(accused, inside) <= 0.05).mean() < 0.05
    accused[:, 0] = inside[:, 0]
    assert membership.p_of_patients(accused, inside)[0] < 1e-10


def test_halves_are_halves_and_no_two_alike() -> None:
    inside = membership.halves(20, 101, np.random.default_rng(0))
    assert (inside.sum(axis=1) == 50).all()
    assert len(np.unique(inside, axis=0)) == 20


@pytest.mark.parametrize("ties", [False, True])
def test_no_threshold_accuses_more_non_members_than_it_may(ties: bool) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=1000)
    scores = np.round(scores, 1) if ties else scores
    for rate in (0.001, 0.01, 0.1):
        threshold = membership.threshold_at(scores, rate)
        assert threshold is not None
        assert (scores >= threshold).mean() <= rate
        if not ties:
            assert (scores >= threshold).mean() > rate - 0.0011
    assert membership.threshold_at(scores[:99], 0.01) is None


def test_what_is_said_of_a_patient_is_the_mean_over_images_and_labels_that_are_there() -> None:
    logits = np.array([[[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]]])
    labels = np.array([[1.0, 0.0], [0.0, np.nan], [np.nan, np.nan]])
    said = membership.said_of_patients(logits, labels, np.array([0, 0, 1]))
    assert np.allclose(said.confidence[0], [[(1 - 3) / 2, 2.0], [0.0, 0.0]])
    likely = [np.log(1 / (1 + np.exp(-1))) + np.log(1 / (1 + np.exp(-2))), np.log(1 / (1 + np.exp(3)))]
    assert np.allclose(said.likelihood[0], [float(np.mean(likely)), 0.0], atol=1e-6)


def test_lira_is_the_log_ratio_of_two_gaussians_by_the_other_models() -> None:
    rng = np.random.default_rng(4)
    inside = rng.random((120, 5)) < 0.5
    confidence = rng.normal(inside[..., None] * 1.5, 1.0, (120, 5, 2)).astype(np.float32)
    scores = membership.lira_among(Said(confidence, confidence[..., 0]), inside)
    for model, patient in ((0, 0), (17, 3)):
        others = np.arange(120) != model
        total = 0.0
        for finding in range(2):
            values, seen = confidence[others, patient, finding], inside[others, patient]
            there, absent = values[seen].astype(float), values[~seen].astype(float)
            at = float(confidence[model, patient, finding])
            total += norm.logpdf(at, there.mean(), there.std(ddof=1))
            total -= norm.logpdf(at, absent.mean(), absent.std(ddof=1))
        assert scores[model, patient] == pytest.approx(total, rel=1e-5)


def test_rmia_is_the_share_of_other_people_with_a_smaller_ratio() -> None:
    rng = np.random.default_rng(6)
    inside = membership.halves(12, 30, rng)
    likelihood = rng.normal(size=(12, 30)).astype(np.float32)
    scores = membership.rmia_among(Said(likelihood[..., None], likelihood), inside)
    others = np.delete(likelihood.astype(float), 4, axis=0)
    ratio = np.exp(likelihood[4].astype(float)) / np.exp(others).mean(axis=0)
    for patient in range(30):
        people = [z for z in range(30) if not inside[4, z] and z != patient]
        below = np.mean([ratio[z] <= ratio[patient] for z in people])
        assert abs(scores[4, patient] - below) < 1.5 / len(people)
