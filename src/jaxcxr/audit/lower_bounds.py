"""Lower bounds on epsilon from guesses about canaries (one-run audit), and ROC curves of the attacks.

Source: Steinke, Nasr & Jagielski 2023, 'Privacy auditing with one (1) training run', Theorem 5.2 and its
proof for delta > 0.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import beta, binom

GUESS_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries on which to guess, the most certain first; they share the confidence."""
_LARGEST = 50.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability of at least `correct` correct guesses if the mechanism is (epsilon, delta)-private.

    Each canary was included by a fair coin.

    Args:
        canaries: number of canaries, including those without a guess.
        guesses: number of guesses.
        correct: number of correct guesses.
        epsilon: claimed.
        delta: claimed.
    """
    right = expit(epsilon)
    tail = float(binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return tail
    # With delta, an adversary may win up to 2 m delta canaries outright; the worst spread has the largest
    # mean.
    extra = np.arange(1, correct + 1)
    gained = binom.sf(correct - extra - 1, guesses, right) - tail
    return float(min(1.0, tail + 2 * canaries * delta * max(0.0, float(np.max(gained / extra)))))


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Largest epsilon refuted by the guesses at this confidence; 0 if none."""

    def refuted(epsilon: float) -> float:
        return (1 - confidence) - one_run_p_value(canaries, guesses, correct, epsilon, delta)

    if refuted(0.0) <= 0:
        return 0.0
    if refuted(_LARGEST) > 0:
        return _LARGEST
    root: Any = brentq(refuted, 0.0, _LARGEST, xtol=1e-6)
    return float(root)


def epsilon_from_scores(
    scores: Float[np.ndarray, " canaries"],
    included: Bool[np.ndarray, " canaries"],
    delta: float,
    confidence: float,
) -> float:
    """Lower bound on epsilon: the highest scores are guessed included, the lowest left out.

    Several numbers of guesses are tried, each at its share of the confidence.

    Which canaries are guessed follows from their scores alone: if equal scores straddle the cut, there is no
    guess about any of them.

    Raises:
        ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError(f"scores: expected numbers, found NaN at {int(np.flatnonzero(np.isnan(scores))[0])}")
    if len(scores) < 2:
        return 0.0
    ascending = np.sort(scores)
    share = (1 - confidence) / len(GUESS_SHARES)
    bounds = []
    for part in GUESS_SHARES:
        half = max(1, int(part * len(scores) / 2))
        # Above the largest score not among the highest, below the smallest not among the lowest.
        high, low = scores > ascending[-half - 1], scores < ascending[half]
        correct = int(included[high].sum() + (~included[low]).sum())
        bounds.append(one_run_epsilon(len(scores), int(high.sum() + low.sum()), correct, delta, 1 - share))
    return max(bounds)


@dataclasses.dataclass(frozen=True)
class MembershipCurve:
    """ROC curve of a membership attack by a threshold on the score.

    Attributes:
        false_positive_rate: of each threshold, ascending from 0 to 1.
        true_positive_rate: of each threshold.
        auroc: area under the curve; 0.5 is guessing.
        included, left_out: numbers of canaries included and left out.
    """

    false_positive_rate: Float[np.ndarray, " thresholds"]
    true_positive_rate: Float[np.ndarray, " thresholds"]
    auroc: float
    included: int
    left_out: int

    def at(self, false_positive_rates: Sequence[float]) -> list[float]:
        """Largest true-positive rate with at most each false-positive rate."""
        places = np.searchsorted(self.false_positive_rate, false_positive_rates, side="right") - 1
        return [float(self.true_positive_rate[place]) for place in places]

    def band(self, confidence: float = 0.95) -> "Band":
        """Confidence band of the curve: Clopper-Pearson intervals (1934) of both rates per threshold.

        Both hold together at this confidence, for one threshold that was fixed beforehand.
        """
        each = (1 + confidence) / 2  # each rate gets half of the error probability
        false, true = (
            _clopper_pearson(np.rint(rate * count), count, each)
            for rate, count in (
                (self.false_positive_rate, self.left_out),
                (self.true_positive_rate, self.included),
            )
        )
        return Band(*false, *true)


@dataclasses.dataclass(frozen=True)
class Band:
    """Intervals of a curve's rates, one per threshold."""

    false_low: Float[np.ndarray, " thresholds"]
    false_high: Float[np.ndarray, " thresholds"]
    true_low: Float[np.ndarray, " thresholds"]
    true_high: Float[np.ndarray, " thresholds"]


def _clopper_pearson(found: np.ndarray, of: int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Clopper-Pearson interval of a probability after `found` successes in `of` trials."""
    tail = (1 - confidence) / 2
    low = np.where(found > 0, beta.ppf(tail, found, of - found + 1), 0.0)
    high = np.where(found < of, beta.ppf(1 - tail, found + 1, of - found), 1.0)
    return low, high


def membership_curve(scores: Float[np.ndarray, " n"], included: Bool[np.ndarray, " n"]) -> MembershipCurve:
    """The ROC curve of guessing 'included' if the score is at least a threshold.

    Raises:
        ValueError: all canaries were included, or none.
    """
    if included.all() or not included.any():
        raise ValueError("included: expected canaries of both kinds")
    thresholds = np.unique(scores)[::-1]
    ins, outs = np.sort(scores[included]), np.sort(scores[~included])
    true = 1 - np.searchsorted(ins, thresholds) / len(ins)
    false = 1 - np.searchsorted(outs, thresholds) / len(outs)
    true, false = np.concatenate([[0.0], true]), np.concatenate([[0.0], false])
    return MembershipCurve(false, true, float(np.trapezoid(true, false)), len(ins), len(outs))
