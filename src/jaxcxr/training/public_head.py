"""A head to start from, by public images that have labels of the same findings: trained on them, or that of
the weights, calibrated on them.

The released steps of a small budget go a short way; it helps to begin them where other hospitals' images
point. The head is trained on kept features as any other (`training.head`), without privacy, on public images
alone, and then made as small as these say it should be: patients are dealt to `FOLDS` parts, each part is
predicted by a head of the others, and the start is multiplied by the slope, from 0 to 1, of the logistic
regression of labels on those predictions. A finding that public images do not teach (few positives, labels
that mean nothing) thereby starts at zero, as without this module. The mean logit of public images is taken
out: how frequent a finding is there says nothing about another hospital.

Guarantee: nothing here is computed from private images. The weights with this head are those that a run
starts from, and enter it by their digest, which its noise is bound to.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import expit

from jaxcxr.training.directions import Directions

STEPS, LENGTH = 32, 16.0
"""Number of steps, and how far they go in units of Newton's step along the steepest direction: those of a
head without privacy (configs/recommended.yaml).
"""
FOLDS = 4
FEWEST = 8
"""Positive and negative images that a finding needs to be started from."""
_NEWTON_STEPS = 25


@dataclasses.dataclass(frozen=True, eq=False)
class PublicHead:
    """A head by public images.

    Attributes:
        moved: what multiplies the coordinates of an image, one column per finding; zero where `slopes` is.
        slopes: that the fit was multiplied by, one per finding.
        positives: public images with the finding.
    """

    moved: Float[np.ndarray, "coordinates findings"]
    slopes: Float[np.ndarray, "findings"]
    positives: Int[np.ndarray, "findings"]

    def sentence(self, findings: Sequence[str]) -> str:
        """What was learnt of which finding, for the screen."""
        parts = [
            f"{name} {slope:.2g} ({count:,} positive)"
            for name, slope, count in zip(findings, self.slopes, self.positives, strict=True)
        ]
        return (
            "starting from a head of the public images, multiplied by what it is worth on other public "
            f"patients (0 to 1): {', '.join(parts)}"
        )


def fitted(
    directions: Directions,
    features: Float[np.ndarray, "n features"],
    labels: Float[np.ndarray, "n findings"],
    patients: Sequence[str],
) -> PublicHead:
    """The head of public images with these features.

    Args:
        directions: by the same images.
        features: of the images.
        labels: 1, 0 or NaN (unknown).
        patients: whose images they are.
    """
    x = np.asarray(directions.coordinates(features), np.float64)
    steepest = float(np.max(np.square(directions.spread))) / 4
    known, positive = ~np.isnan(labels), labels == 1
    enough = np.minimum(positive.sum(axis=0), (known & ~positive).sum(axis=0)) >= FEWEST
    labels = np.where(enough, labels, np.nan)
    parts = np.array([hashlib.sha256(patient.encode()).digest()[0] % FOLDS for patient in patients])
    predicted = np.zeros(labels.shape)
    for part in range(FOLDS):
        mine = parts == part
        predicted[mine] = x[mine] @ _descended(x[~mine], labels[~mine], steepest)
    slopes = np.array([_slope(predicted[:, f], labels[:, f]) for f in range(labels.shape[1])])
    moved = _descended(x, labels, steepest) * slopes
    moved[-1] -= (x @ moved).mean(axis=0) / directions.constant
    return PublicHead(moved, slopes, positive.sum(axis=0))


def _descended(
    x: Float[np.ndarray, "n coordinates"], labels: Float[np.ndarray, "n findings"], steepest: float
) -> Float[np.ndarray, "coordinates findings"]:
    """Logistic regression by full-batch descent from zero; unknown labels add nothing."""
    known, moved = ~np.isnan(labels), np.zeros((x.shape[1], labels.shape[1]))
    for _ in range(STEPS):
        residuals = np.where(known, np.nan_to_num(labels) - expit(x @ moved), 0.0)
        moved += LENGTH / STEPS / steepest * (x.T @ residuals) / max(1, len(x))
    return moved


def calibrated(
    logits: Float[np.ndarray, "n findings"], labels: Float[np.ndarray, "n findings"]
) -> tuple[Float[np.ndarray, "findings"], Float[np.ndarray, "findings"]]:
    """Slope, from 0 to 1, and intercept that calibrate each finding's logits by public images' labels.

    A head that was trained with class weights predicts too much of every finding; released steps would be
    spent on its intercepts. A finding with fewer than `FEWEST` positive or negative images, or whose logits
    say nothing or the contrary, keeps slope 1 and intercept 0.

    Args:
        logits: of public images.
        labels: 1, 0 or NaN (unknown).
    """
    slopes, offsets = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
    for f in range(logits.shape[1]):
        known = ~np.isnan(labels[:, f])
        x, y = logits[known, f], labels[known, f]
        if min((y == 1).sum(), (y == 0).sum()) < FEWEST:
            continue
        slope, _ = _regression(x, y)
        if slope > 0:
            slopes[f] = min(slope, 1.0)
            offsets[f] = _intercept(slopes[f] * x, y)
    return slopes, offsets


def _intercept(logits: Float[np.ndarray, "n"], labels: Float[np.ndarray, "n"]) -> float:
    """What the logits lack for their mean probability to be the share of positive labels."""
    found: Any = brentq(lambda offset: expit(logits + offset).mean() - labels.mean(), -50, 50)
    return float(found)


def _slope(logits: Float[np.ndarray, "n"], labels: Float[np.ndarray, "n"]) -> float:
    """Of the logistic regression of labels on logits, with an intercept; from 0 to 1."""
    known = ~np.isnan(labels)
    if not known.any() or not np.ptp(logits[known]) > 0:
        return 0.0
    return float(np.clip(np.nan_to_num(_regression(logits[known], labels[known])[0]), 0, 1))


def _regression(logits: Float[np.ndarray, "n"], labels: Float[np.ndarray, "n"]) -> Float[np.ndarray, "2"]:
    """Slope and intercept of the logistic regression of known labels on logits, by Newton's steps."""
    design = np.stack([logits, np.ones(len(logits))], axis=1)
    found = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        p = expit(design @ found)
        curvature = design.T * (p * (1 - p)) @ design + 1e-6 * np.eye(2)
        found += np.linalg.solve(curvature, design.T @ (labels - p))
    return found
