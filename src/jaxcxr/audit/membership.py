"""Who was trained on? Attacks that name members of the training set, patient by patient: LiRA and RMIA.

Both compare what a model says of a patient with what reference models say, of which each was trained on a
random half of the cohort, so that every patient was inside about half of them. The unit is the patient: what
a model says of several images is averaged first.

- LiRA (Carlini et al. 2022, arXiv 2112.03570, Algorithm 1): per finding, the log odds of the true label are
  taken for Gaussian, with one mean over the references that had the patient and one over those that had not;
  the score is the log ratio of the two densities, summed over findings. Its offline form uses the references
  that did not have the patient alone, for a model that was trained otherwise than its references.
- RMIA (Zarifzadeh, Liu & Shokri 2024, arXiv 2312.03262): the likelihood of the patient's labels over its mean
  over the references, p(x | model) / p(x); the score is the share of other people z, not in the training set,
  of whom this ratio is at most as large (gamma 1); equal shares are ordered by the ratio itself.

A score decides nothing by itself: a threshold does, and what counts is how many members lie above it where
few non-members do. Nothing here is covered by any privacy guarantee: scores stay where the images stay.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.special import expit, logsumexp
from scipy.stats import hypergeom

OWN_VARIANCE_FROM = 32
"""Number of reference models on either side from which LiRA gives each patient a variance of its own; with
fewer it pools them over patients (as the paper does below 64 models in all)."""
_LEAST_VARIANCE = 1e-6
_LEAST_SPREAD = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What models say of patients whose labels are known.

    Attributes:
        confidence: log odds of the true label, mean over a patient's images; 0 where no image has a label.
        likelihood: log likelihood of the labels, summed over findings, mean over a patient's images.
    """

    confidence: Float32[np.ndarray, "models patients findings"]
    likelihood: Float32[np.ndarray, "models patients"]


def said_of_patients(
    logits: Float[np.ndarray, "models images findings"],
    labels: Float[np.ndarray, "images findings"],
    patients: Int[np.ndarray, " images"],
) -> Said:
    """What models say, per patient.

    Args:
        logits: of each model.
        labels: 1, 0 or NaN, which counts for nothing.
        patients: number of each image's patient, from 0 without gaps.
    """
    known, count = ~np.isnan(labels), int(patients.max()) + 1
    true = (np.where(labels == 1, 1.0, -1.0) * known).astype(np.float32) * logits.astype(np.float32)
    likely = -(np.logaddexp(0.0, -true) * known).sum(axis=-1)
    images, labelled = np.bincount(patients, minlength=count), np.zeros((count, labels.shape[1]))
    np.add.at(labelled, patients, known)
    confidence = np.zeros((len(logits), count, labels.shape[1]), np.float32)
    likelihood = np.zeros((len(logits), count), np.float32)
    for model in range(len(logits)):
        np.add.at(confidence[model], patients, true[model])
        np.add.at(likelihood[model], patients, likely[model])
    return Said(
        (confidence / np.maximum(labelled, 1)).astype(np.float32), (likelihood / images).astype(np.float32)
    )


def stacked(parts: Sequence[Said]) -> Said:
    """Several models' as one."""
    return Said(
        np.concatenate([part.confidence for part in parts]), np.concatenate([p.likelihood for p in parts])
    )


def halves(models: int, patients: int, rng: np.random.Generator) -> Bool[np.ndarray, "{models} {patients}"]:
    """For each model a random half of the patients, drawn anew."""
    inside = np.zeros((models, patients), bool)
    for row in inside:
        row[rng.permutation(patients)[: patients // 2]] = True
    return inside


def lira_offline(
    of: Said, references: Said, inside: Bool[np.ndarray, "references patients"]
) -> Float[np.ndarray, "models patients"]:
    """Score of each patient in each of several models that were trained otherwise than their references.

    The distance of the log odds from the mean over the references without the patient, in standard deviations
    over them, summed over findings. The references' log odds are first brought to the scale of the model by a
    line per finding, fitted to all patients, members or not, so that it tells nothing of who is one.

    Args:
        of: the models that are attacked.
        references: models whose training sets are known.
        inside: whom they were trained on.
    """
    absent = _moments(references.confidence, ~inside)
    spread = np.sqrt(_variance(absent, own=_enough(absent)))
    return np.stack([((row - _on_scale_of(row, absent.mean)) / spread).sum(axis=-1) for row in of.confidence])


def lira_among(
    said: Said, inside: Bool[np.ndarray, "models patients"]
) -> Float[np.ndarray, "models patients"]:
    """Score of each patient in each of several models, the other ones being its references."""
    confidence = said.confidence.astype(np.float64)
    sides = [_Sums.of(confidence, which) for which in (inside, ~inside)]
    scores = np.empty(inside.shape)
    for model, row in enumerate(confidence):
        there = sides[0].without(row, inside[model]).moments()
        absent = sides[1].without(row, ~inside[model]).moments()
        scores[model] = _log_ratio(row, there, absent)
    return scores


def rmia(
    of: Said, references: Said, non_members: Bool[np.ndarray, "models patients"]
) -> Float[np.ndarray, "models patients"]:
    """Score of each patient in each model: the share of non-members z with a ratio at most that of x.

    Args:
        of: the models that are attacked.
        references: models half of which were trained on each patient.
        non_members: the people z of each model, x itself being left out.
    """
    prior = logsumexp(references.likelihood.astype(np.float64), axis=0) - np.log(len(references.likelihood))
    return _among_people(of.likelihood - prior, non_members)


def rmia_among(
    said: Said, inside: Bool[np.ndarray, "models patients"]
) -> Float[np.ndarray, "models patients"]:
    """Score of each patient in each of several models, the other ones being its references."""
    likelihood = said.likelihood.astype(np.float64)
    scores = np.empty(inside.shape)
    for model, row in enumerate(likelihood):
        others = np.delete(likelihood, model, axis=0)
        ratio = row - (logsumexp(others, axis=0) - np.log(len(others)))
        scores[model] = _among_people(ratio[None], ~inside[model][None])[0]
    return scores


def threshold_at(scores: Float[np.ndarray, " n"], rate: float) -> float | None:
    """Lowest threshold at or above which at most a share `rate` of non-members' scores lies; None where they
    are too few for such a share (fewer than 1 / rate).
    """
    allowed = int(np.floor(rate * len(scores) * (1 + 1e-12)))
    if allowed < 1:
        return None
    ordered = np.sort(scores)[::-1]
    above = ordered[:allowed][ordered[:allowed] > ordered[min(allowed, len(ordered) - 1)]]
    return float(above[-1]) if len(above) else float(np.nextafter(ordered[0], np.inf))


def p_of_members_on_top(
    scores: Float[np.ndarray, " n"], member: Bool[np.ndarray, " n"], rate: float
) -> float:
    """Exact p-value of 'scores do not know who is a member': are more members among the highest scores than
    chance would put there?

    The share `rate` of all people with the highest scores is taken, all equal ones or none; if members and
    non-members were swapped at random, the number of members among them would be hypergeometric.
    """
    top = int(np.ceil(rate * len(scores)))
    chosen = scores >= np.sort(scores)[::-1][top - 1]
    found = int((chosen & member).sum())
    return float(hypergeom.sf(found - 1, len(scores), int(member.sum()), int(chosen.sum())))


def p_of_patients(
    accused: Bool[np.ndarray, "models patients"], inside: Bool[np.ndarray, "models patients"]
) -> Float[np.ndarray, " patients"]:
    """Exact p-value per patient of 'accused no more often where inside than where not' (Fisher's test)."""
    found = (accused & inside).sum(axis=0)
    return hypergeom.sf(found - 1, len(inside), inside.sum(axis=0), accused.sum(axis=0))


@dataclasses.dataclass(frozen=True, eq=False)
class _Moments:
    mean: Float[np.ndarray, "patients findings"]
    variance: Float[np.ndarray, "patients findings"]
    count: Int[np.ndarray, " patients"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
    total: Float[np.ndarray, "patients findings"]
    squares: Float[np.ndarray, "patients findings"]
    count: Int[np.ndarray, " patients"]

    @staticmethod
    def of(values: Float[np.ndarray, "models patients findings"], which: Bool[np.ndarray, "m n"]) -> "_Sums":
        weights = which.astype(np.float64)
        total, squares = (np.einsum("mn,mnf->nf", weights, values**power) for power in (1, 2))
        return _Sums(total, squares, which.sum(axis=0))

    def without(
        self, row: Float[np.ndarray, "patients findings"], which: Bool[np.ndarray, " patients"]
    ) -> "_Sums":
        own = which[:, None] * row
        return _Sums(self.total - own, self.squares - own * row, self.count - which)

    def moments(self) -> _Moments:
        n = np.maximum(self.count, 1)[:, None]
        mean = self.total / n
        spread = np.maximum(self.squares - n * mean**2, 0) / np.maximum(n - 1, 1)
        return _Moments(mean, spread, self.count)


def _moments(values: Float[np.ndarray, "m n f"], which: Bool[np.ndarray, "m n"]) -> _Moments:
    return _Sums.of(values.astype(np.float64), which).moments()


def _enough(moments: _Moments) -> bool:
    return int(moments.count.min()) >= OWN_VARIANCE_FROM


def _variance(moments: _Moments, *, own: bool) -> Float[np.ndarray, "patients findings"]:
    """Of each patient, or its mean over patients; at least a little, for findings without a label."""
    floored = np.maximum(moments.variance, _LEAST_VARIANCE)
    return floored if own else np.broadcast_to(floored.mean(axis=0), floored.shape)


def _log_ratio(row: Float[np.ndarray, "n f"], there: _Moments, absent: _Moments) -> Float[np.ndarray, " n"]:
    densities, own = [], _enough(there) and _enough(absent)
    for side in (there, absent):
        variance = _variance(side, own=own)
        densities.append(-0.5 * (row - side.mean) ** 2 / variance - 0.5 * np.log(variance))
    labelled = (row != 0) | (there.mean != 0) | (absent.mean != 0)
    return ((densities[0] - densities[1]) * labelled).sum(axis=-1)


def _on_scale_of(
    row: Float[np.ndarray, "patients findings"], mean: Float[np.ndarray, "patients findings"]
) -> Float[np.ndarray, "patients findings"]:
    fitted = np.empty(mean.shape)
    for finding in range(mean.shape[1]):
        x, y = mean[:, finding], row[:, finding].astype(np.float64)
        variance = x.var()
        slope = float(((x - x.mean()) * (y - y.mean())).mean() / variance) if variance > 0 else 0.0
        fitted[:, finding] = y.mean() + slope * (x - x.mean())
    return fitted


def _among_people(
    ratios: Float[np.ndarray, "models patients"], people: Bool[np.ndarray, "models patients"]
) -> Float[np.ndarray, "models patients"]:
    scores = np.empty(ratios.shape)
    for model, (row, there) in enumerate(zip(ratios, people, strict=True)):
        people_there = row[there]
        below = np.searchsorted(np.sort(people_there), row, "right") - there
        # between two shares, by the ratio itself: many people lie above all others
        inner = expit((row - people_there.mean()) / max(float(people_there.std()), _LEAST_SPREAD))
        scores[model] = (below + inner) / (there.sum() - there + 1)
    return scores
