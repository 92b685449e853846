"""What a run of Poisson-subsampled Gaussian steps costs, and the noise that a budget asks for; all by Google's dp-accounting.

Guarantee: every epsilon returned is an upper bound at the given delta under add/remove adjacency of one unit. The privacy
loss distribution (PLD) is discretised pessimistically; how finely is chosen here, because a fixed grid is wrong quietly: at
1e-3 the paper's 179,885 steps of budget 0.29 come out as 0.61.
"""

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dp_accounting
from dp_accounting import pld, rdp

GRID_TOLERANCE = 1e-3
"""Relative error of epsilon at which the grid is fine enough."""
CALIBRATION_TOLERANCE = 1e-3
"""A calibrated run spends between 1 - this and all of its budget."""
_FIRST_GRID, _FINER, _FINEST_GRID = 1e-3, 3.0, 1e-7


@dataclasses.dataclass(frozen=True)
class Spending:
    """`steps` releases of the Poisson-subsampled Gaussian mechanism, or one released statistic if `sample_rate` is 1 and
    `steps` 1.

    Attributes:
        sample_rate: probability with which each unit takes part in a step.
        noise_multiplier: noise standard deviation over the clip norm; 0 means no noise, hence epsilon infinity.
        steps: how many releases.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A planned run, and what it will have cost.

    Attributes:
        epsilon_pld, epsilon_rdp: at `delta`, by privacy loss distribution (the claim) and by Rényi moments (a looser
        cross-check).
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    epsilon_pld: float
    epsilon_rdp: float


def sample_rate_of(expected_batch_size: int, n_units: int) -> float:
    """q = expected batch / N, the probability with which each unit joins a step."""
    if not 0 < expected_batch_size <= n_units:
        raise ValueError(f"expected_batch_size: expected 1 to N = {n_units}, found {expected_batch_size}")
    return expected_batch_size / n_units


def steps_of_epochs(epochs: float, n_units: int, expected_batch_size: int) -> int:
    """Number of steps in `epochs` epochs of N / expected_batch_size steps each, rounded to the nearest (at least 1)."""
    return max(1, round(epochs * n_units / expected_batch_size))


@contextmanager
def _quiet() -> Iterator[None]:
    """dp-accounting logs a warning for every Rényi order that underflows: hundreds of lines that say nothing about the
    result.
    """
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _event(spending: Spending) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(spending.noise_multiplier)
    if spending.sample_rate < 1:
        gaussian = dp_accounting.PoissonSampledDpEvent(spending.sample_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(gaussian, spending.steps)


def _composed(spendings: Sequence[Spending]) -> list[Spending]:
    """Like releases merged, empty ones dropped, sorted: composition does not depend on order."""
    counts: dict[tuple[float, float], int] = {}
    for spent in spendings:
        key = (spent.sample_rate, spent.noise_multiplier)
        counts[key] = counts.get(key, 0) + spent.steps
    return [Spending(q, sigma, steps) for (q, sigma), steps in sorted(counts.items()) if steps > 0 and q > 0]


def epsilon_rdp(spendings: Sequence[Spending], delta: float) -> float:
    """Upper bound on epsilon by Rényi differential privacy (Mironov 2017; Opacus 1.3, which the paper used, reports this
    one).
    """
    composed = _composed(spendings)
    if any(s.noise_multiplier == 0 for s in composed):
        return math.inf
    with _quiet():
        accountant = rdp.RdpAccountant()
        for spent in composed:
            accountant.compose(_event(spent))
        return float(accountant.get_epsilon(delta))


def _epsilon_on_grid(composed: tuple[Spending, ...], delta: float, grid: float) -> float:
    with _quiet():
        accountant = pld.PLDAccountant(value_discretization_interval=grid)
        for spent in composed:
            accountant.compose(_event(spent))
        return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def _epsilon_pld(composed: tuple[Spending, ...], delta: float) -> tuple[float, float]:
    """Epsilon and the grid at which it was found; the grid is refined until epsilon settles."""
    grid, epsilon = _FIRST_GRID, _epsilon_on_grid(composed, delta, _FIRST_GRID)
    while grid > _FINEST_GRID:
        finer = _epsilon_on_grid(composed, delta, grid / _FINER)
        # The error falls with the square of the grid, so what is left after this refinement is about an eighth of what it
        # gained.
        settled = epsilon - finer <= GRID_TOLERANCE * (_FINER**2 - 1) * finer
        grid, epsilon = grid / _FINER, min(epsilon, finer)
        if settled:
            break
    return epsilon, grid


def epsilon_pld(spendings: Sequence[Spending], delta: float) -> float:
    """Upper bound on epsilon by the privacy loss distribution of the whole composition, on a grid fine enough for it.

    Args:
        spendings: everything that was released; an empty list costs nothing.
        delta: in (0, 1).
    """
    composed = tuple(_composed(spendings))
    if not composed:
        return 0.0
    if any(s.noise_multiplier == 0 for s in composed):
        return math.inf
    return _epsilon_pld(composed, delta)[0]


def calibrate(epsilon: float, delta: float, sample_rate: float, steps: int) -> Plan:
    """The noise multiplier whose PLD epsilon is the budget, or less by at most `CALIBRATION_TOLERANCE` of it.

    Raises:
        ValueError: epsilon or delta out of range, or no noise multiplier up to a million reaches the budget.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: expected a positive number, found {epsilon}")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, found {delta}")
    # RDP overstates epsilon, so its noise suffices. From there Newton steps on log epsilon against log noise, nearly a
    # straight line, whose slope RDP gives cheaply though its values are too high.
    sigma = best = _rdp_noise(epsilon, delta, sample_rate, steps)
    target = epsilon * (1 - CALIBRATION_TOLERANCE / 2)
    for _ in range(20):
        spent = epsilon_pld([Spending(sample_rate, sigma, steps)], delta)
        if spent <= epsilon:
            best = min(best, sigma)
            if spent >= epsilon * (1 - CALIBRATION_TOLERANCE):
                break
        here, near = (epsilon_rdp([Spending(sample_rate, s, steps)], delta) for s in (sigma, sigma * 0.97))
        slope = min(math.log(near / here) / math.log(0.97), -0.2)
        sigma *= min(max((target / spent) ** (1 / slope), 0.7), 1.5) if spent > 0 else 0.7
    return plan(best, delta, sample_rate, steps)


def plan(noise_multiplier: float, delta: float, sample_rate: float, steps: int) -> Plan:
    """What a run with this noise will cost."""
    spending = [Spending(sample_rate, noise_multiplier, steps)]
    return Plan(noise_multiplier, sample_rate, steps, delta, epsilon_pld(spending, delta), epsilon_rdp(spending, delta))


def _rdp_noise(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """A noise multiplier, to 1 %, with which RDP stays within the budget."""
    low, high = 0.0, 1.0
    while epsilon_rdp([Spending(sample_rate, high, steps)], delta) > epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(
                f"no noise multiplier up to {1e6:g} keeps {steps} steps at sample rate {sample_rate:g} "
                f"within epsilon {epsilon:g} at delta {delta:g}"
            )
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        if epsilon_rdp([Spending(sample_rate, middle, steps)], delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def affordable_steps(
    spent: Sequence[Spending], sample_rate: float, noise_multiplier: float, epsilon: float, delta: float, wanted: int
) -> int:
    """How many more steps, at most `wanted`, keep the whole composition within (epsilon, delta)."""

    def fits(steps: int) -> bool:
        return epsilon_pld([*spent, Spending(sample_rate, noise_multiplier, steps)], delta) <= epsilon

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    if not fits(0):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
