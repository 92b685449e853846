"""Lower bound on epsilon from how far a unit moves each step, composed over the steps.

In a step, a canary's score is the part along the canary's own direction of what is released, less what all
others contribute, in deviations of the noise. If the canary is not in the batch, the score is the noise's,
N(0, 1); if it is, it is shifted by mu = length of its contribution / deviation of the noise. Of the claimed
mechanism mu is at most 1 / noise multiplier, so a mu that is proved to be larger than m proves that the
noise multiplier is at most 1 / m, and the accountant's lower bound says what that costs over all steps (the
per-step audit that is composed, Nasr et al. 2023, arXiv 2302.07956; Gaussian differential privacy, Dong,
Roth & Su 2022, whose trade-off functions are shifts).

Assumes: scores are independent and normal with one variance, which holds for orthonormal directions and
Gaussian noise (`noise_checks` looks at it); the canary is drawn with the accounted rate, independently of the
noise (`sampling_checks`). Shifts of several canaries and steps are averaged: some unit has at least the mean
shift in the steps in which it took part, and unequal shifts with that mean cost more, since the cost of a
step, about q^2 (exp(mu^2) - 1), is convex in mu. No threshold is chosen, so that nothing is to be corrected
for a choice.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import t as student

from jaxcxr import accounting
from jaxcxr.accounting import Spending


def shift_lower(
    scores: Float[np.ndarray, "*observations"], drawn: Bool[np.ndarray, "*observations"], confidence: float
) -> float:
    """Lower confidence bound on the shift of the mean score by a draw, in standard deviations; at least 0.

    The difference of two means over the pooled deviation, less Student's quantile times its standard error;
    the error of the deviation itself is in it (Hedges & Olkin 1985, equation 5.14).

    Args:
        scores: one for each step and canary.
        drawn: whether the canary was in that step's batch.
        confidence: of the bound.
    """
    inside, outside = scores[drawn], scores[~drawn]
    freedom = len(inside) + len(outside) - 2
    if min(len(inside), len(outside)) < 2:
        return 0.0
    squares = np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum()
    deviation = math.sqrt(squares / freedom)
    if deviation == 0:
        return math.inf if inside.mean() > outside.mean() else 0.0
    shift = float(inside.mean() - outside.mean()) / deviation
    error = math.sqrt(1 / len(inside) + 1 / len(outside) + shift**2 / (2 * freedom))
    return max(0.0, shift - float(student.ppf(confidence, freedom)) * error)


def epsilon_from_shift(shift: float, sample_rate: float, steps: int, delta: float) -> float:
    """Lower bound on the epsilon of so many steps, in each of which a drawn unit moves the score by `shift`.

    Infinite if the shift leaves no noise to speak of.
    """
    if shift <= 1e-6:
        return 0.0
    if shift > 1e4:
        return math.inf
    return accounting.epsilon_bounds([Spending(sample_rate, 1 / shift, steps)], delta).lower
