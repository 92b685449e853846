"""What a run of Poisson-subsampled Gaussian steps costs, and the noise that a budget asks for.

Guarantee: every epsilon returned is an upper bound at the given delta, of all given releases together, under add/remove
adjacency of one unit unless replace-one is asked for; `epsilon_bounds` also says from where on it would be too small. The
bounds are those of `loss_distribution`; Rényi moments (RDP) stand beside them as a looser cross-check.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import dp_accounting
from dp_accounting import rdp
from scipy.optimize import brentq

from jaxcxr.privacy import loss_distribution
from jaxcxr.privacy.loss_distribution import Bounds, quiet
from jaxcxr.privacy.summed_loss import Adjacency, Release

ACCOUNTANT = "privacy loss distribution (dp-accounting), lower bound by mean-preserving rounding (jaxcxr)"
CALIBRATION_TOLERANCE = 2e-3
"""A calibrated run spends between 1 - this and all of its budget."""
MOST_NOISE = 1e6
"""A budget that asks for more noise than this is refused."""


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
    """q = expected batch / N, the probability with which each unit joins a step."""
    if not 0 < expected_batch_size <= n_units:
        raise ValueError(f"expected_batch_size: expected 1 to N = {n_units}, found {expected_batch_size}")
    return expected_batch_size / n_units


def steps_of_epochs(epochs: float, n_units: int, expected_batch_size: int) -> int:
    """Number of steps in `epochs` epochs of N / expected_batch_size steps each, rounded to the nearest (at least 1)."""
    return max(1, round(epochs * n_units / expected_batch_size))


def _event(spending: Spending) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(spending.noise_multiplier)
    if spending.sample_rate < 1:
        gaussian = dp_accounting.PoissonSampledDpEvent(spending.sample_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(gaussian, spending.steps)


def composed(spendings: Sequence[Spending]) -> list[Spending]:
    """Like releases merged, empty ones dropped, sorted: composition does not depend on order."""
    counts: dict[tuple[float, float], int] = {}
    for spent in spendings:
        key = (spent.sample_rate, spent.noise_multiplier)
        counts[key] = counts.get(key, 0) + spent.steps
    return [Spending(q, sigma, steps) for (q, sigma), steps in sorted(counts.items()) if steps > 0 and q > 0]


def releases_of(spendings: Sequence[Spending], films: int = 1, adjacency: Adjacency = "add_remove") -> tuple[Release, ...]:
    """Spendings as a unit with so many films meets them.

    Raises:
        ValueError: replace-one is asked for with more than one film.
    """
    if films != 1 and adjacency != "add_remove":
        raise ValueError(f"adjacency: expected add_remove for a unit of {films} films, found {adjacency}")
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
    if any(s.noise_multiplier == 0 for s in composed(spendings)):
        return math.inf
    with quiet():
        return float(rdp_accountant(spendings).get_epsilon(delta))


def epsilon_pld(spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove") -> float:
    """Upper bound on epsilon by the privacy loss distribution of the whole composition, on a grid fine enough for it.

    Args:
        spendings: everything that was released; an empty list costs nothing.
        delta: in (0, 1).
        adjacency: `add_remove` one unit, or `replace_one` by another.
    """
    return loss_distribution.epsilon_upper(releases_of(spendings, adjacency=adjacency), delta)


def epsilon_bounds(spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove") -> Bounds:
    """As `epsilon_pld`, with a lower bound beside it."""
    return loss_distribution.epsilon_bounds(releases_of(spendings, adjacency=adjacency), delta)


def calibrate(epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()) -> Plan:
    """A run with `calibrated_noise`, and what it will have cost."""
    return plan(calibrated_noise(epsilon, delta, sample_rate, steps, already), delta, sample_rate, steps, already)


def calibrated_noise(epsilon: float, delta: float, sample_rate: float, steps: int, already: Sequence[Spending] = ()) -> float:
    """The noise multiplier with which everything together costs the budget, or less by at most `CALIBRATION_TOLERANCE` of it.

    Args:
        epsilon: budget of the whole run.
        delta: budget of the whole run.
        sample_rate: of the training that the noise is for.
        steps: of that training.
        already: what else the budget pays for, such as noised class counts.

    Raises:
        ValueError: epsilon or delta out of range, `already` alone exceeds the budget, or no noise multiplier up to a million
            reaches it.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon: expected a positive number, found {epsilon}")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, found {delta}")
    before = epsilon_pld(already, delta)
    if before >= epsilon:
        raise ValueError(
            f"the released statistics alone cost epsilon {before:.4g} at delta {delta:g}: nothing is left for training"
        )

    def with_noise(sigma: float) -> list[Spending]:
        return [*already, Spending(sample_rate, sigma, steps)]

    # The search runs on an estimate; the noise that is returned is checked against the upper bound, as the budget will be.
    sigma = _estimated_noise(with_noise, epsilon, delta)
    while (spent := epsilon_pld(with_noise(sigma), delta)) > epsilon:
        sigma *= max(spent / epsilon, 1.0) * (1 + CALIBRATION_TOLERANCE / 8)
    return sigma


def _estimated_noise(with_noise: Callable[[float], list[Spending]], epsilon: float, delta: float) -> float:
    """A noise multiplier with which everything costs about the budget, or a little less.

    Raises:
        ValueError: no noise multiplier up to a million does.
    """
    target = epsilon * (1 - CALIBRATION_TOLERANCE / 2)

    @functools.lru_cache(maxsize=64)
    def excess(log_sigma: float) -> float:
        releases = releases_of(with_noise(math.exp(log_sigma)))
        found = min(loss_distribution.estimate(releases, delta, epsilon), loss_distribution.NO_GUARANTEE)
        return math.log(max(found, 1e-3 * target) / target)

    def rough_excess(log_sigma: float) -> float:
        return loss_distribution.rough_epsilon(releases_of(with_noise(math.exp(log_sigma))), delta) - target

    # Log epsilon is nearly straight in log noise, so that a bracket about a rough answer needs few estimates.
    least, most = math.log(0.05), math.log(MOST_NOISE)
    low = high = _root(rough_excess, least, most, 1e-2)
    while excess(high) > 0:
        if high >= most:
            raise ValueError(
                f"no noise multiplier up to {MOST_NOISE:g} keeps everything within epsilon {epsilon:g} at delta {delta:g}"
            )
        low, high = high, min(most, high + max(0.02, 1.2 * excess(high)))
    while excess(low) < 0 and low > least:
        low, high = max(least, low - max(0.02, -1.2 * excess(low))), low
    return math.exp(_root(excess, low, high, CALIBRATION_TOLERANCE / 16))


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
    bounds = epsilon_bounds(spending, delta)
    return Plan(noise_multiplier, sample_rate, steps, delta, bounds.upper, epsilon_rdp(spending, delta), bounds.lower)


def affordable_steps(
    spent: Sequence[Spending], sample_rate: float, noise_multiplier: float, epsilon: float, delta: float, wanted: int
) -> int:
    """How many more steps, at most `wanted`, keep the whole composition within (epsilon, delta)."""

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
