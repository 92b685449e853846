"""The private step: the one place where sampling, clipping, noise and accounting are bound together.

One step releases (sum of the batch's clipped gradients + N(0, (noise_multiplier * l2_clip_norm)^2)) / expected_batch_size,
or the same of clipped moments.

Guarantee: with the batch drawn by `sampling.poisson_batch`, the sum formed by `gradients` or `moments` (sensitivity
`l2_clip_norm` under add/remove of one unit) and one noise draw a step, T steps are the T-fold composition of the
Poisson-subsampled Gaussian mechanism with `sample_rate` and `noise_multiplier`, which `accounting` converts to
(epsilon, delta). With discrete noise a step is post-processing of that mechanism at a slightly larger sensitivity and as much
more noise (`rounded_noise`). Everything after the release (solving, optimiser, averaging) is post-processing. The divisor is
the declared expected batch size, never the drawn one, which is private.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PyTree, UInt32

from jaxcxr.privacy import accounting, noise, rounded_noise, sampling
from jaxcxr.privacy.ledger import Entry


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Parameters of the private step, all public.

    Attributes:
        n_units: declared, public number of units N; it sets the sample rate and need not be the number of records present.
        expected_batch_size: N q.
        l2_clip_norm: bound C on one unit's contribution to the sum.
        noise_multiplier: noise standard deviation over C.
        epsilon, delta: the budget.
        discrete_coordinates: number of coordinates of the sum if its noise is discrete (`rounded_noise`); None for noise in
            floating point.
    """

    n_units: int
    expected_batch_size: int
    l2_clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float
    discrete_coordinates: int | None = None

    @property
    def sample_rate(self) -> float:
        """Probability with which each unit joins a step."""
        return accounting.sample_rate_of(self.expected_batch_size, self.n_units)

    def draw(self, secret: bytes, step: int, n_present: int) -> Int[np.ndarray, " drawn"]:
        """Indices, among the units present in the data set, of those in the batch of one step."""
        return sampling.poisson_batch(secret, step, n_present, self.sample_rate)

    def noise_key(self, secret: bytes, step: int) -> UInt32[np.ndarray, "4"]:
        """Key of the noise of one step, to be used once."""
        return noise.derive_key(secret, "noise", step)

    @property
    def grid(self) -> rounded_noise.Grid | None:
        """Of discrete noise, else None.

        Raises:
            ValueError: the noise multiplier does not go with discrete noise.
        """
        if self.discrete_coordinates is None:
            return None
        return rounded_noise.grid_for(self.l2_clip_norm, self.noise_multiplier, self.discrete_coordinates)

    def randomness(self, key: UInt32[np.ndarray, "4"], like: PyTree) -> PyTree:
        """What `release` needs besides the sum: the key of the noise, or discrete noise itself, drawn here in whole steps.

        Args:
            key: of one step (`noise_key`).
            like: tree of the sum's shapes.
        """
        grid = self.grid
        if grid is None:
            return key
        leaves, structure = jax.tree.flatten(like)
        sizes = [math.prod(leaf.shape) for leaf in leaves]
        if sum(sizes) != self.discrete_coordinates:
            raise ValueError(f"like: expected {self.discrete_coordinates} coordinates, found {sum(sizes)}")
        drawn = np.split(rounded_noise.rounded_gaussian(key, grid.deviation, sum(sizes)), np.cumsum(sizes)[:-1])
        return jax.tree.unflatten(structure, [d.reshape(leaf.shape) for d, leaf in zip(drawn, leaves, strict=True)])

    def release(self, clipped_sum: PyTree, randomness: PyTree) -> PyTree:
        """The noised mean gradient of one step; a pure function, to be called inside jit.

        Args:
            clipped_sum: of the batch.
            randomness: of this step and no other, as `randomness` gives it.
        """
        grid = self.grid
        if grid is None:
            stddev = self.noise_multiplier * self.l2_clip_norm
            noised: Any = jax.tree.map(jnp.add, clipped_sum, noise.gaussian_noise(randomness, clipped_sum, stddev))
        else:
            noised = jax.tree.map(lambda g, z: _on_grid(g, z, grid.step), clipped_sum, randomness)
        return jax.tree.map(lambda g: g / self.expected_batch_size, noised)

    def entry(self, step: int) -> Entry:
        """The ledger line of one step."""
        return Entry(step, self.sample_rate, self.noise_multiplier, self.l2_clip_norm)


def _on_grid(total: Float[Array, "*shape"], noise: Int32[Array, "*shape"], step: float) -> Float[Array, "*shape"]:
    """A sum rounded to the grid plus noise in steps, all in whole numbers; not-a-number stays what it is, to be noticed."""
    steps = jnp.clip(jnp.rint(total / step), -rounded_noise.SUM_LIMIT, rounded_noise.SUM_LIMIT).astype(jnp.int32)
    return jnp.where(jnp.isnan(total), jnp.nan, (steps + noise).astype(jnp.float32) * step)
