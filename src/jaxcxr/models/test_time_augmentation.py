"""What is predicted for a film: the network's probabilities on it, or those of its mean logits over several
views of it.

Post-processing of released weights, hence free of privacy cost. `mirrored` doubles the arithmetic of a
prediction, `mirrored_moved` makes it ten times as much; training has none of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxcxr.config import Views
from jaxcxr.per_example.gradients import quick

MOVED_BY = 1 / 32
"""How far a film is moved, in parts of its side."""


def predictor(
    network: nn.Module, views: Views, other_side: Sequence[int] | None = None, any_batch: bool = False
) -> Callable[[Any, UInt8[Array, "n h w"]], Float[Array, "n findings"]]:
    """The function (parameters, films) -> probabilities, to be compiled by whoever calls it.

    Args:
        network: from one film to the logits of its findings.
        views: `one`: the film as it is; `mirrored`: also flipped left to right, where the findings of the two
            sides change places; `mirrored_moved`: both of these also moved up, down, left and right.
        other_side: index of each finding's counterpart on a flipped film
            (`data.findings.mirror_permutation`).
        any_batch: for films in a number that is left open (an export); else convolutions are as quick as the
            platform can.

    Raises:
        ValueError: films are to be flipped, and `other_side` is not given.
    """
    if views != "one" and other_side is None:
        raise ValueError(f"other_side: needed for views {views!r}")

    apply: Any = network.apply if any_batch else quick(network.apply)

    def logits(params: Any, film: Any) -> Any:
        if views == "one":
            return apply(params, film)
        plain = [film] if views == "mirrored" else [film, *_moved(film)]
        seen = jnp.stack([*plain, *(view[:, ::-1] for view in plain)])
        found: Any = jax.vmap(apply, in_axes=(None, 0))(params, seen)
        return jnp.concatenate([found[: len(plain)], found[len(plain) :, jnp.asarray(other_side)]]).mean(
            axis=0
        )

    return lambda params, films: jax.nn.sigmoid(jax.vmap(logits, in_axes=(None, 0))(params, films))


def _moved(film: Any) -> list[Any]:
    """The film moved in four directions; what comes in at an edge repeats it."""
    by = max(1, round(MOVED_BY * film.shape[0]))
    wide = jnp.pad(film, by, mode="edge")
    h, w = film.shape
    return [wide[by + i : by + i + h, by + j : by + j + w] for i, j in ((-by, 0), (by, 0), (0, -by), (0, by))]
