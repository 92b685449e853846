"""From a configuration to its network: the one place, outside the benchmark, that names a class of networks.

Training, prediction, audit and release all take the network from `make_network`, so that the same
configuration is the same network everywhere. What they must know of it otherwise, its input and the names of
its parts, stands here too. A network takes one image and gives the logits of its findings. Its last layer is
a dense one called `HEAD`, which sees the mean over the places of the map that `LAST_BLOCK` puts out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.models.resnet9 import DTYPES, ResNet9

Network = ResNet9
"""The class of the network; its attributes are what it was made with."""

HEAD = "head"
LAST_STAGE = "stage4"
LAST_BLOCK = "stage4_block1"

NOT_OF_THE_NETWORK = ("weights", "pretraining", "prediction_views", "weights_ids_unrelated")
"""Fields of `ModelConfig` that say where weights come from and how predictions are averaged."""


def make_network(data: DataConfig, model: ModelConfig) -> Network:
    """The network that a configuration asks for."""
    return ResNet9(
        len(data.findings),
        activation=model.activation,
        width=model.width,
        dtype=DTYPES[model.dtype],
        scale_norm=model.scale_norm,
        remat=model.remat,
    )


def random_params(network: Network, size: int, key: Key[Array, ""]) -> PyTree:
    """Parameters to start from, for images of `size` x `size` pixels."""
    return network.init(key, jnp.zeros((size, size), jnp.uint8))


def shapes_of(network: Network, size: int) -> PyTree:
    """Shape and dtype of every parameter, without computing any."""
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((size, size), jnp.uint8))


def is_head(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` (names below `params`) belongs to the last layer."""
    return path[0] == HEAD


def is_norm(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` is the scale or bias of a norm."""
    return path[-1] == "scale" or (path[-1] == "bias" and "norm" in path[-2])


def is_last_stage(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` belongs to the last stage of convolutions."""
    return path[0].startswith(LAST_STAGE)
