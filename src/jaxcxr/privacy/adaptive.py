"""A clip norm that follows a quantile of the gradient norms, learnt from the steps' own releases.

After Andrew et al. 2021 (arXiv 1905.03871, Algorithm 1 and Theorem 1). The clip norm of a step is r C, with a
public number r. A unit with gradient g contributes one vector, made of

    a clip(g / r)    and    s (1[|g| <= r C] - quantile) / max(quantile, 1 - quantile),

where clip is that of `clipping.Flat` to norm C, s = share C and a = sqrt(1 - share^2). What is released is
the noised mean of these vectors. All else is computed from it: the gradient is its first part times r / a,
and r is 1 at first and then

    r <- r exp(-learning_rate (b - quantile)),

b - quantile being its coordinate times max(quantile, 1 - quantile) / s.

Guarantee: the vector's norm is at most sqrt(a^2 C^2 + s^2) = C, the mechanism's constant, whatever r is. So a
step is one release of the same subsampled Gaussian mechanism as with a fixed clip norm: one ledger line, the
same noise, the same epsilon. That r depends on earlier releases changes nothing, as with the weights:
composition holds for queries that are chosen by what was released before. No second line is needed for the
count, since it is a coordinate of the sum and not a sum of its own; it is paid for by the factor a, which
raises the noise of the gradient by 1 / a (0.5 % for a share of 0.1), the z_delta of Andrew et al. for
sigma_b = noise multiplier / (2 share).

The coordinate is centred at the quantile, not at 1/2 as by Andrew et al., so that r rests where the share of
the drawn units is the quantile, whatever number of units was declared: the divisor is the declared expected
batch, never the drawn one. With a quantile of 1/2 both are the same.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxcxr.privacy.clipping import LEAST, Extended, OfLayers, total_of_layers

MOST = 1e12
"""The clip norm r C stays between `clipping.LEAST` and this."""


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Clip the whole gradient to a norm that starts at the mechanism's and moves towards a quantile.

    Attributes:
        quantile: of the drawn units' gradient norms, between 0 and 1.
        learning_rate: of the logarithm of the clip norm.
        share: of the constant norm C, what the coordinate may take, between 0 and 1/2. The noise of b has a
            deviation of noise multiplier x max(quantile, 1 - quantile) / (share x expected batch).
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing is learnt, or nothing is left for the gradient."""
        for name, most in (("quantile", 1.0), ("learning_rate", math.inf), ("share", 0.5)):
            if not 0 < (value := getattr(self, name)) < most:
                raise ValueError(f"{name}: expected more than 0 and less than {most:g}, found {value!r}")

    def start(self) -> Float[Array, ""]:
        """The state r before the first step."""
        return jnp.ones((), jnp.float32)

    def at(self, state: Float[Array, ""]) -> "AtScale":
        """The rule of one step."""
        return AtScale(state, self._kept)

    def coordinates(
        self, norms: Float[Array, "n"], l2_clip_norm: float, state: Float[Array, ""]
    ) -> Float[Array, "n"]:
        """Each unit's coordinate, at most share x l2_clip_norm from zero."""
        is_short = (norms <= state * l2_clip_norm).astype(jnp.float32)
        return self.share * l2_clip_norm * (is_short - self.quantile) / self._farthest

    def learnt(
        self, released: Extended, l2_clip_norm: float, state: Float[Array, ""]
    ) -> tuple[PyTree, Float[Array, ""]]:
        """The mean gradient that was released, and the state of the next step: post-processing."""
        gradient = jax.tree.map(lambda g: g * (state / self._kept), released.gradient)
        excess = released.coordinate * self._farthest / (self.share * l2_clip_norm)
        moved = state * jnp.exp(-self.learning_rate * excess)
        return gradient, jnp.clip(moved, LEAST / l2_clip_norm, MOST / l2_clip_norm)

    def clip_norm(self, l2_clip_norm: float, state: Float[Array, ""]) -> Float[Array, ""]:
        """Of a step at this state, r C."""
        return state * l2_clip_norm

    @property
    def _kept(self) -> float:
        """The norm that is left for the gradient, a."""
        return math.sqrt(1 - self.share**2)

    @property
    def _farthest(self) -> float:
        return max(self.quantile, 1 - self.quantile)


@dataclasses.dataclass(frozen=True)
class AtScale:
    """A `ClipRule`: g / scale clipped to C and shortened, kept x min(1 / scale, C / |g|), hence at most
    kept x C whatever the scale.
    """

    scale: Float[Array, ""]
    kept: float

    def factors(self, squared: OfLayers, l2_clip_norm: Any) -> OfLayers:
        """The same factors for all layers."""
        norms = jnp.maximum(jnp.sqrt(total_of_layers(squared)), jnp.finfo(jnp.float32).tiny)
        return dict.fromkeys(squared, self.kept * jnp.minimum(1 / self.scale, l2_clip_norm / norms))
