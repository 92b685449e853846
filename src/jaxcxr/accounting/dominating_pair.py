"""The dominating pair of one release: two mixtures of Gaussians on the line, and their privacy loss.

A unit has k images; each is in a batch with probability q and is clipped to norm 1. With the unit, the noised
sum behaves like a mixture of Gaussians N(j, sigma^2) with j binomial (k, q); without it, like N(0, sigma^2).
This pair dominates the mechanism (one image: Zhu, Dong & Wang 2022; several: Ganesh 2024): for every epsilon
its delta(epsilon) = E_P[(1 - exp(epsilon - L))+], with the privacy loss L = log P/Q, is at least the
mechanism's, and domination survives composition. In direction "remove" P is with the unit and Q without it;
in direction "add" the reverse.

In every pair here the loss rises with x, so that intervals of losses are intervals of the line, whose
probabilities are differences of normal distribution functions.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from scipy.stats import binom

Adjacency = Literal["add_remove", "replace_one"]
Direction = Literal["remove", "add"]
Side = Literal["upper", "lower"]

UNIT_ROUNDOFF = 2.0**-53
_MOST_COMPONENTS = 64
_WEIGHT_ERROR = 1e-13
"""Bound on the relative error of binomial probabilities as SciPy computes them."""
_TABLE, _NEWTON_STEPS = 1 << 12, 8


@dataclasses.dataclass(frozen=True)
class Release:
    """Repeated releases of the Gaussian mechanism with Poisson-sampled images.

    Attributes:
        sample_rate: probability of each image in each release.
        noise_multiplier: noise standard deviation over the sensitivity to one image.
        steps: number of releases.
        images: number of images of the protected unit; 1 is the ordinary case.
        adjacency: `add_remove` one unit, or `replace_one` unit by another (units of one image only).
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    images: int = 1
    adjacency: Adjacency = "add_remove"


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with a common standard deviation; the weights sum to 1 - `missing`."""

    means: tuple[float, ...]
    weights: tuple[float, ...]
    missing: float = 0.0
    weight_error: float = 0.0

    def log_ratio(self, x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log of this mixture's density over that of N(0, sigma^2) at `x`; its slope; its error bound.

        Written as log(1 + sum of w (exp(e) - 1) - missing), it keeps its relative precision if a unit is
        rarely sampled.
        """
        excess, size, slope, exponent = (np.zeros_like(x) for _ in range(4))
        if self.means == (0.0,) and not self.missing:
            return excess, slope, size
        logs = []
        for mean, weight in zip(self.means, self.weights, strict=True):
            e = mean * (2 * x - mean) / (2 * sigma**2)
            logs.append(math.log(weight) + e)
            if mean:
                grown = weight * np.expm1(np.minimum(e, 700.0))
                excess += grown
                size += np.abs(grown)
        excess -= self.missing
        logarithm = functools.reduce(np.logaddexp, logs)
        small = np.abs(excess) < 0.5
        value = np.where(small, np.log1p(np.where(small, excess, 0.0)), logarithm)
        for mean, log in zip(self.means, logs, strict=True):
            share = np.exp(log - logarithm)  # of this component at x
            slope += share * mean / sigma**2
            exponent += share * np.abs(mean) * (2 * np.abs(x) + abs(mean)) / (2 * sigma**2)
        error = (16 * UNIT_ROUNDOFF + self.weight_error) * np.where(small, 2 * size, 1.0)
        return value, slope, error + 8 * UNIT_ROUNDOFF * exponent

    def limit(self, sign: int) -> tuple[float, float]:
        """Mean and log-weight of the component dominating towards -infinity (`sign` -1) or infinity."""
        mean, weight = max(
            zip(self.means, self.weights, strict=True), key=lambda component: sign * component[0]
        )
        if mean == 0:
            others = math.fsum(w for m, w in zip(self.means, self.weights, strict=True) if m != 0)
            return mean, math.log1p(
                -min(others + self.missing, 1 - weight / 2)
            ) if others < 0.5 else math.log(weight)
        return mean, math.log(weight)

    def masses(self, edges: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the intervals between `edges`, and bounds on their rounding errors.

        A distribution function has the error of `ndtr`, a few units in the last place, and that of its
        rounded argument.
        """
        mass, error = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
        for mean, weight in zip(self.means, self.weights, strict=True):
            z = (edges - mean) / sigma
            tail = ndtr(-np.abs(z))
            with np.errstate(invalid="ignore"):
                off = (
                    np.where(tail > 0, tail * (32 + 4 * z * z + 2 * np.abs(z * edges) / sigma), 0.0)
                    * UNIT_ROUNDOFF
                )
            a, b = tail[:-1], tail[1:]
            straddles = (z[:-1] < 0) & (z[1:] > 0)
            mass += weight * np.where(straddles, 1 - a - b, np.abs(a - b))
            error += weight * (off[:-1] + off[1:] + np.where(straddles, 4 * UNIT_ROUNDOFF, 0.0))
        return mass, error + (self.weight_error + 4 * len(self.means) * UNIT_ROUNDOFF) * mass


NOTHING = Mixture((0.0,), (1.0,))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Mixtures P and Q whose log-ratio, the privacy loss, rises with x.

    Attributes:
        p, q: the mixtures.
        sigma: standard deviation of each Gaussian.
        low, high: P has at most the requested probability beyond either.
    """

    p: Mixture
    q: Mixture
    sigma: float
    low: float
    high: float

    def loss(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The privacy loss at `x`, its slope, and a bound on its rounding error."""
        (p, p_slope, p_error), (q, q_slope, q_error) = (
            self.p.log_ratio(x, self.sigma),
            self.q.log_ratio(x, self.sigma),
        )
        return p - q, p_slope - q_slope, p_error + q_error + UNIT_ROUNDOFF * np.abs(p - q)

    def limits(self) -> tuple[float, float]:
        """Infimum and supremum of the loss."""
        ends = []
        for sign in (-1, 1):
            (p_mean, p_weight), (q_mean, q_weight) = self.p.limit(sign), self.q.limit(sign)
            ends.append(p_weight - q_weight if p_mean == q_mean else sign * math.inf)
        return ends[0], ends[1]

    def sampled(self, count: int = _TABLE) -> tuple[Float[np.ndarray, "count"], Float[np.ndarray, "count"]]:
        """Losses and probabilities under P at evenly spaced places: for choosing scales, not for bounds."""
        x = np.linspace(self.low, self.high, count + 1)
        return self.loss((x[1:] + x[:-1]) / 2)[0], self.p.masses(x, self.sigma)[0]

    def places(self, losses: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Where the loss reaches ascending `losses` (infinite beyond its limits); approximate."""
        below, above = self.limits()
        x = self._inverse(losses)
        x = np.where(losses <= below, -np.inf, np.where(losses >= above, np.inf, x))
        return np.maximum.accumulate(x)

    def _inverse(self, losses: np.ndarray) -> np.ndarray:
        if self.q == NOTHING and self.p.means in ((0.0, 1.0), (1.0,)):
            return self._inverse_of_one_image(losses, self.p)
        if self.p == NOTHING and self.q.means in ((0.0, -1.0), (-1.0,)):
            return -self._inverse_of_one_image(-losses, self.q)
        beyond = np.geomspace(1e-3, 32.0, 256) * (self.high - self.low)
        x = np.concatenate(
            [self.low - beyond[::-1], np.linspace(self.low, self.high, _TABLE + 1), self.high + beyond]
        )
        table = np.maximum.accumulate(self.loss(x)[0])
        place = np.clip(np.searchsorted(table, losses), 1, len(x) - 1)
        low, high = x[place - 1], x[place]
        at = np.clip(np.interp(losses, table, x), low, high)
        for _ in range(_NEWTON_STEPS):
            value, slope, _ = self.loss(at)
            low, high = np.where(value <= losses, at, low), np.where(value >= losses, at, high)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                step = at - (value - losses) / slope
            at = np.where((step >= low) & (step <= high), step, (low + high) / 2)
        return at

    def _inverse_of_one_image(self, losses: np.ndarray, mixture: Mixture) -> np.ndarray:
        """Where the loss for one image, log(1 - q + q exp((x - 1/2) / sigma^2)), reaches `losses`."""
        rate = mixture.weights[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            small = np.log1p(np.expm1(losses) / rate)
            large = np.log(np.exp(losses) - (1 - rate)) - math.log(rate)
        y = np.where(losses > -0.5, small, large) if rate < 1 else losses
        y = np.where(np.isnan(y), -np.inf, y)  # below the least loss, log(1 - q), by rounding
        return 0.5 + self.sigma**2 * y


@functools.lru_cache(maxsize=512)
def images_sampled(sample_rate: float, images: int, truncated: float, side: Side) -> Mixture:
    """Number of images of one unit in a Poisson batch, as the means of a mixture.

    Counts with probability at most `truncated` at either end, and counts between the 64 that are kept of very
    many, are moved to a neighbour. More images reveal more (Ganesh 2024, monotonicity): for an upper bound
    counts are moved up, and what would be moved above the largest is `missing`; for a lower bound they are
    moved down.
    """
    if images == 1 or sample_rate == 1:
        rest = ((0.0, 1 - sample_rate),) if sample_rate < 1 else ()
        means, weights = zip(*rest, (float(images), sample_rate), strict=True)
        return Mixture(means, weights)
    law: Any = binom(images, sample_rate)
    least, most = int(law.ppf(truncated)), int(law.isf(truncated))
    values = np.arange(least, most + 1)
    weights = law.pmf(values)
    width = -(-len(values) // _MOST_COMPONENTS)
    group = (values - least) // width
    sums = np.bincount(group, weights)
    if side == "upper":
        kept = np.minimum(least + np.arange(len(sums)) * width + width - 1, most)
        sums[0] += law.cdf(least - 1)
        missing = float(law.sf(most)) * (1 + 1e-9)
    else:
        kept = least + np.arange(len(sums)) * width
        sums[-1] += law.sf(most)
        missing = 0.0
        if least > 0:
            kept, sums = np.concatenate([[0], kept]), np.concatenate([[law.cdf(least - 1)], sums])
    present = sums > 0
    return Mixture(
        tuple(kept[present].astype(float).tolist()), tuple(sums[present].tolist()), missing, _WEIGHT_ERROR
    )


def pair_of(release: Release, truncated: float, direction: Direction, side: Side) -> Pair:
    """The dominating pair of one release, for an upper or a lower bound on its delta.

    Args:
        release: with noise; its steps do not matter.
        truncated: probability that may lie beyond the ends of the pair, at either end.
        direction: which neighbour P is.
        side: whether the bound is upper or lower.
    """
    counts = images_sampled(release.sample_rate, release.images, truncated, side)
    mirrored = dataclasses.replace(counts, means=tuple(-mean for mean in counts.means))
    p, q = (counts, NOTHING) if direction == "remove" else (NOTHING, mirrored)
    if release.adjacency == "replace_one":
        p, q = counts, mirrored
    reach = reach_of(truncated) * release.noise_multiplier
    return Pair(p, q, release.noise_multiplier, min(p.means) - reach, max(p.means) + reach)


@functools.lru_cache(maxsize=64)
def reach_of(truncated: float) -> float:
    """The number of standard deviations beyond which a Gaussian has probability `truncated`, on one side."""
    return float(-ndtri(truncated))
