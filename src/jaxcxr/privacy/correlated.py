"""Noise that is correlated over several steps, computed step by step: w = C^-1 z (`accounting.banded`).

With the column 1, c_1, ..., c_(bands - 1) of C, over its norm, this is

    w_t = norm x z_t - c_1 w_(t-1) - ... - c_(bands-1) w_(t-bands+1),

z_t being the independent noise of step t, from the key of that step and no other. So bands - 1 past rows of
noise are kept, on one device of each process, and nowhere else: neither a checkpoint nor any other file has
them, and whoever deletes the secret has deleted them. A resumed run draws them again, from its first step on,
by the same compiled function, so that they are the same bits, on however many devices: as many draws of noise
as steps were done, without a gradient.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from jaxcxr.privacy import noise


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A column of C.

    Attributes:
        column: its entries from the diagonal down, over the first; (1,) correlates nothing.
    """

    column: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse a column that is none.

        Raises:
            ValueError: it does not begin with 1, or has an entry that is no number.
        """
        if not self.column or self.column[0] != 1 or not all(map(math.isfinite, self.column)):
            raise ValueError(f"column: expected finite numbers, the first 1, found {self.column!r}")

    @property
    def bands(self) -> int:
        """Over how many steps noise is correlated."""
        return len(self.column)

    @property
    def norm(self) -> float:
        """L2 norm of the column, by which C is divided: its columns then have norm 1, or less at the end."""
        return math.sqrt(sum(c * c for c in self.column))

    def nothing_yet(self, like: PyTree) -> Float[Array, "past d"]:
        """The past of the first step."""
        return jnp.zeros((self.bands - 1, noise.coordinates(like)), jnp.float32)

    def next(
        self, z: Float[Array, " d"], past: Float[Array, "past d"], step: Any
    ) -> tuple[Float[Array, " d"], Float[Array, "past d"]]:
        """The noise w of a step and the past of the next one; row i of the past is that of the last step
        equal to i modulo its rows.
        """
        rows = self.bands - 1
        ages = (step - 1 - jnp.arange(rows)) % rows  # less 1
        weights = jnp.asarray(self.column[1:], jnp.float32)[ages]
        own = self.norm * z - jnp.sum(weights[:, None] * past, axis=0)
        return own, past.at[step % rows].set(own)


class Stream:
    """The correlated noise of a run, step after step; wherever it begins, the steps before are drawn again.

    Guarantee: what `at` gives for a step is a function of the secret and the step alone.
    """

    def __init__(
        self, correlation: Correlation, stddev: float, key_of: Callable[[int], UInt32[np.ndarray, "4"]]
    ) -> None:
        """Of noise whose z has the deviation `stddev`, from the key of each step."""
        self._correlation, self._stddev, self._key_of = correlation, stddev, key_of
        self._done, self._past, self._next = 0, None, None

    def at(self, step: int, like: PyTree) -> PyTree:
        """The noise of one step, in the shapes of `like`, on one device.

        Raises:
            ValueError: the step is behind those that were drawn.
        """
        if step < self._done:
            raise ValueError(f"step: expected {self._done} or later, found {step}")
        if self._next is None:
            self._past = self._correlation.nothing_yet(like)
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), like)
            self._next = jax.jit(self._drawn(shapes), donate_argnums=1)
        drawn: Any = None
        for earlier in range(self._done, step + 1):
            drawn, self._past = self._next(self._key_of(earlier), self._past, np.int32(earlier))
        self._done = step + 1
        return drawn

    def _drawn(self, shapes: PyTree) -> Callable[..., tuple[PyTree, Any]]:
        flat = jax.ShapeDtypeStruct((noise.coordinates(shapes),), jnp.float32)

        def drawn(key: UInt32[Array, "4"], past: Float[Array, "past d"], step: Any) -> tuple[PyTree, Any]:
            z: Any = noise.gaussian_noise(key, flat, self._stddev)
            own, past = self._correlation.next(z, past, step)
            return noise.in_shapes_of(shapes, own), past

        return drawn
