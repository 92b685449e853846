import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest

from jaxcxr.audit.lower_bounds import epsilon_from_scores, membership_curve, one_run_epsilon, one_run_p_value
from jaxcxr.audit.step_checks import check_mechanism


def test_without_delta_the_bound_is_binomial() -> None:
    assert one_run_p_value(100, 10, 10, 1.0, 0.0) == pytest.approx(expit(1.0) ** 10)
    assert one_run_p_value(100, 10, 0, 1.0, 0.0) == 1.0
    epsilon = one_run_epsilon(100, 50, 50, 0.0, 0.95)
    assert expit(epsilon) ** 50 == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(100, 50, 45), (1000, 400, 390), (200, 200, 120), (60, 30, 10)]
)
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_the_statistic_is_jax_privacys(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> None:
    auditing = pytest.importorskip("jax_privacy.auditing")
    theirs = auditing._epsilon_one_run(0.0, canaries, guesses, correct, 1 - confidence, delta)
    assert one_run_epsilon(canaries, guesses, correct, delta, confidence) == pytest.approx(theirs, abs=1e-4)


def test_delta_and_confidence_cost_power() -> None:
    plain = one_run_epsilon(200, 100, 95, 0.0, 0.95)
    assert one_run_epsilon(200, 100, 95, 1e-2, 0.95) < plain
    assert one_run_epsilon(200, 100, 95, 0.0, 0.999) < plain
    assert one_run_epsilon(200, 100, 50, 0.0, 0.95) == 0.0


def test_scores_that_tell_nothing_prove_nothing_and_those_that_tell_all_prove_much() -> None:
    rng = np.random.default_rng(0)
    included = rng.random(400) < 0.5
    assert max(epsilon_from_scores(rng.normal(size=400), included, 1e-5, 0.95) for _ in range(40)) < 0.6
    assert epsilon_from_scores(included + rng.normal(size=400) / 9, included, 1e-5, 0.95) > 3.0
    assert epsilon_from_scores(-included.astype(float), included, 1e-5, 0.95) == 0.0


def test_equal_scores_prove_nothing_in_whatever_order_they_come() -> None:
    """Left-out canaries first: ties broken by position would guess every one of them right."""
    included = np.arange(200) >= 100
    assert epsilon_from_scores(np.zeros(200), included, 1e-5, 0.95) == 0.0
    assert epsilon_from_scores(np.zeros(1), np.array([True]), 1e-5, 0.95) == 0.0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=20, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_canaries_does_not_matter(scores: list[int], random: Random) -> None:
    included = [random.random() < 0.2 + 0.2 * score for score in scores]
    pairs = sorted(zip(scores, included, strict=True))  # left-out first among equals
    random.shuffle(shuffled := list(pairs))
    found = [
        epsilon_from_scores(
            np.array([s for s, _ in order], float), np.array([i for _, i in order]), 1e-5, 0.9
        )
        for order in (pairs, pairs[::-1], shuffled)
    ]
    assert found[0] == found[1] == found[2]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN at 1"):
        epsilon_from_scores(np.array([1.0, np.nan, 0.0]), np.array([True, False, True]), 1e-5, 0.95)


def test_membership_curve_by_hand() -> None:
    curve = membership_curve(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert curve.auroc == 0.75
    assert curve.at([0.0, 0.4, 0.5, 1.0]) == [0.5, 0.5, 1.0, 1.0]
    tied = membership_curve(np.zeros(4), np.array([True, False, True, False]))
    assert tied.auroc == 0.5
    with pytest.raises(ValueError, match="both kinds"):
        membership_curve(np.zeros(2), np.array([True, True]))


def test_the_band_of_a_curve_is_clopper_and_pearsons_and_holds_the_truth() -> None:
    curve = membership_curve(np.array([4.0, 3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False, False]))
    band = curve.band(0.9)
    for low, high, rates, of in (
        (band.false_low, band.false_high, curve.false_positive_rate, 3),
        (band.true_low, band.true_high, curve.true_positive_rate, 2),
    ):
        expected = [binomtest(round(rate * of), of).proportion_ci(0.95, "exact") for rate in rates]
        np.testing.assert_allclose(low, [e.low for e in expected], atol=1e-12)
        np.testing.assert_allclose(high, [e.high for e in expected], atol=1e-12)
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):  # scores of both kinds alike: any threshold has the same rates
        included = rng.random(200) < 0.5
        scores = rng.random(200)
        found = membership_curve(scores, included)
        place = np.searchsorted(-np.unique(scores)[::-1], -0.8) - 0  # thresholds above 0.8
        ends = found.band()
        held += (
            ends.false_low[place] <= 0.2 <= ends.false_high[place]
            and ends.true_low[place] <= 0.2 <= ends.true_high[place]
        )
    assert held >= 0.94 * 300


def right(seed: int = 0, steps: int = 40, d: int = 300, images: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "noise": rng.normal(size=(steps, d)),
        "sums": rng.normal(size=(steps, d)) * 5,
        "sampled": rng.random((steps, images)) < 0.1,
    }


def failed(parts: dict[str, np.ndarray]) -> set[str]:
    return {check.name for check in check_mechanism(**parts, sample_rate=0.1) if check.failed}


def test_a_right_mechanism_passes_and_p_values_are_uniform_enough() -> None:
    checks = [check_mechanism(**right(seed), sample_rate=0.1) for seed in range(60)]
    assert not any(check.failed for found in checks for check in found)
    for column in (0, 1):
        values = [found[column].p_value for found in checks]
        assert 0.3 < np.mean(values) < 0.7
    assert math.isfinite(max(check.p_value for found in checks for check in found))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda p: p | {"noise": p["noise"] * 0.9}, "noise has the claimed deviation in every step"),
        (lambda p: p | {"noise": p["noise"] * np.linspace(0.8, 1.2, 40)[:, None]}, "noise has the claimed deviation in every step"),
        (lambda p: p | {"noise": p["noise"] + 0.05 * p["sums"]}, "released sum is the clipped sum"),
        (lambda p: p | {"noise": np.concatenate([p["noise"][:39], p["noise"][:1]])}, "noise of one step tells nothing of another's"),
        (lambda p: p | {"sampled": np.concatenate([p["sampled"], np.ones((40, 1), bool)], axis=1)}, "every image is sampled with the claimed rate"),
        (lambda p: p | {"sampled": np.random.default_rng(1).random((40, 200)) < 0.13}, "every image is sampled with the claimed rate"),
        (lambda p: p | {"sampled": np.argsort(np.argsort(np.random.default_rng(1).random((40, 200)), axis=1), axis=1) < 20}, "images are sampled independently"),
        (lambda p: p | {"sampled": np.arange(200) % 10 == np.arange(40)[:, None] % 10}, "images are sampled independently"),
        (lambda p: p | {"sampled": np.repeat(np.random.default_rng(1).random((40, 20)) < 0.1, 10, axis=1)}, "images are sampled independently"),
    ],
    ids=["too small", "varying", "shifted", "key used twice", "always sampled", "too often", "fixed size", "epochs", "in tens"],
)  # fmt: skip
def test_each_check_sees_its_fault(change: object, name: str) -> None:
    assert name in failed(change(right()))  # type: ignore[operator]
