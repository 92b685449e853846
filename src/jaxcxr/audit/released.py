"""Attack a released model with the hospital's own images: was this patient trained on, or held out?

A patient of the training split and one of the test split are paired at random, one image each, and the model
says which of the two it knows: the one whose labels it finds likelier. If patients were dealt to the splits
at random, which of a pair was trained on is a fair coin, and exchanging the two exchanges one unit for
another in the training data. Where the unit is the image, only patients with one image are paired: others
would exchange several units at once. So the number of right guesses is bounded by epsilon of replacing one
unit (Steinke, Nasr & Jagielski 2023, Theorem 5.2; see `lower_bounds`), whatever the guesses have to do with
each other.

Assumes: the split was random by patient; a split that was given by somebody else may tell the two apart by
itself, which an attacker would take for exposure. The number of guesses is chosen among `GUESS_SHARES`, each
at its share of the confidence; equal likelihoods are no guess. It is one attack with the one thing that a
release gives, its weights: that it finds nothing proves nothing.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxcxr.audit.attacks import CONFIDENCE
from jaxcxr.audit.lower_bounds import GUESS_SHARES, one_run_epsilon
from jaxcxr.data.store import Split
from jaxcxr.errors import InputError

LEAST_PAIRS = 20
_PIECE = 1024

Predict = Callable[[np.ndarray], Float[np.ndarray, "n findings"]]
"""From images of a store to the model's scores between 0 and 1."""


@dataclasses.dataclass(frozen=True)
class ReleaseAttack:
    """What a released model gives away about who was trained on.

    Attributes:
        pairs: of one trained and one held-out patient.
        right: share of pairs that are told apart, over all pairs; one half is guessing.
        epsilon_lower: proved of exchanging one unit for another, at `confidence`.
        confidence: of it.
    """

    pairs: int
    right: float
    epsilon_lower: float
    confidence: float = CONFIDENCE


def attack_release(
    predict: Predict,
    splits: tuple[Split, Split],
    delta: float,
    rng: np.random.Generator,
    *,
    of_images: bool = False,
    most: int = 5000,
) -> ReleaseAttack:
    """Attack a model.

    Args:
        predict: of the released model.
        splits: images of the training split, and of patients that were not trained on.
        delta: of the guarantee for exchanging one unit.
        rng: pairs them.
        of_images: whether the unit is the image, so that patients with several ones are left out.
        most: pairs at most.

    Raises:
        InputError: there are too few patients on one side.
    """
    sides = [_one_each(split, rng, alone=of_images) for split in splits]
    pairs = min(*(len(side) for side in sides), most)
    if pairs < LEAST_PAIRS:
        raise InputError(
            f"the store has {len(sides[0])} training and {len(sides[1])} test patients with labels"
            f"{' and one image each' if of_images else ''}; an attack on a release needs at least "
            f"{LEAST_PAIRS} of each"
        )
    known = [_known(predict, split, side[:pairs]) for split, side in zip(splits, sides, strict=True)]
    return told_apart(known[0] - known[1], delta)


def told_apart(differences: Float[np.ndarray, " pairs"], delta: float) -> ReleaseAttack:
    """The bound that follows from how much likelier the trained one of each pair is.

    Guesses are made of the pairs with the largest differences of either sign; pairs whose difference is zero,
    or equal to that of a pair for which there is no guess, have none.
    """
    if np.isnan(differences).any():
        raise ValueError("differences: expected numbers, found NaN")
    pairs, size = len(differences), np.abs(differences)
    ascending, share = np.sort(size), (1 - CONFIDENCE) / len(GUESS_SHARES)
    bounds = []
    for part in GUESS_SHARES:
        guesses = max(1, int(part * pairs))
        floor = ascending[-guesses - 1] if guesses < pairs else 0.0
        guessed = size > max(floor, 0.0)
        right = int((differences[guessed] > 0).sum())
        bounds.append(one_run_epsilon(pairs, int(guessed.sum()), right, delta, 1 - share))
    right = float((differences > 0).mean() + 0.5 * (differences == 0).mean())
    return ReleaseAttack(pairs, right, max(bounds))


def _one_each(split: Split, rng: np.random.Generator, *, alone: bool) -> np.ndarray:
    """One labelled image of every patient, or of those with one image alone; patients in random order."""
    labelled = np.flatnonzero(~np.isnan(split.labels).all(axis=1))
    everybody = split.frame["patient_id"].astype(str)
    if alone:
        labelled = labelled[~everybody.duplicated(keep=False).to_numpy()[labelled]]
    order = rng.permutation(labelled)
    _, first = np.unique(everybody.to_numpy()[order], return_index=True)
    return order[rng.permutation(first)]


def _known(predict: Predict, split: Split, images: np.ndarray) -> Float[np.ndarray, " n"]:
    """Mean log likelihood of the known labels of each image."""
    found = []
    for first in range(0, len(images), _PIECE):
        some = images[first : first + _PIECE]
        scores = np.clip(np.asarray(predict(split.read(some)), np.float64), 1e-7, 1 - 1e-7)
        labels = split.labels[some]
        found.append(np.nanmean(np.log(np.where(labels == 1, scores, 1 - scores)) + 0 * labels, axis=1))
    return np.concatenate(found)
