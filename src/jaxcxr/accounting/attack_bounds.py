"""Bounds on the success of any attacker with any side knowledge: what epsilon and delta mean in practice.

A test for "this person was in the data" with false-positive rate a has a true-positive rate of at most min
over epsilon of exp(epsilon) a + delta(epsilon) (Kairouz et al. 2015; the whole curve is used, not one point
of it). An attacker who guesses a record with prior probability a guesses it from the model with a probability
of at most the same expression (Balle et al. 2022; Hayes et al. 2023), so the same curve bounds
reconstruction.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxcxr.accounting.dominating_pair import Release
from jaxcxr.accounting.epsilon import Spending, releases_of
from jaxcxr.accounting.loss_distribution import upper_curve

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)


@dataclasses.dataclass(frozen=True)
class AttackBounds:
    """Upper bounds on the success of any attack on one unit.

    Attributes:
        true_positive_rate: false-positive rate -> bound on the true-positive rate of membership inference;
            equally, prior probability of guessing a record -> bound on the probability of reconstructing it.
        advantage: bound on true-positive minus false-positive rate at any threshold (the membership and
            reconstruction advantage): delta at epsilon 0.
    """

    true_positive_rate: Mapping[float, float]
    advantage: float


def attack_bounds(spendings: Sequence[Spending], delta: float, images: int = 1) -> AttackBounds:
    """Bounds on attacks against a unit of `images` images; all are 1 if a release has no noise.

    Args:
        spendings: everything that was released.
        delta: of the guarantee; it sets the precision, not the bound.
        images: number of images of the attacked unit.
    """
    return _bounds(releases_of(spendings, images), delta)


def trade_off(
    spendings: Sequence[Spending],
    delta: float,
    false_positive_rates: Float[np.ndarray, " points"],
    images: int = 1,
) -> Float[np.ndarray, " points"]:
    """Upper bound on the ROC curve of any attack: the true-positive rate at each false-positive rate.

    Other arguments as in `attack_bounds`.
    """
    return _highest(releases_of(spendings, images), delta, false_positive_rates)


@functools.lru_cache(maxsize=64)
def _bounds(releases: tuple[Release, ...], delta: float) -> AttackBounds:
    rates = _highest(releases, delta, np.array([*FALSE_POSITIVE_RATES]))
    return AttackBounds(
        dict(zip(FALSE_POSITIVE_RATES, rates.tolist(), strict=True)),
        float(upper_curve(releases, delta)[1][0]),
    )


def _highest(
    releases: tuple[Release, ...], delta: float, rates: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    return rates_of_curve(*upper_curve(releases, delta), rates)


def rates_of_curve(
    epsilons: Float[np.ndarray, " curve"],
    deltas: Float[np.ndarray, " curve"],
    rates: Float[np.ndarray, " points"],
) -> Float[np.ndarray, " points"]:
    """Upper bound on the true-positive rate at each false-positive rate, by points of a privacy profile."""
    rates = rates[:, None]
    likely = np.exp(np.minimum(epsilons, 700.0)) * rates + deltas
    unlikely = 1 - np.exp(-epsilons) * (1 - deltas - rates)
    return np.minimum(1.0, np.minimum(likely.min(axis=1), unlikely.min(axis=1)))
