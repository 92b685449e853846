"""Every unit's clipped contribution by its definition, apart from the code under audit.

One gradient per unit by `jax.grad`, clipped in NumPy and float64 by the published formula of each rule:
min(1, C / |g|) (Abadi et al. 2016), C / (|g| + gamma) (Bu et al. 2023), min(1, C / (sqrt(L) |g_l|)) for each
of L layers (McMahan et al. 2018), and the extended vector of an adaptive rule (Andrew et al. 2021; see
`privacy.adaptive`).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxcxr.audit.subject import Units
from jaxcxr.privacy.adaptive import Adaptive
from jaxcxr.privacy.clipping import Flat, PerLayer, layer_of
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training import objective, parameters
from jaxcxr.training.plan import RunPlan

_BLOCK = 32
_COORDINATES_AT_ONCE = 2**24
"""Gradient coordinates of a block of units: 64 MB."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter in the row of all coordinates: its name, shape, and where it begins."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def part(self) -> slice:
        """Its coordinates."""
        return slice(self.start, self.start + math.prod(self.shape))


def leaves_of(tree: PyTree) -> list[Leaf]:
    """The leaves of a tree in the order of `flat`."""
    found, start = [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.append(Leaf(jax.tree_util.keystr(path), tuple(leaf.shape), start))
        start += math.prod(leaf.shape)
    return found


def flat(tree: PyTree) -> Float[np.ndarray, " d"]:
    """All coordinates in one row."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


class Reference:
    """Contributions of units to the sum of a plan's step, compiled once."""

    def __init__(self, plan: RunPlan) -> None:
        assert plan.mechanism is not None
        assert plan.weights is not None
        self._mechanism: Mechanism = plan.mechanism
        loss = objective.unit_loss(parameters.network_of(plan.config), plan.weights)
        d = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters.shapes_of(plan.config)))
        self._block = max(1, min(_BLOCK, _COORDINATES_AT_ONCE // d))
        gradient = jax.grad(loss)
        if self._block < _BLOCK:
            # Weight gradients of several images at once are grouped convolutions, for which XLA has no fast
            # kernel: large models take one image after the other.
            self._gradients: Any = jax.jit(
                lambda params, units: jax.lax.map(lambda unit: gradient(params, unit), units)
            )
        else:
            self._gradients = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))

    def contributions(self, params: PyTree, units: Units, state: Any = None) -> Float[np.ndarray, "n d"]:
        """Each unit's clipped contribution; with the coordinate that an adaptive rule adds, last.

        Args:
            params: at which gradients are taken.
            units: each with its images.
            state: of an adaptive clip rule.
        """
        rows = [self._rows(params, units.at(slice(i, i + self._block)), state) for i in self._starts(units)]
        return np.concatenate(rows) if rows else np.zeros((0, self.coordinates(params)), np.float32)

    def coordinates(self, params: PyTree) -> int:
        """Length of a contribution."""
        return len(flat(self._mechanism.contribution(params)))

    def _starts(self, units: Units) -> range:
        return range(0, len(units), self._block)

    def _rows(self, params: PyTree, units: Units, state: Any) -> np.ndarray:
        n, m = len(units), self._mechanism
        short = self._block - n
        filled = (
            np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
            for part in (units.images, units.labels, units.is_image)
        )
        tree = self._gradients(params, tuple(filled))
        rows = np.concatenate(
            [np.asarray(leaf).reshape(self._block, -1)[:n] for leaf in jax.tree.leaves(tree)], axis=1
        )
        squares = [
            (layer_of(path), np.square(np.asarray(leaf, np.float64)).reshape(self._block, -1)[:n].sum(axis=1))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]
        widths = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(tree)]
        factors, norms = _factors(m, squares, state)
        for factor, leaf_rows in zip(factors, np.split(rows, np.cumsum(widths)[:-1], axis=1), strict=True):
            leaf_rows *= factor[:, None].astype(np.float32)
        if not isinstance(m.rule, Adaptive):
            return rows
        rule, c = m.rule, clip_norm(m)
        is_short = (norms <= float(state) * c).astype(float)
        own = rule.share * c * (is_short - rule.quantile) / max(rule.quantile, 1 - rule.quantile)
        return np.concatenate([rows, own[:, None].astype(np.float32)], axis=1)


def clip_norm(mechanism: Mechanism) -> float:
    """The norm to which units are clipped, C less what is kept for rounding, which is 2 % of it at most."""
    declared = mechanism.l2_clip_norm
    return mechanism.clip_to if 0.98 * declared <= mechanism.clip_to <= declared else declared


def _factors(m: Mechanism, squares: list[tuple[Any, np.ndarray]], state: Any) -> tuple[list[Any], np.ndarray]:
    """Each leaf's factor for every unit, and the units' norms."""
    c, tiny = clip_norm(m), 1e-300
    norms = np.sqrt(functools.reduce(np.add, [own for _, own in squares]))
    if isinstance(m.rule, PerLayer):
        of_layer: dict[Any, np.ndarray] = {}
        for layer, own in squares:
            of_layer[layer] = of_layer.get(layer, 0.0) + own
        share = c / math.sqrt(len(of_layer))
        found = [_factor(np.sqrt(of_layer[layer]), share, m.rule.stability) for layer, _ in squares]
        return found, norms
    if isinstance(m.rule, Adaptive):
        kept = math.sqrt(1 - m.rule.share**2)
        factor = kept * np.minimum(1 / float(state), c / np.maximum(norms, tiny))
    else:
        stability = m.rule.stability if isinstance(m.rule, Flat) else None
        factor = _factor(norms, c, stability)
    return [factor] * len(squares), norms


def _factor(norms: np.ndarray, c: float, stability: float | None) -> np.ndarray:
    return np.minimum(1.0, c / np.maximum(norms, 1e-300)) if stability is None else c / (norms + stability)
