"""Noise that is correlated over several steps: what it costs, its coefficients, and over how many steps.

A step t releases x_t + w_t, x_t being its clipped sum, with w = C^-1 z, z independent Gaussian noise of
deviation noise multiplier x clip norm, and C the lower triangular Toeplitz matrix whose columns have the
norm 1 and the entries c_0, ..., c_(bands - 1) from the diagonal down, zero below. Neighbouring w have
opposite signs in part, so that their sums, which is what the weights follow, are less noisy than those of z.

Guarantee (Choquette-Choo et al. 2023, arXiv 2306.08153, Theorem 4, cyclic Poisson sampling): let every unit
belong to one of `bands` groups, which nothing but its own id and the run's secret decides, and let step t
draw each unit of group t mod bands, and nobody else, independently with probability q x bands. Then T steps
satisfy what ceil(T / bands) steps of the Poisson-subsampled Gaussian mechanism with sample rate q x bands and
the same noise multiplier satisfy, under add/remove of one unit. Why: given what was released, C (x + w) =
C x + z is known, and the other way round. What a unit adds at step t lies in rows t to t + bands - 1 of C x,
with the norm of a column, 1, times at most the clip norm; its steps are `bands` apart, so that these rows are
disjoint: each of its ceil(T / bands) steps is one Gaussian release of its own, whatever x_t was chosen for by
then. A unit that is replaced by another is one whose record is exchanged; its id, and so its group, stays.
Images of one patient share a group, so that what holds for several images in a step (`group_privacy`) holds
here, too.

The coefficients are those of the least mean square over steps of the noise of prefix sums, found from those
of the square root of the matrix of prefix sums (Fichtenberger et al. 2022, arXiv 2202.11205), to which they
tend for as many bands as steps.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.signal import lfilter

from jaxcxr.accounting.calibration import affordable_steps, calibrated_noise, sample_rate_of
from jaxcxr.accounting.epsilon import Spending
from jaxcxr.errors import InputError

MOST_BANDS = 256
MOST_CHOSEN = 32
"""Bands that `chosen_bands` tries at most: a step keeps so many times the memory of the weights, less one."""
_LONGEST = 1 << 14
"""Steps for which coefficients are sought at most: they hardly change for longer runs."""
_DIGITS = 4
_POWERS = (1.0, 0.4, 0.1)
"""Of the square root's coefficients, from which the search begins: between them and equal ones."""
_FAR = 1e100
_ENOUGH = 1.02


def require_bands(bands: int, expected_batch_size: int, n_units: int, steps: int) -> None:
    """Raise if groups of units cannot take turns so.

    Raises:
        InputError: there are more bands than steps, or a group would have to be smaller than a batch.
    """
    if bands > steps:
        raise InputError(f"privacy.noise_bands: expected at most the {steps} steps of the run, found {bands}")
    if bands * expected_batch_size > n_units:
        raise InputError(
            f"privacy.noise_bands: with {bands} groups of units that take turns, each of {n_units:,} / "
            f"{bands} units, a batch of {expected_batch_size:,} is more than there are in one; expected at "
            f"most {n_units // expected_batch_size} bands, or a smaller batch"
        )


def rounds(steps: int, bands: int) -> int:
    """In how many of so many steps a unit can be at most."""
    return -(-steps // bands)


def spending_of(sample_rate: float, noise_multiplier: float, steps: int, bands: int) -> Spending:
    """What so many steps cost each unit; `sample_rate` is that of a step of its group."""
    return Spending(sample_rate, noise_multiplier, rounds(steps, bands))


def calibrated(
    budget: tuple[float, float],
    batch: tuple[int, int],
    steps: int,
    bands: int,
    already: Sequence[Spending] = (),
) -> float:
    """The noise multiplier for a budget, as `calibrated_noise`.

    Args:
        budget: epsilon and delta.
        batch: expected batch size and declared number of units.
        steps: of the run.
        bands: of the noise.
        already: what else the budget pays for.
    """
    rate = sample_rate_of(batch[0] * bands, batch[1])
    return calibrated_noise(*budget, rate, rounds(steps, bands), already)


def settled_bands(
    asked: int | Literal["auto"],
    budget: tuple[float, float],
    batch: tuple[int, int],
    steps: int,
    already: Sequence[Spending] = (),
) -> int:
    """The number of bands of a run: as asked, or by `chosen_bands`; the other arguments as there.

    Raises:
        InputError: groups of units cannot take turns so (`require_bands`), or the budget buys nothing.
    """
    bands = chosen_bands(budget, batch, steps, already) if asked == "auto" else asked
    require_bands(bands, *batch, steps)
    return bands


def affordable(
    spent: Sequence[Spending], step: Spending, budget: tuple[float, float], steps: tuple[int, int], bands: int
) -> int:
    """Number of steps, those that were done included, at which a run ends: as planned, or as many as the
    budget (epsilon, delta) lasts for.

    Args:
        spent: so far.
        step: one step, of which a unit is in every `bands`-th one.
        budget: epsilon and delta.
        steps: done and planned.
        bands: of the noise.
    """
    done, planned = steps
    begun = rounds(done, bands)
    more = affordable_steps(
        spent, step.sample_rate, step.noise_multiplier, *budget, wanted=rounds(planned, bands) - begun
    )
    return min(planned, (begun + more) * bands)


def square_root(bands: int) -> Float[np.ndarray, " bands"]:
    """The first coefficients of (1 - x)^(-1/2)."""
    ratios = (2 * np.arange(1, bands) - 1) / (2 * np.arange(1, bands))
    return np.concatenate([[1.0], np.cumprod(ratios)])


def prefix_error(coefficients: Sequence[float] | Float[np.ndarray, " bands"], steps: int) -> float:
    """Root mean square, over steps, of the deviation of the prefix sums of C^-1 z, for z of deviation 1.

    Args:
        coefficients: a column of C from the diagonal down, of any norm: it is brought to 1 here.
        steps: length T of the run.
    """
    column = np.asarray(coefficients, float)
    row = lfilter([1.0], column, np.ones(steps))  # of prefix sums times C^-1
    return float(np.sqrt(np.mean(np.cumsum(np.square(row)))) * np.linalg.norm(column))


@functools.lru_cache(maxsize=64)
def coefficients(bands: int, steps: int) -> tuple[float, ...]:
    """A column of C from the diagonal down, over its first entry, rounded to four digits.

    A step needs C^-1 alone, for which the column is brought to norm 1 in `privacy.correlated`.
    """
    if bands == 1:
        return (1.0,)
    length = min(steps, _LONGEST)
    weights = 1 - np.arange(length) / length

    def logarithm(tail: np.ndarray) -> tuple[float, np.ndarray]:
        """Of `prefix_error` but for a constant, and its gradient."""
        column = np.concatenate([[1.0], tail])
        row = lfilter([1.0], column, np.ones(length))
        squares = float(np.sum(weights * np.square(row)))
        if not squares < _FAR:  # a column whose inverse grows without bound
            return math.log(_FAR), np.zeros_like(tail)
        back = lfilter([1.0], column, (weights * row)[::-1])[::-1]
        slope = [-float(np.dot(back[k:], row[: length - k])) for k in range(1, bands)]
        norm = float(column @ column)
        return 0.5 * math.log(squares) + 0.5 * math.log(norm), np.asarray(slope) / squares + tail / norm

    tried = [square_root(bands)]
    with np.errstate(over="ignore", invalid="ignore"):
        for power in _POWERS:
            start = square_root(bands) ** power
            found: Any = minimize(logarithm, start[1:], jac=True, method="L-BFGS-B")
            tried.append(np.concatenate([[1.0], found.x]))
    best = min(tried, key=lambda column: prefix_error(column, length))
    return tuple(float(f"{c:.{_DIGITS}g}") for c in best)


def chosen_bands(
    budget: tuple[float, float], batch: tuple[int, int], steps: int, already: Sequence[Spending] = ()
) -> int:
    """The number of bands, a power of two up to `MOST_CHOSEN`, with the least noise on prefix sums, or the
    smallest with nearly as little (`_ENOUGH`), which takes less memory.

    Nothing but declared numbers decides: the noise multiplier that the budget asks for, times `prefix_error`.

    Args:
        budget: epsilon and delta.
        batch: expected batch size and declared number of units.
        steps: of the run.
        already: what else the budget pays for.
    """
    expected, n_units = batch

    def error(bands: int) -> float:
        sigma = calibrated(budget, batch, steps, bands, already)
        return sigma * prefix_error(coefficients(bands, steps), steps)

    most = min(MOST_CHOSEN, steps, n_units // expected)
    errors = {b: error(b) for b in itertools.takewhile(lambda b: b <= most, (1 << k for k in range(10)))}
    return next(b for b, found in errors.items() if found <= _ENOUGH * min(errors.values()))
