"""Networks that compile quickly, in the place of the paper's."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.models.network import Network


class TinyNet(Network):
    """Two convolutions, a norm and a head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.Conv(4, (3, 3), 4, name="conv1")(image.astype(jnp.float32)[..., None] / 255)
        x = nn.Conv(4, (3, 3), 2, name="conv2")(jnp.tanh(nn.GroupNorm(2)(x)))
        return nn.Dense(self.n_findings, name="head")(jnp.tanh(x).mean(axis=(0, 1)))


class ManyWeights(Network):
    """As quick to compile; its checkpoints take some hundred kilobytes, as a limit on the size of a file needs."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.Conv(32, (4, 4), 4, name="conv1")(image.astype(jnp.float32)[..., None] / 255)
        x = nn.Dense(512, name="hidden")(nn.relu(x).mean(axis=(0, 1)))
        return nn.Dense(self.n_findings, name="head")(nn.relu(x))


MAKE_NETWORK = "jaxcxr.models.network.make_network"
"""What a test replaces by one of the functions below, for training, prediction, audit and release at once."""


def tiny_network(data: DataConfig, model: ModelConfig) -> TinyNet:
    """In the place of `MAKE_NETWORK`."""
    return TinyNet(len(data.findings), remat=model.remat)


def many_weights(data: DataConfig, model: ModelConfig) -> ManyWeights:
    """In the place of `MAKE_NETWORK`."""
    return ManyWeights(len(data.findings), remat=model.remat)
