"""Read the weights of a release: the parameters of the network that its configuration describes, and no more.

Names, shapes and type are the network's. Numbers are finite and of a size that training gives; arrays of many
numbers differ from each other as trained ones do. An image in place of a kernel has few distinct values, or,
byte for byte, numbers of absurd size. An image that somebody disguises as noise cannot be told from a kernel:
against that, the cohort's register holds the SHA-256 of the weights that were trained.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from jaxcxr.config import Experiment
from jaxcxr.errors import InputError
from jaxcxr.models import network as networks
from jaxcxr.run_folder import CONFIG

LARGEST, SMALLEST = 1e4, 1e-30
"""Of a weight's magnitude, if it is not 0."""
_MANY, _GREY_LEVELS = 1024, 256


def read_weights(path: Path, config: Experiment | None) -> dict[str, np.ndarray]:
    """The weights of a safetensors file that holds the network's parameters without gaps or metadata.

    Args:
        path: of the file.
        config: whose network it is; None compares nothing with a network.

    Raises:
        InputError: the file is missing or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: is missing")
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        types = {entry["dtype"] for entry in header.values()}
        form = all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from error
    if metadata:
        raise InputError(f"{path}: holds metadata {metadata}; expected none")
    ends = [0, *(end for _, end in spans)]
    if (
        not form
        or types != {"F32"}
        or [start for start, _ in spans] != ends[:-1]
        or ends[-1] != len(content) - 8 - length
    ):
        raise InputError(f"{path}: holds more than parameters in float32, or bytes that belong to none")
    if config is not None:
        wanted = network_shapes(config)
        found = {name: tuple(entry["shape"]) for name, entry in header.items()}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            raise InputError(
                f"{path}: does not hold the parameters of the network in {CONFIG}: {', '.join(wrong)}"
            )
    try:
        weights = load(content)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from error
    if odd := list(untrained(weights)):
        raise InputError(f"{path}: {'; '.join(odd)}")
    return weights


def network_shapes(config: Experiment) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of the network that a configuration describes, by its path."""
    network = networks.make_network(config.data, config.model)
    leaves, _ = jax.tree_util.tree_flatten_with_path(networks.shapes_of(network, config.data.size))
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}


def untrained(weights: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A sentence for every array whose numbers are not those of a trained network."""
    for name, array in weights.items():
        size = np.abs(array)
        if not np.isfinite(array).all():
            yield f"{name}: holds numbers that are not finite"
        elif np.any(size > LARGEST) or np.any((size < SMALLEST) & (size > 0)):
            yield f"{name}: holds numbers that no training gives: beyond {SMALLEST:g} to {LARGEST:g}"
        elif array.size >= _MANY and _repeats(array):
            yield f"{name}: repeats few values, as an image does and trained weights do not"


def _repeats(array: np.ndarray) -> bool:
    """Few values, unless they are one or two constants, or as many as 16 bits of floating point hold."""
    distinct = len(np.unique(array))
    if distinct <= 2:
        return False
    coarse = bool((np.ascontiguousarray(array, np.float32).view(np.uint32) & 0xFFFF == 0).all())
    return distinct <= _GREY_LEVELS or (distinct < array.size / 4 and not coarse)
