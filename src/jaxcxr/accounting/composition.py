"""Compose releases: the sum of their losses, by a tilted Fourier transform with bounded rounding error.

A sum S of independent losses on a grid of width h has P(S = s) = exp(K - t s) P_t(S = s), where P_t is the
law of the sum of losses with probabilities p_k exp(t k h) / M, and K the sum of their log M (Esscher 1932).
With t near the saddle point, epsilon lies in the middle of P_t, and so does all that delta(epsilon) = sum
over s > epsilon of P(S = s) (1 - exp(epsilon - s)) depends on: an absolute error in P_t is a relative error
in delta, however small delta is. Without tilt (t = 0) rounding errors of 1e-16 are compared with delta
itself.

Rounding (u = 2^-53, length n a power of 2). In a Fourier transform every input reaches every output by one
path of log2 n butterflies, each of which multiplies by a root of unity (relative error at most sqrt(5) u, and
u for the root) and adds (u). An output is therefore a sum of inputs times roots, each off by a relative (1 +
8u)^(log2 n) - 1, about E = 8 u log2 n: its error is at most E times the sum of the inputs' magnitudes, which
is 1 for probabilities. A power by repeated squaring has steps - 1 products in its expanded tree, each off by
3u. So with a the computed magnitude of a coefficient f and b = (a + 2E)(1 + 3u), the product of powers is off
by at most

    prod b^steps - prod |f|^steps <= prod b^steps min(1, sum steps (b - |f|) / b), with b - |f| <= 3E + 3u b.

The inverse transform passes on the mean of that over all frequencies and adds E times the mean magnitude.
`_transformed` computes this sum; the upper bound adds it to every probability, the lower one subtracts it.

Aliasing: P_t has at most `_OUTSIDE` beyond either end of the window (Chernoff); as the transform is circular
it comes out at the other end.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float
from scipy.signal import lfilter

from jaxcxr.accounting.discretisation import GridLoss
from jaxcxr.accounting.dominating_pair import UNIT_ROUNDOFF, Side

_OUTSIDE = 1e-7
_LARGEST_EXPONENT = 600.0

Losses = Sequence[tuple[GridLoss, int]]
"""Losses of one release, and how many such releases."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A bound on delta at evenly spaced epsilons, linear in exp(epsilon) between them.

    Attributes:
        first, spacing: of the epsilons.
        deltas: bounds at these epsilons; an upper bound decreases, a lower one may be trivial (0) far from
            the tilt.
        side: whether the bounds are upper or lower.
    """

    first: float
    spacing: float
    deltas: Float[np.ndarray, "n"]
    side: Side

    def epsilon(self, delta: float) -> float:
        """The epsilon at which the bound falls to `delta`: a bound from the same side, at least 0."""
        larger = np.flatnonzero(self.deltas > delta)
        place = 0 if len(larger) == 0 else int(larger[-1]) + 1
        if place == len(self.deltas):
            return math.inf if self.side == "upper" else max(0.0, self.first + (place - 1) * self.spacing)
        if place == 0:
            return max(0.0, self.first) if self.side == "upper" else 0.0
        before, after = self.deltas[place - 1], self.deltas[place]
        part = math.log1p(float((before - delta) / (before - after)) * math.expm1(self.spacing))
        return max(0.0, self.first + (place - 1) * self.spacing + part)

    def at(self, epsilons: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """For an upper bound: delta at each of `epsilons`, from the next smaller point; 1 below the first."""
        place = np.floor((epsilons - self.first) / self.spacing).astype(int)
        return np.where(place < 0, 1.0, self.deltas[np.clip(place, 0, len(self.deltas) - 1)])


def composed_curve(losses: Losses, grid: float, tilt: float, side: Side, failure_probability: float) -> Curve:
    """Upper or lower bound on delta(epsilon) of all releases together.

    Args:
        losses: on multiples of `grid`, all for bounds from the same side.
        grid: its width.
        tilt: t above; it decides where the curve is precise, not whether it is a bound.
        side: whether the bound is an upper or a lower one.
        failure_probability: for a lower bound, the probability (subtracted from delta) that the summed
            offsets of the losses are lower than allowed for.
    """
    log_moments = [_log_moment(tilt, loss, grid) for loss, _ in losses]
    low, high, open_below, open_above = _window(losses, grid, tilt, log_moments)
    length = 1 << max(4, math.ceil(math.log2((high - low) / grid + 2)))
    first = math.floor(low / grid)
    tilted, rounding = _transformed(losses, grid, tilt, log_moments, first, length, side)
    probabilities = tilted + rounding if side == "upper" else np.maximum(tilted - rounding, 0.0)

    total = sum(n * moment for (_, n), moment in zip(losses, log_moments, strict=True))
    epsilons = (first + np.arange(length)) * grid
    # Weights of P, capped at the largest: there an upper bound is 1 anyway, and a lower bound stays valid.
    untilt = np.exp(np.minimum(total - tilt * epsilons, _LARGEST_EXPONENT))
    weights = probabilities * untilt
    deltas = _profile(weights, grid)

    steps = sum(n for _, n in losses)
    largest = min(
        700.0, tilt * grid * max(max(abs(g.first), abs(g.first + len(g.probabilities))) for g, _ in losses)
    )
    relative = UNIT_ROUNDOFF * (
        steps * (16 + 4 * largest + 4 * max(map(abs, log_moments))) + 16 * length + 8 * abs(total)
    )
    imprecise = 8 * UNIT_ROUNDOFF * (float(np.max(np.abs(epsilons))) + steps * grid)
    if side == "upper":
        beyond = open_above * _OUTSIDE * math.exp(min(total - tilt * high, _LARGEST_EXPONENT))
        infinite = sum(n * g.infinite for g, n in losses)
        deltas = np.minimum(1.0, deltas * math.exp(relative) + beyond + infinite)
        return Curve(first * grid + sum(n * g.slack for g, n in losses) + imprecise, grid, deltas, side)
    steepest = (tilt / (1 + tilt)) ** tilt / (1 + tilt)  # largest exp(-t s) (1 - exp(-s))
    aliased = (open_below + open_above) * _OUTSIDE * steepest * untilt
    deltas = np.maximum(0.0, deltas * math.exp(-relative) - aliased - failure_probability)
    return Curve(first * grid + _sum_of_offsets(losses, failure_probability) - imprecise, grid, deltas, side)


def cells_of_sum(losses: Losses, grid: float, tilt: float) -> float:
    """Number of grid cells that the sum of tilted losses spans, except with negligible probability."""
    low, high, *_ = _window(losses, grid, tilt, [_log_moment(tilt, loss, grid) for loss, _ in losses])
    return (high - low) / grid


def _profile(weights: np.ndarray, grid: float) -> np.ndarray:
    """At each loss s of a grid, the sum over larger losses r of weight times 1 - exp(s - r).

    1 - exp(-m h) is (1 - exp(-h)) times the sum of exp(-l h) over l < m, so all terms of the sum are
    positive: (1 - exp(-h)) times the sum over l of exp(-l h) times the weight beyond s + l h.
    """
    above = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    summed: Any = lfilter([1.0], [1.0, -math.exp(-grid)], above[::-1])
    return -math.expm1(-grid) * summed[::-1]


def _exponents(tilt: float, loss: GridLoss, grid: float) -> np.ndarray:
    return (tilt * grid) * (loss.first + np.arange(len(loss.probabilities)))


def _log_moment(tilt: float, loss: GridLoss, grid: float) -> float:
    """log of the sum of p exp(tilt loss)."""
    exponents = _exponents(tilt, loss, grid)
    top = float(exponents.max())
    # Not below -300: denormal numbers are slow, and a moment that is too large is still valid for Chernoff's
    # bound.
    return top + math.log(float(np.sum(loss.probabilities * np.exp(np.maximum(exponents - top, -300.0)))))


def _window(
    losses: Losses, grid: float, tilt: float, log_moments: Sequence[float]
) -> tuple[float, float, bool, bool]:
    """Range of the sum of tilted losses, except with probability `_OUTSIDE` at either end (Chernoff), and
    whether it can lie beyond either end at all.
    """
    mean = variance = least = most = 0.0
    for (loss, n), moment in zip(losses, log_moments, strict=True):
        places = grid * (loss.first + np.arange(len(loss.probabilities)))
        shares = loss.probabilities * np.exp(tilt * places - moment)
        centre = float(np.sum(shares * places))
        mean, variance = mean + n * centre, variance + n * float(np.sum(shares * (places - centre) ** 2))
        least, most = least + n * float(places[0]), most + n * float(places[-1])
    total = sum(n * moment for (_, n), moment in zip(losses, log_moments, strict=True))
    low, high = least, most
    scales = np.geomspace(2.0, 16.0, 6) / max(math.sqrt(variance), grid)
    for scale in (*scales.tolist(), *(share * tilt for share in (0.25, 0.5, 1.0))):
        down, up = (
            sum(n * _log_moment(tilt + sign * scale, loss, grid) for loss, n in losses)
            - total
            - math.log(_OUTSIDE)
            for sign in (-1, 1)
        )
        low, high = max(low, float(-down / scale)), min(high, float(up / scale))
    return min(low, mean), max(high, mean), low > least, high < most


def _transformed(
    losses: Losses,
    grid: float,
    tilt: float,
    log_moments: Sequence[float],
    first: int,
    length: int,
    side: Side,
) -> tuple[Float[np.ndarray, "length"], float]:
    """Probabilities of the sum of tilted losses at multiples first, first + 1, ..., and their error bound."""
    transform_error = 8 * UNIT_ROUNDOFF * math.log2(length)
    product = np.ones(length // 2 + 1, complex)
    log_largest, relative = np.zeros(len(product)), np.zeros(len(product))
    for (loss, steps), moment in zip(losses, log_moments, strict=True):
        # For an upper bound no probability may underflow to zero.
        exponents = np.maximum(_exponents(tilt, loss, grid) - moment, -700.0 if side == "upper" else -np.inf)
        tilted = loss.probabilities * np.exp(exponents)
        index = (loss.first + np.arange(len(tilted))) % length
        spectrum: Any = scipy.fft.rfft(np.bincount(index, tilted, length))
        magnitude = (np.abs(spectrum) + 2 * transform_error) * (1 + 3 * UNIT_ROUNDOFF)
        log_largest += steps * np.log(magnitude)
        relative += steps * (3 * transform_error + 3 * UNIT_ROUNDOFF * magnitude) / magnitude
        product *= _power(spectrum, steps)
    summed: Any = scipy.fft.irfft(product, length)
    passed_on = np.exp(log_largest) * np.minimum(1.0, relative) * (
        1 + transform_error
    ) + transform_error * np.abs(product)
    # All frequencies but the first and last count twice; the factor 2 also covers the rounding of this sum.
    rounding = 2 * (2 * float(passed_on.sum())) / length
    return np.roll(summed, -(first % length)), rounding


def _power(values: Complex[np.ndarray, "n"], exponent: int) -> Complex[np.ndarray, "n"]:
    """`values` to the power `exponent`, by repeated squaring."""
    result = np.ones_like(values)
    while exponent:
        if exponent & 1:
            result = result * values
        exponent >>= 1
        if exponent:
            values = values * values
    return result


def _sum_of_offsets(losses: Losses, failure_probability: float) -> float:
    """Lower bound on the sum of the offsets of all releases, except with this probability (Chernoff)."""
    offsets = [
        (g.offsets, g.probabilities / g.probabilities.sum(), n) for g, n in losses if g.offsets is not None
    ]
    means = [float(np.sum(p * d)) for d, p, _ in offsets]
    deviation = math.sqrt(
        sum(n * float(np.sum(p * (d - m) ** 2)) for (d, p, n), m in zip(offsets, means, strict=True))
    )
    certain = sum(n * (float(d.min()) - m) for (d, _, n), m in zip(offsets, means, strict=True))
    fall = -certain
    for scale in np.geomspace(0.5, 24, 12) / max(deviation, 1e-300):
        log_moment = sum(
            n * _log_mean_exp(scale * (m - d), p) for (d, p, n), m in zip(offsets, means, strict=True)
        )
        fall = min(fall, float((log_moment - math.log(failure_probability)) / scale))
    return sum(n * m for (_, _, n), m in zip(offsets, means, strict=True)) - fall


def _log_mean_exp(values: np.ndarray, probabilities: np.ndarray) -> float:
    """log of the mean of exp(values): precise near 0, and without overflow for rare large values.

    Values whose probability is less than any float (5e-324) count for nothing: no failure probability is that
    small.
    """
    values, probabilities = values[probabilities > 0], probabilities[probabilities > 0]
    top = float(values.max())
    if top < 1.0:
        return math.log1p(float(np.sum(probabilities * np.expm1(values))))
    return top + math.log(float(np.sum(probabilities * np.exp(values - top))))
