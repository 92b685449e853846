"""Are the batches what the accountant assumes? Every unit by itself, with the claimed rate, in every step.

Looked at are the batches that the devices were given in the recorded runs, and many more that the feed would
draw with the same secret at steps far apart. One unit may be drawn too often, all too seldom, sizes may vary
too little (shuffled epochs) or too much, units may be drawn in pairs or triples, and batches may repeat, or
be those of another secret.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from scipy.stats import binom

from jaxcxr.audit.checks import Check, of_cells, of_count, of_dispersion, smallest

_IN_TRIPLES = 40
"""Units that are looked at in all triples."""
_LAGS = (1, 2, 3, 4)


def sampling_checks(
    runs: Sequence[np.ndarray], long: Bool[np.ndarray, "draws units"], sample_rate: float
) -> list[Check]:
    """The checks of the batches.

    Args:
        runs: masks [steps, units] of the units in each step's batch, of runs with different secrets.
        long: the same of many steps, drawn with the secret of the first run.
        sample_rate: the claimed probability with which each unit is in a batch.
    """
    fed = np.concatenate([run[:, : min(r.shape[1] for r in runs)] for run in runs])
    return [
        _rates([*runs, long], sample_rate),
        _spread([*runs, long], sample_rate),
        _pairs_of_steps(fed, long, sample_rate),
        _following(long, runs, sample_rate),
        _pairs_of_units(long, sample_rate),
        _triples_of_units(long, sample_rate),
        _neighbours(long, sample_rate),
    ]


def _rates(masks: list[np.ndarray], rate: float) -> Check:
    p_values, said = [], ""
    for drawn in masks:
        steps = len(drawn)
        counts = drawn.sum(axis=0)
        each = of_count(counts, steps, rate)
        worst = int(np.argmin(each))
        p_values += [smallest(each), float(of_count(np.array([drawn.sum()]), drawn.size, rate)[0])]
        said = (
            f"one unit was in {counts[worst]} of {steps} batches, {steps * rate:.3g} expected; rate "
            f"{drawn.mean():.4g}"
        )
    return Check("every unit is drawn with the claimed rate", smallest(np.asarray(p_values)), said)


def _spread(masks: list[np.ndarray], rate: float) -> Check:
    p_values = []
    for drawn in masks:
        steps, units = drawn.shape
        p_values += [
            of_dispersion(drawn.sum(axis=1), units, rate),
            of_dispersion(drawn.sum(axis=0), steps, rate),
        ]
        sizes = drawn.sum(axis=1)
        p_values.append(smallest(of_count(sizes, units, rate)))
    last = masks[-1]
    expected = np.sqrt(last.shape[1] * rate * (1 - rate))
    return Check(
        "batch sizes vary as those of independent draws",
        smallest(np.asarray(p_values)),
        f"by {last.sum(axis=1).std():.3g}, {expected:.3g} expected",
    )


def _pairs_of_steps(fed: np.ndarray, long: np.ndarray, rate: float) -> Check:
    """Units that two batches have in common: of all pairs of steps, of both secrets and far apart."""
    p_values, largest = [], 0
    for drawn in (fed, long):
        rows = drawn.astype(np.float32)
        common = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        most = int(common.max())
        largest = max(largest, most)
        p_values.append(min(1.0, len(common) * float(binom.sf(most - 1, drawn.shape[1], rate * rate))))
    return Check(
        "no batch repeats another, of this secret or another",
        smallest(np.asarray(p_values)),
        f"two batches have {largest} units in common at most, of {fed.shape[1]}",
    )


def _following(long: np.ndarray, runs: Sequence[np.ndarray], rate: float) -> Check:
    """Units that are drawn again some steps later, in disjoint pairs of steps."""
    p_values = []
    for drawn in (long, *runs):
        for lag in _LAGS:
            first = [i for start in range(lag) for i in range(start, len(drawn) - lag, 2 * lag)]
            again = int((drawn[first] & drawn[np.asarray(first, int) + lag]).sum())
            p_values.append(float(of_count(np.array([again]), len(first) * drawn.shape[1], rate * rate)[0]))
    return Check(
        "being drawn tells nothing of being drawn in the next steps",
        smallest(np.asarray(p_values)),
        f"smallest p-value of {len(p_values)} distances {min(p_values):.2g}",
    )


def _pairs_of_units(long: np.ndarray, rate: float) -> Check:
    draws, units = long.shape
    columns = long.astype(np.float32)
    together = (columns.T @ columns)[np.triu_indices(units, 1)]
    ends = np.array([together.min(), together.max()])
    p_value = smallest(of_count(ends, draws, rate * rate), together.size)
    return Check(
        "no two units are drawn together",
        p_value,
        f"two units were together in {int(ends[1])} of {draws} batches at most, {draws * rate**2:.3g} "
        "expected",
    )


def _triples_of_units(long: np.ndarray, rate: float) -> Check:
    draws = len(long)
    columns = long[:, :_IN_TRIPLES].astype(np.float32)
    units = columns.shape[1]
    first, second = np.triu_indices(units, 1)
    counts = (columns[:, first] * columns[:, second]).T @ columns  # [pairs, units]
    counts[np.arange(units) <= second[:, None]] = 0  # each triple once
    most = float(counts.max(initial=0.0))
    triples = units * (units - 1) * (units - 2) // 6
    p_value = min(1.0, max(1, triples) * float(binom.sf(most - 1, draws, rate**3)))
    return Check(
        "no three units are drawn together",
        p_value,
        f"three units were together in {int(most)} of {draws} batches at most, {draws * rate**3:.3g} "
        "expected",
    )


def _neighbours(long: np.ndarray, rate: float) -> Check:
    """Chi-square of disjoint pairs and triples of neighbours, over all cells: all of them together see what
    no single one shows, such as units of which exactly one is drawn.
    """
    p_values = []
    for size in (2, 3):
        whole = long.shape[1] // size
        beside = long[:, : whole * size].reshape(len(long), whole, size)
        apart = long[:, : whole * size].reshape(len(long), size, whole).transpose(0, 2, 1)
        for groups in (beside, apart):
            cells = groups @ (1 << np.arange(size))
            counts = np.stack([(cells == cell).sum(axis=0) for cell in range(1 << size)], axis=1)
            drawn = np.array([sum(bits) for bits in itertools.product((0, 1), repeat=size)])
            chances = rate**drawn * (1 - rate) ** (size - drawn)
            p_values.append(of_cells(counts, chances))
    return Check(
        "neighbours are drawn independently",
        smallest(np.asarray(p_values)),
        f"smallest p-value of pairs and triples, near and far, {min(p_values):.2g}",
    )
