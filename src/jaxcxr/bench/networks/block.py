"""The pre-norm transformer block that the image and the text transformer are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

EPSILON = 1e-6


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each on a layer norm and added to its input.

    Attributes:
        heads: of the attention; they divide the width.
        dtype: of the arithmetic; parameters are float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "tokens width"], mask: Bool[Array, "1 tokens tokens"] | None = None
    ) -> Array:
        """One sequence -> one of the same shape; where `mask` is False a token does not see another."""
        width = x.shape[-1]
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")(y, mask=mask)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="expand")(y)
        return x + nn.Dense(width, dtype=self.dtype, name="project")(jax.nn.gelu(y, approximate=False))
