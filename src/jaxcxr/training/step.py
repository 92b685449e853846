"""The compiled pieces of a step: sums of fixed-size microbatches on all devices, and one update.

A Poisson batch has a random size, so it is cut into as many fixed-size microbatches as it needs, padded and
masked: one compilation serves a whole run. Each microbatch is split over the devices of a mesh
(`jax.shard_map`), those of all processes if there are several. A device adds up what it has, in whole numbers
if the step is private (`privacy.exact_sum`); the sums of all meet once per step, and the noise is drawn once,
from the same key everywhere.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree

from jaxcxr.models.trainable import join, split
from jaxcxr.privacy import device_sums, exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.objective import FILMS, Microbatch, with_images


@runtime_checkable
class Release(Protocol):
    """What a step sums and releases: gradients (`objective.Gradients`) or moments
    (`least_squares.LeastSquares`).
    """

    @property
    def mechanism(self) -> Mechanism | None:
        """Of a private run."""
        ...

    @property
    def trained(self) -> PyTree | None:
        """Mask of the parameters that move (`models.trainable`); None for all."""
        ...

    def empty(self, params: PyTree) -> PyTree:
        """The sum of no unit, in floating point."""
        ...

    def summed(
        self, params: PyTree, batch: Microbatch, clipping: PyTree | None = None
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """The sum over a microbatch, an exact one (`privacy.exact_sum`) if private, and sums for the log;
        `clipping` is the state of an adaptive clip rule.
        """
        ...

    def direction(self, params: PyTree, released: PyTree) -> PyTree:
        """From what was released to what an optimiser takes for the gradient of the trained parameters."""
        ...


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled functions of a run.

    Attributes:
        start: parameters -> the empty sums of a step: of gradients (or moments), exact ones in a private run
            (`privacy.exact_sum.ExactSum`), and for the log, with a leading axis of devices.
        accumulate: (parameters, sums, microbatch, state of the clip rule) -> sums including the microbatch.
        collect: sums of a step -> sums over all devices, the same on every one.
        finish: (parameters, optimiser state, sum, the step's randomness, state of the clip rule) -> new
            parameters and optimiser state, whether the parameters are finite, and the next state of the rule.
            That state (`Mechanism.start`) is None, and may be left out, where the rule has none.
        microbatch_size: units in a microbatch, over all devices of all processes.
        devices: how many these are.
        place: this process's rows of a microbatch -> arrays spread over the devices.
        replicate: parameters or optimiser state -> the same on every device. Everything that enters the
            functions above comes from here or from them, so that each compiles once.
    """

    start: Callable[[PyTree], PyTree]
    accumulate: Callable[..., PyTree]
    collect: Callable[[PyTree], PyTree]
    finish: Callable[..., tuple[PyTree, PyTree, Bool[Array, ""], PyTree | None]]
    microbatch_size: int
    devices: int
    place: Callable[[Mapping[str, np.ndarray]], Microbatch]
    replicate: Callable[[PyTree], PyTree]


LOG_KEYS = ("loss", "count", "films", "norm", "clipped")


def make_step(
    release: Release,
    optimizer: optax.GradientTransformation,
    expected_batch_size: int,
    microbatch_size: int,
    devices: list[Any] | None = None,
) -> Step:
    """Compile-ready step; without a mechanism the sum is divided by the expected batch size and nothing else
    happens to it.

    Args:
        release: what is summed and released. Sum, noise and optimiser state have no leaf for parameters that
            do not move.
        optimizer: applied to what is made of it.
        expected_batch_size: divisor of a non-private run (a private one's is the mechanism's).
        microbatch_size: units a device handles at once.
        devices: those of all processes unless given.
    """
    mesh = Mesh(np.asarray(devices if devices is not None else jax.devices()), (device_sums.AXIS,))
    mechanism, trained = release.mechanism, release.trained

    def start(params: PyTree) -> PyTree:
        like = release.empty(params)
        empty = (
            like if mechanism is None else exact_sum.empty(mechanism.contribution(like)),
            {key: jnp.zeros((), jnp.float32) for key in LOG_KEYS},
        )
        return device_sums.nothing_yet(empty, mesh)

    def on_one(params: PyTree, total: PyTree, batch: Microbatch, clipping: PyTree | None) -> PyTree:
        sums, log = release.summed(params, with_images(batch), clipping)
        gradient, logged = total
        logged = {key: value + log.get(key, 0.0) for key, value in logged.items()}
        return device_sums.plus_own(gradient, sums), logged

    def accumulate(
        params: PyTree, total: PyTree, batch: Microbatch, clipping: PyTree | None = None
    ) -> PyTree:
        own = P(device_sums.AXIS)
        specs = {key: P() if key == FILMS else own for key in batch}
        return device_sums.over_devices(on_one, mesh, (P(), own, specs, P()), own)(
            params, total, batch, clipping
        )

    def finish(
        params: PyTree, state: PyTree, gradient: PyTree, randomness: PyTree, clipping: PyTree | None = None
    ) -> Any:
        if mechanism is None:
            mean = jax.tree.map(lambda g: g / expected_batch_size, gradient)
        else:
            mean, clipping = mechanism.learnt(mechanism.release(gradient, randomness), clipping)
        mean = release.direction(params, mean)
        moving, fixed = split(params, trained)
        updates, state = optimizer.update(mean, state, moving)
        moving = optax.apply_updates(moving, updates)
        params = join(moving, fixed)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        return params, state, finite, clipping

    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(device_sums.AXIS))
    return Step(
        start=jax.jit(start, out_shardings=rows),
        accumulate=jax.jit(accumulate, donate_argnums=1, out_shardings=rows),
        collect=jax.jit(functools.partial(device_sums.collected, mesh=mesh), out_shardings=replicated),
        finish=jax.jit(finish, donate_argnums=(0, 1), out_shardings=replicated),
        microbatch_size=microbatch_size * mesh.size,
        devices=mesh.size,
        place=lambda batch: jax.tree.map(
            functools.partial(jax.make_array_from_process_local_data, rows), dict(batch)
        ),
        replicate=lambda tree: jax.device_put(tree, replicated),
    )
