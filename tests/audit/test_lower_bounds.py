import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, kstest

from jaxcxr.accounting import Spending, epsilon_bounds
from jaxcxr.audit.checks import sharing
from jaxcxr.audit.lower_bounds import epsilon_from_scores, membership_curve, one_run_epsilon, one_run_p_value
from jaxcxr.audit.noise_checks import noise_checks
from jaxcxr.audit.rank_bound import LEAST_SIMULATED, MOST_SIMULATED, places, rank_epsilon, simulations
from jaxcxr.audit.reference import Leaf
from jaxcxr.audit.released import ReleaseAttack, told_apart
from jaxcxr.audit.sampling_checks import sampling_checks
from jaxcxr.audit.shift_bound import epsilon_from_shift, shift_lower
from tests.audit import coverage


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


def test_a_shift_is_bounded_below_and_composed() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((128, 400)) < 0.05
    sigma, rate, steps, delta = 1.3, 0.1, 64, 1e-5
    claimed = epsilon_bounds([Spending(rate, sigma, steps)], delta)
    seen = rng.normal(size=drawn.shape) + drawn / sigma
    shift = shift_lower(seen, drawn, 0.98)
    assert 0.9 / sigma < shift < 1 / sigma
    assert 0.85 * claimed.lower < epsilon_from_shift(shift, rate, steps, delta) <= claimed.upper
    assert shift_lower(rng.normal(size=drawn.shape), drawn, 0.999) == 0.0
    assert shift_lower(1.0 * drawn, drawn, 0.95) == math.inf
    assert shift_lower(seen, np.zeros_like(drawn), 0.95) == 0.0
    assert (epsilon_from_shift(0.0, rate, steps, delta), epsilon_from_shift(1e9, rate, steps, delta)) == (
        0,
        math.inf,
    )


def test_bounds_hold_at_their_confidence() -> None:
    """Few draws here; `python -m tests.audit.coverage` makes 2,000 of each."""
    of = coverage.bounds()
    wrong = [of(np.random.default_rng(seed)) for seed in range(40)]
    for name in wrong[0]:
        assert sum(found[name] for found in wrong) <= 7, name  # 5 % asked: more than 7 of 40 once in 1,000


def test_a_place_is_that_among_simulated_scores_and_the_score_itself() -> None:
    claim, rng = Spending(0.1, 3.0, 4), np.random.default_rng(0)
    assert (simulations(4, 2), simulations(64, 10**5)) == (MOST_SIMULATED, LEAST_SIMULATED)
    first, last = places(np.array([[9.0, -9.0]] * 4), claim, 999, rng)
    assert first == 1 / 1000  # not 0: the normal score would be infinite
    assert last == 1.0
    left_out = places(rng.normal(size=(4, 300)), claim, 999, rng)
    assert kstest(left_out, "uniform").pvalue > 1e-3


def test_the_order_of_scores_proves_what_canaries_tell_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the claimed mechanism, of noise alone, of half the noise, and of canaries left out of one step in two."""
    monkeypatch.setattr("jaxcxr.audit.rank_bound.simulations", lambda *_: 499)
    monkeypatch.setattr("jaxcxr.audit.rank_bound._HALVINGS", 5)
    rate, steps, delta, sigma, rng = 0.1, 64, 1e-5, 1.3, np.random.default_rng(0)
    claim = Spending(rate, sigma, steps)
    claimed = epsilon_bounds([claim], delta).upper

    def proved(shift: float, share: float = 1.0) -> float:
        drawn = rng.random((steps, 300)) < rate * share
        return rank_epsilon(rng.normal(size=drawn.shape) + shift * drawn, claim, delta, 0.95) / claimed

    assert 0.6 < proved(1 / sigma) < 1.05
    assert proved(0.0) == 0.0
    assert proved(2 / sigma) > 1.5
    assert proved(1 / sigma, 0.5) < 0.75
    assert rank_epsilon(np.zeros((steps, 0)), claim, delta, 0.95) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        rank_epsilon(np.full((steps, 3), math.nan), claim, delta, 0.95)


def test_the_many_values_of_a_large_network_may_repeat_by_chance() -> None:
    """As single precision has too few numbers for them: here a grid of as many, for fewer values."""
    rng = np.random.default_rng(0)
    fine, coarse = (np.round(rng.normal(size=(40, 50_000)) * 2**bits) / 2**bits for bits in (17, 8))
    assert len(np.unique(fine)) < fine.size / 2
    for noise, holds in ((fine, True), (coarse, False)):
        leaf, nothing = Leaf("kernel", (500, 100), 0), np.zeros((40, 50_000), np.float32)
        found = noise_checks(noise.astype(np.float32), nothing, [leaf], continuous=True, rng=rng)
        (normal,) = (check for check in found if check.name == "noise is normal")
        assert (normal.p_value > 1e-3) == holds, normal


def test_pairs_of_a_release_prove_what_they_tell_apart() -> None:
    assert told_apart(np.zeros(100), 1e-6) == ReleaseAttack(100, 0.5, 0.0)
    apart = told_apart(1 + np.random.default_rng(0).random(100), 1e-6)
    assert apart.right == 1.0
    assert apart.epsilon_lower > 2.5
    assert told_apart(-apart.right * np.arange(1.0, 101), 1e-6).epsilon_lower == 0.0
    with pytest.raises(ValueError, match="NaN"):
        told_apart(np.array([math.nan]), 1e-6)


LEAVES = coverage.LEAVES


def noise_of(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(40, coverage.D)).astype(np.float32), rng.normal(size=(40, coverage.D)).astype(
        np.float32
    )


def failing(noise: np.ndarray, sums: np.ndarray) -> set[str]:
    rng = np.random.default_rng(0)
    return {c.name for c in sharing(noise_checks(noise, sums, LEAVES, continuous=True, rng=rng)) if c.failed}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda n, _: 0.85 * n, "noise has the claimed deviation in every step"),
        (lambda n, _: n * np.linspace(0.6, 1.4, 40)[:, None], "noise has the claimed deviation in every step"),
        (lambda n, _: np.concatenate([n[:, :32], 0 * n[:, 32:36] + 1e-6, n[:, 36:]], axis=1), "noise has the claimed deviation in every parameter"),
        (lambda n, s: n + 0.2 * s, "what is released is the clipped sum and noise that knows nothing of it"),
        (lambda n, _: np.concatenate([n[:39], n[:1]]), "noise of one step tells nothing of another's"),
        (lambda n, _: np.concatenate([n[:, :54], n[:, 4:0:-1]], axis=1), "noise of one coordinate tells nothing of another's"),
        (lambda n, _: np.clip(n, -1.5, 1.5) * 1.13, "noise is normal"),
        (lambda n, _: n + np.where(np.arange(58) < 32, 0, 0.9), "noise has no mean"),
    ],
    ids=["too small", "varying", "no leaf", "shifted", "step again", "coordinate again", "tails", "mean"],
)  # fmt: skip
def test_each_check_of_the_noise_sees_its_fault(change: Callable[..., np.ndarray], name: str) -> None:
    noise, sums = noise_of()
    assert failing(noise, sums) == set()
    assert name in failing(change(noise, sums).astype(np.float32), sums)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m, _: m | (np.arange(60) == 3), "every unit is drawn with the claimed rate"),
        (lambda m, r: m | (r.random(m.shape) < 0.03), "every unit is drawn with the claimed rate"),
        (lambda m, r: np.argsort(np.argsort(r.random(m.shape), axis=1), axis=1) < 6, "batch sizes vary as those of independent draws"),
        (lambda m, _: np.arange(60) % 10 == np.arange(len(m))[:, None] % 10, "batch sizes vary as those of independent draws"),
        (lambda m, _: np.repeat(m[:, ::10], 10, axis=1), "no three units are drawn together"),
        (lambda m, _: np.concatenate([m[:300], m[:300]]), "no batch repeats another, of this secret or another"),
        (lambda m, _: np.repeat(m[::2], 2, axis=0), "being drawn tells nothing of being drawn in the next steps"),
    ],
    ids=["always drawn", "too often", "fixed size", "epochs", "in tens", "again", "twice"],
)  # fmt: skip
def test_each_check_of_the_draws_sees_its_fault(change: Callable[..., np.ndarray], name: str) -> None:
    rng = np.random.default_rng(0)
    right, other = (rng.random((600, 60)) < 0.1 for _ in range(2))
    found = sharing(sampling_checks([right[:64], other[:64]], right, 0.1))
    assert not any(check.failed for check in found)
    wrong = change(right, rng)
    assert name in {
        c.name for c in sharing(sampling_checks([other[:64], wrong[:64]], wrong, 0.1)) if c.failed
    }
