"""Networks as users write them, named in a configuration as `tests.models.own:Name`."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxcxr.models.network import Network

SLOPE = 1.0


class Own(Network):
    """A convolution, a batch norm with frozen statistics and a head, on images whose side is even."""

    width: int = 4

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.Conv(self.width, (5, 5), 4, name="conv1")(self.input.normalised(image))
        x = nn.BatchNorm(use_running_average=True, name="norm1")(x)
        return nn.Dense(self.n_findings, name="head")(jnp.tanh(SLOPE * x).mean(axis=(0, 1)))


class Other(Network):
    """With other parts than `Own` and no option."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        return nn.Dense(self.n_findings, name="head")(image.astype(jnp.float32)[::8, ::8].reshape(-1))


class Training(Network):
    """A batch norm that would learn its statistics from the private images."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.BatchNorm(use_running_average=False)(self.input.normalised(image))
        return nn.Dense(self.n_findings, name="head")(x.mean(axis=(0, 1)))


class Headless(Network):
    """Without a layer called head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        return nn.Dense(self.n_findings)(image.astype(jnp.float32).reshape(-1))


class NoNetwork:
    """Any class."""
