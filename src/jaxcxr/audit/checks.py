"""What a check of the mechanism is, and how several p-values become one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import betainc
from scipy.stats import binom, chi2, gamma

LEVEL = 1e-3
"""Probability with which a right implementation fails any of an audit's checks (Bonferroni over them)."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of the mechanism.

    Attributes:
        name: what was checked.
        p_value: probability of a result at least as extreme if the mechanism is as claimed; 0 or 1 where a
            right mechanism cannot fail.
        found: the result in words.
        level: below which p-value it fails: a share of `LEVEL`.
    """

    name: str
    p_value: float
    found: str
    level: float = LEVEL

    @property
    def failed(self) -> bool:
        """Whether the mechanism is not as claimed."""
        return not self.p_value >= self.level


def sharing(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks with an equal share of `LEVEL` each, so that it holds for all together."""
    return tuple(dataclasses.replace(check, level=LEVEL / len(checks)) for check in checks)


def exact(name: str, holds: bool, found: str) -> Check:
    """A check that a right mechanism cannot fail."""
    return Check(name, 1.0 if holds else 0.0, found)


def smallest(p_values: np.ndarray, tests: int | None = None) -> float:
    """One p-value from several, dependent or not: the smallest times their number (Bonferroni)."""
    if p_values.size == 0:
        return 1.0
    found = float(np.nanmin(p_values)) if not np.isnan(p_values).any() else 0.0
    return min(1.0, found * (tests if tests is not None else p_values.size))


def of_energy(energies: np.ndarray, freedom: np.ndarray | int) -> np.ndarray:
    """Two-sided p-values of squared lengths of standard normal vectors."""
    return np.minimum(1.0, 2 * np.minimum(chi2.cdf(energies, freedom), chi2.sf(energies, freedom)))


def of_cosine(cosines: np.ndarray, d: int) -> np.ndarray:
    """Two-sided p-values of cosines of independent standard normal vectors: their squares are Beta(1/2,
    (d - 1)/2) distributed.
    """
    return betainc((d - 1) / 2, 0.5, np.clip(1 - np.square(cosines), 0.0, 1.0))


def of_count(counts: np.ndarray, n: np.ndarray | int, rate: float) -> np.ndarray:
    """Two-sided p-values of binomial counts."""
    return np.minimum(1.0, 2 * np.minimum(binom.cdf(counts, n, rate), binom.sf(counts - 1, n, rate)))


def of_dispersion(counts: np.ndarray, n: int, rate: float) -> float:
    """Two-sided p-value of the squared deviations of independent binomial counts.

    Their sum is approximately gamma-distributed: exactly chi-squared for normal counts, here with the
    binomial's kurtosis.
    """
    variance = n * rate * (1 - rate)
    total = float(np.square(counts - n * rate).sum()) / variance
    spread = 2 + (1 - 6 * rate * (1 - rate)) / variance
    fitted = gamma(len(counts) / spread, scale=spread)
    return float(min(1.0, 2 * min(fitted.cdf(total), fitted.sf(total))))


def of_cells(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Two-sided p-value of the sum of Pearson's chi-squares of independent multinomials [tables, cells].

    With the exact mean and variance of the statistic (Cochran 1952), fitted by a gamma distribution: cells
    may be rare.
    """
    tables, cells = counts.shape
    n = float(counts[0].sum())
    expected = n * probabilities
    statistic = float((np.square(counts - expected) / expected).sum())
    mean = tables * (cells - 1)
    variance = tables * (2 * (cells - 1) + ((1 / probabilities).sum() - cells**2 - 2 * cells + 2) / n)
    fitted = gamma(mean**2 / variance, scale=variance / mean)
    return float(min(1.0, 2 * min(fitted.cdf(statistic), fitted.sf(statistic))))
