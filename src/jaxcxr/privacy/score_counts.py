"""Noised counts of how held-out images are scored: the one release from which an evaluation is computed.

Contribution. For every finding, a labelled image falls into one of `BINS` intervals of the score, whose edges
are public (`EDGES`, or a public threshold in place of the nearest). It adds a column of a fixed matrix
(`strategy`), whose columns have at most length 1, to the counts of its class (positive or negative) times a
weight. The weight of a patient's n images that are labelled for the finding is min(1, k / n), where k is
the public `images_per_patient`: together at most k.

Sensitivity. Adding or removing one patient with all images changes

- the counts of one finding in one block by at most k in L2 norm: a sum of vectors of length at most 1 with
  weights that add up to at most k. Positives and negatives are different coordinates of that vector;
- a block of groups (an attribute, such as sex) by at most k too, however many of its groups the patient's
  images are in: an image is in at most one group of an attribute, so the weights of all of its groups
  together add up to at most k;
- blocks b, scaled by public factors w_b with sum of w_b^2 = 1, and F findings by sqrt(F sum_b w_b^2) k =
  sqrt(F) k. This is `Design.l2_sensitivity`.

An unknown label adds nothing; every label and group of a patient is private, and covered. Under replacement
of one patient by another everything is twice as long: the claim is about adding or removing.

Guarantee: `noised_counts` is the Gaussian mechanism on whole numbers of grid steps (`rounded_noise`), with
each patient's contribution rounded once per coordinate, so that no digit tells more than the mechanism for
reals. A patient's contribution is computed from that patient's images and public numbers alone, and its
length is checked. Validation and test images are counted in releases of their own; a patient is on one side
only, so that one guarantee holds for all of them, also if the second release depends on the first. What is
computed from the counts is post-processing.

The matrix is a weighted Haar basis (after Xiao, Wang & Gehrke 2011, differential privacy via wavelet
transforms): the whole, a split at the threshold, then halves of halves. Sums over many bins come from few
coordinates and have little noise, which single bins would not.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt32
from scipy.sparse import csr_array

from jaxcxr.privacy import rounded_noise

BINS = 64
EDGES = 1 / (1 + np.exp(-np.linspace(-6.2, 6.2, BINS - 1)))
"""Inner edges of the bins, evenly spaced in logits; a score equal to an edge is in the bin above it."""
OVERALL_SHARE = 2 / 3
"""Part of the squared sensitivity that the counts of everybody have where there are groups too."""
_FINER, _FALL = 2**-0.5, 2**-0.25
"""Weight of the first halves, and ratio of each finer level to the coarser one; the whole and the split at
the threshold weigh 1. Found by comparing the noise of the four metrics for several separations of classes.
"""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images of one split, one row each; all of it is private.

    Attributes:
        scores: of each finding, between 0 and 1.
        labels: 1, 0 or NaN (unknown).
        patients: number of each image's patient.
        groups: number of each image's group in each attribute; -1 if it is in none of them.
    """

    scores: Float[np.ndarray, "images findings"]
    labels: Float[np.ndarray, "images findings"]
    patients: Int[np.ndarray, " images"]
    groups: Int[np.ndarray, "images attributes"]


@dataclasses.dataclass(frozen=True)
class Design:
    """What is counted, and with how much noise. All of it is public.

    Attributes:
        splits: of each finding, the index in `EDGES` of the threshold, which is counted best.
        thresholds: of each finding, the threshold that takes the place of that edge.
        groups: number of groups of each attribute.
        images_per_patient: k, the most that a patient's images weigh together.
        noise_multiplier: noise standard deviation over `l2_sensitivity`.
    """

    splits: tuple[int, ...]
    thresholds: tuple[float, ...]
    groups: tuple[int, ...]
    images_per_patient: int
    noise_multiplier: float

    @property
    def l2_sensitivity(self) -> float:
        """How much one patient changes the exact counts at most, before rounding."""
        return self.images_per_patient * math.sqrt(len(self.splits))

    @property
    def factors(self) -> Float[np.ndarray, " blocks"]:
        """w_b of everybody, then of each group; within an attribute they are equal."""
        if not self.groups:
            return np.ones(1)
        each = math.sqrt((1 - OVERALL_SHARE) / len(self.groups))
        return np.array([math.sqrt(OVERALL_SHARE), *(each for count in self.groups for _ in range(count))])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the counts: blocks (everybody, then each group), findings, classes (positive, negative), rows of
        `strategy`.
        """
        return 1 + sum(self.groups), len(self.splits), 2, BINS

    @property
    def grid(self) -> rounded_noise.Grid:
        """The grid that contributions are rounded to and noise is drawn on.

        Raises:
            ValueError: noise so small or so large does not fit.
        """
        return rounded_noise.grid_for(self.l2_sensitivity, self.noise_multiplier, math.prod(self.shape))

    def edges(self, finding: int) -> Float[np.ndarray, " edges"]:
        """Inner edges of the bins of one finding; the threshold is one of them."""
        found = EDGES.copy()
        found[self.splits[finding]] = self.thresholds[finding]
        return found


@functools.cache
def strategy(split: int) -> Float[np.ndarray, "rows bins"]:
    """The matrix of contributions: a column for each bin, of length at most 1; it is invertible.

    Args:
        split: index of the threshold in the edges: bins above it are called positive.
    """
    rows = [np.ones(BINS), _contrast(0, split + 1, BINS, 1.0)]
    rows += _halves(0, split + 1, _FINER) + _halves(split + 1, BINS, _FINER)
    matrix = np.array(rows)
    return matrix / np.sqrt((matrix**2).sum(axis=0).max())


def _contrast(low: int, middle: int, high: int, weight: float) -> np.ndarray:
    row = np.zeros(BINS)
    row[low:middle], row[middle:high] = -weight, weight
    return row


def _halves(low: int, high: int, weight: float) -> list[np.ndarray]:
    """Rows that tell the bins from `low` to below `high` apart."""
    if high - low < 2:
        return []
    middle = (low + high) // 2
    finer = weight * _FALL
    return [
        _contrast(low, middle, high, weight),
        *_halves(low, middle, finer),
        *_halves(middle, high, finer),
    ]


def noised_counts(
    held_out: HeldOut, design: Design, key: UInt32[np.ndarray, "4"]
) -> Int[np.ndarray, "blocks findings classes rows"]:
    """The counts with noise, in steps of the design's grid; what they cost must be recorded before this.

    Args:
        held_out: the images.
        design: what is counted.
        key: 128 bits of the operating system's randomness, used for this release and no other.
    """
    exact = rounded_counts(held_out, design)
    drawn = rounded_noise.rounded_gaussian(key, design.grid.deviation, exact.size)
    return exact + drawn.reshape(exact.shape)


def rounded_counts(held_out: HeldOut, design: Design) -> Int[np.ndarray, "blocks findings classes rows"]:
    """Sum of the patients' contributions in whole steps of the grid; private.

    Raises:
        ValueError: the images do not go with the design, or a contribution is longer than the sensitivity.
    """
    _, patients = np.unique(held_out.patients, return_inverse=True)
    grid, count = design.grid, int(patients.max(initial=-1)) + 1
    if held_out.groups.shape[1] != len(design.groups) or held_out.scores.shape[1] != len(design.splits):
        raise ValueError("held_out: has other findings or attributes than the design")
    if np.isnan(held_out.scores).any() or (held_out.groups >= np.array(design.groups, int)).any():
        raise ValueError("held_out: has scores that are no numbers, or groups that the design lacks")
    totals = np.zeros(design.shape, np.int64)
    squares = np.zeros(count)
    for finding, split in enumerate(design.splits):
        scores, labels = held_out.scores[:, finding], held_out.labels[:, finding]
        bins = np.searchsorted(design.edges(finding), scores, side="right")
        weights = _weights(~np.isnan(labels), patients, count, design.images_per_patient)
        for block, (member, factor) in enumerate(_blocks(held_out, design)):
            for place, label in enumerate((1, 0)):
                rows = member & (labels == label)
                counted = csr_array((weights[rows], (patients[rows], bins[rows])), shape=(count, BINS))
                each = np.rint(counted @ (strategy(split).T * (factor / grid.step)))
                squares += np.square(each).sum(axis=1)
                totals[block, finding, place] = each.sum(axis=0).astype(np.int64)
    bound = design.l2_sensitivity / grid.step + math.sqrt(math.prod(design.shape)) / 2
    if np.sqrt(squares.max(initial=0.0)) > bound:
        raise ValueError("a patient's contribution is longer than the sensitivity")
    return totals


def _weights(
    labelled: np.ndarray, patients: Int[np.ndarray, " images"], count: int, most: int
) -> Float[np.ndarray, " images"]:
    """min(1, most / n) for the n images of a patient that are labelled."""
    n = np.bincount(patients[labelled], minlength=count)
    return np.minimum(1.0, most / np.maximum(n, 1))[patients]


def _blocks(held_out: HeldOut, design: Design) -> Iterator[tuple[np.ndarray, float]]:
    """Members and factor of each block. An image has one number per attribute: groups cannot overlap."""
    factors = iter(design.factors.tolist())
    yield np.ones(len(held_out.patients), bool), next(factors)
    for attribute, groups in enumerate(design.groups):
        for group in range(groups):
            yield held_out.groups[:, attribute] == group, next(factors)
