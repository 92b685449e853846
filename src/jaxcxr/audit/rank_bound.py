"""Lower bound on epsilon from one run, by where each included canary's score stands among those that it would
have if it were left out, and the whole trade-off curve.

Along a direction of its own, what is released, less what all others contribute, is the noise alone where a
canary was left out: N(0, 1) in the claimed deviation, step by step. So the scores of left-out canaries need
not be observed: they are simulated, for each included canary anew, and the share of them that are as large as
the observed score is the canary's place. The score is the log likelihood ratio of a unit of full length, with
the same length in every step: what came out of earlier steps does not change its distribution.

Under the claim no test of one canary's membership has an ROC curve above that of the claimed mechanism
(`accounting.attack_bounds`; f-DP, Dong, Roth & Su 2022). A place below u is such a test with false-positive
rate u, so that each place can be coupled to a smaller one that is drawn from the claim's curve. Any sum of a
falling function of the places is then stochastically smaller than under the claim's curve, where its
distribution is simulated: a p-value of the claim. The function is the normal score (van der Waerden 1952),
which loses little against the best one where scores are nearly normal. Hypotheses are the claimed mechanism
with at least so much noise; the smallest noise multiplier that is rejected gives the bound, by the
accountant.

Order statistics in one run: Xiang, Wang & Wang 2025 (arXiv 2509.08704), whose test this is not. f-DP in one
run: Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235). Ranks among the left-out canaries that were
observed would need no distribution of the noise, and prove less: half of the error is then theirs.

Assumes: the noise along orthonormal directions is independent and normal with the claimed deviation, and
knows nothing of the directions (`noise_checks` looks at all of it); draws are independent with the accounted
rate (`sampling_checks`). The statistic is fixed beforehand; the search over noise multipliers tests nested
hypotheses on the same simulated draws: the smallest that is rejected is a true one only if the true one is
rejected, so that nothing is to be corrected.
"""

import functools
import math

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.attack_bounds import trade_off

SIMULATED = 999
"""Simulations of the statistic under a hypothesis."""
LEAST_SIMULATED, MOST_SIMULATED, _NUMBERS = 999, 9_999, 5 * 10**7
"""Simulations of each canary's score, as many as take so many random numbers."""
_RATES = np.concatenate([[0.0], np.geomspace(1e-9, 1e-3, 200), np.linspace(1e-3, 1, 2000)[1:]])
_FACTORS, _HALVINGS = (1 / 2, 8), 9
"""Noise multipliers that are tried, as multiples of the claim's, and halvings of that interval: to 0.5 %."""


def likelihoods(scores: Float[np.ndarray, "steps *n"], shift: float, rate: float) -> Float[np.ndarray, "*n"]:
    """Log likelihood ratio of being included, if a draw shifts a step's score by `shift`."""
    ratios = np.exp(np.minimum(shift * scores - shift**2 / 2, 80.0))  # within single precision
    return np.log(1 - rate + rate * ratios).sum(axis=0)


def places(
    scores: Float[np.ndarray, "steps n"], claim: Spending, simulated: int, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Share of simulated left-out scores, and of the observed one, that are as large as the observed one, for
    each canary by simulations of its own.
    """
    (steps, n), shift, rate = scores.shape, 1 / claim.noise_multiplier, claim.sample_rate
    observed, larger = likelihoods(scores, shift, rate), np.zeros(n)
    for canary in range(n):
        noise = rng.standard_normal((steps, simulated), dtype=np.float32)
        larger[canary] = np.count_nonzero(likelihoods(noise, shift, rate) >= observed[canary])
    return (1 + larger) / (1 + simulated)


def simulations(steps: int, canaries: int) -> int:
    """How often each canary's score is simulated."""
    return min(max(_NUMBERS // (steps * canaries), LEAST_SIMULATED), MOST_SIMULATED)


def statistic(shares: Float[np.ndarray, " n"], simulated: int) -> float:
    """Sum of the normal scores of places."""
    least = 0.5 / (1 + simulated)
    return -float(ndtri(np.clip(shares, least, 1 - least)).sum())


def roc(sample_rate: float, noise_multiplier: float, steps: int, delta: float) -> Float[np.ndarray, " rates"]:
    """Upper bound on the true-positive rate of any test at each of `_RATES`."""
    return trade_off([Spending(sample_rate, noise_multiplier, steps)], delta, _RATES)


def simulated_statistics(
    curve: Float[np.ndarray, " rates"], canaries: int, simulated: int, rng: np.random.Generator, draws: int
) -> Float[np.ndarray, " draws"]:
    """The statistic's distribution if the attack's ROC curve is `curve`."""
    found = np.empty(draws)
    for i in range(draws):
        # The next smaller rate of the grid: never a larger place than the curve's.
        at = np.searchsorted(curve, rng.random(canaries), side="right") - 1
        found[i] = statistic(np.where(at < 0, 0.0, _RATES[np.maximum(at, 0)]), simulated)
    return found


def rank_epsilon(
    scores: Float[np.ndarray, "steps n"], claim: Spending, delta: float, confidence: float, seed: int = 0
) -> float:
    """Lower bound on epsilon at `delta`, of `claim`'s steps; 0 if nothing is proved.

    Args:
        scores: of the included canaries in each step, along directions of their own, in the claimed deviation
            of the noise.
        claim: rate, noise multiplier and number of the steps of the claimed mechanism.
        delta: of the guarantee.
        confidence: of the bound.
        seed: of the simulations.

    Raises:
        ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError("scores: expected numbers, found NaN")
    steps, n = scores.shape
    if n == 0:
        return 0.0
    simulated = simulations(steps, n)
    observed = statistic(places(scores, claim, simulated, np.random.default_rng((seed, 0))), simulated)

    @functools.cache
    def rejected(logarithm: float) -> bool:
        curve = roc(claim.sample_rate, math.exp(logarithm), claim.steps, delta)
        under = simulated_statistics(curve, n, simulated, np.random.default_rng((seed, 1)), SIMULATED)
        return bool((1 + (under >= observed).sum()) / (1 + SIMULATED) <= 1 - confidence)

    low, high = (math.log(claim.noise_multiplier * factor) for factor in _FACTORS)
    if not rejected(high):
        return 0.0
    for _ in range(_HALVINGS):
        between = (low + high) / 2
        low, high = (low, between) if rejected(between) else (between, high)
    return accounting.epsilon_bounds([Spending(claim.sample_rate, math.exp(high), claim.steps)], delta).lower
