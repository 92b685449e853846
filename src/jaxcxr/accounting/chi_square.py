"""Bounds on delta and epsilon from the chi-square divergence, precise if units are rarely sampled.

With r the likelihood ratio P/Q of all releases together, chi^2 = E_Q[(r - 1)^2], and 1 + chi^2 is the product
of those of the releases. For s = exp(epsilon) - 1, from (y - s)+ <= y^2 / (4 s) follow

    E_Q[(r - exp(epsilon))+] <= chi^2 / (4 s)                   in direction "remove", and
    E_Q[(1 - exp(epsilon) r)+] <= chi^2 (1 + s)^2 / (4 s)       in direction "add"

(the second with y = (1 - r)(1 + s)), and by Cauchy-Schwarz the total variation is at most half the root of
chi^2.
"""

import math
from collections.abc import Sequence

from jaxcxr.accounting.dominating_pair import Release

_SAFETY = 1 + 1e-10
"""Factor well above all rounding errors: exponents of at most 700 pass on a few units in their last place."""
_LARGEST_EXPONENT = 700.0


def chi_square(releases: Sequence[Release]) -> float:
    """Upper bound on the chi-square divergence of all releases, with from without a unit; infinity if large.

    With j of the k images in the batch, and j' in an independent one, a release has 1 + chi^2 = E exp(j j' /
    sigma^2). The mean over j' is (1 - q + q exp(j / sigma^2))^k, a convex function of j, which lies below its
    chord from 0 to k: exact for one image.
    """
    total = 0.0
    for r in releases:
        exponent = r.images / r.noise_multiplier**2 if r.noise_multiplier > 0 else math.inf
        if exponent > _LARGEST_EXPONENT:
            return math.inf
        sampled = r.images * math.log1p(r.sample_rate * math.expm1(exponent))
        if sampled > _LARGEST_EXPONENT:
            return math.inf
        total += r.steps * math.log1p(r.sample_rate * math.expm1(sampled))
    return math.expm1(total) * _SAFETY if total < 0.5 else math.inf


def total_variation_by_chi_square(releases: Sequence[Release]) -> float:
    """Upper bound on the total variation in either direction; to replace is to remove and add."""
    changes = 2 if any(r.adjacency == "replace_one" for r in releases) else 1
    return min(1.0, changes * math.sqrt(chi_square(releases)) / 2 * _SAFETY)


def epsilon_by_chi_square(releases: Sequence[Release], delta: float) -> float:
    """Upper bound on epsilon in both directions; infinity if it gives none, or under replace-one."""
    if any(r.adjacency == "replace_one" for r in releases):
        return math.inf
    chi = chi_square(releases)
    if delta <= chi:  # s would exceed 1
        return math.inf
    share = 2 * chi / (4 * delta - 2 * chi)  # 2 / (s + 1 / s), where the larger of both bounds equals delta
    return math.log1p(share / (1 + math.sqrt(1 - share**2))) * _SAFETY
