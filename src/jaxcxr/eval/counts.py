"""The counts of images from which the metrics of one finding are computed, for many draws at once.

A draw is a vector of multiplicities: how often it contains each patient (or image). A metric needs weighted
sums over images: per level of probability (`levels`) for the areas under the curves and for Youden's
criterion, over all images for the others. So the images are sorted into levels once, in a sparse matrix with
one column per patient; a draw is a product with this matrix, then cumulative sums over the levels. Counts are
whole numbers until a metric divides them, so ties in probability or in Youden's index are exact.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

CALIBRATION_BINS = 10
"""Bins of equal width, [0, 0.1) to [0.9, 1], of the expected calibration error."""

EXACT_IN_FLOAT32 = 2**22
"""Largest sample for which float32 counts exactly (to 2^24), with room for replicates of more images."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """The images of one finding, sorted into levels: one per distinct probability of a positive image.

    Level 0 is the highest probability of a positive image, level 1 the next. With a falling threshold,
    Youden's index rises only at a positive image, so these probabilities are the only candidates for its
    threshold, whatever the multiplicities of the images, and the areas under both curves are sums over them.

    Attributes:
        thresholds: the distinct probabilities of the positive images, highest first.
        positives, negatives: rows with that label.
        positive_level: level of each positive image.
        negative_level: for each negative image, the first level at which it is called positive; the number of
            levels if there is none.
        negative_tied: whether its probability equals that of its level, so that it ties with the positives
            there.
    """

    thresholds: Float[np.ndarray, " k"]
    positives: Int[np.ndarray, " p"]
    negatives: Int[np.ndarray, " q"]
    positive_level: Int[np.ndarray, " p"]
    negative_level: Int[np.ndarray, " q"]
    negative_tied: Bool[np.ndarray, " q"]

    @property
    def one_class(self) -> bool:
        """Whether positives or negatives are missing, so that no metric is defined."""
        return not (self.positives.size and self.negatives.size)


def levels(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> Levels:
    """Sort the labelled images of a finding into levels."""
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    thresholds = np.unique(p[positives])[::-1]
    negative_level = np.searchsorted(-thresholds, -p[negatives], side="left")
    reached = np.append(thresholds, np.nan)[negative_level]
    return Levels(
        thresholds=thresholds,
        positives=positives,
        negatives=negatives,
        positive_level=np.searchsorted(-thresholds, -p[positives], side="left"),
        negative_level=negative_level,
        negative_tied=reached == p[negatives],
    )


def calibration_bin(p: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Index of each probability's calibration bin; the last bin includes 1."""
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    return np.clip(np.searchsorted(edges, p, side="right") - 1, 0, CALIBRATION_BINS - 1)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Matrices that turn multiplicities into the sums of one finding in one group.

    Rows of `counts`: positives per level; negatives per level and below the lowest; negatives tied with a
    level (where there are any); positives, and negatives, called at a threshold given beforehand. Rows of
    `values`: probability minus label per calibration bin, then its square.
    """

    levels: Levels
    tied: Int[np.ndarray, " tied"]
    counts: csr_array
    values: csr_array
    threshold: float | None


def sums_of(
    y: Float[np.ndarray, " n"],
    p: Float[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"],
    threshold: float | None,
) -> Sums:
    """Sort the images of one finding in one group into these matrices.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.
        cluster: index of the patient (or image) that is resampled, for each image.
        threshold: at which images are called positive; None chooses Youden's in every draw.
    """
    at = levels(y, p)
    count, width = at.thresholds.size, int(cluster.max(initial=-1)) + 1
    tied = np.unique(at.negative_level[at.negative_tied])
    tied_row = 2 * count + 1 + np.searchsorted(tied, at.negative_level[at.negative_tied])
    last = 2 * count + 1 + tied.size
    called = p >= (np.nan if threshold is None else threshold)
    called_positives, called_negatives = (
        at.positives[called[at.positives]],
        at.negatives[called[at.negatives]],
    )
    images = [at.positives, at.negatives, at.negatives[at.negative_tied], called_positives, called_negatives]
    rows = [at.positive_level, count + at.negative_level, tied_row]
    rows += [np.full(called_positives.size, last), np.full(called_negatives.size, last + 1)]
    row, image = np.concatenate(rows), np.concatenate(images)
    exact = np.float32 if len(y) < EXACT_IN_FLOAT32 else np.float64
    counts = csr_array((np.ones(len(image), exact), (row, cluster[image])), shape=(last + 2, width))

    known = np.concatenate([at.positives, at.negatives])
    error = p[known] - y[known]
    bins = np.concatenate([calibration_bin(p[known]), np.full(known.size, CALIBRATION_BINS)])
    errors = np.concatenate([error, error**2])
    values = csr_array((errors, (bins, np.tile(cluster[known], 2))), shape=(CALIBRATION_BINS + 1, width))
    return Sums(at, tied, counts, values, threshold)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of one finding in one group, for a block of draws.

    Attributes:
        positives, negatives: images with that label.
        called_positives, called_negatives: those of them that are called positive at the threshold; NaN if
            there is no threshold.
        thresholds: threshold of each draw.
        won_twice: pairs of a positive and a negative image in which the positive has the higher probability,
            counted twice, and pairs with equal probabilities, counted once.
        precision_summed: sum over the positives of the precision at the probability of each.
        errors_by_bin: sum of probability minus label in each calibration bin.
        squared_errors: sum of the squared differences.
    """

    positives: Float[np.ndarray, " draws"]
    negatives: Float[np.ndarray, " draws"]
    called_positives: Float[np.ndarray, " draws"]
    called_negatives: Float[np.ndarray, " draws"]
    thresholds: Float[np.ndarray, " draws"]
    won_twice: Float[np.ndarray, " draws"]
    precision_summed: Float[np.ndarray, " draws"]
    errors_by_bin: Float[np.ndarray, "bins draws"]
    squared_errors: Float[np.ndarray, " draws"]

    @property
    def images(self) -> Float[np.ndarray, " draws"]:
        """Number of labelled images."""
        return self.positives + self.negatives

    @property
    def called(self) -> Float[np.ndarray, " draws"]:
        """Number of images that are called positive."""
        return self.called_positives + self.called_negatives


def counted(
    sums: Sums, exact: Float[np.ndarray, "clusters draws"], double: Float[np.ndarray, "clusters draws"]
) -> Counts | None:
    """The counts of a block of draws; None if only one class is labelled, so that no draw has both.

    `exact` and `double` are the same multiplicities, in the dtype of `counts` and of `values`.
    """
    draws, count = double.shape[1], sums.levels.thresholds.size
    if sums.levels.one_class:
        return None
    found = sums.counts @ exact
    positives = found[:count].astype(np.float64)
    # In place and in single precision: cumulative sums are the slowest part.
    np.cumsum(found[:count], axis=0, out=found[:count])
    np.cumsum(found[count : 2 * count + 1], axis=0, out=found[count : 2 * count + 1])
    n_positive, n_negative = found[count - 1].astype(np.float64), found[2 * count].astype(np.float64)
    tp, fp = found[:count].astype(np.float64), found[count : 2 * count].astype(np.float64)

    # A pair with the negative below counts 1, a tie 1/2; doubled, both are whole numbers.
    beaten_twice = 2 * (n_negative - fp)
    beaten_twice[sums.tied] += found[2 * count + 1 : -2]
    won_twice = np.einsum("kd,kd->d", positives, beaten_twice)
    precision_summed = np.einsum("kd,kd->d", positives, tp / np.maximum(tp + fp, 1))

    if sums.threshold is None:
        index = tp * n_negative - fp * n_positive
        best = (np.argmax(index, axis=0), np.arange(draws))
        beats_chance = index[best] > 0
        called_p, called_n = np.where(beats_chance, tp[best], 0), np.where(beats_chance, fp[best], 0)
        thresholds = np.where(beats_chance, sums.levels.thresholds[best[0]], np.inf)
    else:
        called_p, called_n = found[-2].astype(np.float64), found[-1].astype(np.float64)
        thresholds = np.full(draws, sums.threshold)
    if sums.threshold is not None and np.isnan(sums.threshold):
        called_p, called_n = np.full(draws, np.nan), np.full(draws, np.nan)

    thresholds[(n_positive == 0) | (n_negative == 0)] = np.nan
    errors = sums.values @ double
    return Counts(
        positives=n_positive,
        negatives=n_negative,
        called_positives=called_p,
        called_negatives=called_n,
        thresholds=thresholds,
        won_twice=won_twice,
        precision_summed=precision_summed,
        errors_by_bin=errors[:-1],
        squared_errors=errors[-1],
    )
