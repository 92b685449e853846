"""Parameters of any network in torch's names and layout, and back.

The torch network has a module of the same name for each Flax module: `block0/attention/query/kernel` is
`block0.attention.query.weight`. A parameter that is no layer's (`positions`) is the weight of a torch module
of that name.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

WEIGHTS = ("kernel", "scale", "embedding")


def torch_name(path: tuple[Any, ...]) -> str:
    """The torch name of the leaf at a path (of `jax.tree_util`) in the `params` collection."""
    *modules, leaf = (key.key for key in path)
    kinds = ["weight"] if leaf in WEIGHTS else ["bias"] if leaf == "bias" else [leaf, "weight"]
    return ".".join([*modules, *kinds])


def to_torch(params: PyTree) -> dict[str, np.ndarray]:
    """Torch name -> array in torch's layout.

    Kernels [*sides, in, out] become [out, in, *sides]. Attention's [in, heads, features] and [heads,
    features, out] become [out, in], and its biases vectors.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params["params"])
    return {torch_name(path): _to_torch(path, np.asarray(leaf)) for path, leaf in leaves}


def _to_torch(path: tuple[Any, ...], array: np.ndarray) -> np.ndarray:
    if path[-1].key == "bias":
        return array.reshape(-1)
    if path[-1].key != "kernel":
        return array
    if array.ndim == 3:
        array = array.reshape((-1, array.shape[-1]) if path[-2].key == "out" else (len(array), -1))
    return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))


def torch_shapes(shapes: PyTree) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape in torch's layout, from arrays or their shapes."""
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return {name: array.shape for name, array in to_torch(empty).items()}


def from_torch(state: dict[str, np.ndarray], shapes: PyTree) -> PyTree:
    """The tree of parameters whose leaves have the shapes of the leaves of `shapes`."""

    def leaf(path: tuple[Any, ...], like: Any) -> np.ndarray:
        array = state[torch_name(path)]
        if path[-1].key == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2))
        return array.reshape(like.shape)

    return {"params": jax.tree_util.tree_map_with_path(leaf, shapes["params"])}
