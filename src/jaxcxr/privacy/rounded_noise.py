"""Gaussian noise on a grid of whole numbers: noise whose last digits say nothing (against Mironov 2012).

Guarantee: `rounded_gaussian` draws round(N(0, deviation^2)), each whole number with its own probability to
within 2^-100, by integer arithmetic and comparisons that floating point can delay but not decide. A whole
number plus this noise is distributed as round(whole number + N(0, deviation^2)): post-processing of the
Gaussian mechanism, so that every bound for that mechanism holds of it, subsampled, composed and for groups,
and its low-order digits tell no more than the sum of reals would.

Each unit's contribution is rounded to the grid (`Grid`) once, before it is added, which moves each coordinate
by at most half a step: its length is then at most C / step + sqrt(coordinates) / 2 steps. The deviation is
`noise_multiplier` times C / step + sqrt(coordinates). Sums of whole numbers are exact (`hardened_sum`,
`exact_sum`). Magnitudes stop at `_REACH` deviations, beyond which a draw lies with probability 4e-37.
"""

import dataclasses
import decimal
import functools
import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from jaxtyping import Int, UInt32

_REACH = 13
_UNIT_BITS = 20
"""A clip norm is between 2^20 and 2^21 steps, fewer where the noise would not fit into 32 bits."""
_NOISE_BITS = 25
_LEAST, _MOST = 2**16, 2**30 // _REACH
"""Of a deviation: magnitudes then fit into 31 bits."""
_CHUNK = 1 << 18
_CHANCE_BITS = 40
_UNSURE = 2.0**-42
"""More than floating point errs by in a probability of acceptance."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """What one noised sum is counted in.

    Attributes:
        step: size of a step, a power of two, so that dividing by it rounds nothing.
        deviation: of the noise, in steps.
    """

    step: float
    deviation: int


def grid_for(
    l2_sensitivity: float, noise_multiplier: float, coordinates: int, most_bits: int = _UNIT_BITS
) -> Grid:
    """The grid for sums of so many coordinates of which one unit moves the exact value by `l2_sensitivity`.

    Args:
        l2_sensitivity: before rounding.
        noise_multiplier: noise standard deviation over the sensitivity.
        coordinates: that are rounded; 0 for sums that are whole numbers of steps already.
        most_bits: the sensitivity is at most 2^(most_bits + 1) steps.

    Raises:
        ValueError: noise so small or so large does not fit; neither is of use.
    """
    bits = min(most_bits, math.floor(_NOISE_BITS - math.log2(noise_multiplier)) - 1)
    step = 2.0 ** (math.floor(math.log2(l2_sensitivity)) - bits)
    deviation = math.ceil(noise_multiplier * (l2_sensitivity / step + math.sqrt(coordinates)))
    if not _LEAST <= deviation <= _MOST:
        raise ValueError(
            f"discrete noise: a noise multiplier of {noise_multiplier:g} does not fit into 32 bits"
        )
    return Grid(step, deviation)


def rounded_gaussian(key: UInt32[np.ndarray, "4"], deviation: int, count: int) -> Int[np.ndarray, "count"]:
    """So many independent draws of round(N(0, deviation^2)), int32.

    Args:
        key: to be used once; the random bits are SHAKE-256 of it.
        deviation: a whole number, at least 2^16.
        count: how many draws.
    """
    if not _LEAST <= deviation <= _MOST:
        raise ValueError(f"deviation: expected {_LEAST} to {_MOST}, found {deviation}")
    sizes = [min(_CHUNK, count - first) for first in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:
        drawn = list(threads.map(lambda chunk: _chunk(key.tobytes(), deviation, *chunk), enumerate(sizes)))
    return np.concatenate(drawn) if drawn else np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class _Cells:
    """A stair above the bell curve from which magnitudes are proposed (rejection sampling), in whole numbers.

    Attributes:
        bits: a cell is 2^bits magnitudes wide.
        weights: a magnitude of a cell is proposed with probability proportional to its weight.
        scale: a magnitude's own weight is `scale` times its probability over that of a density of 1 at zero.
        ends: running sums of the weights, at most 2^64 - 1.
        ratios: scale over weight, and 0 for no cell.
    """

    bits: int
    weights: tuple[int, ...]
    scale: int
    ends: np.ndarray
    ratios: np.ndarray


@functools.lru_cache(maxsize=8)
def _cells(deviation: int) -> _Cells:
    bits = deviation.bit_length() - 5
    starts = np.arange(math.ceil(_REACH * deviation / 2**bits)) * 2.0**bits
    heights = _density(starts, deviation)
    margin = 1 + 2.0**-30  # the stair lies above the curve whatever floating point did
    scale = int((2.0**64 - 2.0**20) / (heights.sum() * margin))
    weights = tuple(math.ceil(height * scale * margin) for height in heights.tolist())
    assert sum(weights) < 2**64
    ends = np.cumsum(np.array(weights, np.uint64), dtype=np.uint64)
    return _Cells(bits, weights, scale, ends, np.append(float(scale) / np.array(weights, float), 0.0))


def _density(magnitude: np.ndarray, deviation: int) -> np.ndarray:
    """Mean of exp(-x^2 / 2 deviation^2) for x within 1/2 of a magnitude: in proportion to its probability."""
    squares = np.square(magnitude / deviation)
    return np.exp(-0.5 * squares) * (1 + (squares - 1) / (24.0 * deviation**2))


def _exact_density(magnitude: int, deviation: int) -> Fraction:
    """The same to 60 digits: the mean over x = magnitude + f by the moments of f."""
    total = Fraction(0)
    for k in range(14):
        moments = sum(
            math.comb(k, j) * Fraction(2 * magnitude) ** (k - j) / ((k + j + 1) * 2 ** (k + j))
            for j in range(k + 1)
            if (k + j) % 2 == 0
        )
        total += Fraction(-1, 2 * deviation**2) ** k * moments / math.factorial(k)
    with decimal.localcontext(decimal.Context(prec=80)):
        bell = (-decimal.Decimal(magnitude**2) / decimal.Decimal(2 * deviation**2)).exp()
    return Fraction(bell) * total


def _chunk(key: bytes, deviation: int, number: int, size: int) -> np.ndarray:
    cells, found, missing = _cells(deviation), [], size
    for attempt in range(64):
        proposals = missing + missing // 16 + 64
        seed = b"jaxcxr rounded noise" + key + number.to_bytes(8, "little") + attempt.to_bytes(8, "little")
        words = np.frombuffer(hashlib.shake_256(seed).digest(16 * proposals), "<u8").reshape(2, proposals)
        found.append(_accepted(words, cells, deviation, seed)[:missing])
        missing -= len(found[-1])
        if not missing:
            return np.concatenate(found)
    raise AssertionError("nearly all proposals are accepted")


def _accepted(words: np.ndarray, cells: _Cells, deviation: int, seed: bytes) -> np.ndarray:
    """The proposals that come through. A magnitude's chance is its probability over its cell's, and that is
    compared with `_CHANCE_BITS` random bits; where these leave it open, which is almost never, more bits and
    exact arithmetic decide.
    """
    cell = np.searchsorted(cells.ends, words[0], side="right")
    low = words[1] & np.uint64(2**24 - 1)
    magnitude = (cell << cells.bits) + (low & np.uint64(2**cells.bits - 1)).astype(np.int64)
    negative = (low >> np.uint64(cells.bits)) & np.uint64(1) == 1
    chance = _density(magnitude.astype(float), deviation) * cells.ratios[cell]
    drawn = (words[1] >> np.uint64(24)).astype(float) * 2.0**-_CHANCE_BITS
    through = drawn + 2.0**-_CHANCE_BITS <= chance - _UNSURE
    for open_ in np.flatnonzero(~through & (drawn < chance + _UNSURE) & (cell < len(cells.weights))):
        own, seed_of_it = int(words[1][open_]) >> 24, seed + int(open_).to_bytes(8, "little")
        through[open_] = _decide(int(magnitude[open_]), deviation, cells, own, seed_of_it)
    through &= ~(negative & (magnitude == 0))  # zero has one sign
    kept = magnitude[through]
    return np.where(negative[through], -kept, kept).astype(np.int32)


def _decide(magnitude: int, deviation: int, cells: _Cells, chance_bits: int, seed: bytes) -> bool:
    more = int.from_bytes(hashlib.shake_256(b"more" + seed).digest(16), "little")
    drawn = Fraction((chance_bits << 128) + more, 2 ** (_CHANCE_BITS + 128))
    return drawn < _exact_density(magnitude, deviation) * cells.scale / cells.weights[magnitude >> cells.bits]
