"""Export a trained network to a file that runs without this package: StableHLO by `jax.export`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """The serialised function images uint8 [n, size, size] -> probabilities [n, findings], for any n.

    Read it with `jax.export.deserialize(data).call(images)`, which needs only jax. Later versions of jax can
    read it for at least six months (the compatibility window of `jax.export`). It holds no path of this
    machine: without `_without_locations`, StableHLO names the source file of every operation.

    Args:
        predict: (parameters, images) -> probabilities (`models.test_time_augmentation.predictor`).
        params: of the network.
        size: side of the images in pixels.
        name: name of the function in the file (`name_of_stablehlo`).
    """

    def probabilities(images: UInt8[jax.Array, "n h w"]) -> Float[jax.Array, "n findings"]:
        return predict(params, images)

    probabilities.__name__ = name
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, size, size), np.uint8)
    with _without_locations():
        return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(images).serialize())


@contextmanager
def _without_locations() -> Iterator[None]:
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def name_of_stablehlo(path: Path) -> str:
    """Name of the function in an exported file (`to_stablehlo`)."""
    return export.deserialize(bytearray(path.read_bytes())).fun_name


def run_stablehlo(path: Path, images: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n findings"]:
    """Probabilities by an exported file's function."""
    return np.asarray(export.deserialize(bytearray(path.read_bytes())).call(images))
