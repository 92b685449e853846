"""The cost of releases: epsilon of Poisson-subsampled Gaussian steps and released statistics together.

Guarantee: every epsilon returned is an upper bound at the given delta, of all given releases together, under
add/remove adjacency of one unit unless replace-one is asked for; `epsilon_bounds` also gives a lower bound.
The bounds are those of `loss_distribution`; Rényi moments (RDP) stand beside them as a looser cross-check.
"""

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dp_accounting
from dp_accounting import rdp

from jaxcxr.accounting import loss_distribution
from jaxcxr.accounting.dominating_pair import Adjacency, Release
from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.errors import InputError

ACCOUNTANT = (
    "privacy loss distribution, both bounds by tilted Fourier composition with a rounding allowance (jaxcxr)"
)
MOST_STEPS = 10**9
LEAST_RATE, NOISE_RANGE = 1e-12, (1e-6, 1e9)
"""Ranges for which bounds are computed; values outside are refused."""


@dataclasses.dataclass(frozen=True)
class Spending:
    """`steps` releases of the Poisson-subsampled Gaussian mechanism; a statistic has rate 1 and one step.

    Attributes:
        sample_rate: probability with which each unit is in a step's batch.
        noise_multiplier: noise standard deviation over the clip norm; 0 means no noise, hence epsilon
            infinity.
        steps: number of releases.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int


def _require_spending(spent: Spending) -> None:
    if not (spent.sample_rate == 0 or LEAST_RATE <= spent.sample_rate <= 1):
        raise InputError(f"sample rate: expected 0, or {LEAST_RATE:g} to 1, found {spent.sample_rate:g}")
    if not (spent.noise_multiplier == 0 or NOISE_RANGE[0] <= spent.noise_multiplier <= NOISE_RANGE[1]):
        low, high = NOISE_RANGE
        raise InputError(
            f"noise multiplier: expected 0 (no noise), or {low:g} to {high:g}, found "
            f"{spent.noise_multiplier:g}"
        )
    if spent.steps < 0:
        raise InputError(f"steps: expected 0 or more, found {spent.steps}")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress dp-accounting's warnings about Rényi orders that underflow, which do not affect the result."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def event_of(spending: Spending) -> dp_accounting.DpEvent:
    """A spending in dp-accounting's terms."""
    gaussian = dp_accounting.GaussianDpEvent(spending.noise_multiplier)
    if spending.sample_rate < 1:
        gaussian = dp_accounting.PoissonSampledDpEvent(spending.sample_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(gaussian, spending.steps)


def composed(spendings: Sequence[Spending]) -> list[Spending]:
    """The spendings, equal ones merged, empty ones dropped, sorted (composition ignores order).

    Raises:
        InputError: a rate, noise multiplier or number of steps is out of the range for which bounds are
            computed.
    """
    counts: dict[tuple[float, float], int] = {}
    for spent in spendings:
        _require_spending(spent)
        key = (spent.sample_rate, spent.noise_multiplier)
        counts[key] = counts.get(key, 0) + spent.steps
    if sum(counts.values()) > MOST_STEPS:
        raise InputError(f"steps: expected at most {MOST_STEPS:,} in all, found {sum(counts.values()):,}")
    return [Spending(q, sigma, steps) for (q, sigma), steps in sorted(counts.items()) if steps > 0 and q > 0]


def releases_of(
    spendings: Sequence[Spending], images: int = 1, adjacency: Adjacency = "add_remove"
) -> tuple[Release, ...]:
    """`spendings` as releases about a unit with `images` images.

    Raises:
        InputError: a release is out of range, or replace-one is asked for with more than one image.
    """
    if images < 1:
        raise InputError(f"images: expected at least 1, found {images}")
    if images != 1 and adjacency != "add_remove":
        raise InputError(f"adjacency: expected add_remove for a unit of {images} images, found {adjacency}")
    return tuple(
        Release(s.sample_rate, s.noise_multiplier, s.steps, images, adjacency) for s in composed(spendings)
    )


def rdp_accountant(spendings: Sequence[Spending]) -> rdp.RdpAccountant:
    """dp-accounting's Rényi accountant after these releases, all of which have noise."""
    accountant = rdp.RdpAccountant()
    for spent in composed(spendings):
        accountant.compose(event_of(spent))
    return accountant


def epsilon_rdp(spendings: Sequence[Spending], delta: float) -> float:
    """Upper bound on epsilon by Rényi differential privacy (Mironov 2017), as Opacus 1.3 in the paper."""
    loss_distribution.require_delta(delta)
    return _epsilon_rdp(tuple(composed(spendings)), delta)


@functools.lru_cache(maxsize=256)
def _epsilon_rdp(spendings: tuple[Spending, ...], delta: float) -> float:
    """`epsilon_rdp`, kept: making and checking a release ask for the same figure several times."""
    if any(s.noise_multiplier == 0 for s in spendings):
        return math.inf
    with quiet():
        return float(rdp_accountant(spendings).get_epsilon(delta))


def epsilon_pld(spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove") -> float:
    """Upper bound on epsilon by the privacy loss distribution of the whole composition.

    Args:
        spendings: everything that was released; an empty list costs nothing.
        delta: from 1e-15 to below 1.
        adjacency: `add_remove` one unit, or `replace_one` by another.
    """
    return loss_distribution.epsilon_upper(releases_of(spendings, adjacency=adjacency), delta)


def epsilon_bounds(
    spendings: Sequence[Spending], delta: float, adjacency: Adjacency = "add_remove"
) -> Bounds:
    """Upper bound on epsilon, as `epsilon_pld`, and a lower bound."""
    return loss_distribution.epsilon_bounds(releases_of(spendings, adjacency=adjacency), delta)


def profile(spendings: Sequence[Spending], deltas: Sequence[float], images: int = 1) -> tuple[Bounds, ...]:
    """The privacy profile: bounds on epsilon at each of `deltas`, for a unit with `images` images."""
    releases = releases_of(spendings, images)
    return tuple(loss_distribution.epsilon_bounds(releases, delta) for delta in deltas)


def gdp_mu(spendings: Sequence[Spending], delta: float, images: int = 1) -> float:
    """The least mu, rounded up by about a thousandth, for which mu-GDP holds at every delta from `delta` on.

    Gomez et al. 2025 (arXiv 2503.10945) recommend it as the one figure to report. 0 if delta covers
    everything, infinity if there is no guarantee.
    """
    return loss_distribution.gdp_mu(releases_of(spendings, images), delta)
