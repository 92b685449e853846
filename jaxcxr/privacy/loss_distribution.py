"""Upper and lower bounds on the epsilon of composed releases, from the distribution of their privacy loss.

Both bounds are those of `summed_loss`, but for one film the upper bound is Google's dp-accounting instead, whose losses are
rounded pessimistically (Doroshenko et al. 2022), on a grid chosen here from the standard deviation of the losses and refined
until the lower bound is near: a fixed one is wrong quietly, and its optimistic rounding says 0 for a run of many small steps.
"""

import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from jaxcxr.privacy.summed_loss import CELLS, Release, moments, spare_of, summed_loss

NO_GUARANTEE = 500.0
"""An expected total loss above this is answered by infinity: e^500 protects nobody, and floats end at e^709."""
GAP = 4e-3
"""Relative distance of the bounds at which the upper one is near enough to the truth."""
_FINER, _MOST_REFINEMENTS = 3.0, 6
_NO_GAIN = 1e-3 * (_FINER**2 - 1)  # the error falls with the square of the grid: a thousandth is left
_VARIANCE_SHARE = 1e-3
_COARSER = 8.0
_MANY_FILMS = 100
"""With more than so many, a lower bound is not sought where the upper one is infinite: it takes long and says nothing."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Epsilon lies between `lower` and `upper`."""

    lower: float
    upper: float


@contextmanager
def quiet() -> Iterator[None]:
    """dp-accounting logs a warning for every Rényi order that underflows: hundreds of lines that say nothing about the
    result.
    """
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def epsilon_upper(releases: Sequence[Release], delta: float) -> float:
    """Upper bound on epsilon of all releases together; infinity if it is beyond all use (`NO_GUARANTEE`)."""
    releases = tuple(releases)
    if not releases:
        return 0.0
    if any(r.noise_multiplier == 0 for r in releases) or _expected_loss(releases, delta) > NO_GUARANTEE:
        return math.inf
    if any(r.films > 1 for r in releases):
        return _rounded_bounds(releases, delta).upper
    return _upper(releases, delta)


@functools.lru_cache(maxsize=256)
def _upper(releases: tuple[Release, ...], delta: float) -> float:
    """On a grid that is refined until the lower bound is near enough, or refining gains nothing."""
    grid = first_grid(releases, delta)
    epsilon = upper_on_grid(releases, delta, grid)
    for _ in range(_MOST_REFINEMENTS):
        if epsilon - _lower(releases, delta, epsilon) <= GAP * epsilon:
            break
        grid /= _FINER
        finer = upper_on_grid(releases, delta, grid)
        settled = epsilon - finer <= _NO_GAIN * finer
        epsilon = min(epsilon, finer)
        if settled:
            break
    return epsilon


def is_within(releases: Sequence[Release], delta: float, epsilon: float) -> bool:
    """Whether an upper bound on epsilon of all releases together is at most `epsilon`: a quick and coarse one where that
    decides, else `epsilon_upper`.
    """
    releases = tuple(releases)
    if releases and all(r.noise_multiplier > 0 for r in releases) and _expected_loss(releases, delta) <= NO_GUARANTEE:
        leaving = summed_loss(releases, delta, _COARSER * epsilon, count=CELLS >> 2)
        if leaving.lower(delta) > epsilon:
            return False
        if leaving.upper(delta) <= epsilon:
            joining = summed_loss(releases, delta, _COARSER * epsilon, leaving=False, count=CELLS >> 2)
            if joining.upper(delta) <= epsilon:
                return True
    return epsilon_upper(releases, delta) <= epsilon


def first_grid(releases: Sequence[Release], delta: float) -> float:
    """A grid whose rounding adds at most a thousandth to the variance of the summed losses."""
    steps = sum(r.steps for r in releases)
    variance = sum(r.steps * moments(r, spare_of(releases, delta))[1] for r in releases)
    return 2 * math.sqrt(_VARIANCE_SHARE * variance / steps)


def _expected_loss(releases: Sequence[Release], delta: float) -> float:
    return sum(r.steps * moments(r, spare_of(releases, delta))[0] for r in releases)


def upper_on_grid(releases: Sequence[Release], delta: float, grid: float) -> float:
    """Upper bound on epsilon by dp-accounting, with losses rounded to multiples of `grid`; one film a unit."""
    total: Any = None
    with quiet():
        for release in releases:
            composed = _single(dataclasses.replace(release, steps=1), grid).self_compose(release.steps)
            total = composed if total is None else total.compose(composed)
        return float(total.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=4)
def _single(release: Release, grid: float) -> Any:
    relation = {"add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace_one": NeighboringRelation.REPLACE_ONE}
    return pld.from_gaussian_mechanism(
        release.noise_multiplier,
        value_discretization_interval=grid,
        sampling_prob=release.sample_rate,
        neighboring_relation=relation[release.adjacency],
    )


@functools.lru_cache(maxsize=256)
def _rounded_bounds(releases: tuple[Release, ...], delta: float) -> Bounds:
    """Both bounds by mean-preserving rounding."""
    near = rough_epsilon(releases, delta)
    leaving = summed_loss(releases, delta, near, count=CELLS >> 2)
    if leaving.upper(delta) < near / 1.5:
        near = leaving.upper(delta)
        leaving = summed_loss(releases, delta, near, count=CELLS >> 2)
    if all(r.adjacency == "replace_one" for r in releases):
        return Bounds(leaving.lower(delta), leaving.upper(delta))
    joining = summed_loss(releases, delta, near, leaving=False, count=CELLS >> 2)
    return Bounds(max(leaving.lower(delta), joining.lower(delta)), max(leaving.upper(delta), joining.upper(delta)))


def rough_epsilon(releases: Sequence[Release], delta: float) -> float:
    """What epsilon would be if the summed loss were normal: a scale, not a bound."""
    spare = spare_of(releases, delta)
    variance = sum(r.steps * moments(r, spare)[1] for r in releases)
    return _expected_loss(releases, delta) + math.sqrt(variance * 2 * math.log(1 / delta))


def estimate(releases: Sequence[Release], delta: float, near: float) -> float:
    """Epsilon to about a thousandth and quickly, neither an upper nor a lower bound; `near` is roughly what is expected."""
    return summed_loss(releases, delta, _COARSER * near, count=CELLS >> 2).middle(delta)


def epsilon_bounds(releases: Sequence[Release], delta: float) -> Bounds:
    """Both bounds on epsilon of all releases together.

    Args:
        releases: everything that was released; none costs nothing, one without noise costs everything.
        delta: in (0, 1).
    """
    releases = tuple(releases)
    if not releases:
        return Bounds(0.0, 0.0)
    if any(r.noise_multiplier == 0 for r in releases):
        return Bounds(math.inf, math.inf)
    upper = epsilon_upper(releases, delta)
    if math.isinf(upper) and any(r.films > _MANY_FILMS for r in releases):
        return Bounds(0.0, upper)
    if any(r.films > 1 for r in releases) or math.isinf(upper):
        return Bounds(_rounded_bounds(releases, delta).lower, upper)
    return Bounds(min(_lower(releases, delta, upper), upper), upper)


@functools.lru_cache(maxsize=256)
def _lower(releases: tuple[Release, ...], delta: float, near: float) -> float:
    return summed_loss(releases, delta, near).lower(delta)
