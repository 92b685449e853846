"""Upper and lower bounds on the epsilon of composed releases, from the distribution of their privacy loss.

A release is a pair (P, Q) of mixtures of Gaussians on the line: what the mechanism answers, in the direction in which one unit
can push it, with the unit and without it. The pair dominates the mechanism (Zhu et al. 2022; Ganesh 2024 for groups), so that
the loss log dP/dQ under P, summed over releases, gives delta(epsilon) = E[(1 - exp(epsilon - loss))+].

Losses are rounded to a fine grid with their mean kept; by Bernstein's inequality their sum is then off by more than a known
amount only with a known, negligible probability (after Gopi et al. 2021, who use Hoeffding's). This gives both bounds, for
groups too. For one film the upper bound is Google's dp-accounting instead, whose losses are rounded pessimistically
(Doroshenko et al. 2022), on a grid chosen here from the standard deviation of the losses: a fixed one is wrong quietly, and its
optimistic rounding says 0 for a run of many small steps.
"""

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import scipy.fft
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr
from scipy.stats import binom

Adjacency = Literal["add_remove", "replace_one"]

NO_GUARANTEE = 500.0
"""An expected total loss above this is answered by infinity: e^500 protects nobody, and floats end at e^709."""
GRID_TOLERANCE = 1e-3
"""Relative error of epsilon at which the grid of the upper bound is fine enough."""
_FINER, _MOST_REFINEMENTS = 3.0, 6
_VARIANCE_SHARE = 1e-3
_CELLS, _REACH = 1 << 18, 8.5
_LONGEST = 1 << 21


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


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Epsilon lies between `lower` and `upper`."""

    lower: float
    upper: float


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


def epsilon_upper(releases: Sequence[Release], delta: float) -> float:
    """Upper bound on epsilon of all releases together; infinity if it is beyond all use (`NO_GUARANTEE`)."""
    releases = tuple(releases)
    if not releases:
        return 0.0
    if any(r.noise_multiplier == 0 for r in releases) or _expected_loss(releases, delta) > NO_GUARANTEE:
        return math.inf
    if any(r.films > 1 for r in releases):
        return _rounded_bounds(releases, delta).upper
    return _upper_and_grid(releases, delta)[0]


@functools.lru_cache(maxsize=256)
def _upper_and_grid(releases: tuple[Release, ...], delta: float) -> tuple[float, float]:
    grid = first_grid(releases, delta)
    epsilon = upper_on_grid(releases, delta, grid)
    for _ in range(_MOST_REFINEMENTS):
        finer = upper_on_grid(releases, delta, grid / _FINER)
        # The error falls with the square of the grid, so what is left after this refinement is about an eighth of what it
        # gained.
        settled = epsilon - finer <= GRID_TOLERANCE * (_FINER**2 - 1) * finer
        grid, epsilon = grid / _FINER, min(epsilon, finer)
        if settled:
            break
    return epsilon, grid


def settled_grid(releases: Sequence[Release], delta: float) -> float:
    """The grid on which `epsilon_upper` found its answer."""
    return _upper_and_grid(tuple(releases), delta)[1]


def first_grid(releases: Sequence[Release], delta: float) -> float:
    """A grid whose rounding adds at most a thousandth to the variance of the summed losses."""
    steps = sum(r.steps for r in releases)
    variance = sum(r.steps * _moments(r, _spare(releases, delta))[1] for r in releases)
    return 2 * math.sqrt(_VARIANCE_SHARE * variance / steps)


def _expected_loss(releases: Sequence[Release], delta: float) -> float:
    return sum(r.steps * _moments(r, _spare(releases, delta))[0] for r in releases)


def _spare(releases: Sequence[Release], delta: float) -> float:
    """Probability that a release may leave out, so that all together leave out a negligible part of delta."""
    return 1e-4 * delta / sum(r.steps for r in releases)


def upper_on_grid(releases: Sequence[Release], delta: float, grid: float) -> float:
    """Upper bound on epsilon by dp-accounting, with losses rounded to multiples of `grid`; one film a unit."""
    total: Any = None
    with quiet():
        for release in releases:
            composed = _single(dataclasses.replace(release, steps=1), grid).self_compose(release.steps)
            total = composed if total is None else total.compose(composed)
        return float(total.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=4)
def _single(release: Release, grid: float) -> Any:
    relation = {"add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace_one": NeighboringRelation.REPLACE_ONE}
    return pld.from_gaussian_mechanism(
        release.noise_multiplier,
        value_discretization_interval=grid,
        sampling_prob=release.sample_rate,
        neighboring_relation=relation[release.adjacency],
    )


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
    terms = [math.log(w) + (2 * m * x - m * m) / (2 * sigma**2) for m, w in zip(means, weights, strict=True)]
    return terms[0] if len(terms) == 1 else np.asarray(logsumexp(np.stack(terms), axis=0))


@functools.lru_cache(maxsize=512)
def _moments(release: Release, spare: float) -> tuple[float, float]:
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

    def _epsilon(self, delta: float) -> float:
        low, high = float(self.losses[0]), float(self.losses[-1])
        if self._excess(low) <= delta:
            return -math.inf
        root: Any = brentq(lambda epsilon: self._excess(epsilon) - delta, low, high, xtol=1e-9 * max(1.0, high))
        return float(root)


def summed_loss(releases: Sequence[Release], delta: float, near: float, leaving: bool = True) -> SummedLoss:
    """The summed loss of releases when a unit is `leaving`, or joining.

    Args:
        releases: at least one, all with noise.
        delta: roughly the smallest delta to be asked for; a thousandth of it is left in doubt.
        near: roughly the epsilon to be found; it sets how finely losses are rounded, not whether the bounds hold.
        leaving: the direction.
    """
    doubt = 1e-3 * delta
    spare = _spare(releases, delta)
    cells = [(_cells(r, spare, _CELLS, leaving), r.steps) for r in releases]
    steps = sum(r.steps for r in releases)
    left_out = sum(films_drawn(r.sample_rate, r.films, spare)[2] * r.steps for r in releases)
    left_out += sum(max(0.0, 1 - float(c.mass.sum())) * n for c, n in cells)
    grid = 2e-3 * max(near, 1e-3) / math.sqrt(steps * math.log(1 / doubt) / 6)
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


@functools.lru_cache(maxsize=256)
def _rounded_bounds(releases: tuple[Release, ...], delta: float) -> Bounds:
    """Both bounds by mean-preserving rounding."""
    near = rough_epsilon(releases, delta)
    leaving = summed_loss(releases, delta, near)
    if leaving.upper(delta) < near / 1.5:
        near = leaving.upper(delta)
        leaving = summed_loss(releases, delta, near)
    if all(r.adjacency == "replace_one" for r in releases):
        return Bounds(leaving.lower(delta), leaving.upper(delta))
    joining = summed_loss(releases, delta, near, leaving=False)
    return Bounds(max(leaving.lower(delta), joining.lower(delta)), max(leaving.upper(delta), joining.upper(delta)))


def rough_epsilon(releases: Sequence[Release], delta: float) -> float:
    """What epsilon would be if the summed loss were normal: a scale, not a bound."""
    spare = _spare(releases, delta)
    variance = sum(r.steps * _moments(r, spare)[1] for r in releases)
    return _expected_loss(releases, delta) + math.sqrt(variance * 2 * math.log(1 / delta))


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


def _sum(rounded: Sequence[_Rounded], grid: float, low: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses and probabilities of the sum, by a circular convolution as long as the window."""
    spectrum = np.ones(length // 2 + 1, complex)
    for r in rounded:
        folded = np.bincount((r.first + np.arange(len(r.probabilities))) % length, r.probabilities, length)
        spectrum *= np.fft.rfft(folded) ** r.steps
    probabilities = np.maximum(np.fft.irfft(spectrum, length), 0.0)
    first = math.floor(low / grid)
    indices = first + np.arange(length)
    return indices * grid, probabilities[indices % length]


def epsilon_bounds(releases: Sequence[Release], delta: float) -> Bounds:
    """Both bounds on epsilon of all releases together.

    Args:
        releases: everything that was released; none costs nothing, one without noise costs everything.
        delta: in (0, 1).
    """
    releases = tuple(releases)
    if not releases:
        return Bounds(0.0, 0.0)
    if any(r.noise_multiplier == 0 for r in releases):
        return Bounds(math.inf, math.inf)
    upper = epsilon_upper(releases, delta)
    if any(r.films > 1 for r in releases) or math.isinf(upper):
        return Bounds(_rounded_bounds(releases, delta).lower, upper)
    return Bounds(min(_lower(releases, delta, upper), upper), upper)


@functools.lru_cache(maxsize=256)
def _lower(releases: tuple[Release, ...], delta: float, near: float) -> float:
    return summed_loss(releases, delta, near).lower(delta)
