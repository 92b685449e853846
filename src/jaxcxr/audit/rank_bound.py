"""Lower bound on epsilon from one run, by the order of the canaries' scores and the whole trade-off curve.

Under the claim no test of one canary's membership has an ROC curve above that of the claimed mechanism
(`accounting.attack_bounds`; f-DP, Dong, Roth & Su 2022). Measure every score by the share of left-out
canaries' scores above it: left-out ones are uniform, included ones have the attack's own ROC curve as their
distribution function, which is below the claim's, so that each can be coupled to a smaller share drawn from
the claim's curve. Any statistic of the order in which included canaries stand higher is then stochastically
smaller than under the claim's curve, where its distribution is simulated: a p-value of the claim, whatever
the scores are. The statistic is the sum of the included canaries' normal scores (van der Waerden 1952), which
loses nothing against the best test where scores are normal. Hypotheses are the claimed mechanism with at
least so much noise; the smallest noise multiplier that is rejected gives the bound, by the accountant.

Order statistics in one run: Xiang, Wang & Wang 2025 (arXiv 2509.08704), whose test this is not; it needs the
same assumption. f-DP in one run: Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235).

Assumes: the scores of different canaries are independent given who is included, and left-out ones are
exchangeable: true of white-box scores along orthonormal directions under independent noise, not known of
scores from weights alone, for which `lower_bounds` needs no such thing. Equal scores are ordered against the
attack, included canaries lowest: they prove nothing. The statistic is fixed beforehand; the search over noise
multipliers tests nested hypotheses on the same simulated draws: the smallest that is rejected is a true one
only if the true one is rejected, so that nothing is to be corrected.
"""

import functools
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.attack_bounds import trade_off

SIMULATED = 999
_RATES = np.concatenate([[0.0], np.geomspace(1e-9, 1e-3, 200), np.linspace(1e-3, 1, 2000)[1:]])
_FACTORS, _HALVINGS = (1 / 2, 8), 7
"""Noise multipliers that are tried, as multiples of the claim's, and halvings of that interval: to 2 %."""


def rank_statistic(scores: Float[np.ndarray, " m"], included: Bool[np.ndarray, " m"]) -> float:
    """Sum of the normal scores of the included canaries' ranks, equal scores ordered against the attack."""
    order = np.lexsort((~included, scores))  # included ones first among equals
    return float(_normal_scores(len(scores))[included[order]].sum())


def roc(sample_rate: float, noise_multiplier: float, steps: int, delta: float) -> Float[np.ndarray, " rates"]:
    """Upper bound on the true-positive rate of any test at each of `_RATES`."""
    return trade_off([Spending(sample_rate, noise_multiplier, steps)], delta, _RATES)


def simulated_statistics(
    curve: Float[np.ndarray, " rates"], m: int, included: int, rng: np.random.Generator, draws: int
) -> Float[np.ndarray, " draws"]:
    """The statistic's distribution if the attack's ROC curve is `curve`."""
    found = np.empty(draws)
    normal, is_in = _normal_scores(m), np.arange(m) < included
    for i in range(draws):
        shares = rng.random(m)
        # The next smaller rate of the grid: never a lower score than the curve's.
        place = np.searchsorted(curve, shares[:included], side="right") - 1
        shares[:included] = np.where(place < 0, 0.0, _RATES[np.maximum(place, 0)])
        found[i] = normal[is_in[np.argsort(-shares, kind="stable")]].sum()
    return found


def rank_epsilon(
    scores: Float[np.ndarray, " m"],
    included: Bool[np.ndarray, " m"],
    claim: Spending,
    delta: float,
    confidence: float,
) -> float:
    """Lower bound on epsilon at `delta`, of `claim`'s steps; 0 if nothing is proved.

    Args:
        scores: of the canaries, higher where the attacker holds it for included.
        included: by fair coins.
        claim: rate, noise multiplier and number of the steps of the claimed mechanism.
        delta: of the guarantee.
        confidence: of the bound.

    Raises:
        ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError("scores: expected numbers, found NaN")
    m, inside = len(scores), int(included.sum())
    if not 0 < inside < m:
        return 0.0
    observed = rank_statistic(scores, included)

    @functools.cache
    def rejected(logarithm: float) -> bool:
        curve = roc(claim.sample_rate, math.exp(logarithm), claim.steps, delta)
        simulated = simulated_statistics(curve, m, inside, np.random.default_rng(0), SIMULATED)
        return bool((1 + (simulated >= observed).sum()) / (1 + SIMULATED) <= 1 - confidence)

    low, high = (math.log(claim.noise_multiplier * factor) for factor in _FACTORS)
    if not rejected(high):
        return 0.0
    for _ in range(_HALVINGS):
        between = (low + high) / 2
        low, high = (low, between) if rejected(between) else (between, high)
    return accounting.epsilon_bounds([Spending(claim.sample_rate, math.exp(high), claim.steps)], delta).lower


@functools.lru_cache(maxsize=8)
def _normal_scores(m: int) -> Float[np.ndarray, " m"]:
    return ndtri(np.arange(1, m + 1) / (m + 1))
