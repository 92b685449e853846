"""Sums that each device keeps of its own microbatches, on a leading axis, until all meet once per step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

AXIS = "data"
"""Name of the mesh's only axis."""


def over_devices(
    function: Callable[..., PyTree], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., PyTree]:
    """The function on every device, each with its part of what `in_specs` spreads."""
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def nothing_yet(like: PyTree, mesh: Mesh) -> PyTree:
    """The sums before the first microbatch."""
    return jax.tree.map(lambda leaf: jnp.zeros((mesh.size, *leaf.shape), leaf.dtype), like)


def plus_own(total: PyTree, part: PyTree) -> PyTree:
    """On one device: its sums including one part."""
    return jax.tree.map(lambda sum_, own: sum_ + own[None], total, part)


def collected(total: PyTree, mesh: Mesh) -> PyTree:
    """The sums over all devices, the same on every one."""
    of_all = over_devices(
        lambda own: jax.lax.psum(jax.tree.map(lambda leaf: leaf[0], own), AXIS), mesh, P(AXIS), P()
    )
    return of_all(total)
