"""The private step: the one place where sampling, clipping, noise and accounting are bound together.

One step releases (sum of the batch's clipped gradients + N(0, (noise_multiplier * l2_clip_norm)^2)) / expected_batch_size.

Guarantee: with the batch drawn by `sampling.poisson_batch`, the sum formed by `gradients` (sensitivity `l2_clip_norm` under
add/remove of one unit) and one noise draw a step, T steps are the T-fold composition of the Poisson-subsampled Gaussian
mechanism with `sample_rate` and `noise_multiplier`, which `accounting` converts to (epsilon, delta). Everything after the
release (optimiser, averaging) is post-processing. The divisor is the declared expected batch size, never the drawn one,
which is private.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree, UInt32

from jaxcxr.privacy import accounting, noise, sampling
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
    """

    n_units: int
    expected_batch_size: int
    l2_clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float

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

    def release(self, clipped_sum: PyTree, key: UInt32[Array, "4"]) -> PyTree:
        """The noised mean gradient of one step; a pure function, to be called inside jit."""
        stddev = self.noise_multiplier * self.l2_clip_norm
        noised: Any = jax.tree.map(lambda g, z: g + z, clipped_sum, noise.gaussian_noise(key, clipped_sum, stddev))
        return jax.tree.map(lambda g: g / self.expected_batch_size, noised)

    def entry(self, step: int) -> Entry:
        """The ledger line of one step."""
        return Entry(step, self.sample_rate, self.noise_multiplier, self.l2_clip_norm)
