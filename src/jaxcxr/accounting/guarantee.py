"""What is promised by a model: by its own releases, or by these with the choice among others (`selection`).

Guarantee: every figure is an upper bound (lower bounds: never above the truth) for whoever sees the released
model. Of a model that was chosen, the figures are those of the choice, which are larger than those of its own
steps; they follow from Rényi divergences, a looser calculus than that of plain releases, and there is no
lower bound but 0, and no mu.

A group of k images: with (epsilon, delta) for one image, k images together are promised (k epsilon,
delta (exp(k epsilon) - 1) / (exp(epsilon) - 1)); the best point of the curve is taken. Replacing one unit by
another is a group of two.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxcxr.accounting import group_privacy
from jaxcxr.accounting.attack_bounds import (
    FALSE_POSITIVE_RATES,
    AttackBounds,
    attack_bounds,
    rates_of_curve,
    trade_off,
)
from jaxcxr.accounting.epsilon import Spending, epsilon_bounds, epsilon_rdp, gdp_mu
from jaxcxr.accounting.loss_distribution import LEAST_DELTA, NO_GUARANTEE, Bounds
from jaxcxr.accounting.selection import Choice, epsilon_together

_POINTS = np.concatenate([[0.0], np.geomspace(1e-3, NO_GUARANTEE, 400)])
"""Epsilons at which the curve of a choice is computed."""


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """The promise of one model.

    Attributes:
        spent: everything that its own training released.
        choice: among which runs it was chosen; None if it was not.
    """

    spent: tuple[Spending, ...]
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if self.choice is not None:  # whatever was released is a candidate: never less than what it cost
            own = (*self.choice.candidates, self.spent)
            object.__setattr__(self, "choice", dataclasses.replace(self.choice, candidates=own))

    def bounds(self, delta: float, images: int = 1) -> Bounds:
        """Bounds on epsilon for a unit of `images` images."""
        if self.choice is None:
            return group_privacy.patient_bounds(self.spent, delta, images)
        if images == 1:
            return Bounds(0.0, _finite(self.choice.epsilon(delta)))
        epsilons, deltas = _group_curve(self.choice, images)
        enough = np.flatnonzero(deltas <= delta)
        return Bounds(0.0, _finite(float(epsilons[enough[0]])) if len(enough) else math.inf)

    def apart(self, delta: float) -> float:
        """Upper bound on epsilon for two units that are never in a step together, or not known to be: of
        whom nothing is known but what each is promised.
        """
        return _finite(_twice(lambda d: self.bounds(d).upper, delta))

    def mu(self, delta: float) -> float | None:
        """mu of Gaussian differential privacy from `delta` on; None of a choice, which has none here."""
        return gdp_mu(self.spent, delta) if self.choice is None else None

    def epsilon_rdp(self, delta: float) -> float:
        """Upper bound on epsilon by Rényi divergences alone."""
        return epsilon_rdp(self.spent, delta) if self.choice is None else self.bounds(delta).upper

    def attacks(self, delta: float, images: int = 1) -> AttackBounds:
        """Bounds on attacks; `delta` sets their precision."""
        if self.choice is None:
            return attack_bounds(self.spent, delta, images)
        rates = rates_of_curve(*_group_curve(self.choice, images), np.array([*FALSE_POSITIVE_RATES]))
        epsilons, deltas = _group_curve(self.choice, images)
        advantage = float(np.min(np.tanh(epsilons / 2) + deltas * (1 - np.tanh(epsilons / 2))))
        return AttackBounds(dict(zip(FALSE_POSITIVE_RATES, rates.tolist(), strict=True)), min(1.0, advantage))

    def trade_off(
        self, delta: float, rates: Float[np.ndarray, " points"], images: int = 1
    ) -> Float[np.ndarray, " points"]:
        """Upper bound on the ROC curve of any attack (`attack_bounds.trade_off`)."""
        if self.choice is None:
            return trade_off(self.spent, delta, rates, images)
        return rates_of_curve(*_group_curve(self.choice, images), rates)


def together(guarantees: Sequence[Guarantee], delta: float, replaced: bool = False) -> float:
    """Upper bound on epsilon of several models of independent randomness, all released.

    Args:
        guarantees: of each.
        delta: of the bound.
        replaced: one unit is replaced by another, rather than added or removed.
    """
    choices = [found.choice for found in guarantees if found.choice is not None]
    spent = [part for found in guarantees if found.choice is None for part in found.spent]
    if not choices:
        return epsilon_bounds(spent, delta, "replace_one" if replaced else "add_remove").upper
    if not replaced:
        return _finite(epsilon_together(choices, spent, delta))
    return _finite(_twice(lambda d: epsilon_together(choices, spent, d), delta))


def _twice(cost: Callable[[float], float], delta: float) -> float:
    """Epsilon of two changes, each at `cost` of a delta: (epsilon, delta) twice, and the second delta grows
    by exp(epsilon).
    """
    low, high = 1e-3, min(NO_GUARANTEE / 2, math.log(delta / (4 * LEAST_DELTA)))

    def holds(epsilon: float) -> bool:
        return cost(delta / (1 + math.exp(epsilon))) <= epsilon

    if not holds(high):
        return math.inf
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return 2 * high


def _finite(epsilon: float) -> float:
    return epsilon if epsilon < NO_GUARANTEE else math.inf


@functools.lru_cache(maxsize=64)
def _group_curve(
    choice: Choice, images: int
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Points (epsilon, delta) that a group of so many images is promised; all hold at once."""
    deltas = choice.curve(_POINTS)
    with np.errstate(over="ignore"):
        grown = np.sum([np.exp(np.minimum(i * _POINTS, 700.0)) for i in range(images)], axis=0)
    return images * _POINTS, np.minimum(1.0, deltas * grown)
