"""Plan a run: the noise for a budget, the cost of a plan, and the number of steps that a budget still allows.

Guarantee: `calibrated_noise` and `affordable_steps` keep the upper bound on epsilon of all releases together,
earlier ones included, within the budget.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.optimize import brentq

from jaxcxr.accounting.epsilon import (
    MOST_STEPS,
    Spending,
    epsilon_bounds,
    epsilon_pld,
    epsilon_rdp,
    releases_of,
)
from jaxcxr.accounting.loss_distribution import NO_GUARANTEE, is_within, renyi_epsilon, require_order
from jaxcxr.errors import InputError

CALIBRATION_TOLERANCE = 1e-3
"""A calibrated run spends at least 1 minus this share of its budget, and at most all of it."""
LEAST_NOISE, MOST_NOISE = 0.05, 1e6
"""A budget that needs more noise is refused; one that needs less gets the least."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A planned run and its cost.

    Attributes:
        epsilon_pld, epsilon_rdp: upper bounds at `delta`, by privacy loss distribution (the guarantee) and by
            Rényi moments (a looser cross-check).
        epsilon_lower: lower bound on the true epsilon.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    epsilon_pld: float
    epsilon_rdp: float
    epsilon_lower: float


def sample_rate_of(expected_batch_size: int, n_units: int) -> float:
    """q = expected batch size / N: the probability with which each unit is sampled in a step.

    Raises:
        InputError: the batch size is not between 1 and N.
    """
    if not 0 < expected_batch_size <= n_units:
        raise InputError(f"expected_batch_size: expected 1 to N = {n_units}, found {expected_batch_size}")
    return expected_batch_size / n_units


def steps_of_epochs(epochs: float, n_units: int, expected_batch_size: int) -> int:
    """Number of steps in `epochs` epochs of N / expected_batch_size steps each, rounded, at least 1.

    Raises:
        InputError: epochs is not a positive number, or makes more steps than can be accounted for.
    """
    if not epochs > 0:
        raise InputError(f"epochs: expected a positive number, found {epochs}")
    steps = epochs * n_units / expected_batch_size
    if steps > MOST_STEPS:
        raise InputError(f"epochs: {epochs:g} epochs are {steps:.3g} steps, expected at most {MOST_STEPS:,}")
    return max(1, round(steps))


def require_epsilon(epsilon: float) -> None:
    """Raise if epsilon is out of range for a budget.

    Raises:
        InputError: epsilon is not positive, or above 500.
    """
    if not 0 < epsilon <= NO_GUARANTEE:
        raise InputError(
            f"epsilon: expected a positive number of at most {NO_GUARANTEE:g} (a larger one protects "
            f"nobody), found {epsilon:g}"
        )


def calibrate(
    epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()
) -> Plan:
    """The plan of a run with `calibrated_noise`."""
    return plan(
        calibrated_noise(epsilon, delta, sample_rate, steps, already), delta, sample_rate, steps, already
    )


def calibrated_noise(
    epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()
) -> float:
    """The noise multiplier with which all releases cost the budget, or up to `CALIBRATION_TOLERANCE` less.

    Args:
        epsilon: budget of the whole run, at most 500.
        delta: budget of the whole run, from 1e-15 to below 1.
        sample_rate: of the training for which the noise is sought.
        steps: of that training.
        already: other releases that the budget pays for, such as noised class counts.

    Raises:
        InputError: epsilon, delta or the plan is out of range, `already` alone exceeds the budget, or a noise
            multiplier of a million is not enough.
    """
    require_epsilon(epsilon)
    before = epsilon_pld(already, delta)
    if before >= epsilon:
        raise InputError(
            f"the released statistics alone cost epsilon {before:.4g} at delta {delta:g}: nothing is left "
            "for training"
        )

    tried: list[float] = []

    @functools.cache
    def spent(log_sigma: float) -> float:
        tried.append(log_sigma)
        return epsilon_pld([*already, Spending(sample_rate, math.exp(log_sigma), steps)], delta)

    def excess(log_sigma: float) -> float:
        """Log of the spent epsilon over the middle of the allowed range: nearly linear in log noise."""
        found = max(min(spent(log_sigma), NO_GUARANTEE), 1e-3 * epsilon)
        return math.log(found / (epsilon * (1 - CALIBRATION_TOLERANCE / 2)))

    def rough(log_sigma: float) -> float:
        releases = releases_of([*already, Spending(sample_rate, math.exp(log_sigma), steps)])
        return renyi_epsilon(releases, delta) - epsilon

    least, most = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    low = high = _root(rough, least, most, 1e-2)
    step = 0.02
    while spent(high) > epsilon:
        if high >= most:
            raise InputError(
                f"no noise multiplier up to {MOST_NOISE:g} keeps everything within epsilon {epsilon:g} at "
                f"delta {delta:g}"
            )
        step = max(step, 1.2 * excess(high))
        low, high, step = high, min(most, high + step), 2 * step
    while spent(low) <= epsilon and low > least:
        step = max(step, -1.2 * excess(low))
        low, high, step = max(least, low - step), low, 2 * step
    if spent(low) <= epsilon:
        return math.exp(low)
    # `high` always keeps the budget. Every fourth point halves the interval, so the search ends for any
    # curve.
    for round_ in itertools.count(1):
        if spent(high) >= epsilon * (1 - CALIBRATION_TOLERANCE) or high - low < 1e-9:
            break
        middle = _crossing({excess(x): x for x in tried}) if round_ % 4 else (low + high) / 2
        middle = min(max(middle, low + 1e-3 * (high - low)), high - 1e-3 * (high - low))
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return math.exp(high)


def _crossing(places: Mapping[float, float]) -> float:
    """Zero of the parabola through the three points with values nearest to 0; `places`: value -> place."""
    nearest = sorted(places, key=abs)[:3]
    return sum(places[a] * math.prod(b / (b - a) for b in nearest if b != a) for a in nearest)


def _root(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a decreasing function crosses zero; an end of the interval if it does not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    root: Any = brentq(function, low, high, xtol=tolerance)
    return float(root)


def plan(
    noise_multiplier: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()
) -> Plan:
    """The plan of a run with this noise: its cost, together with what is spent `already`."""
    spending = [*already, Spending(sample_rate, noise_multiplier, steps)]
    bounds, by_renyi = epsilon_bounds(spending, delta), epsilon_rdp(spending, delta)
    require_order(bounds.lower, by_renyi, f"epsilon by Rényi moments at delta {delta:g}")
    return Plan(noise_multiplier, sample_rate, steps, delta, bounds.upper, by_renyi, bounds.lower)


def affordable_steps(
    spent: Sequence[Spending],
    sample_rate: float,
    noise_multiplier: float,
    epsilon: float,
    delta: float,
    wanted: int,
) -> int:
    """Number of further steps, at most `wanted`, that keep the whole composition within (epsilon, delta)."""
    require_epsilon(epsilon)

    def fits(steps: int) -> bool:
        releases = releases_of([*spent, Spending(sample_rate, noise_multiplier, steps)])
        return is_within(releases, delta, epsilon)

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    if not fits(0):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
