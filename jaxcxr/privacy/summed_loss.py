"""The privacy loss of composed releases as a distribution: what the bounds on epsilon are read from.

A release is a pair (P, Q) of mixtures of Gaussians on the line: what the mechanism answers, in the direction in which one unit
can push it, with the unit and without it. The pair dominates the mechanism (Zhu et al. 2022; Ganesh 2024 for groups), so that
the loss log dP/dQ under P, summed over releases, gives delta(epsilon) = E[(1 - exp(epsilon - loss))+].

Losses are rounded to a fine grid with their mean kept; by Bernstein's inequality their sum is then off by more than a known
amount only with a known, negligible probability (after Gopi et al. 2021, who use Hoeffding's). This gives both bounds, for
groups too.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.fft
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import binom

Adjacency = Literal["add_remove", "replace_one"]

CELLS, _REACH = 1 << 18, 8.5
_LONGEST = 1 << 21
_STEEPEST = 600.0
"""Losses further apart than this are not weighed against one another at once: floats end at e^709."""


@dataclasses.dataclass(frozen=True)
class Release:
    """Repeated releases of the Gaussian mechanism in which each film of a unit takes part by chance.

    Attributes:
        sample_rate: probability of each film in each release.
        noise_multiplier: noise standard deviation over the sensitivity to one film.
        steps: how many releases.
        films: how many films the protected unit has; 1 is the ordinary case.
        adjacency: `add_remove` the unit, or `replace_one` unit by another (one film only).
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    films: int = 1
    adjacency: Adjacency = "add_remove"


@functools.lru_cache(maxsize=512)
def films_drawn(sample_rate: float, films: int, spare: float) -> tuple[tuple[int, ...], tuple[float, ...], float]:
    """How many films of one unit are in a Poisson batch: values, probabilities that sum to 1, and what was left out.

    Counts outside the values have probability at most `spare` on either side; the third result says how much in all, and the
    caller adds it to delta.
    """
    law: Any = binom(films, sample_rate)
    values = np.arange(int(law.ppf(spare)), int(law.isf(spare)) + 1)
    weights = law.pmf(values)
    left_out = float(law.cdf(values[0] - 1) + law.sf(values[-1]))
    kept = weights > 0
    weights = weights[kept] / weights.sum()
    return tuple(values[kept].tolist()), tuple(weights.tolist()), left_out


def spare_of(releases: Sequence[Release], delta: float) -> float:
    """Probability that a release may leave out, so that all together leave out a negligible part of delta."""
    return 1e-4 * delta / sum(r.steps for r in releases)


@dataclasses.dataclass(frozen=True)
class _Cells:
    """The loss of one release on intervals of the line, in order of ascending loss.

    Attributes:
        mass: probability under P of each interval; what is missing to 1 lies outside.
        edges: loss at the intervals' ends, ascending.
        middle: loss at their middles.
    """

    mass: Float[np.ndarray, "cells"]
    edges: Float[np.ndarray, "cells+1"]
    middle: Float[np.ndarray, "cells"]


def _cells(release: Release, spare: float, count: int, leaving: bool = True) -> _Cells:
    """Of the loss when the unit is `leaving` (P has it, Q has not) or, if False, joining."""
    sigma = release.noise_multiplier
    values, weights, _ = films_drawn(release.sample_rate, release.films, spare)
    with_unit = np.array(values, float), np.array(weights)
    without = (-with_unit[0], with_unit[1]) if release.adjacency == "replace_one" else (np.zeros(1), np.ones(1))
    p, q = (with_unit, without) if leaving else (without, with_unit)
    x = np.linspace(p[0].min() - _REACH * sigma, p[0].max() + _REACH * sigma, count + 1)
    middles = (x[1:] + x[:-1]) / 2
    mass = sum((w * _interval(x, v, sigma) for v, w in zip(*p, strict=True)), start=np.zeros(count))
    edges, middle = (_log_density(at, *p, sigma) - _log_density(at, *q, sigma) for at in (x, middles))
    # The loss rises with x for a unit that leaves, and falls for one that joins.
    return _Cells(mass, edges, middle) if leaving else _Cells(mass[::-1], edges[::-1], middle[::-1])


def _interval(x: np.ndarray, mean: float, sigma: float) -> np.ndarray:
    """Probability of each interval of `x` under N(mean, sigma^2), to full precision in both tails."""
    z = (x - mean) / sigma
    below, above = ndtr(z), ndtr(-z)
    return np.where(z[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])


def _log_density(x: np.ndarray, means: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Of a mixture, up to a constant and the factor exp(-x^2 / 2 sigma^2), which P and Q share."""
    terms = (math.log(w) + (2 * m * x - m * m) / (2 * sigma**2) for m, w in zip(means, weights, strict=True))
    return functools.reduce(np.logaddexp, terms)


@functools.lru_cache(maxsize=512)
def moments(release: Release, spare: float) -> tuple[float, float]:
    """Mean and variance of the loss of one release."""
    cells = _cells(release, spare, 1 << 13)
    mean = float(cells.mass @ cells.middle)
    return mean, float(cells.mass @ (cells.middle - mean) ** 2)


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """The loss of one release, rounded.

    Attributes:
        first, probabilities: of the multiples first, first + 1, ... of the grid.
        drift: to add to each rounded loss so that the mean is kept.
        unsure: by how much the drift may be off.
        variance, largest: of the rounding error, for Bernstein's inequality.
        steps: how many releases.
    """

    first: int
    probabilities: Float[np.ndarray, "n"]
    drift: float
    unsure: float
    variance: float
    largest: float
    steps: int


def _rounded(cells: _Cells, steps: int, grid: float) -> _Rounded:
    index = np.rint(cells.middle / grid).astype(np.int64)
    first = int(index[0])
    probabilities = np.bincount(index - first, weights=cells.mass)
    rounded = index * grid
    by_middle = float(cells.mass @ (cells.middle - rounded))
    by_edges = float(cells.mass @ ((cells.edges[1:] + cells.edges[:-1]) / 2 - rounded))
    error = np.maximum(np.abs(cells.edges[1:] - rounded), np.abs(cells.edges[:-1] - rounded))
    # A cell in which the loss moves by more than a few grid widths lies far out, where Q has next to nothing.
    return _Rounded(
        first,
        probabilities,
        by_middle,
        2 * abs(by_middle - by_edges),
        float(cells.mass @ error**2),
        float(error.max()) + grid,
        steps,
    )


@dataclasses.dataclass(frozen=True)
class SummedLoss:
    """The summed loss of releases, known up to `misfit` except with probability `doubt`.

    Attributes:
        losses: ascending, evenly spaced.
        probabilities: of the losses.
        misfit: how far the true sum may lie from the rounded one.
        doubt: probability of all that was left out or may go wrong.
    """

    losses: Float[np.ndarray, "n"]
    probabilities: Float[np.ndarray, "n"]
    misfit: float
    doubt: float

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at `epsilon`, in this direction."""
        return min(1.0, self._excess(epsilon - self.misfit) + self.doubt)

    def lower(self, delta: float) -> float:
        """Lower bound on epsilon."""
        return max(0.0, self._epsilon(delta + self.doubt) - self.misfit)

    def upper(self, delta: float) -> float:
        """Upper bound on epsilon, in this direction."""
        return max(0.0, self._epsilon(delta - self.doubt) + self.misfit)

    def _excess(self, epsilon: float) -> float:
        first = int(np.searchsorted(self.losses, epsilon))
        return float(self.probabilities[first:] @ -np.expm1(epsilon - self.losses[first:]))

    def middle(self, delta: float) -> float:
        """Epsilon if the rounded losses were the true ones: no bound, but nearest to the truth."""
        return max(0.0, self._epsilon(delta))

    def _epsilon(self, delta: float) -> float:
        """Where the rounded losses' delta(epsilon) falls to `delta`.

        Between two neighbouring losses it is a - b exp(epsilon), a being the probability of larger losses and b the sum of
        probability times exp(-loss) over them: sums over the tail find the interval, a logarithm the place in it.
        """
        above = np.cumsum(self.probabilities[::-1])[::-1]
        if delta <= 0:
            return math.inf
        if above[0] <= delta:
            return -math.inf
        # Epsilon is no larger than this loss, and smaller by less than 40: by then a difference of floats would be zero.
        last = int(np.count_nonzero(above > delta)) - 1
        top = float(self.losses[last])
        first = int(np.searchsorted(self.losses, top - _STEEPEST))
        falling = np.exp(top - self.losses[first:])
        weighted = np.cumsum((self.probabilities[first:] * falling)[::-1])[::-1]
        n = last - first
        reached = above[first + 1 : last + 1] - weighted[1 : n + 1] / falling[:n]
        index = int(np.count_nonzero(reached > delta))
        return top + math.log((above[first + index] - delta) / weighted[index])


def summed_loss(releases: Sequence[Release], delta: float, near: float, leaving: bool = True, count: int = CELLS) -> SummedLoss:
    """The summed loss of releases when a unit is `leaving`, or joining.

    Args:
        releases: at least one, all with noise.
        delta: roughly the smallest delta to be asked for; a thousandth of it is left in doubt.
        near: roughly the epsilon to be found; it sets how finely losses are rounded, not whether the bounds hold.
        leaving: the direction.
        count: intervals into which the line is cut for each release; with fewer the bounds hold and lie further apart.
    """
    doubt = 1e-3 * delta
    spare = spare_of(releases, delta)
    cells = [(_cells(r, spare, count, leaving), r.steps) for r in releases]
    steps = sum(r.steps for r in releases)
    left_out = sum(films_drawn(r.sample_rate, r.films, spare)[2] * r.steps for r in releases)
    left_out += sum(max(0.0, 1 - float(c.mass.sum())) * n for c, n in cells)
    grid = 2e-3 * max(near, 1e-6) / math.sqrt(steps * math.log(1 / doubt) / 6)
    while True:
        rounded = [_rounded(c, n, grid) for c, n in cells]
        low, high = _window(rounded, grid, doubt)
        length: Any = scipy.fft.next_fast_len(math.ceil((high - low) / grid) + 2, real=True)
        if length <= _LONGEST:
            break
        grid *= 2
    losses, probabilities = _sum(rounded, grid, low, length)
    losses = losses + sum(r.steps * r.drift for r in rounded)
    misfit = _misfit(rounded, doubt) + sum(r.steps * r.unsure for r in rounded)
    # Outside the window lies at most `doubt` on either side, which comes out at its other end; `doubt` more is Bernstein's.
    return SummedLoss(losses, probabilities, misfit, 3 * doubt + left_out)


def _misfit(rounded: Sequence[_Rounded], doubt: float) -> float:
    """How far the summed rounding errors are from their mean, except with probability `doubt` on a side (Bernstein)."""
    log = math.log(1 / doubt)
    variance = sum(r.steps * r.variance for r in rounded)
    third = max(r.largest for r in rounded) * log / 3
    certain = sum(r.steps * (r.largest + abs(r.drift)) for r in rounded)
    return min(third + math.sqrt(third**2 + 2 * variance * log), certain)


def _window(rounded: Sequence[_Rounded], grid: float, doubt: float) -> tuple[float, float]:
    """Where the sum lies, except with probability `doubt` on either side (Chernoff)."""
    present = [(np.flatnonzero(r.probabilities), r) for r in rounded]
    atoms = [((r.first + i) * grid, r.probabilities[i], r.steps) for i, r in present]
    mean = sum(n * float(p @ v) for v, p, n in atoms)
    deviation = math.sqrt(sum(n * float(p @ (v - float(p @ v)) ** 2) for v, p, n in atoms)) or grid
    low, high = -math.inf, math.inf
    for scale in np.geomspace(0.5, 20, 12) / deviation:
        down, up = (sum(n * _log_mean_exp(sign * scale, v, p) for v, p, n in atoms) for sign in (-1, 1))
        low, high = max(low, (math.log(doubt) - down) / scale), min(high, (up - math.log(doubt)) / scale)
    return min(low, mean), max(high, mean)


def _log_mean_exp(scale: float, values: np.ndarray, weights: np.ndarray) -> float:
    exponents = scale * values
    top = float(exponents.max())
    return top + math.log(float(weights @ np.exp(exponents - top)))


def _power(values: np.ndarray, exponent: int) -> np.ndarray:
    """By squaring: several times faster than numpy's power of complex numbers, and as exact."""
    result = np.ones_like(values)
    while exponent:
        if exponent & 1:
            result = result * values
        exponent >>= 1
        values = values * values
    return result


def _sum(rounded: Sequence[_Rounded], grid: float, low: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses and probabilities of the sum, by a circular convolution as long as the window."""
    spectrum = np.ones(length // 2 + 1, complex)
    for r in rounded:
        folded = np.bincount((r.first + np.arange(len(r.probabilities))) % length, r.probabilities, length)
        transformed: Any = scipy.fft.rfft(folded)
        spectrum *= _power(transformed, r.steps)
    summed: Any = scipy.fft.irfft(spectrum, length)
    probabilities = np.maximum(summed, 0.0)
    first = math.floor(low / grid)
    indices = first + np.arange(length)
    return indices * grid, probabilities[indices % length]
