"""Upper and lower bounds on the epsilon of composed releases, from the distribution of their privacy loss.

Guarantee: `Bounds.upper` is never below the true epsilon of the dominating pairs of the releases, and
`Bounds.lower` never above it, at any delta from 1e-15 on; every truncation, discretisation and rounding is on
the safe side (`discretisation`, `composition`, `summed_loss`). Releases without sampling are Gaussian and are
composed in closed form (`gaussian`); if another closed form (`chi_square`) gives a smaller upper bound, that
one is returned.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcxr.accounting.chi_square import epsilon_by_chi_square, total_variation_by_chi_square
from jaxcxr.accounting.dominating_pair import UNIT_ROUNDOFF, Release, Side
from jaxcxr.accounting.gaussian import gaussian_delta, gaussian_epsilon, relative_error
from jaxcxr.accounting.summed_loss import deltas_of_sum, lower_of_sum, renyi_of_sum, upper_of_sum
from jaxcxr.errors import InputError

NO_GUARANTEE = 500.0
"""A larger epsilon is reported as infinity: e^500 protects nobody."""
LEAST_DELTA = 1e-15
_CURVE_POINTS = 1000


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Epsilon lies between `lower` and `upper`."""

    lower: float
    upper: float


class ContradictionError(InputError, ArithmeticError):
    """An upper bound lies below a lower one: one of them is wrong, and neither may be used."""


def require_order(lower: float, upper: float, what: str) -> None:
    """Raise if two bounds on one quantity contradict each other.

    Raises:
        ContradictionError: the upper one is smaller, or one is not a number.
    """
    if not lower <= upper:
        raise ContradictionError(
            f"{what}: the lower bound {lower:.10g} exceeds the upper bound {upper:.10g}; this is a defect "
            "of the accountant, so do not use either figure, and report the sample rate, noise multiplier, "
            "steps and delta"
        )


def require_delta(delta: float) -> None:
    """Raise if delta is out of the range for which bounds are computed.

    Raises:
        InputError: delta is below 1e-15, or not below 1.
    """
    if not LEAST_DELTA <= delta < 1:
        raise InputError(f"delta: expected at least {LEAST_DELTA:g} and less than 1, found {delta:g}")


def epsilon_upper(releases: Sequence[Release], delta: float) -> float:
    """Upper bound on epsilon of all releases together; infinity above `NO_GUARANTEE`."""
    require_delta(delta)
    return _upper(tuple(releases), delta)


def epsilon_bounds(releases: Sequence[Release], delta: float) -> Bounds:
    """Lower and upper bound on epsilon of all releases together.

    Args:
        releases: everything that was released; no release costs 0, one without noise infinity.
        delta: from 1e-15 to below 1.

    Raises:
        InputError: delta is out of range.
        ContradictionError: the bounds contradict each other.
    """
    require_delta(delta)
    releases = tuple(releases)
    bounds = Bounds(_lower(releases, delta), _upper(releases, delta))
    require_order(bounds.lower, bounds.upper, f"epsilon at delta {delta:g}")
    return bounds


def is_within(releases: Sequence[Release], delta: float, epsilon: float) -> bool:
    """Whether the upper bound on epsilon of all releases together is at most `epsilon`."""
    return epsilon_upper(releases, delta) <= epsilon


def _without_composition(releases: Sequence[Release], delta: float) -> float | None:
    """Epsilon if it needs no composition (0 if delta covers all, infinity without noise), else None."""
    if not releases or total_variation(releases) <= delta:
        return 0.0
    return math.inf if any(r.noise_multiplier == 0 for r in releases) else None


@functools.lru_cache(maxsize=1024)
def _upper(releases: tuple[Release, ...], delta: float) -> float:
    if (epsilon := _without_composition(releases, delta)) is not None:
        return epsilon
    releases = _gaussians_merged(releases, "upper")
    if (mu := _gaussian_mu(releases)) is not None:
        epsilon = gaussian_epsilon(delta, mu)[1]
    else:
        epsilon = min(upper_of_sum(releases, delta), epsilon_by_chi_square(releases, delta))
    return epsilon if epsilon <= NO_GUARANTEE else math.inf


@functools.lru_cache(maxsize=1024)
def _lower(releases: tuple[Release, ...], delta: float) -> float:
    if (epsilon := _without_composition(releases, delta)) is not None:
        return epsilon
    releases = _gaussians_merged(releases, "lower")
    if (mu := _gaussian_mu(releases)) is not None:
        return gaussian_epsilon(delta, mu)[0]
    return lower_of_sum(releases, delta, min(_upper(releases, delta), NO_GUARANTEE))


def renyi_epsilon(releases: Sequence[Release], delta: float) -> float:
    """An approximation by Rényi moments in direction "remove": where to start a search, not a bound."""
    epsilon = _without_composition(releases, delta)
    return renyi_of_sum(releases, delta) if epsilon is None else epsilon


def gdp_mu(releases: Sequence[Release], delta: float) -> float:
    """The least mu, rounded up, whose Gaussian profile dominates at every delta from `delta` on."""
    return _gdp_mu(tuple(releases), delta)


@functools.lru_cache(maxsize=256)
def _gdp_mu(releases: tuple[Release, ...], delta: float) -> float:
    epsilons, deltas = upper_curve(releases, delta)
    if deltas[0] <= delta:
        return 0.0
    if math.isinf(epsilon_upper(releases, delta)):
        return math.inf
    # Between two points, delta is at most that of the first; the Gaussian one must be as large at the second.
    after = np.append(epsilons[1:], epsilons[-1])
    low, high = np.full(len(epsilons), 1e-12), np.full(len(epsilons), 100.0)
    for _ in range(60):
        middle = np.sqrt(low * high)
        enough = gaussian_delta(after, middle) >= deltas
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return float(high.max()) * (1 + 1e-9)


def upper_curve(
    releases: Sequence[Release], delta: float
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The privacy profile as points (epsilon, delta), from epsilon 0 to that of `delta`; all hold at once.

    No release gives (0, 0), a release without noise (0, 1); beyond `NO_GUARANTEE` there are no points.
    """
    require_delta(delta)
    releases = tuple(releases)
    if not releases:
        return np.zeros(1), np.zeros(1)
    if any(r.noise_multiplier == 0 for r in releases):
        return np.zeros(1), np.ones(1)
    variation = min(1.0, total_variation(releases))
    if variation <= delta:
        return np.zeros(1), np.array([variation])
    epsilons = np.linspace(0.0, min(_upper(releases, delta), NO_GUARANTEE), _CURVE_POINTS)
    merged = _gaussians_merged(releases, "upper")
    if (mu := _gaussian_mu(merged)) is not None:
        return epsilons, np.minimum(1.0, gaussian_delta(epsilons, mu) * (1 + relative_error(mu)))
    return epsilons, np.minimum(variation, deltas_of_sum(merged, delta, variation / 4, epsilons))


def total_variation(releases: Sequence[Release]) -> float:
    """Upper bound on delta at epsilon 0, the total variation; if it is at most delta, epsilon is exactly 0.

    The smallest of three bounds: the sum over releases of the distance of their pairs, which is at most the
    mean, over the number of images in the batch, of the distance of two Gaussians (convexity); the distance
    of the Gaussian that the releases make together; and that by the chi-square divergence.
    """
    total = 0.0
    for r in releases:
        if r.noise_multiplier == 0:
            return 1.0
        far = 2 if r.adjacency == "replace_one" else 1
        # A unit that is not sampled changes nothing; if it is, at most all of its images are in the batch.
        sampled = -math.expm1(r.images * math.log1p(-r.sample_rate)) if r.sample_rate < 1 else 1.0
        mean = r.images * r.sample_rate * _distance(far / r.noise_multiplier)
        most = sampled * _distance(far * r.images / r.noise_multiplier)
        total += r.steps * min(mean, most)
    return min(
        total * (1 + 64 * UNIT_ROUNDOFF),
        _gaussian_total_variation(releases),
        total_variation_by_chi_square(releases),
    )


def _gaussian_total_variation(releases: Sequence[Release]) -> float:
    mu = _gaussian_mu(_gaussians_merged(tuple(releases), "upper"))
    return 1.0 if mu is None else _distance(mu) * (1 + 64 * UNIT_ROUNDOFF)


def _distance(mu: float) -> float:
    """Total variation between N(0, 1) and N(mu, 1)."""
    return math.erf(mu / math.sqrt(8))


def _gaussians_merged(releases: tuple[Release, ...], side: Side) -> tuple[Release, ...]:
    """The releases, with all unsampled ones merged into one; its mu is rounded to the safe side."""
    full = [r for r in releases if r.sample_rate == 1]
    if not full:
        return releases
    shifts = [r.images * (2 if r.adjacency == "replace_one" else 1) / r.noise_multiplier for r in full]
    mu = math.sqrt(math.fsum(r.steps * shift**2 for r, shift in zip(full, shifts, strict=True)))
    mu *= 1 + (16 if side == "upper" else -16) * UNIT_ROUNDOFF
    return (*(r for r in releases if r.sample_rate != 1), Release(1.0, 1 / mu, 1))


def _gaussian_mu(releases: tuple[Release, ...]) -> float | None:
    """mu of merged releases if they are a single Gaussian release, else None."""
    return 1 / releases[0].noise_multiplier if len(releases) == 1 and releases[0].sample_rate == 1 else None
