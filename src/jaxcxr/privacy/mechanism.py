"""The private step: the one place where sampling, clipping, noise and accounting are bound together.

One step releases (sum of the batch's clipped gradients + N(0, (noise_multiplier * l2_clip_norm)^2)) /
expected_batch_size, or the same of clipped moments. Where the clip norm adapts, each gradient has one more
coordinate and the two together are clipped (`adaptive`): one release with the same sensitivity.

Guarantee: with the batch drawn by `sampling.poisson_batch`, a sum of sensitivity `l2_clip_norm` under
add/remove of one unit and one noise draw per step, T steps are the T-fold composition of the
Poisson-subsampled Gaussian mechanism with `sample_rate` and `noise_multiplier`, which `accounting` converts
to (epsilon, delta). Everything after the release (solving, optimiser, averaging) is post-processing. The
divisor is the declared expected batch size, never the drawn one, which is private.

Noise that is correlated over several steps (`correlated`) goes with groups of units that take turns
(`sampling.groups`): a step draws those of its group with the rate `sample_rate`, the number of groups times
the batch over N. Its theorem and what it costs stand in `accounting.banded`.

That the sum has this sensitivity on a computer, too, has two grades:

- Discrete noise: a theorem. Every unit's contribution is rounded by itself and added in whole numbers
  (`hardened_sum`, `exact_sum`), and the noise is whole numbers (`rounded_noise`) for the sensitivity that the
  rounding leaves.
- Gaussian noise: no theorem. Sums across microbatches, devices and processes are exact (`exact_sum`). Within
  a microbatch a matrix product sums over units in float32, and one unit more, which moves others to another
  place or microbatch, changes how that is rounded. Contributions are clipped to `clip_to`, which leaves room
  for `rounding.FACTOR` times what one rounding of a sum of so many aligned contributions comes to; a search
  found `rounding.FOUND` times that.
- Moments (`moments`) are whole numbers from the start: a theorem with either noise, but for the noise's own
  rounding.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from jaxcxr import accounting
from jaxcxr.accounting import Spending, banded
from jaxcxr.per_example import gradients
from jaxcxr.per_example.gradients import Loss
from jaxcxr.privacy import clipping, exact_sum, hardened_sum, moments, noise, rounded_noise, sampling
from jaxcxr.privacy.clipping import AdaptiveRule, ClipRule, Extended, Flat, Method
from jaxcxr.privacy.correlated import Correlation, Stream
from jaxcxr.privacy.exact_sum import ExactSum
from jaxcxr.privacy.moments import Moments
from jaxcxr.privacy.rounding import rounding_allowance
from jaxcxr.records.ledger import BandedEntry, Entry

_SPARE_UNITS = 64


class ClippedSum(NamedTuple):
    """What one microbatch contributes to a step.

    Attributes:
        total: the clipped sum, exact from here on.
        losses, norms: of its examples, the norms before clipping (private; for the operator's eyes).
    """

    total: ExactSum
    losses: Float[Array, "n"]
    norms: Float[Array, "n"]


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Parameters of the private step, all public.

    Attributes:
        n_units: declared number of units N; it sets the sample rate, whatever number of records is there.
        expected_batch_size: N q.
        l2_clip_norm: bound C on one unit's contribution to the sum.
        noise_multiplier: noise standard deviation over C.
        epsilon, delta: the budget.
        discrete_coordinates: number of coordinates of the sum if its noise is discrete (`rounded_noise`);
            None for noise in floating point.
        rule: by which gradients are clipped. The public state of one that adapts belongs to the step.
        method: how their sum is computed (`clipping`).
        correlation: of the noise of several steps; noise is independent unless given.
    """

    n_units: int
    expected_batch_size: int
    l2_clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float
    discrete_coordinates: int | None = None
    rule: ClipRule | AdaptiveRule = Flat()  # noqa: RUF009 - frozen
    method: Method = "layerwise"
    correlation: Correlation = Correlation()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        """Refuse numbers for which the guarantee would not hold.

        Raises:
            ValueError: the batch is larger than the data set, the clip norm too small for float32, or there
                is no noise.
        """
        if not 1 <= self.expected_batch_size <= self.n_units:
            raise ValueError(
                f"expected_batch_size: expected 1 to {self.n_units} (n_units), found "
                f"{self.expected_batch_size!r}"
            )
        if not clipping.LEAST <= self.l2_clip_norm < math.inf:
            raise ValueError(
                f"l2_clip_norm: expected at least {clipping.LEAST:g}, found {self.l2_clip_norm!r}"
            )
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier: expected a positive number, found {self.noise_multiplier!r}")
        if self.bands > 1 and self.discrete_coordinates is not None:
            raise ValueError("discrete_coordinates: correlated noise is no whole number of steps of a grid")
        if self.bands * self.expected_batch_size > self.n_units:
            raise ValueError(
                f"correlation: a batch of {self.expected_batch_size} is more than each of {self.bands} "
                f"groups of {self.n_units} units has"
            )

    @property
    def bands(self) -> int:
        """Over how many steps noise is correlated, and how many groups of units take turns; 1 for neither."""
        return self.correlation.bands

    @property
    def sample_rate(self) -> float:
        """Probability with which each unit joins a step, one of its group."""
        return accounting.sample_rate_of(self.expected_batch_size * self.bands, self.n_units)

    def spending(self, steps: int) -> Spending:
        """What so many steps cost a unit."""
        return banded.spending_of(self.sample_rate, self.noise_multiplier, steps, self.bands)

    @property
    def most_units(self) -> int:
        """Declared maximum of units in a batch, for which no sum overflows; a larger batch is refused
        (`training.batches`).

        A Poisson batch is larger with probability below 1e-36 as long as at most twice the declared N are
        there; what a refusal tells adds less than that to delta, for each step. For three times N it is
        1e-16, and beyond the run is refused soon.
        """
        return 4 * self.expected_batch_size + _SPARE_UNITS

    @property
    def rounding_allowance(self) -> float:
        """Part of the clip norm kept free for rounding within microbatches; 0 where sums are exact."""
        return 0.0 if self.grid is not None else rounding_allowance(self.expected_batch_size)

    @property
    def clip_to(self) -> float:
        """L2 norm to which contributions are clipped before they are summed."""
        return self.l2_clip_norm * (1.0 - self.rounding_allowance)

    def start(self) -> PyTree | None:
        """The public state of the clip rule before the first step; None if it has none."""
        return self.rule.start() if isinstance(self.rule, AdaptiveRule) else None

    def contribution(self, gradient: PyTree) -> PyTree:
        """What a step sums: a tree like `gradient`, and the coordinate that an adaptive rule adds."""
        return Extended(gradient, jnp.zeros(())) if isinstance(self.rule, AdaptiveRule) else gradient

    def clipped_sum(
        self,
        loss: Loss,
        params: PyTree,
        examples: PyTree,
        is_real: Bool[Array, "n"],
        state: PyTree | None = None,
    ) -> ClippedSum:
        """The sum over a microbatch of clipped per-example gradients, to be called inside jit.

        Guarantee: one example more or less moves the sum of all microbatches of a step, as `release` takes
        it, by at most `l2_clip_norm`, in the sense of the module's docstring.

        Args:
            loss: (parameters, one example) -> its loss, a function of nothing else that is private.
            params: floating-point leaves.
            examples: leaves with a leading axis of n; with discrete noise each example in its own place
                (`sampling.in_places`).
            is_real: False for padding, which contributes exactly zero.
            state: of the clip rule (`start`, `learnt`).
        """
        grid, rule = self.grid, self._rule_at(state)
        if grid is None:
            total, losses, norms = clipping.clipped_sum(
                loss, params, examples, is_real, self.clip_to, rule, self.method
            )
        else:
            if self.method == "vmap":
                losses, each = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(params, examples)
            else:
                each, losses = gradients.each_gradient(loss, params, examples)
            total, norms = hardened_sum.rounded_sum(each, is_real, self.clip_to, grid.step, rule)
        exact = self.counted(total, jnp.all(jnp.isfinite(norms) | ~is_real))
        if isinstance(self.rule, AdaptiveRule):
            own = jnp.where(is_real, self.rule.coordinates(norms, self.clip_to, state), 0.0)
            more = exact_sum.of_units(own, self.step_size(total))
            exact = ExactSum(Extended(exact.high, more.high), Extended(exact.low, more.low), exact.broken)
        return ClippedSum(exact, losses, norms)

    def _rule_at(self, state: PyTree | None) -> ClipRule:
        if not isinstance(self.rule, AdaptiveRule):
            return self.rule
        if state is None:
            raise ValueError(
                "state: a clip rule that adapts has one: `Mechanism.start`, then that of `learnt`"
            )
        return self.rule.at(state)

    def clip_norm(self, state: PyTree | None) -> Any:
        """To which gradients are clipped, at a state of the rule."""
        rule, flat = self.rule, self.clip_to
        return rule.clip_norm(flat, state) if isinstance(rule, AdaptiveRule) else flat

    def draw(
        self, secret: bytes, step: int, n_present: int, groups: Int[np.ndarray, " units"] | None = None
    ) -> Int[np.ndarray, " drawn"]:
        """Indices, among the units present in the data set, of those in the batch of one step.

        Args:
            secret: of the run, bound to what it trains.
            step: of the run.
            n_present: how many units are there.
            groups: of each (`sampling.groups`), where noise is correlated.
        """
        drawn = sampling.poisson_batch(secret, step, n_present, self.sample_rate)
        if self.bands == 1:
            return drawn
        if groups is None or len(groups) != n_present:
            raise ValueError(f"groups: expected one of {self.bands} for each of {n_present} units")
        return drawn[groups[drawn] == step % self.bands]

    def noise_key(self, secret: bytes, step: int) -> UInt32[np.ndarray, "4"]:
        """Key of the noise of one step, to be used once."""
        return noise.derive_key(secret, "noise", step)

    @property
    def grid(self) -> rounded_noise.Grid | None:
        """The grid of discrete noise, on which contributions are rounded; None for Gaussian noise.

        Raises:
            ValueError: the noise multiplier does not go with discrete noise.
        """
        if self.discrete_coordinates is None:
            return None
        return rounded_noise.grid_for(self.l2_clip_norm, self.noise_multiplier, self.discrete_coordinates)

    def step_size(self, contribution: PyTree) -> float:
        """Size of the steps in which the sum of such contributions is counted.

        Args:
            contribution: a tree of moments, which have a grid of their own, or of gradients.
        """
        if isinstance(contribution, Moments):
            return moments.step_for(self.l2_clip_norm, None if self.grid is None else self.noise_multiplier)
        return exact_sum.step_for(self.l2_clip_norm, self.most_units) if self.grid is None else self.grid.step

    def counted(self, part: PyTree, is_finite: Any) -> ExactSum:
        """The sum of one microbatch, in floating point or in whole steps, as a term of an exact sum."""
        if jax.tree.leaves(part)[0].dtype == jnp.int32:
            return exact_sum.of_steps(part, is_finite)
        return exact_sum.of_floats(part, self.step_size(part), is_finite)

    def randomness(self, key: UInt32[np.ndarray, "4"], like: PyTree) -> PyTree:
        """What `release` needs besides the sum: the key of the noise, or discrete noise, drawn here.

        Args:
            key: of one step (`noise_key`).
            like: tree of the sum's shapes.
        """
        if self.bands > 1:
            raise ValueError("key: correlated noise follows from the keys of several steps (`stream`)")
        grid = self.grid
        if grid is None:
            return key
        count = noise.coordinates(like)
        if count != self.discrete_coordinates:
            raise ValueError(f"like: expected {self.discrete_coordinates} coordinates, found {count}")
        if isinstance(like, Moments):
            return moments.discrete_noise(key, like, self.l2_clip_norm, self.noise_multiplier)
        return noise.in_shapes_of(like, rounded_noise.rounded_gaussian(key, grid.deviation, count))

    def stream(self, secret: bytes) -> "Stream | Independent":
        """What `release` needs of a run's steps, one after the other (`at`)."""
        if self.bands == 1:
            return Independent(self, secret)
        deviation = self.noise_multiplier * self.l2_clip_norm
        return Stream(self.correlation, deviation, functools.partial(self.noise_key, secret))

    def release(self, total: ExactSum, randomness: PyTree) -> PyTree:
        """The noised mean gradient of one step; a pure function, to be called inside jit.

        Args:
            total: exact sum of the batch.
            randomness: of this step and no other, as `stream` gives it.
        """
        step = self.step_size(total.high)
        if self.grid is not None:
            noised: Any = exact_sum.plus_steps(total, randomness, step)
        elif self.bands > 1:
            noised = exact_sum.plus_floats(total, randomness, step)
        else:
            drawn: Any = noise.gaussian_noise(
                randomness, total.high, self.noise_multiplier * self.l2_clip_norm
            )
            if isinstance(drawn, Moments):
                drawn = moments.halved_off_diagonal(drawn)
            noised = exact_sum.plus_floats(total, drawn, step)
        return jax.tree.map(lambda g: g / self.expected_batch_size, noised)

    def learnt(self, released: PyTree, state: PyTree | None) -> tuple[PyTree, PyTree | None]:
        """The mean gradient and the clip rule's next state, from what `release` gave: post-processing."""
        if not isinstance(self.rule, AdaptiveRule):
            return released, state
        return self.rule.learnt(released, self.l2_clip_norm, state)

    def entry(self, step: int) -> Entry:
        """The ledger line of one step."""
        if self.bands > 1:
            own = (self.sample_rate, self.noise_multiplier, self.l2_clip_norm)
            return BandedEntry(step, *own, self.bands, step % self.bands)
        return Entry(step, self.sample_rate, self.noise_multiplier, self.l2_clip_norm)


@dataclasses.dataclass(frozen=True)
class Independent:
    """The randomness of a run whose steps have nothing to do with each other; `Stream` where they have.

    Attributes:
        mechanism: of the run.
        secret: of the run, bound to what it trains.
    """

    mechanism: Mechanism
    secret: bytes

    def at(self, step: int, like: PyTree) -> PyTree:
        """That of one step, in the shapes of `like` (`Mechanism.randomness`)."""
        return self.mechanism.randomness(self.mechanism.noise_key(self.secret, step), like)
