"""Check that numbers declared as public were not counted in the private data.

The guarantee treats the number of units N and, with class weights `public`, the positive rate of each finding
as constants known beforehand. A counted constant is a statistic of the data, released without noise: whoever
knows all units but one can tell from the exact N whether that one is there. So a run for release must declare
N, and rates that are closer to the cohort's own than a constant fixed beforehand would be are refused. This
does not prove that a number was not counted; it finds numbers that plainly were.
"""

import decimal
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import special

COUNTED_SIZE = "dataset_size_counted"
COUNTED_RATES = "positive_rates_counted"
AGAINST_RELEASE = {
    COUNTED_SIZE: (
        "N was counted in the data (privacy.dataset_size is null): an exact count tells somebody who knows "
        "all others whether one is missing"
    ),
    COUNTED_RATES: (
        "the declared positive rates are closer to those of the cohort than numbers from elsewhere would "
        "be: they count as computed from the private labels without noise"
    ),
}
"""Code in `run.json` -> why the run must not be released; the code is computed once, when the run begins."""

FAR = 2.0
"""The operator is warned of a declared N that is wrong by more than this factor."""
CHANCE = 1e-3
"""Largest probability with which rates fixed beforehand are refused."""
_TELLING = 4
_SINGULAR = 1e-6
"""Eigenvalue of a correlation matrix below which findings count as redundant."""


def proposed_size(units: int) -> int:
    """A number to declare as N if nothing better is known: the count rounded down to two digits.

    Below 100, one digit is kept. Any declared N is sound, since sample rate, divisor, steps and noise follow
    from it alone. It is rounded down so that a batch has the expected size or a little more, never less than
    the divisor. A rounded count still changes when the count crosses a multiple: a number known from
    elsewhere is better.
    """
    digits = len(str(units))
    unit = 10 ** max(digits - 2, 1) if digits > 1 else 1
    return max(1, units // unit * unit)


def size_remarks(
    declared: int | None, units: int, images: int, called: str, expected_batch_size: int
) -> list[str]:
    """Warnings about the declared N compared with the (private) counts; for the screen only.

    Args:
        declared: N of the configuration; None if it was counted.
        units: present in the training split.
        images: present in the training split.
        called: plural name of the unit.
        expected_batch_size: of the configuration.
    """
    if declared is None:
        return [
            f"privacy.dataset_size is null: N is the exact number of training {called}, {units}, and the "
            "run is not for release, since that number would tell somebody who knows all others whether one "
            "is missing. For a release declare a number that is known from elsewhere, or a rounded one such "
            f"as {proposed_size(units)}"
        ]
    sampled = expected_batch_size / declared * units
    effect = (
        f"a step draws {sampled:.3g} {called} on average and is divided by {expected_batch_size}. The "
        "guarantee holds, since it follows from the declared number alone, but "
        + (
            "steps are longer than meant and take longer"
            if declared < units
            else "the gradient drowns in noise"
        )
        + f"; if this is not meant, declare a number such as {proposed_size(units)}"
    )
    if (
        called != "images"
        and images != units
        and proposed_size(declared) == proposed_size(images) != proposed_size(units)
    ):
        return [
            f"privacy.dataset_size {declared} looks like the number of images ({images}), but the unit is "
            f"the patient, and {units} {called} are there: {effect}"
        ]
    if declared == units != proposed_size(units):
        return [
            f"privacy.dataset_size {declared} is exactly the number of training {called}: if it was counted "
            "in them, whoever knows all others reads from it whether one is missing. Declare a number that "
            f"is known from elsewhere, or a rounded one such as {proposed_size(units)}"
        ]
    if not units / FAR <= declared <= units * FAR:
        return [f"privacy.dataset_size is {declared}, but {units} {called} are there: {effect}"]
    return []


def rates_were_counted(declared: Sequence[float], labels: Float[np.ndarray, "n findings"]) -> bool:
    """Whether some declared positive rates are closer to the labels' own rates than chance allows.

    A rate r of n labels has a standard deviation of at least s = sqrt(r (1 - r) / n), so any constant c lies
    within z s of r with at most the probability of |N(0, 1)| < z: for all findings together, the quadratic
    form of (c - r) / s in the inverse correlation of the rates is at least chi-squared. A rate written with d
    decimals only says that the truth is within half a unit of the last one; the distance is taken as at least
    that. For every size, the subset of findings nearest to their rates is tested, with Bonferroni's
    correction for all subsets (half of the probability is for all findings together). A rate of four
    significant digits or more that agrees with the cohort's own in all of them is refused by itself.

    Args:
        declared: one rate per finding.
        labels: 1, 0 or NaN (unknown).
    """
    known = ~np.isnan(labels)
    tested = np.flatnonzero(known.any(axis=0))
    if not len(tested):
        return False
    labels, counts = labels[:, tested], known[:, tested].sum(axis=0)
    rates = np.nansum(labels, axis=0) / counts
    residuals = np.where(np.isnan(labels), 0.0, labels - rates)
    spread = (
        np.sqrt(np.maximum((residuals**2).sum(axis=0), 1.0)) / counts
    )  # standard deviation of a rate; at least that of one image more or less
    off = np.asarray(declared, float)[tested] - rates
    decimals, digits = np.array([_decimals_and_digits(declared[int(j)]) for j in tested]).T
    if np.any((digits >= _TELLING) & (np.abs(off) <= 0.5 * 10.0**-decimals)):
        return True
    least = 0.5 * 10.0 ** -np.maximum(
        decimals, np.floor(np.median(decimals))
    )  # 0.1 among rates of two decimals is 0.10
    z = np.copysign(np.maximum(np.abs(off), least), off) / spread
    correlation = residuals.T @ residuals / np.outer(spread * counts, spread * counts)
    np.fill_diagonal(correlation, 1.0)
    nearest, k = np.argsort(np.abs(z)), len(tested)
    for size in range(1, k + 1):
        some = nearest[:size]
        among = correlation[np.ix_(some, some)]
        form = float(z[some] @ np.linalg.pinv(among, rcond=_SINGULAR, hermitian=True) @ z[some])
        freedom = np.linalg.matrix_rank(among, tol=_SINGULAR * size, hermitian=True)
        tried = 2 if size == k else 2 * (k - 1) * math.comb(k, size)
        if tried * special.chdtr(freedom, form) < CHANCE:
            return True
    return False


def _decimals_and_digits(value: float) -> tuple[int, int]:
    """Numbers of decimals and of significant digits with which a number is written."""
    _, digits, exponent = decimal.Decimal(repr(float(value))).as_tuple()
    assert isinstance(exponent, int)
    return -exponent, len(digits)
