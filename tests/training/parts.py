"""A network with the parts that scopes name, and so few of them that it compiles at once."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxcxr.models.layers import Conv, GroupNorm
from jaxcxr.models.resnet9 import ResNet9


class Tiny(ResNet9):
    """One convolution with its norm, a `stage4_block1` and the head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """Logits of one film."""
        x = Conv(32, 5, stride=4, name="conv1")(image[..., None].astype(jnp.float32) / 255.0)
        x = GroupNorm(name="norm1")(x, activation="mish").mean(axis=(0, 1))
        x = x + jnp.tanh(nn.Dense(32, name="stage4_block1")(x))
        return nn.Dense(self.n_findings, name="head")(x)
