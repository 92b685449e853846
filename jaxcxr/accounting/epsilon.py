"""What a run of Poisson-subsampled Gaussian steps costs, and the noise that a budget asks for.

Guarantee: every epsilon returned is an upper bound at the given delta, of all given releases together, under add/remove
adjacency of one unit unless replace-one is asked for; `epsilon_bounds` also says from where on it would be too small. The
bounds are those of `loss_distribution`; Rényi moments (RDP) stand beside them as a looser cross-check.
"""

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dp_accounting
from dp_accounting import rdp
from scipy.optimize import brentq

from jaxcxr.accounting import loss_distribution
from jaxcxr.accounting.dominating_pair import Adjacency, Release
from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.errors import InputError

ACCOUNTANT = "privacy loss distribution, both bounds by tilted Fourier composition with a rounding allowance (jaxcxr)"
CALIBRATION_TOLERANCE = 2e-3
"""A calibrated run spends between 1 - this and all of its budget."""
MOST_STEPS = 10**9
LEAST_RATE, NOISE_RANGE = 1e-12, (1e-6, 1e9)
"""Ranges for which bounds are computed; what is outside is refused."""
LEAST_NOISE, MOST_NOISE = 0.05, 1e6
"""A budget that asks for more noise is refused; one that less would meet gets the least."""


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
        epsilon_lower: no epsilon below this one is true.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    epsilon_pld: float
    epsilon_rdp: float
    epsilon_lower: float


def sample_rate_of(expected_batch_size: int, n_units: int) -> float:
    """q = expected batch / N, the probability with which each unit joins a step.

    Raises:
        InputError: the batch is not between 1 and N.
    """
    if not 0 < expected_batch_size <= n_units:
        raise InputError(f"expected_batch_size: expected 1 to N = {n_units}, found {expected_batch_size}")
    return expected_batch_size / n_units


def steps_of_epochs(epochs: float, n_units: int, expected_batch_size: int) -> int:
    """Number of steps in `epochs` epochs of N / expected_batch_size steps each, rounded to the nearest (at least 1).

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
    """Raise where a budget is no budget.

    Raises:
        InputError: epsilon is not positive, or above 500.
    """
    if not 0 < epsilon <= loss_distribution.NO_GUARANTEE:
        raise InputError(
            f"epsilon: expected a positive number of at most {loss_distribution.NO_GUARANTEE:g} "
            f"(a larger one protects nobody), found {epsilon:g}"
        )


def _require_spending(spent: Spending) -> None:
    if not (spent.sample_rate == 0 or LEAST_RATE <= spent.sample_rate <= 1):
        raise InputError(f"sample rate: expected 0, or {LEAST_RATE:g} to 1, found {spent.sample_rate:g}")
    if not (spent.noise_multiplier == 0 or NOISE_RANGE[0] <= spent.noise_multiplier <= NOISE_RANGE[1]):
        low, high = NOISE_RANGE
        raise InputError(f"noise multiplier: expected 0 (no noise), or {low:g} to {high:g}, found {spent.noise_multiplier:g}")
    if spent.steps < 0:
        raise InputError(f"steps: expected 0 or more, found {spent.steps}")


@contextmanager
def quiet() -> Iterator[None]:
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


def composed(spendings: Sequence[Spending]) -> list[Spending]:
    """Like releases merged, empty ones dropped, sorted: composition does not depend on order.

    Raises:
        InputError: a rate, noise multiplier or number of steps is out of the range for which bounds are computed.
    """
    counts: dict[tuple[float, float], int] = {}
    for spent in spendings:
        _require_spending(spent)
        key = (spent.sample_rate, spent.noise_multiplier)
        counts[key] = counts.get(key, 0) + spent.steps
    if sum(counts.values()) > MOST_STEPS:
        raise InputError(f"steps: expected at most {MOST_STEPS:,} in all, found {sum(counts.values()):,}")
    return [Spending(q, sigma, steps) for (q, sigma), steps in sorted(counts.items()) if steps > 0 and q > 0]


def releases_of(spendings: Sequence[Spending], films: int = 1, adjacency: Adjacency = "add_remove") -> tuple[Release, ...]:
    """Spendings as a unit with so many films meets them.

    Raises:
        InputError: a release is out of range, or replace-one is asked for with more than one film.
    """
    if films < 1:
        raise InputError(f"films: expected at least 1, found {films}")
    if films != 1 and adjacency != "add_remove":
        raise InputError(f"adjacency: expected add_remove for a unit of {films} films, found {adjacency}")
    return tuple(Release(s.sample_rate, s.noise_multiplier, s.steps, films, adjacency) for s in composed(spendings))


def rdp_accountant(spendings: Sequence[Spending]) -> rdp.RdpAccountant:
    """dp-accounting's Rényi accountant after these releases, all of which have noise."""
    accountant = rdp.RdpAccountant()
    for spent in composed(spendings):
        accountant.compose(_event(spent))
    return accountant


def epsilon_rdp(spendings: Sequence[Spending], delta: float) -> float:
    """Upper bound on epsilon by Rényi differential privacy (Mironov 2017; Opacus 1.3, which the paper used, reports this
    one).
    """
    loss_distribution.require_delta(delta)
    if any(s.noise_multiplier == 0 for s in composed(spendings)):
        return math.inf
    with quiet():
        return float(rdp_accountant(spendings).get_epsilon(delta))


def epsilon_pld(spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove") -> float:
    """Upper bound on epsilon by the privacy loss distribution of the whole composition.

    Args:
        spendings: everything that was released; an empty list costs nothing.
        delta: from 1e-15 to below 1.
        adjacency: `add_remove` one unit, or `replace_one` by another.
    """
    return loss_distribution.epsilon_upper(releases_of(spendings, adjacency=adjacency), delta)


def epsilon_bounds(spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove") -> Bounds:
    """As `epsilon_pld`, with a lower bound beside it."""
    return loss_distribution.epsilon_bounds(releases_of(spendings, adjacency=adjacency), delta)


def profile(spendings: Sequence[Spending], deltas: Sequence[float], films: int = 1) -> tuple[Bounds, ...]:
    """The privacy profile: bounds on epsilon at each of `deltas`, for a unit with so many films."""
    releases = releases_of(spendings, films)
    return tuple(loss_distribution.epsilon_bounds(releases, delta) for delta in deltas)


def gdp_mu(spendings: Sequence[Spending], delta: float, films: int = 1) -> float:
    """The least mu, rounded up by about a thousandth, with which mu-Gaussian differential privacy promises no more than
    holds at any
    delta from `delta` on (recommended as the one figure to report by Gomez et al. 2025, arXiv 2503.10945).

    Returns:
        mu; 0 if delta covers everything, infinity if there is no guarantee.
    """
    return loss_distribution.gdp_mu(releases_of(spendings, films), delta)


def calibrate(epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()) -> Plan:
    """A run with `calibrated_noise`, and what it will have cost."""
    return plan(calibrated_noise(epsilon, delta, sample_rate, steps, already), delta, sample_rate, steps, already)


def calibrated_noise(epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()) -> float:
    """The noise multiplier with which everything together costs the budget, or less by at most `CALIBRATION_TOLERANCE` of it.

    Args:
        epsilon: budget of the whole run, at most 500.
        delta: budget of the whole run, from 1e-15 to below 1.
        sample_rate: of the training that the noise is for.
        steps: of that training.
        already: what else the budget pays for, such as noised class counts.

    Raises:
        InputError: epsilon, delta or the plan is out of range, `already` alone exceeds the budget, or no noise multiplier up to
            a million reaches it.
    """
    require_epsilon(epsilon)
    before = epsilon_pld(already, delta)
    if before >= epsilon:
        raise InputError(
            f"the released statistics alone cost epsilon {before:.4g} at delta {delta:g}: nothing is left for training"
        )

    @functools.cache
    def spent(log_sigma: float) -> float:
        return epsilon_pld([*already, Spending(sample_rate, math.exp(log_sigma), steps)], delta)

    def excess(log_sigma: float) -> float:
        """Log of what is spent over the middle of what may be; straight enough in the logarithm of the noise."""
        found = min(spent(log_sigma), loss_distribution.NO_GUARANTEE)
        return math.log(max(found, 1e-3 * epsilon) / (epsilon * (1 - CALIBRATION_TOLERANCE / 2)))

    def rough(log_sigma: float) -> float:
        releases = releases_of([*already, Spending(sample_rate, math.exp(log_sigma), steps)])
        return loss_distribution.renyi_epsilon(releases, delta) - epsilon

    least, most = math.log(LEAST_NOISE), math.log(MOST_NOISE)
    low = high = _root(rough, least, most, 1e-2)
    while spent(high) > epsilon:
        if high >= most:
            raise InputError(
                f"no noise multiplier up to {MOST_NOISE:g} keeps everything within epsilon {epsilon:g} at delta {delta:g}"
            )
        low, high = high, min(most, high + max(0.02, 1.2 * excess(high)))
    while spent(low) <= epsilon and low > least:
        low, high = max(least, low - max(0.02, -1.2 * excess(low))), low
    if spent(low) <= epsilon:
        return math.exp(low)
    # False position with the Illinois rule: `high` always keeps the budget.
    over, under = excess(low), excess(high)
    while spent(high) < epsilon * (1 - CALIBRATION_TOLERANCE) and high - low > 1e-9:
        middle = low + (high - low) * min(max(over / (over - under), 0.02), 0.98)
        found = excess(middle)
        if spent(middle) <= epsilon:
            high, under, over = middle, found, over / 2
        else:
            low, over, under = middle, found, under / 2
    return math.exp(high)


def _root(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a falling function crosses zero; an end, if it does not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    root: Any = brentq(function, low, high, xtol=tolerance)
    return float(root)


def plan(noise_multiplier: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()) -> Plan:
    """What a run with this noise will cost, together with what is spent `already`."""
    spending = [*already, Spending(sample_rate, noise_multiplier, steps)]
    bounds, by_renyi = epsilon_bounds(spending, delta), epsilon_rdp(spending, delta)
    loss_distribution.require_order(bounds.lower, by_renyi, f"epsilon by Rényi moments at delta {delta:g}")
    return Plan(noise_multiplier, sample_rate, steps, delta, bounds.upper, by_renyi, bounds.lower)


def affordable_steps(
    spent: Sequence[Spending], sample_rate: float, noise_multiplier: float, epsilon: float, delta: float, wanted: int
) -> int:
    """How many more steps, at most `wanted`, keep the whole composition within (epsilon, delta)."""
    require_epsilon(epsilon)

    def fits(steps: int) -> bool:
        releases = releases_of([*spent, Spending(sample_rate, noise_multiplier, steps)])
        return loss_distribution.is_within(releases, delta, epsilon)

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    if not fits(0):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
