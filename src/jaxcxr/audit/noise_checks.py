"""Is the noise what the accountant assumes? Normal, of the claimed deviation, and independent everywhere.

The noise of a step is the released sum less the clipped sum by definition, over the claimed deviation: of a
right mechanism a row of independent standard normal numbers, independent of the sum and of every other row.
A fault may hide in a part that is small beside the whole, so that everything is looked at by step, by
parameter (leaf), by index along every axis of it (an output column is one finding's classifier), between
coordinates, between parts of a leaf, between leaves, and between all pairs of steps: of one run, of another
run with another secret, and of steps far beyond those that were run. Every p-value is exact for normal
noise, or an approximation that simulation shows to hold its level (tests/audit/coverage.py).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import binom, kstest, norm

from jaxcxr.audit.checks import Check, exact, of_cosine, of_energy, smallest
from jaxcxr.audit.reference import Leaf

_COMPARED = 2048
"""Coordinates at most that are compared in pairs."""
_TAILS = (2.5, 3.0, 3.5, 4.0, 4.5)
_DISTINCT = 100_000
"""Values at most that are looked at for repeats: of the many millions that a large network has, half repeat
another one by chance in single precision.
"""
_SMALL_LEAF = 4
"""Coordinates from which steps are compared within a leaf."""


def noise_checks(
    noise: Float[np.ndarray, "steps d"],
    sums: Float[np.ndarray, "steps d"],
    leaves: Sequence[Leaf],
    *,
    continuous: bool,
    rng: np.random.Generator,
) -> list[Check]:
    """The checks of the noise.

    Args:
        noise: of every step of every run, and of far steps, in claimed deviations.
        sums: the clipped sums in the same unit; zero where nothing was summed.
        leaves: parts of a row.
        continuous: whether it was drawn in floating point (not on a grid).
        rng: chooses coordinates to compare.
    """
    return [
        _steps(noise),
        _leaves(noise, leaves),
        _columns(noise, leaves),
        _signal(noise, sums, leaves),
        _means(noise, leaves),
        _pairs_of_steps(noise, leaves),
        _pairs_of_coordinates(noise, leaves, rng),
        _shifted(noise),
        _shape(noise, noise[~sums.any(axis=1)], continuous=continuous),
    ]


def _steps(noise: np.ndarray) -> Check:
    d = noise.shape[1]
    energies = np.einsum("td,td->t", noise, noise, dtype=np.float64)
    whole = of_energy(np.array([energies.sum()]), d * len(noise))
    p_value = smallest(np.concatenate([whole * 1.0, of_energy(energies, d)]))
    deviations = np.sqrt(energies / d)
    return Check(
        "noise has the claimed deviation in every step",
        p_value,
        f"{np.sqrt(energies.mean() / d):.4g} of the claimed deviation over all, {deviations.min():.3g} to "
        f"{deviations.max():.3g} in single steps",
    )


def _leaves(noise: np.ndarray, leaves: Sequence[Leaf]) -> Check:
    p_values, ratios = [], []
    for leaf in leaves:
        part = noise[:, leaf.part].astype(np.float64)
        energies = np.square(part).sum(axis=1)
        p_values.append(smallest(of_energy(energies, part.shape[1])))
        p_values.append(float(of_energy(np.array([energies.sum()]), part.size)[0]))
        ratios.append(float(np.sqrt(energies.sum() / part.size)))
    worst = int(np.argmin(p_values)) // 2
    return Check(
        "noise has the claimed deviation in every parameter",
        smallest(np.asarray(p_values)),
        f"{ratios[worst]:.3g} of it in {leaves[worst].name}, the least likely of {len(leaves)}",
    )


def _columns(noise: np.ndarray, leaves: Sequence[Leaf]) -> Check:
    """Along every axis of every parameter, each index by itself."""
    p_values = []
    for leaf in leaves:
        squares = np.square(noise[:, leaf.part], dtype=np.float64).sum(axis=0).reshape(leaf.shape)
        for axis in range(squares.ndim):
            energies = squares.sum(axis=tuple(a for a in range(squares.ndim) if a != axis))
            p_values.append(of_energy(energies, len(noise) * squares.size // len(energies)))
    flat = np.concatenate(p_values) if p_values else np.ones(1)
    return Check(
        "noise has the claimed deviation in every column",
        smallest(flat),
        f"smallest p-value of {flat.size} rows and columns {np.min(flat):.2g}",
    )


def _signal(noise: np.ndarray, sums: np.ndarray, leaves: Sequence[Leaf]) -> Check:
    whole = [slice(0, noise.shape[1])]
    p_values, largest = [], 0.0
    for part in [*whole, *(leaf.part for leaf in leaves)]:
        n, s = noise[:, part].astype(np.float64), sums[:, part].astype(np.float64)
        lengths = np.linalg.norm(s, axis=1)
        present = lengths > 0
        if not present.any():
            continue
        along = np.einsum("td,td->t", n[present], s[present]) / lengths[present]
        pooled = abs(along.sum()) / np.sqrt(len(along))
        spread = np.square(along).sum()
        p_values += [2 * norm.sf(pooled), float(of_energy(np.array([spread]), len(along))[0])]
        largest = max(largest, float(pooled))
    return Check(
        "what is released is the clipped sum and noise that knows nothing of it",
        smallest(np.asarray(p_values)),
        f"the noise along the sum, over all steps, is {largest:.3g} deviations from zero at most",
    )


def _means(noise: np.ndarray, leaves: Sequence[Leaf]) -> Check:
    """Noise that is the same in every step, or in every second one, has a mean."""
    p_values = []
    for leaf in leaves:
        part = noise[:, leaf.part].astype(np.float64)
        for rows in (part, part[::2], part[1::2]):
            if len(rows):
                energy = np.square(rows.sum(axis=0)).sum() / len(rows)
                p_values.append(float(of_energy(np.array([energy]), rows.shape[1])[0]))
    return Check(
        "noise has no mean",
        smallest(np.asarray(p_values)),
        f"smallest p-value of {len(leaves)} parameters {min(p_values, default=1.0):.2g}",
    )


def _pairs_of_steps(noise: np.ndarray, leaves: Sequence[Leaf]) -> Check:
    """All pairs of steps, of whole rows and of every parameter."""
    steps = len(noise)
    above = np.triu_indices(steps, 1)
    p_values, largest = [], 0.0
    parts = [slice(0, noise.shape[1]), *(leaf.part for leaf in leaves)]
    for part in parts:
        rows = noise[:, part].astype(np.float64)
        d = rows.shape[1]
        if d < _SMALL_LEAF or steps < 2:
            continue
        lengths = np.linalg.norm(rows, axis=1)
        if (lengths == 0).any():
            return Check("noise of one step tells nothing of another's", 0.0, "a step has no noise")
        unit = rows / lengths[:, None]
        cosines = (unit @ unit.T)[above]
        p_values.append(of_cosine(cosines, d))
        if part == parts[0]:
            largest = float(np.abs(cosines).max())
    flat = np.concatenate(p_values) if p_values else np.ones(1)
    return Check(
        "noise of one step tells nothing of another's",
        smallest(flat),
        f"largest correlation of two of {steps} steps, of both secrets and of far ones, {largest:.3g}",
    )


def _pairs_of_coordinates(noise: np.ndarray, leaves: Sequence[Leaf], rng: np.random.Generator) -> Check:
    """All pairs of coordinates, over the steps: of one parameter and of two.

    Of a large network some are chosen: all of small parameters, and at random places of large ones, together
    with the places half a parameter further.
    """
    name = "noise of one coordinate tells nothing of another's"
    d = noise.shape[1]
    chosen = np.arange(d) if d <= _COMPARED else _some_coordinates(leaves, rng)
    columns = noise[:, chosen].astype(np.float32)
    lengths = np.linalg.norm(columns, axis=0)
    if (lengths == 0).any():
        return Check(name, 0.0, "a coordinate has no noise")
    unit = columns / lengths
    cosines = (unit.T @ unit)[np.triu_indices(len(chosen), 1)]
    largest = float(np.abs(cosines).max()) if cosines.size else 0.0
    p_value = smallest(of_cosine(np.array([largest]), len(noise)), max(1, cosines.size))
    return Check(name, p_value, f"largest correlation of two of {len(chosen)} coordinates {largest:.3g}")


def _some_coordinates(leaves: Sequence[Leaf], rng: np.random.Generator) -> np.ndarray:
    share = _COMPARED // max(1, len(leaves)) // 2
    chosen = []
    for leaf in leaves:
        size = leaf.part.stop - leaf.part.start
        some = np.arange(size) if size <= 2 * share else rng.choice(size // 2, share, replace=False)
        twins = some if size <= 2 * share else np.concatenate([some, some + (size + 1) // 2])
        chosen.append(leaf.start + twins[twins < size])
    return np.unique(np.concatenate(chosen))


def _shifted(noise: np.ndarray) -> Check:
    """The noise beside itself moved on by any number of coordinates, summed over the steps: a part that
    repeats another, within a parameter or in another one, shows at their distance.
    """
    steps, d = noise.shape
    spectrum = np.zeros(d + 1)
    for row in noise:
        spectrum += np.square(np.abs(np.fft.rfft(row, 2 * d)))
    products = np.fft.irfft(spectrum, 2 * d)[1:d]
    terms = steps * (d - np.arange(1, d))
    scores = np.abs(products / np.sqrt(terms))[terms >= 64 * 16]
    largest = float(scores.max()) if scores.size else 0.0
    p_value = min(1.0, 2 * float(norm.sf(largest)) * max(1, scores.size))
    return Check(
        "no part of the noise repeats another",
        p_value,
        f"largest score of {scores.size} distances {largest:.3g} deviations",
    )


def _shape(noise: np.ndarray, alone: np.ndarray, *, continuous: bool) -> Check:
    """Its distribution: the whole, the tails, and whether it has all its digits, where nothing was summed."""
    values = noise.ravel()
    if not np.isfinite(values).all():
        return Check("noise is normal", 0.0, "it is not finite")
    some = _some(values, 400_000)
    p_values = [float(kstest(some.astype(np.float64), "norm").pvalue)]
    counts = [int((np.abs(values) > tail).sum()) for tail in _TAILS]
    for tail, count in zip(_TAILS, counts, strict=True):
        rate = 2 * float(norm.sf(tail))
        below, above = binom.cdf(count, values.size, rate), binom.sf(count - 1, values.size, rate)
        p_values.append(min(1.0, 2 * float(min(below, above))))
    found = (
        f"{counts[1]} of {values.size} beyond 3 deviations, {2 * norm.sf(3.0) * values.size:.4g} expected; "
        f"the largest is {np.abs(values).max():.3g}"
    )
    few = _some(alone.ravel(), _DISTINCT)
    distinct = len(np.unique(few)) / max(1, few.size)
    if continuous and few.size and distinct < 0.5:
        return exact("noise is normal", holds=False, found=f"only {distinct:.1%} of its values are distinct")
    return Check("noise is normal", smallest(np.asarray(p_values)), found)


def _some(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many values, evenly spaced."""
    return values[:: max(1, -(-values.size // most))]
