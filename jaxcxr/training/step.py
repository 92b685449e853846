"""The compiled pieces of a step: gradient sums of fixed-size microbatches on all devices, and one update.

A Poisson batch has a random size, so it is cut into as many fixed-size microbatches as it needs, the last one padded and
masked: one compilation serves a whole run. Each microbatch is split over the devices of a mesh (`jax.shard_map`), those of
all processes if there are several; sums meet in one `psum`, noise is drawn once, from the same key everywhere.
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
from jaxtyping import Array, Bool, PyTree, UInt32

from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.objective import GradientSum, Microbatch


@dataclasses.dataclass(frozen=True)
class Step:
    """The compiled functions of a run.

    Attributes:
        start: parameters -> the empty sum of a step.
        accumulate: (parameters, sum, microbatch) -> sum including the microbatch.
        finish: (parameters, optimiser state, sum, noise key) -> new parameters and optimiser state, and whether the
            parameters are finite.
        microbatch_size: units in a microbatch, over all devices of all processes.
        place: this process's rows of a microbatch -> arrays spread over the devices.
        replicate: parameters or optimiser state -> the same on every device. Everything that enters the functions above
            comes from here or from them, so that each compiles once.
    """

    start: Callable[[PyTree], PyTree]
    accumulate: Callable[[PyTree, PyTree, Microbatch], PyTree]
    finish: Callable[[PyTree, PyTree, PyTree, UInt32[np.ndarray, "4"]], tuple[PyTree, PyTree, Bool[Array, ""]]]
    microbatch_size: int
    place: Callable[[Mapping[str, np.ndarray]], Microbatch]
    replicate: Callable[[PyTree], PyTree]


LOG_KEYS = ("loss", "count", "films", "norm", "clipped")


def make_step(
    gradient_sum: GradientSum,
    optimizer: optax.GradientTransformation,
    mechanism: Mechanism | None,
    expected_batch_size: int,
    microbatch_size: int,
    devices: list[Any] | None = None,
) -> Step:
    """Compile-ready step; without a mechanism the sum is divided by the expected batch size and nothing else happens to it.

    Args:
        gradient_sum: of one microbatch, on one device.
        optimizer: applied to the released gradient.
        mechanism: of a private run.
        expected_batch_size: divisor of a non-private run (a private one's is the mechanism's).
        microbatch_size: units a device handles at once.
        devices: those of all processes unless given.
    """
    mesh = Mesh(np.asarray(devices if devices is not None else jax.devices()), ("data",))

    def sharded(params: PyTree, batch: Microbatch) -> Any:
        return jax.lax.psum(gradient_sum(params, batch), "data")

    over_devices = jax.shard_map(sharded, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)

    def start(params: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params), {key: jnp.zeros((), jnp.float32) for key in LOG_KEYS}

    def accumulate(params: PyTree, total: PyTree, batch: Microbatch) -> PyTree:
        sums, log = over_devices(params, batch)
        gradient, logged = total
        logged = {key: value + log.get(key, 0.0) for key, value in logged.items()}
        return jax.tree.map(jnp.add, gradient, sums), logged

    def finish(params: PyTree, state: PyTree, gradient: PyTree, key: UInt32[Array, "4"]) -> Any:
        if mechanism is None:
            mean = jax.tree.map(lambda g: g / expected_batch_size, gradient)
        else:
            mean = mechanism.release(gradient, key)
        updates, state = optimizer.update(mean, state, params)
        params = optax.apply_updates(params, updates)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        return params, state, finite

    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return Step(
        start=jax.jit(start, out_shardings=replicated),
        accumulate=jax.jit(accumulate, donate_argnums=1, out_shardings=replicated),
        finish=jax.jit(finish, donate_argnums=(0, 1), out_shardings=replicated),
        microbatch_size=microbatch_size * mesh.size,
        place=lambda batch: jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), dict(batch)),
        replicate=lambda tree: jax.device_put(tree, replicated),
    )
