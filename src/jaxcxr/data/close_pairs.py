"""All pairs of 256-bit hashes that differ in few bits, without comparing all pairs.

Two hashes that differ in at most 40 bits differ in at most 2 bits of one of 14 disjoint bands (the pigeonhole
principle; 40 = 14 x 2 + 12). So for each band the hashes are sorted by it, and each is compared with those
whose band differs from its own in at most 2 bits. The pairs are exactly those of the exhaustive search. Bands
take every 14th bit, so that none holds only the bits in which radiographs resemble each other; where hashes
resemble each other so much that the bands would not help, all pairs are compared.

Source: Norouzi, Punjani, Fleet, Fast search in Hamming space with multi-index hashing, CVPR 2012.
"""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt

_BLOCK = 256
_FEW = 20_000
_BANDS = 14
_AT_ONCE = 1 << 19


def close_pairs(
    hashes: UInt[np.ndarray, "n 4"], most: int, progress: Callable[[float], object] = lambda _: None
) -> Iterator[Int[np.ndarray, "pairs 3"]]:
    """Pairs of hashes (four 64-bit words each) that differ in at most `most` bits, in parts.

    Args:
        hashes: the hashes.
        most: bits in which two may differ.
        progress: called with the share of the work done since the last call.

    Yields:
        Parts of the list of pairs, each pair once: first, second (first < second), bits.
    """
    if len(hashes) <= _FEW or _comparisons(hashes, most) > len(hashes) ** 2 / 8:
        yield from _all(hashes, most, progress)
    else:
        yield from _banded(hashes, most, progress)


def _all(hashes: np.ndarray, most: int, progress: Callable[[float], object]) -> Iterator[np.ndarray]:
    total = max(1, len(hashes)) ** 2
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        for other in range(start, len(hashes), 64 * _BLOCK):
            against = hashes[other : other + 64 * _BLOCK]
            bits = np.zeros((len(block), len(against)), dtype=np.uint16)
            for word in range(hashes.shape[1]):
                bits += np.bitwise_count(block[:, None, word] ^ against[None, :, word])
            first, second = np.nonzero(bits <= most)
            pairs = np.stack([first + start, second + other, bits[first, second].astype(np.int64)], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]
        progress((2 * (len(hashes) - start) - len(block)) * len(block) / total)


def _places(band: int) -> range:
    return range(band, 256 // _BANDS * _BANDS, _BANDS)


@functools.cache
def _masks(band: int) -> tuple[np.uint64, ...]:
    """The bits of one band in each of the four words."""
    return tuple(
        np.uint64(sum(1 << place % 64 for place in _places(band) if place // 64 == word)) for word in range(4)
    )


def _keys(hashes: np.ndarray, band: int) -> np.ndarray:
    """The bits of one band, as numbers."""
    keys = np.zeros(len(hashes), dtype=np.int64)
    for place in _places(band):
        word, bit = divmod(place, 64)
        keys = (keys << 1) | ((hashes[:, word] >> np.uint64(bit)) & np.uint64(1)).astype(np.int64)
    return keys


def _flips(most: int) -> list[int]:
    """Masks of up to `most // _BANDS` of a band's bits; 0 is the first."""
    width = len(_places(0))
    return [
        sum(1 << bit for bit in bits)
        for count in range(min(width, most // _BANDS) + 1)
        for bits in itertools.combinations(range(width), count)
    ]


def _comparisons(hashes: np.ndarray, most: int) -> float:
    """Number of comparisons that the bands need, from some of them."""
    flips = _flips(most)
    if len(flips) > 2000:
        return float("inf")
    buckets = np.arange(1 << len(_places(0)))
    found, some = 0.0, flips[:: max(1, len(flips) // 12)]
    for band in (0, 5, 10):
        counts = np.bincount(_keys(hashes, band), minlength=len(buckets)).astype(np.float32)
        found += sum(float(counts @ counts[buckets ^ flip]) for flip in some) / 2
    return found * len(flips) / len(some) * _BANDS / 3


def _banded(hashes: np.ndarray, most: int, progress: Callable[[float], object]) -> Iterator[np.ndarray]:
    # NumPy leaves Python's lock while it computes, so that threads use several cores.
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda band: _of_band(hashes, most, band, progress), range(_BANDS))


def _of_band(hashes: np.ndarray, most: int, band: int, progress: Callable[[float], object]) -> np.ndarray:
    """The pairs that this band finds and no earlier one."""
    flips, found = _flips(most), [np.zeros((0, 3), dtype=np.int64)]
    keys = _keys(hashes, band)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << len(_places(0))))])
    words = [np.ascontiguousarray(hashes[order, word]) for word in range(4)]
    for flip in flips:
        partners = keys ^ flip
        first, last = starts[partners], starts[partners + 1]
        if flip:  # the other bucket finds the same pair
            last = np.where(partners > keys, last, first)
        else:
            first = np.arange(1, len(keys) + 1)
        for one, other in _candidates(first, np.maximum(last - first, 0)):
            found.append(_near(words, order, one, other, most, band))
        progress(1 / (_BANDS * len(flips)))
    return np.concatenate(found)


def _candidates(first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions to compare: each row with the `counts` rows from `first` on, some at once."""
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = int(ends[row - 1]) if row else 0
        until = max(row + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        some = counts[row:until]
        total = int(ends[until - 1]) - done
        if total:
            one = np.repeat(np.arange(row, until, dtype=np.int32), some)
            shift = (first[row:until] - (ends[row:until] - some - done)).astype(np.int32)
            yield one, np.arange(total, dtype=np.int32) + np.repeat(shift, some)
        row = until


def _near(
    words: list[np.ndarray], order: np.ndarray, one: np.ndarray, other: np.ndarray, most: int, band: int
) -> np.ndarray:
    # Two words tell nearly all pairs apart.
    bits = np.bitwise_count(words[0][one] ^ words[0][other])
    bits += np.bitwise_count(words[1][one] ^ words[1][other])
    kept = np.flatnonzero(bits <= most)
    one, other, bits = one[kept], other[kept], bits[kept].astype(np.int64)
    different = [words[word][one] ^ words[word][other] for word in range(4)]
    bits += np.bitwise_count(different[2]).astype(np.int64) + np.bitwise_count(different[3])
    near = (bits <= most) & ~_seen_before(different, most, band)
    pairs = np.sort(np.stack([order[one[near]], order[other[near]]], axis=1).astype(np.int64), axis=1)
    return np.concatenate([pairs, bits[near, None]], axis=1)


def _seen_before(different: list[np.ndarray], most: int, band: int) -> np.ndarray:
    """Whether an earlier band has found the pair already: it differs there in few enough bits, too."""
    seen = np.zeros(len(different[0]), dtype=bool)
    for earlier in range(band):
        bits = sum(
            np.bitwise_count(word & mask).astype(np.int64)
            for word, mask in zip(different, _masks(earlier), strict=True)
        )
        seen |= bits <= most // _BANDS
    return seen
