"""Text transformer in the layout of GPT-2 (Radford et al. 2019), of one text."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxcxr.models.vit import EPSILON, Block


class Transformer(nn.Module):
    """A small one by default: 7,419,392 parameters. GPT-2 has vocabulary 50,257, length 1,024, width 768,
    depth and heads 12,
    and is tied: 124,439,808 parameters.

    Attributes:
        vocabulary: number of different tokens.
        length: most tokens of a text.
        width: features of a token.
        depth: blocks.
        heads: of each attention.
        tied: the logits are products with the table of tokens, which then takes part twice, and not with
            another kernel.
        dtype: of the arithmetic; parameters are float32.
    """

    vocabulary: int = 8192
    length: int = 256
    width: int = 256
    depth: int = 4
    heads: int = 4
    tied: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "tokens"]) -> Float[Array, "tokens vocabulary"]:
        """Logits of each token's successor, from the tokens up to it."""
        table = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="tokens")
        positions = nn.Embed(self.length, self.width, dtype=self.dtype, name="positions")
        x = table(tokens) + positions(jnp.arange(len(tokens)))
        mask = nn.make_causal_mask(tokens, dtype=bool)
        for index in range(self.depth):
            x = Block(self.heads, self.dtype, name=f"block{index}")(x, mask)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return (
            table.attend(x)
            if self.tied
            else nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="head")(x)
        )
