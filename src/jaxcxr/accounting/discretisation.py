"""The privacy loss of one release on a grid, from above and from below.

Above: the line is cut where the loss is a multiple of the grid; the probabilities P and Q of each piece are
spread onto the two multiples at its ends, so that both sums are kept (the "connect the dots" of Doroshenko et
al. 2022). That is a mean-preserving spread of the likelihood ratio under Q, and delta(epsilon) is the mean of
a convex function of it: the result dominates the pair.

Below: pieces about the multiples of the grid are merged. That is post-processing, so that the merged pair is
dominated. Its losses log P/Q lie off the grid by `offsets`, which the composition accounts for.

Rounding errors are kept on the safe side: probabilities are raised (lowered) by their error bounds, and
`slack` bounds the error of the loss at the cuts.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxcxr.accounting.dominating_pair import UNIT_ROUNDOFF, Pair, Side

HIGHEST_LOSS = 540.0
"""Larger losses of one release count as infinite (upper bound) or as this one (lower bound)."""


@dataclasses.dataclass(frozen=True)
class GridLoss:
    """The loss of one release under P, bounded by probabilities on multiples of a grid.

    Attributes:
        first: the multiple of the first probability.
        probabilities: of the multiples first, first + 1, ...
        offsets: for a lower bound, the true loss of each piece minus its multiple; None for an upper bound.
        slack: for an upper bound, how much a true loss may exceed its multiple.
        infinite: for an upper bound, the probability of a loss beyond the grid.
    """

    first: int
    probabilities: Float[np.ndarray, "n"]
    offsets: Float[np.ndarray, "n"] | None = None
    slack: float = 0.0
    infinite: float = 0.0


def on_grid(pair: Pair, grid: float, side: Side) -> GridLoss:
    """The loss of `pair` on multiples of `grid`, for an upper or a lower bound on delta."""
    return _spread(pair, grid) if side == "upper" else _merged(pair, grid)


def range_of(pair: Pair) -> tuple[float, float]:
    """Range of losses on the grid: from `pair.low` to `pair.high`, at most `HIGHEST_LOSS` in magnitude."""
    low, high = pair.loss(np.array([pair.low, pair.high]))[0]
    return float(max(low, -HIGHEST_LOSS)), float(min(high, HIGHEST_LOSS))


def _spread(pair: Pair, grid: float) -> GridLoss:
    low, high = range_of(pair)
    first, last = int(np.floor(low / grid)), int(np.ceil(high / grid))
    losses = np.arange(first, last + 1) * grid
    edges = pair.places(losses)
    p, p_error, q, q_error = _masses(pair, edges)
    # The share of P that goes to the upper end: (1 - exp(loss) Q/P) / (1 - exp(-grid)).
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.exp(losses[:-1] + np.log(q) - np.log(p))
        error = (p_error / p + q_error / np.maximum(q, q_error)) * ratio + 8 * UNIT_ROUNDOFF * (
            1 + np.abs(losses[:-1])
        )
        share = (1 - ratio + error) / -np.expm1(-grid)
    share = np.where(np.isfinite(share), np.clip(share, 0.0, 1.0), 1.0)
    raised = p + p_error
    probabilities = np.zeros(len(losses))
    probabilities[1:] += raised * share
    probabilities[:-1] += raised * (1 - share)
    below, below_error = pair.p.masses(np.array([-np.inf, edges[0]]), pair.sigma)
    probabilities[0] += below[0] + below_error[0]
    above, above_error = pair.p.masses(np.array([edges[-1], np.inf]), pair.sigma)
    finite = np.isfinite(edges)
    found, _, rounding = pair.loss(edges[finite])
    slack = float(np.max(np.abs(found - losses[finite]) + rounding, initial=0.0))
    least, most = pair.limits()
    slack = max(
        slack,
        float(np.max(losses[edges == -np.inf] - least, initial=0.0)),
        float(np.max(most - losses[edges == np.inf], initial=0.0)),
    )
    return GridLoss(
        first, probabilities, slack=slack, infinite=float(above[0] + above_error[0]) + pair.p.missing
    )


def _merged(pair: Pair, grid: float) -> GridLoss:
    low, high = range_of(pair)
    first, last = int(np.floor(low / grid)), int(np.ceil(high / grid))
    cuts = pair.places((np.arange(first, last) + 0.5) * grid)
    p, p_error, q, q_error = _masses(pair, np.concatenate([[-np.inf], cuts, [np.inf]]))
    lowered, raised = np.maximum(p - p_error, 0.0), q + q_error
    losses = np.arange(first, last + 1) * grid
    with np.errstate(divide="ignore", invalid="ignore"):
        true = np.log(lowered) - np.log(raised) - 8 * UNIT_ROUNDOFF * (1 + np.abs(losses))
    # If the loss is unbounded, the lowest piece has almost no probability and lies far off: it is left out.
    lowered = np.where(true < losses - grid, 0.0, lowered)
    offsets = np.where(lowered > 0, np.minimum(true - losses, grid), 0.0)
    return GridLoss(first, lowered, offsets)


def _masses(pair: Pair, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return *pair.p.masses(edges, pair.sigma), *pair.q.masses(edges, pair.sigma)
