"""Differentially private gradients for a loop of one's own and any JAX model: Flax Linen, NNX, Equinox, plain
functions.

    plan = dp.calibrate(
        epsilon=3.0, delta=1e-6, n_units=60_000, expected_batch_size=512, steps=1_000, l2_clip_norm=1.0
    )
    gradients = plan.gradients(loss, (images, labels))
    for _ in range(plan.steps):
        updates, state = optimizer.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)

Guarantee: all that `PrivateGradients` has returned is (epsilon, delta)-differentially private for adding or
removing one unit, with epsilon as `PrivateGradients.epsilon` says, at most the plan's. A unit is one element
of the leading axis of `examples`: an image, or all images of a patient. The guarantee covers what is computed
from the gradients alone: everything else that the loop uses (learning rates, when to stop, which weights to
keep) must be fixed before, or be chosen on public data. The numbers given to `calibrate` are published with
the model, N too: declare a rounded one. The loss of an example must depend on private data through that
example alone.

`noised_gradient` is one step as a pure function, for those who draw and account for themselves; `noised_step`
the same for rules whose clip norm adapts, and `privately` in optax's shape.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree, UInt32

from jaxcxr import accounting
from jaxcxr.accounting import Bounds, Spending
from jaxcxr.per_example.gradients import Loss, directly_differentiated, each_gradient
from jaxcxr.privacy import device_sums, exact_sum, sampling
from jaxcxr.privacy.adaptive import Adaptive
from jaxcxr.privacy.clipping import AdaptiveRule, ClipRule, Flat, PerLayer, clipped_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.noise import new_secret
from jaxcxr.records.ledger import Entry, Ledger, Terms, run_name

__all__ = [
    "Adaptive",
    "AdaptiveRule",
    "ClipRule",
    "Entry",
    "Flat",
    "Loss",
    "Mechanism",
    "PerLayer",
    "Plan",
    "PrivateGradients",
    "calibrate",
    "clipped_sum",
    "directly_differentiated",
    "each_gradient",
    "noised_gradient",
    "noised_step",
    "privately",
]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A number of private steps; all of it is public.

    Attributes:
        mechanism: of each step.
        steps: how many.
        noise: `gaussian`, in floating point, or `discrete`, in whole numbers, for which the sums' sensitivity
            is a theorem (`privacy.mechanism`) at about twice the time.
    """

    mechanism: Mechanism
    steps: int
    noise: Literal["gaussian", "discrete"] = "gaussian"

    def gradients(
        self,
        loss: Loss,
        examples: PyTree,
        microbatch_size: int = 64,
        devices: list[Any] | None = None,
        ledger: Path | None = None,
    ) -> "PrivateGradients":
        """The gradients of a loss over a data set, one noised mean gradient per step.

        Args:
            loss: (parameters, one example) -> its loss, traceable by JAX.
            examples: numpy arrays with a leading axis of units.
            microbatch_size: units that a device handles at once; it changes memory and speed, and nothing
                else.
            devices: of this process, over which microbatches are spread; all of them unless given.
            ledger: a new file in which every step is written down before it is released (`records.ledger`).

        Raises:
            ValueError: leading axes differ, or the ledger's file belongs to another run (`InputError`).
        """
        return PrivateGradients(self, loss, examples, microbatch_size, devices, ledger)


def calibrate(
    *,
    epsilon: float,
    delta: float,
    n_units: int,
    expected_batch_size: int,
    steps: int,
    l2_clip_norm: float,
    rule: ClipRule | AdaptiveRule = Flat(),  # noqa: B008 - frozen
    noise: Literal["gaussian", "discrete"] = "gaussian",
) -> Plan:
    """The plan that spends a budget: the least noise with which so many steps stay within (epsilon, delta).

    Args:
        epsilon: of the budget.
        delta: of the budget, below 1 / n_units.
        n_units: the declared, public number of units N.
        expected_batch_size: each unit joins each step with probability expected_batch_size / N.
        steps: how many.
        l2_clip_norm: C, to which each example's gradient is clipped; of `Adaptive`, at first.
        rule: how (`privacy.clipping`, `privacy.adaptive`).
        noise: see `Plan`.

    Raises:
        ValueError: a number is out of range, or no noise meets the budget (`InputError`, which names it).

    >>> budget = {"epsilon": 2.0, "delta": 1e-5, "n_units": 10_000}
    >>> calibrate(**budget, expected_batch_size=100, steps=500, l2_clip_norm=1.0).mechanism.sample_rate
    0.01
    """
    if not 0 < delta < 1 / n_units:
        raise ValueError(
            f"delta: expected less than 1/N = {1 / n_units:.3g}, found {delta!r}: it may publish one unit "
            "outright"
        )
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    sample_rate = accounting.sample_rate_of(expected_batch_size, n_units)
    sigma = accounting.calibrated_noise(epsilon, delta, sample_rate, steps)
    return Plan(
        Mechanism(n_units, expected_batch_size, l2_clip_norm, sigma, epsilon, delta, rule=rule), steps, noise
    )


class PrivateGradients:
    """The steps of a plan: each call draws a Poisson batch and returns its noised mean gradient.

    Every call is a new release, from randomness of its own that comes from the operating system and is kept
    nowhere: nothing is drawn twice. A loop that goes on after a crash makes a new object with the steps that
    are left, and counts the steps since its last checkpoint as spent if anybody saw their results. If the
    clip norm adapts, it sets `clipping` to what it has saved with the weights.

    Attributes:
        plan: what may be spent.
        entries: what was, one line per call.
        clipping: public state of a clip rule that adapts, after the calls so far; None for the others.
    """

    def __init__(
        self,
        plan: Plan,
        loss: Loss,
        examples: PyTree,
        microbatch_size: int = 64,
        devices: list[Any] | None = None,
        ledger: Path | None = None,
    ) -> None:
        """See `Plan.gradients`."""
        lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(examples)}
        if len(lengths) != 1:
            raise ValueError(
                f"examples: expected one leading axis of units for all, found lengths {sorted(lengths)}"
            )
        if microbatch_size < 1:
            raise ValueError(f"microbatch_size: expected at least 1, found {microbatch_size}")
        self.plan, self.entries, self.clipping = plan, list[Entry](), plan.mechanism.start()
        self._loss, self._examples, self._present = loss, jax.tree.map(np.asarray, examples), lengths.pop()
        self._secret, self._places = new_secret(None), microbatch_size
        terms = Terms("example", "add_remove", plan.mechanism.n_units, "", False, run_name(self._secret))
        self._ledger = None if ledger is None else Ledger(ledger, terms)
        self._mesh = Mesh(np.asarray(devices or jax.local_devices()), (device_sums.AXIS,))

    def __call__(self, params: PyTree) -> PyTree:
        """The noised mean gradient of one step: float32, a tree like `params`.

        It is not-a-number where the gradient of any drawn example is.

        Raises:
            ValueError: the plan's steps are spent, or far more units are there than it declares.
        """
        step = len(self.entries)
        if step >= self.plan.steps:
            raise ValueError(
                f"steps: all {self.plan.steps} of the plan are spent; one more would break its epsilon"
            )
        contribution = self.plan.mechanism.contribution(params)
        mechanism = self._mechanism(contribution)
        drawn = mechanism.draw(self._secret, step, self._present)
        if len(drawn) > mechanism.most_units:
            raise ValueError(
                f"n_units: at a declared N of {mechanism.n_units} a step drew {len(drawn)} units, where sums "
                "have room for "
                f"{mechanism.most_units}; declare a number nearer to the {self._present} that are there"
            )
        entry = mechanism.entry(step)  # what is paid for precedes what is released
        if self._ledger is not None:
            self._ledger.record(entry)
            self._ledger.sync()
        self.entries.append(entry)
        start, accumulate, finish = self._compiled
        everywhere = NamedSharding(self._mesh, P())
        params, clipping = jax.device_put((params, self.clipping), everywhere)
        total = start(params)
        for rows in self._rows(mechanism, step, drawn):
            is_real = rows >= 0
            batch = jax.tree.map(lambda leaf, rows=rows: leaf[np.maximum(rows, 0)], self._examples)
            total = accumulate(
                params,
                total,
                *jax.device_put((batch, is_real), NamedSharding(self._mesh, P(device_sums.AXIS))),
                clipping,
            )
        randomness = mechanism.randomness(mechanism.noise_key(self._secret, step), contribution)
        gradient, self.clipping = finish(total, randomness, clipping)
        return gradient

    @property
    def clip_norm(self) -> float:
        """To which gradients are clipped in the next call."""
        return float(self.plan.mechanism.clip_norm(self.clipping))

    def epsilon(self, delta: float | None = None) -> Bounds:
        """What the calls so far have cost, from below and above, at `delta` (the plan's unless given)."""
        m = self.plan.mechanism
        spent = [Spending(m.sample_rate, m.noise_multiplier, len(self.entries))] if self.entries else []
        return accounting.epsilon_bounds(spent, m.delta if delta is None else delta)

    def _mechanism(self, contribution: PyTree) -> Mechanism:
        """The plan's, with the number of coordinates on which discrete noise depends."""
        if self.plan.noise == "gaussian":
            return self.plan.mechanism
        coordinates = sum(leaf.size for leaf in jax.tree.leaves(contribution))
        return dataclasses.replace(self.plan.mechanism, discrete_coordinates=coordinates)

    def _rows(self, mechanism: Mechanism, step: int, drawn: Any) -> list[np.ndarray]:
        """Which units stand in each microbatch, -1 for none: in random order, or each in a place drawn for it
        alone.
        """
        if mechanism.grid is None:
            order = drawn[sampling.in_random_order(self._secret, step, self._present, drawn)]
        else:
            placed = sampling.in_places(self._secret, step, self._present, drawn, self._places).ravel()
            order = np.where(placed >= 0, drawn[np.maximum(placed, 0)], -1) if len(drawn) else placed
        size = self._places * self._mesh.size
        padded = np.concatenate([order, np.full(-len(order) % size, -1, order.dtype)])
        return np.split(padded, len(padded) // size) if len(padded) else []

    @functools.cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
        def start(params: PyTree) -> PyTree:
            return device_sums.nothing_yet(
                exact_sum.empty(self.plan.mechanism.contribution(params)), self._mesh
            )

        def on_one(params: PyTree, total: PyTree, batch: PyTree, is_real: Any, clipping: PyTree) -> PyTree:
            mechanism = self._mechanism(self.plan.mechanism.contribution(params))
            own = mechanism.clipped_sum(self._loss, params, batch, is_real, clipping)
            return device_sums.plus_own(total, own.total)

        def finish(total: PyTree, randomness: PyTree, clipping: PyTree) -> tuple[PyTree, PyTree]:
            exact = device_sums.collected(total, self._mesh)
            mechanism = self._mechanism(exact.high)
            return mechanism.learnt(mechanism.release(exact, randomness), clipping)

        own = P(device_sums.AXIS)
        rows, everywhere = NamedSharding(self._mesh, own), NamedSharding(self._mesh, P())
        accumulate = device_sums.over_devices(on_one, self._mesh, (P(), own, own, own, P()), own)
        return (
            jax.jit(start, out_shardings=rows),
            jax.jit(accumulate, donate_argnums=1, out_shardings=rows),
            jax.jit(finish, out_shardings=everywhere),
        )


def noised_gradient(
    loss: Loss,
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    mechanism: Mechanism,
    key: UInt32[Array, "4"],
) -> PyTree:
    """The noised mean gradient of one step from one microbatch: a pure function, to be called inside jit.

    As `noised_step`, for clip rules without a state.

    Raises:
        ValueError: as there, or the clip norm adapts.
    """
    if mechanism.start() is not None:
        raise ValueError(
            "mechanism: expected a clip rule without a state, found one that adapts; use `noised_step` or "
            "`privately`"
        )
    return noised_step(loss, params, examples, is_real, mechanism, key)[0]


def noised_step(
    loss: Loss,
    params: PyTree,
    examples: PyTree,
    is_real: Bool[Array, "n"],
    mechanism: Mechanism,
    key: UInt32[Array, "4"],
    state: PyTree | None = None,
) -> tuple[PyTree, PyTree | None]:
    """The noised mean gradient of one step from one microbatch, and the next state of its clip rule: a pure
    function, to be called inside jit.

    Guarantee: that of `privacy.mechanism`, if the real examples are a Poisson batch (`Mechanism.draw`) and
    the key is used once. The state is public: it follows from what was released.

    Args:
        loss: (parameters, one example) -> its loss.
        params: floating-point leaves.
        examples: leaves with a leading axis of n.
        is_real: False for padding.
        mechanism: with Gaussian noise.
        key: of the step (`Mechanism.noise_key`).
        state: of the clip rule: `Mechanism.start()`, then what the last step returned; None without one.

    Raises:
        ValueError: the mechanism's noise is discrete, which is not drawn inside jit, or the state is missing.
    """
    if mechanism.grid is not None:
        raise ValueError(
            "mechanism: expected Gaussian noise; discrete noise is drawn by `Mechanism.randomness`, outside "
            "jit"
        )
    total = mechanism.clipped_sum(loss, params, examples, is_real, state).total
    return mechanism.learnt(mechanism.release(total, key), state)


class Steps(NamedTuple):
    """The state of `privately`: how many private steps were made, and the state of the clip rule."""

    made: Array
    clipping: PyTree | None


def privately(loss: Loss, mechanism: Mechanism) -> optax.GradientTransformationExtraArgs:
    """`noised_step` in optax's shape, to be chained before an optimiser.

    `update(examples, state, params, is_real=..., key=...)` takes a microbatch in the place of gradients:

        optimizer = optax.chain(dp.privately(loss, mechanism), optax.adam(1e-3))
    """

    def init(_: PyTree) -> Steps:
        return Steps(jnp.zeros((), jnp.int32), mechanism.start())

    def update(
        examples: PyTree, state: Steps, params: PyTree | None = None, *, is_real: Any, key: Any, **_: Any
    ) -> Any:
        if params is None:
            raise ValueError("params: expected the parameters, of which the gradient is taken")
        gradient, clipping = noised_step(loss, params, examples, is_real, mechanism, key, state.clipping)
        return gradient, Steps(state.made + 1, clipping)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
