"""Variance of the AUROC in closed form, as a check on the bootstrap.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988 (independent images); Obuchowski, Biometrics 1997
(several images per patient), which is the same if every image is a cluster of its own.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm


@dataclasses.dataclass(frozen=True)
class DeLong:
    """AUROCs of several models on the same images, with their covariance.

    Attributes:
        auroc: one per model; NaN if only one class is labelled.
        covariance: of the AUROCs; NaN if a class lies in fewer than two clusters.
    """

    auroc: Float[np.ndarray, " models"]
    covariance: Float[np.ndarray, "models models"]

    def interval(self, model: int = 0) -> tuple[float, float]:
        """95 % interval of one AUROC, normal on the scale of the AUROC and cut off at 0 and 1."""
        half = norm.ppf(0.975) * np.sqrt(self.covariance[model, model])
        low, high = np.clip([self.auroc[model] - half, self.auroc[model] + half], 0, 1)
        return float(low), float(high)

    def p_value(self, a: int = 0, b: int = 1) -> float:
        """Two-sided p-value of 'models a and b have the same AUROC'; 1 if they agree on every image."""
        difference = float(self.auroc[a] - self.auroc[b])
        variance = float(self.covariance[a, a] + self.covariance[b, b] - 2 * self.covariance[a, b])
        if np.isnan(variance):
            return np.nan
        if variance <= 1e-30:
            return 1.0 if abs(difference) < 1e-12 else 0.0
        return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def delong(
    y: Float[np.ndarray, " n"],
    scores: Float[np.ndarray, "models n"],
    cluster: Int[np.ndarray, " n"] | None = None,
) -> DeLong:
    """AUROC of each model with its covariance.

    Args:
        y: labels 1, 0 or NaN.
        scores: probabilities, one row per model.
        cluster: number of each image's patient; None treats images as independent.
    """
    cluster = np.arange(len(y)) if cluster is None else cluster
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    models = len(scores)
    if not (positive.size and negative.size):
        return DeLong(np.full(models, np.nan), np.full((models, models), np.nan))
    won = np.stack([_placements(s[positive], s[negative]) for s in scores])
    lost = np.stack([1 - _placements(s[negative], s[positive]) for s in scores])
    auroc = won.mean(axis=1)

    width = int(cluster.max()) + 1
    of_positives = np.stack(
        [np.bincount(cluster[positive], w - a, width) for w, a in zip(won, auroc, strict=True)]
    )
    of_negatives = np.stack(
        [np.bincount(cluster[negative], v - a, width) for v, a in zip(lost, auroc, strict=True)]
    )
    clusters = [
        len(np.unique(cluster[rows])) for rows in (positive, negative, np.union1d(positive, negative))
    ]
    if min(clusters) < 2:
        return DeLong(auroc, np.full((models, models), np.nan))
    of_positives, of_negatives = of_positives / positive.size, of_negatives / negative.size
    unbiased = [count / (count - 1) for count in clusters]
    cross = of_positives @ of_negatives.T
    covariance = (
        unbiased[0] * of_positives @ of_positives.T
        + unbiased[1] * of_negatives @ of_negatives.T
        + unbiased[2] * (cross + cross.T)
    )
    return DeLong(auroc, covariance)


def _placements(of: Float[np.ndarray, " a"], among: Float[np.ndarray, " b"]) -> Float[np.ndarray, " a"]:
    """Share of `among` that lies below each of `of`, an equal one counting one half."""
    ordered = np.sort(among)
    return (np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")) / (2 * among.size)
