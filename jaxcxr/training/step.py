"""The compiled pieces of a step: sums of fixed-size microbatches on all devices, and one update.

A Poisson batch has a random size, so it is cut into as many fixed-size microbatches as it needs, padded and masked: one
compilation serves a whole run. Each microbatch is split over the devices of a mesh (`jax.shard_map`), those of all processes if
there are several. A device adds up what it has, in whole numbers if the step is private (`privacy.exact_sum`); the sums of all
meet once per step, and the noise is drawn once, from the same key everywhere.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, PyTree

from jaxcxr.models.scope import join, split
from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.least_squares import LeastSquares, empty_moments
from jaxcxr.training.objective import FILMS, GradientSum, Microbatch, with_images


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled functions of a run.

    Attributes:
        start: parameters -> the empty sums of a step: of gradients (or moments), exact ones in a private run
            (`privacy.exact_sum.ExactSum`), and for the log, with a leading axis of devices.
        accumulate: (parameters, sums, microbatch) -> sums including the microbatch.
        collect: sums of a step -> sums over all devices, the same on every one.
        finish: (parameters, optimiser state, sum, the step's randomness) -> new parameters and optimiser state, and
            whether the parameters are finite.
        microbatch_size: units in a microbatch, over all devices of all processes.
        devices: how many these are.
        place: this process's rows of a microbatch -> arrays spread over the devices.
        replicate: parameters or optimiser state -> the same on every device. Everything that enters the functions above
            comes from here or from them, so that each compiles once.
    """

    start: Callable[[PyTree], PyTree]
    accumulate: Callable[[PyTree, PyTree, Microbatch], PyTree]
    collect: Callable[[PyTree], PyTree]
    finish: Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree, Bool[Array, ""]]]
    microbatch_size: int
    devices: int
    place: Callable[[Mapping[str, np.ndarray]], Microbatch]
    replicate: Callable[[PyTree], PyTree]


LOG_KEYS = ("loss", "count", "films", "norm", "clipped")


def make_step(
    summed: GradientSum | LeastSquares,
    optimizer: optax.GradientTransformation,
    mechanism: Mechanism | None,
    expected_batch_size: int,
    microbatch_size: int,
    devices: list[Any] | None = None,
    trained: PyTree | None = None,
) -> Step:
    """Compile-ready step; without a mechanism the sum is divided by the expected batch size and nothing else happens to it.

    Args:
        summed: what is summed over one microbatch, on one device, and released: gradients, a tree of the trained parameters;
            or moments, of which a direction for the trained parameters is made.
        optimizer: applied to the released gradient or that direction.
        mechanism: of a private run.
        expected_batch_size: divisor of a non-private run (a private one's is the mechanism's).
        microbatch_size: units a device handles at once.
        devices: those of all processes unless given.
        trained: mask of the parameters that move (`models.scope`); all of them unless given. Sum, noise and optimiser state
            have no leaf for the others.
    """
    mesh = Mesh(np.asarray(devices if devices is not None else jax.devices()), ("data",))
    least_squares = summed if isinstance(summed, LeastSquares) else None
    sum_of = summed if not isinstance(summed, LeastSquares) else summed.moment_sum

    def parts(params: PyTree) -> tuple[PyTree, PyTree]:
        return (params, {}) if trained is None else split(params, trained)

    def over_devices(function: Callable[..., PyTree], in_specs: Any, out_specs: Any) -> Callable[..., PyTree]:
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def start(params: PyTree) -> PyTree:
        like = parts(params)[0] if least_squares is None else empty_moments(params)
        empty = like if mechanism is None else exact_sum.empty(like), {key: jnp.zeros((), jnp.float32) for key in LOG_KEYS}
        return jax.tree.map(lambda leaf: jnp.zeros((mesh.size, *leaf.shape), leaf.dtype), empty)

    def on_one(params: PyTree, total: PyTree, batch: Microbatch) -> PyTree:
        sums, log = sum_of(params, with_images(batch))
        if mechanism is not None:
            sums = mechanism.counted(sums, jnp.isfinite(log["norm"]))
        gradient, logged = total
        logged = {key: value + log.get(key, 0.0) for key, value in logged.items()}
        return jax.tree.map(jnp.add, gradient, jax.tree.map(lambda leaf: leaf[None], sums)), logged

    def accumulate(params: PyTree, total: PyTree, batch: Microbatch) -> PyTree:
        specs = {key: P() if key == FILMS else P("data") for key in batch}
        return over_devices(on_one, (P(), P("data"), specs), P("data"))(params, total, batch)

    def collect(total: PyTree) -> PyTree:
        return over_devices(lambda own: jax.lax.psum(jax.tree.map(lambda leaf: leaf[0], own), "data"), P("data"), P())(total)

    def finish(params: PyTree, state: PyTree, gradient: PyTree, randomness: PyTree) -> Any:
        if mechanism is None:
            mean = jax.tree.map(lambda g: g / expected_batch_size, gradient)
        else:
            mean = mechanism.release(gradient, randomness)
        if least_squares is not None:
            mean = least_squares.direction(params, mean)
        moving, fixed = parts(params)
        updates, state = optimizer.update(mean, state, moving)
        moving = optax.apply_updates(moving, updates)
        params = moving if trained is None else join(moving, fixed)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        return params, state, finite

    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return Step(
        start=jax.jit(start, out_shardings=rows),
        accumulate=jax.jit(accumulate, donate_argnums=1, out_shardings=rows),
        collect=jax.jit(collect, out_shardings=replicated),
        finish=jax.jit(finish, donate_argnums=(0, 1), out_shardings=replicated),
        microbatch_size=microbatch_size * mesh.size,
        devices=mesh.size,
        place=lambda batch: jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), dict(batch)),
        replicate=lambda tree: jax.device_put(tree, replicated),
    )
