"""Lower bounds on epsilon from recorded runs: three white-box attacks and one on the final weights.

The canaries' coins were fair and independent of everything else. Bounds are reported together, each at a
fixed share of the error probability, so that the largest of them holds at `CONFIDENCE`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxcxr.audit.lower_bounds import epsilon_from_scores
from jaxcxr.audit.rank_bound import rank_epsilon
from jaxcxr.audit.recording import Recording
from jaxcxr.audit.shift_bound import epsilon_from_shift, shift_lower
from jaxcxr.audit.subject import Units
from jaxcxr.training import parameters

CONFIDENCE = 0.95
SHIFT, ORDER = "white-box, every step", "white-box, order of scores"
ONE_RUN, WEIGHTS = "white-box, guesses", "final weights, guesses"
SHARES = {SHIFT: 0.4, ORDER: 0.2, ONE_RUN: 0.2, WEIGHTS: 0.2}
"""Of the error probability 1 - CONFIDENCE."""
_ORTHOGONAL = 0.7
"""A canary is scored in a step if so much of its contribution lies along its own direction."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack on the canaries.

    Attributes:
        name: of it.
        epsilon_lower: what it proves, at its share of the error probability.
        scores: of each canary of each run, higher where it is held for included; of `SHIFT`, those of
            `ORDER`, whose steps it looks at one by one.
    """

    name: str
    epsilon_lower: float
    scores: Float[np.ndarray, " canaries"]


def attacks(runs: Sequence[Recording], canaries: Units) -> tuple[list[Attack], Bool[np.ndarray, " canaries"]]:
    """All attacks on runs with different secrets and coins, and the coins."""
    m = runs[0].mechanism
    steps = len(runs[0].steps)
    claim = m.spending(steps)
    included = np.concatenate([run.included for run in runs])
    observed = [_observed(run) for run in runs]
    white = np.concatenate([_likelihoods(*seen, m.sample_rate) for seen in observed])
    black = np.concatenate([_margins(run, canaries) for run in runs])

    def confidence(name: str) -> float:
        return 1 - (1 - CONFIDENCE) * SHARES[name]

    scores, shifts, drawn = (np.concatenate([seen[i] for seen in observed], axis=1) for i in range(3))
    own = shifts >= _ORTHOGONAL * shifts.max()
    shift = shift_lower(scores[own], drawn[own], confidence(SHIFT))
    in_turn = _in_turn(scores, np.concatenate([run.canaries_own for run in runs], axis=1), claim.steps)
    delta = m.delta
    bounds = {
        SHIFT: (epsilon_from_shift(shift, m.sample_rate, claim.steps, delta), white),
        ORDER: (rank_epsilon(in_turn[:, included], claim, delta, confidence(ORDER)), white),
        ONE_RUN: (epsilon_from_scores(white, included, delta, confidence(ONE_RUN)), white),
        WEIGHTS: (epsilon_from_scores(black, included, delta, confidence(WEIGHTS)), black),
    }
    return [Attack(name, float(bound), scored) for name, (bound, scored) in bounds.items()], included


def _observed(run: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, shifts and draws, [steps, canaries]. A score is the noise along the canary's direction, and
    its contribution's part if it was drawn: what is released, less what all others contribute. A canary that
    is not of a step's group has no shift in it.
    """
    drawn = run.canaries_drawn
    shifts = np.stack([step.shifts for step in run.steps]) * run.canaries_own
    return np.stack([step.alignments for step in run.steps]) + shifts * drawn, shifts, drawn


def _in_turn(
    scores: Float[np.ndarray, "steps n"], own: Bool[np.ndarray, "steps n"], rounds: int
) -> Float[np.ndarray, "rounds n"]:
    """Scores in the steps of each canary's own group; one that had a step less than others has its score in
    another group's step beside them, which is noise alone.
    """
    first = np.argsort(~own, axis=0, kind="stable")[:rounds]
    return np.take_along_axis(scores, first, axis=0)


def _likelihoods(
    scores: Float[np.ndarray, "steps canaries"],
    shifts: Float[np.ndarray, "steps canaries"],
    drawn: Bool[np.ndarray, "steps canaries"],
    rate: float,
) -> Float[np.ndarray, " canaries"]:
    """Log likelihood ratio of being included, for an attacker who knows all but this canary's coin and
    draws (`drawn` is not looked at): the best score there is.
    """
    del drawn
    return np.log1p(rate * np.expm1(np.minimum(shifts * scores - np.square(shifts) / 2, 700.0))).sum(axis=0)


def _margins(run: Recording, canaries: Units) -> Float[np.ndarray, " canaries"]:
    """Of the final weights alone: how much likelier a canary's random labels are than their opposites."""
    network = parameters.network_of(run.plan.config)
    params: Any = jax.tree.map(jnp.asarray, run.final)
    logits = jax.jit(lambda images: jax.lax.map(lambda image: network.apply(params, image), images))
    n, k = canaries.is_image.shape
    found = np.asarray(logits(canaries.images.reshape(n * k, *canaries.images.shape[2:])), np.float64)
    return ((2 * canaries.labels - 1) * found.reshape(n, k, -1)).mean(axis=1).sum(axis=-1)
