"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of one image."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.bench.networks.block import EPSILON, Block


class ViT(nn.Module):
    """The defaults are ViT-S/16 (Touvron et al. 2021, arXiv 2012.12877): 22,050,664 parameters at 224 pixels.

    Attributes:
        n_classes: outputs.
        width: features of a token.
        depth: blocks.
        heads: of each attention.
        patch: side of a token's patch, in pixels; it divides the image's sides.
        dtype: of the arithmetic; parameters are float32.
    """

    n_classes: int = 1000
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "classes"]:
        """Logits of one image."""
        small = nn.initializers.normal(0.02)
        side = (self.patch, self.patch)
        patches = nn.Conv(self.width, side, side, padding="VALID", dtype=self.dtype, name="patches")(image)
        first = self.param("class_token", small, (1, self.width))
        x = jnp.concatenate([first.astype(self.dtype), patches.reshape(-1, self.width)])
        x = x + self.param("positions", small, x.shape).astype(self.dtype)
        for index in range(self.depth):
            x = Block(self.heads, self.dtype, name=f"block{index}")(x)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return nn.Dense(self.n_classes, dtype=self.dtype, name="head")(x[0])
