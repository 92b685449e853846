"""A logistic regression on the pixels: the smallest network, which compiles in a second, for audits."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxcxr.models.backbone import HEAD, Network


class LogisticRegression(Network):
    """One layer from grey values, scaled to [-1, 1], to the logits; its weights start near zero."""

    @nn.compact
    def __call__(self, image: UInt8[Array, "h w"]) -> Float[Array, "findings"]:
        """Logits of one image."""
        pixels = image.astype(jnp.float32).reshape(-1) / 127.5 - 1
        return nn.Dense(self.n_findings, kernel_init=nn.initializers.normal(1e-3), name=HEAD)(pixels)
