"""Per-example gradients, clipped in L2 norm and summed: what one microbatch contributes to a private step.

Guarantee: for every example i the summed contribution is its gradient g_i, scaled by the rule so that its L2
norm is at most C, or exactly zero for padding. Adding or removing one example moves the sum by at most C
(Abadi et al. 2016, Algorithm 1). The sum is exact but for float32's rounding: nothing is divided here. An
example is whatever the claim protects: one image, or one patient with the mean loss of their images.

A gradient that is not finite is not hidden: the sum, and with it the weights, become not finite and training
stops. Images are bytes and labels 0, 1 or unknown, so that no single example can bring that about; only
weights that have run away can.

Two ways compute the same sum. `vmap` differentiates every example's loss and holds all gradients at once; it
is the definition and the reference. `layerwise` (`per_example.gradients`) makes one backward pass, takes
norms parameter by parameter, and holds examples' gradients only of those parameters for which that costs
less.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxcxr.per_example import gradients
from jaxcxr.per_example.gradients import Loss

Layer = tuple[str, ...]
OfLayers = Mapping[Layer, Float[Array, "n"]]
"""One number for each layer and example."""
Method = Literal["vmap", "layerwise"]

LEAST = 1e-6
"""Of a clip norm and of a stability: squares of norms below 1e-19 vanish in float32, and the norms with them.
"""
CLIP_MARGIN = 1e-5
"""Contributions are clipped this fraction below the clip norm, so that float32 rounding cannot carry the
sum's sensitivity above it.
"""


@runtime_checkable
class ClipRule(Protocol):
    """From the norms of an example's gradient to the factors by which it is scaled."""

    def factors(self, squared: OfLayers, l2_clip_norm: Any) -> OfLayers:
        """Factors of each layer's part, given its squared norms.

        Guarantee: sum over layers of (factor^2 x squared norm) <= l2_clip_norm^2 in exact arithmetic, for
        every example whose norms are finite. A norm that is not finite gives a factor that is not.
        """
        ...


@runtime_checkable
class AdaptiveRule(Protocol):
    """A rule with a public state, which learns from one more coordinate of each contribution (`adaptive`)."""

    def start(self) -> PyTree:
        """The state before the first step, a tree of arrays."""
        ...

    def at(self, state: PyTree) -> ClipRule:
        """The rule of one step."""
        ...

    def coordinates(self, norms: Float[Array, "n"], l2_clip_norm: float, state: PyTree) -> Float[Array, "n"]:
        """Those of units with gradients of such norms.

        Guarantee: with what `at(state)` leaves of its gradient, a unit's is at most l2_clip_norm long.
        """
        ...

    def learnt(self, released: "Extended", l2_clip_norm: float, state: PyTree) -> tuple[PyTree, PyTree]:
        """The mean gradient that was released, and the next state: post-processing."""
        ...

    def clip_norm(self, l2_clip_norm: float, state: PyTree) -> Float[Array, ""]:
        """To which a step at this state clips gradients."""
        ...


class Extended(NamedTuple):
    """A gradient and one more coordinate, of one unit, summed or released."""

    gradient: PyTree
    coordinate: Any


@dataclasses.dataclass(frozen=True)
class Flat:
    """The whole gradient is clipped: min(1, C / |g|) for all layers alike.

    With `stability` gamma the factor is C / (|g| + gamma) instead (automatic clipping, Bu et al. 2023, arXiv
    2206.07136): it lengthens short gradients too, and the product is again shorter than C whatever the
    gradient.
    """

    stability: float | None = None

    def __post_init__(self) -> None:
        """Refuse a stability that float32 cannot hold beside a norm."""
        _check_stability(self.stability)

    def factors(self, squared: OfLayers, l2_clip_norm: Any) -> OfLayers:
        """The same factors for all layers."""
        return dict.fromkeys(squared, clip_factors(total_of_layers(squared), l2_clip_norm, self.stability))


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """Each of the L layers with parameters is clipped to its share: min(1, C / (sqrt(L) |g_l|)) for its part
    g_l.

    Each part has norm at most C / sqrt(L), so that the whole has at most C (McMahan et al. 2018, arXiv
    1710.06963, 'per-layer clipping').
    """

    stability: float | None = None

    def __post_init__(self) -> None:
        """Refuse a stability that float32 cannot hold beside a norm."""
        _check_stability(self.stability)

    def factors(self, squared: OfLayers, l2_clip_norm: Any) -> OfLayers:
        """Each layer's own factors."""
        share = l2_clip_norm / math.sqrt(len(squared))
        return {layer: clip_factors(own, share, self.stability) for layer, own in squared.items()}


def _check_stability(stability: float | None) -> None:
    if stability is not None and not LEAST <= stability < math.inf:
        raise ValueError(f"stability: expected at least {LEAST:g}, found {stability!r}")


def clip_factors(squared: Float[Array, "n"], l2_clip_norm: Any, stability: Any = None) -> Float[Array, "n"]:
    """min(1, C / norm), or C / (norm + stability); of squared norms."""
    norms = jnp.sqrt(squared)
    if stability is not None:
        return l2_clip_norm / (norms + stability)
    return jnp.minimum(1.0, l2_clip_norm / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))


def layer_of(path: Sequence[Any]) -> Layer:
    """The layer to which the parameter at `path` of a tree belongs: the node that holds it."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path[:-1])


def by_layer(squared: PyTree) -> OfLayers:
    """Squared norms of each layer's gradients, given those of each parameter's."""
    found: dict[Layer, Any] = {}
    for path, own in jax.tree_util.tree_leaves_with_path(squared):
        found[layer_of(path)] = found[layer_of(path)] + own if layer_of(path) in found else own
    return found


def total_of_layers(squared: OfLayers) -> Float[Array, "n"]:
    """Squared norms of whole gradients."""
    first, *others = squared.values()
    return sum(others, start=first)


def factors_of_parameters(
    squared: PyTree, is_real: Bool[Array, "n"], l2_clip_norm: Any, rule: ClipRule
) -> tuple[PyTree, Float[Array, "n"]]:
    """The factors of each parameter's gradients, 0 for padding, and the squared norms of whole gradients."""
    layers = by_layer(squared)
    factors = {
        layer: jnp.where(is_real, own, 0.0) for layer, own in rule.factors(layers, l2_clip_norm).items()
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, _: factors[layer_of(path)], squared
    ), total_of_layers(layers)


def clipped_sum(
    loss: Loss,
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    l2_clip_norm: Any,
    rule: ClipRule = Flat(),
    method: Method = "layerwise",
) -> tuple[PyTree, Float[Array, "n"], Float[Array, "n"]]:
    """The sum over a microbatch of clipped per-example gradients.

    Args:
        loss: of one example.
        params: floating-point leaves.
        examples: leaves with a leading axis of n examples.
        is_real: False for padding, which contributes exactly zero.
        l2_clip_norm: C.
        rule: which part is scaled by how much.
        method: how it is computed.

    Returns:
        The sum (same tree as `params`), and the n losses and gradient norms before clipping (private; for the
        operator's eyes).
    """

    def weigh(squared: PyTree) -> PyTree:
        return factors_of_parameters(squared, is_real, l2_clip_norm * (1.0 - CLIP_MARGIN), rule)[0]

    weighted_sum = gradients.weighted_sum if method == "layerwise" else gradients.weighted_sum_vmap
    total, losses, squared = weighted_sum(loss, params, examples, weigh)
    return total, losses, jnp.sqrt(total_of_layers(by_layer(squared)))
