"""What is judged: releases of the Poisson-subsampled Gaussian mechanism, and the two laws that one unit's presence tells apart."""

import math
from typing import Literal, NamedTuple

Adjacency = Literal["add_remove", "replace_one"]


class Releases(NamedTuple):
    """`steps` releases of a sum to which each image contributes a vector of norm at most 1, with probability `sample_rate`."""

    sample_rate: float
    noise_multiplier: float
    steps: int


class Case(NamedTuple):
    """A claim: everything in `releases` together, at `delta`, for a unit of `images` images."""

    releases: tuple[Releases, ...]
    delta: float
    images: int = 1
    adjacency: Adjacency = "add_remove"


class Law(NamedTuple):
    """A mixture of normal laws on the line that have one standard deviation."""

    means: tuple[float, ...]
    weights: tuple[float, ...]


def laws(releases: Releases, images: int, adjacency: Adjacency, joining: bool) -> tuple[Law, Law]:
    """The answer's law as it is and as it would be in the neighbouring data set, in the direction that the unit can push.

    With the unit, j of its images are drawn with binomial probability and push by j at most; without it nothing does. A unit
    that is replaced by another pushes to one side, the other one to the other side. (Zhu et al. 2022, Ganesh 2024: these pairs
    dominate all others.)
    """
    q = releases.sample_rate
    weights = tuple(math.comb(images, j) * q**j * (1 - q) ** (images - j) for j in range(images + 1))
    with_unit = Law(tuple(float(j) for j in range(images + 1)), weights)
    replaced = Law(tuple(-m for m in with_unit.means), weights)
    other = replaced if adjacency == "replace_one" else Law((0.0,), (1.0,))
    return (other, with_unit) if joining else (with_unit, other)
