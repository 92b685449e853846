"""A trained network as a file that runs without this package: StableHLO by `jax.export`."""

from pathlib import Path

import jax
import numpy as np
from jax import export
from jaxtyping import Float, PyTree, UInt8

from jaxcxr.models.resnet9 import ResNet9

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: ResNet9, params: PyTree, size: int) -> bytes:
    """The function uint8 films [n, size, size] -> probabilities [n, findings], weights included, for any n.

    Read it back with `jax.export.deserialize(data).call(films)`, for which jax is enough. Later versions of jax read it for six
    months at least (the compatibility window of `jax.export`).
    """
    apply = jax.vmap(model.apply, in_axes=(None, 0))

    def probabilities(films: UInt8[jax.Array, "n h w"]) -> Float[jax.Array, "n findings"]:
        return jax.nn.sigmoid(apply(params, films))  # type: ignore[arg-type]

    (n,) = export.symbolic_shape("n")
    films = jax.ShapeDtypeStruct((n, size, size), np.uint8)
    return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(films).serialize())


def run_stablehlo(path: Path, films: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n findings"]:
    """Probabilities from an exported file."""
    return np.asarray(export.deserialize(bytearray(path.read_bytes())).call(films))
