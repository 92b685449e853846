"""Bounds on epsilon from the summed loss of all releases, and the choice of its tilt and grid.

What is chosen here decides how tight the bounds are, not whether they hold: `composition` gives bounds at any
tilt and on any grid. Both choices follow from Rényi moments of the losses, evaluated at evenly spaced places.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcxr.accounting.composition import Curve, cells_of_sum, composed_curve
from jaxcxr.accounting.discretisation import HIGHEST_LOSS, on_grid, range_of
from jaxcxr.accounting.dominating_pair import Direction, Pair, Release, Side, pair_of

_TRUNCATED = 1e-4
"""Share of delta allowed for all truncations, and again for the offsets of a lower bound."""
_UPPER_SHARE, _LOWER_SHARES = 2e-4, (5e-5, 1e-5)
"""Approximate share of epsilon that the grid may add (upper bound) or take away (lower bounds)."""
_NEAR = 2e-3
"""Relative gap to the upper bound below which a lower bound is not refined on a finer grid."""
_LEAST_CELLS, _PLENTY_OF_CELLS, _MOST_CELLS = 1 << 13, 1 << 16, 1 << 21
_DEVIATIONS = 16.0
"""Width of the summed loss that matters, in standard deviations of the tilted sum."""
_STEEPEST = 300.0
"""Largest product of tilt and largest loss of a release (with bounded losses, the best tilt may be infinite).
"""
_TILTS_OF_A_PROFILE = 6


def upper_of_sum(releases: Sequence[Release], delta: float) -> float:
    """Upper bound on epsilon of releases with noise: the larger of both directions."""
    found = 0.0
    for direction in _directions(releases):
        # A sum of losses never exceeds the sum of their limits.
        if _largest_sum(releases, direction) > found:
            found = max(found, _curve(releases, delta, direction, "upper", _UPPER_SHARE).epsilon(delta))
    return found


def lower_of_sum(releases: Sequence[Release], delta: float, upper: float = math.inf) -> float:
    """Lower bound on epsilon of releases with noise: the largest over both directions and several grids.

    Finer grids are tried until the bound is near `upper`.
    """
    found = 0.0
    for share in _LOWER_SHARES:
        for direction in _directions(releases):
            found = max(found, _curve(releases, delta, direction, "lower", share).epsilon(delta))
            if found >= (1 - _NEAR) * upper:
                return found
    return found


def _largest_sum(releases: Sequence[Release], direction: Direction) -> float:
    """Supremum of the summed loss; in direction "add" it is reached if no image is ever sampled."""
    if direction == "remove":
        return math.inf
    return sum(
        -r.steps * r.images * math.log1p(-r.sample_rate) if r.sample_rate < 1 else math.inf for r in releases
    ) * (1 + 1e-12)


def deltas_of_sum(
    releases: Sequence[Release], least: float, largest: float, epsilons: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Upper bounds on delta at each of `epsilons`, near the truth between deltas `least` and `largest`."""
    found = np.zeros(len(epsilons))
    for direction in _directions(releases):
        # Each tilt is precise near one delta; every curve is a bound, so the smallest holds.
        deltas = np.geomspace(least, max(least, largest), _TILTS_OF_A_PROFILE)
        curves = [_curve(releases, delta, direction, "upper", _UPPER_SHARE).at(epsilons) for delta in deltas]
        found = np.maximum(found, np.minimum.reduce(curves))
    return found


def renyi_of_sum(releases: Sequence[Release], delta: float) -> float:
    """An approximation by Rényi moments in direction "remove": where to start a search, not a bound."""
    truncated = _TRUNCATED * delta / sum(r.steps for r in releases)
    return _renyi([(pair_of(r, truncated, "remove", "upper"), r.steps) for r in releases], delta)[1]


def _directions(releases: Sequence[Release]) -> tuple[Direction, ...]:
    """The directions to consider; replace-one is the same in both."""
    return ("remove",) if all(r.adjacency == "replace_one" for r in releases) else ("remove", "add")


def _curve(
    releases: Sequence[Release], delta: float, direction: Direction, side: Side, share: float
) -> Curve:
    """A bound on delta(epsilon) in one direction, near the truth about `delta`."""
    steps = sum(r.steps for r in releases)
    truncated = _TRUNCATED * delta
    pairs = [(pair_of(r, truncated / steps, direction, side), r.steps) for r in releases]
    if any(
        range_of(pair)[0] >= HIGHEST_LOSS for pair, _ in pairs
    ):  # P and Q are distinguished with certainty
        return Curve(0.0, 1.0, np.ones(2) if side == "upper" else np.zeros(2), side)
    tilt, grid = _tilt_and_grid(pairs, delta, share)
    losses = [(on_grid(pair, grid, side), n) for pair, n in pairs]
    if side == "lower" and any(not loss.probabilities.any() for loss, _ in losses):
        return Curve(0.0, grid, np.zeros(2), side)  # all losses are below the rounding error: no bound
    if (excess := cells_of_sum(losses, grid, tilt) / _MOST_CELLS) > 1:
        grid *= 1.1 * excess
        losses = [(on_grid(pair, grid, side), n) for pair, n in pairs]
    return composed_curve(losses, grid, tilt, side, truncated)


def _tilt_and_grid(pairs: Sequence[tuple[Pair, int]], delta: float, share: float) -> tuple[float, float]:
    """The tilt for the composition, and the grid on which spreading the losses adds about `share` to epsilon.

    Spreading a loss over a cell of width h multiplies its moment of order t by about 1 + t (t + 1) h^2 / 12,
    which costs steps (t + 1) h^2 / 12 of epsilon.
    """
    tilt, near, deviation = _renyi(pairs, delta)
    steps = sum(n for _, n in pairs)
    width = _DEVIATIONS * deviation
    cells = [(range_of(pair), len(pair.p.means) + len(pair.q.means) - 1) for pair, _ in pairs]
    span = max((high - low) * components for (low, high), components in cells)
    wanted = math.sqrt(12 * share * max(near, deviation / 10) / ((tilt + 1) * steps))
    # The sum of few releases spans few cells: a finer grid is affordable while one release has not too many.
    grid = min(wanted, max(width / _LEAST_CELLS, span / _PLENTY_OF_CELLS))
    return tilt, max(grid, width / _MOST_CELLS, span / _MOST_CELLS)


def _renyi(pairs: Sequence[tuple[Pair, int]], delta: float) -> tuple[float, float, float]:
    """The best tilt (Rényi order minus 1), its epsilon, and the standard deviation of the tilted sum.

    The best tilt gives the least epsilon by Canonne, Kamath & Steinke 2020, Proposition 12. Approximate: from
    losses at evenly spaced places.
    """
    sampled = [
        (np.minimum(losses, HIGHEST_LOSS), mass, n) for pair, n in pairs for losses, mass in (pair.sampled(),)
    ]
    means = [float(np.sum(mass * losses)) for losses, mass, _ in sampled]
    deviation = math.sqrt(
        sum(
            n * float(np.sum(mass * (losses - m) ** 2))
            for (losses, mass, n), m in zip(sampled, means, strict=True)
        )
    )

    def moments(tilt: float) -> tuple[float, float]:
        """Logarithm of the moment of the sum, and the standard deviation of the tilted sum."""
        total = variance = 0.0
        for losses, mass, n in sampled:
            top = tilt * float(losses.max())
            weights = mass * np.exp(np.maximum(tilt * losses - top, -700.0))
            whole = float(weights.sum())
            total += n * (top + math.log(whole))
            centre = float(np.sum(weights * losses)) / whole
            variance += n * float(np.sum(weights * (losses - centre) ** 2)) / whole
        return total, math.sqrt(variance)

    def epsilon(tilt: float) -> float:
        return (
            moments(tilt)[0] - math.log(delta) + tilt * math.log(tilt / (tilt + 1)) - math.log1p(tilt)
        ) / tilt

    # From a sum that is nearly normal to one in which a single rare loss matters.
    largest = max(max(float(losses.max()) for losses, _, _ in sampled), 1e-300)
    highest = min(1e3 / deviation, _STEEPEST / largest)
    tilts = np.geomspace(min(1e-2 / deviation, 1e-3 / largest, highest), highest, 25)
    tilt = near = 0.0
    for _ in range(3):
        found = [epsilon(tilt) for tilt in tilts]
        best = int(np.argmin(found))
        tilt, near = float(tilts[best]), max(float(found[best]), 0.0)
        tilts = np.geomspace(tilts[max(best - 1, 0)], tilts[min(best + 1, len(tilts) - 1)], 7)
    return tilt, near, moments(tilt)[1]
