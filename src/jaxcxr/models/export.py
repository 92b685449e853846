"""A trained network as a file that runs without this package: StableHLO by `jax.export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jaxtyping import Float, PyTree, UInt8

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    predict: Callable[[Any, Any], Any], params: PyTree, size: int, name: str = "probabilities"
) -> bytes:
    """The function uint8 films [n, size, size] -> probabilities [n, findings], weights included, for any n.

    Read it back with `jax.export.deserialize(data).call(films)`, for which jax is enough. Later versions of
    jax read it for six months at least (the compatibility window of `jax.export`).

    Args:
        predict: (parameters, films) -> probabilities (`models.test_time_augmentation.predictor`).
        params: of the network.
        size: side of the films in pixels.
        name: of the function in the file (`name_of_stablehlo`).
    """

    def probabilities(films: UInt8[jax.Array, "n h w"]) -> Float[jax.Array, "n findings"]:
        return predict(params, films)

    probabilities.__name__ = name
    (n,) = export.symbolic_shape("n")
    films = jax.ShapeDtypeStruct((n, size, size), np.uint8)
    return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(films).serialize())


def name_of_stablehlo(path: Path) -> str:
    """Name of the function in an exported file."""
    return export.deserialize(bytearray(path.read_bytes())).fun_name


def run_stablehlo(path: Path, films: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n findings"]:
    """Probabilities from an exported file."""
    return np.asarray(export.deserialize(bytearray(path.read_bytes())).call(films))
