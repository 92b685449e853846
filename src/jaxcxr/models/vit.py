"""Vision transformers of one image: plain ones (Dosovitskiy et al. 2021, arXiv 2010.11929), and those of
DINOv2 (Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, arXiv 2309.16588), RAD-DINO and
DINOv3 (2025, arXiv 2508.10104).
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxcxr.models.backbone import HEAD, IMAGENET, Input, Network

EPSILON = 1e-6
Turns = tuple[Float[Array, "tokens per_head"], Float[Array, "tokens per_head"]]
"""Cosines and sines by which queries and keys are turned (`rotary`)."""


class Attention(nn.Module):
    """Dot-product attention of several heads.

    Attributes:
        heads: they divide the width.
        dtype: of the arithmetic.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "tokens width"],
        mask: Bool[Array, "1 tokens tokens"] | None = None,
        turns: Turns | None = None,
    ) -> Float[Array, "tokens width"]:
        """One sequence -> one of the same shape; where `mask` is False a token does not see another."""
        width = x.shape[-1]

        def layer(name: str, x: Array) -> Array:
            return nn.Dense(width, dtype=self.dtype, name=name)(x)

        query, key, value = (
            layer(name, x).reshape(len(x), self.heads, -1) for name in ("query", "key", "value")
        )
        if turns is not None:
            query, key = _turned(query, turns), _turned(key, turns)
        weights = jnp.einsum("qhd,khd->hqk", query / math.sqrt(query.shape[-1]), key)
        if mask is not None:
            weights = jnp.where(mask, weights, jnp.finfo(weights.dtype).min)
        weights = jax.nn.softmax(weights)
        return layer("out", jnp.einsum("hqk,khd->qhd", weights, value).reshape(x.shape))


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each on a layer norm, perhaps scaled per channel,
    and added to its input.

    Attributes:
        heads: of the attention; they divide the width.
        dtype: of the arithmetic; parameters are float32.
        layer_scale: whether each of the two is scaled.
        epsilon: of the norms.
    """

    heads: int
    dtype: Any = jnp.float32
    layer_scale: bool = False
    epsilon: float = EPSILON

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "tokens width"],
        mask: Bool[Array, "1 tokens tokens"] | None = None,
        turns: Turns | None = None,
    ) -> Array:
        """One sequence -> one of the same shape; where `mask` is False a token does not see another."""
        width = x.shape[-1]

        def scaled(y: Array, name: str) -> Array:
            if not self.layer_scale:
                return y
            scale = self.param(name, nn.initializers.constant(1e-5), (width,))
            return y * scale.astype(self.dtype)

        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.dtype, name="attention")(y, mask, turns)
        x = x + scaled(y, "layer_scale1")
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="expand")(y)
        y = nn.Dense(width, dtype=self.dtype, name="project")(jax.nn.gelu(y, approximate=False))
        return x + scaled(y, "layer_scale2")


class ViT(Network):
    """The defaults are ViT-S/16 (Touvron et al. 2021, arXiv 2012.12877): 21,665,664 parameters without the
    head at 224 pixels. The features are the class token after the last norm.

    Attributes:
        mean, std: as of `Input`.
        width: features of a token.
        depth: blocks.
        heads: of each attention.
        patch: side of a token's patch, in pixels.
        registers: tokens beside the class token that belong to no patch.
        layer_scale: whether what each block adds is scaled per channel.
        rotary: positions turn queries and keys, as in DINOv3, instead of being learned and added.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    registers: int = 0
    layer_scale: bool = False
    rotary: bool = False

    LAST_STAGE: ClassVar[tuple[str, ...]] = ("block11", "norm")

    @property
    def input(self) -> Input:
        """Normalised copies whose side is a multiple of the patch."""
        return Input(self.mean, self.std, multiple=self.patch, least=self.patch)

    @nn.compact
    def __call__(self, image: Any) -> Float[Array, "findings"]:
        """Logits of one image (`Input.normalised`)."""
        small = nn.initializers.normal(0.02)
        side = (self.patch, self.patch)
        epsilon = 1e-5 if self.rotary else EPSILON
        patches: Any = nn.Conv(self.width, side, side, padding="VALID", dtype=self.dtype, name="patches")(
            self.input.normalised(image)
        )
        grid = patches.shape[:2]
        first: Any = self.param("class_token", small, (1, self.width))
        x, turns = jnp.concatenate([first.astype(self.dtype), patches.reshape(-1, self.width)]), None
        if self.rotary:
            turns = rotary(grid, self.width // self.heads, 1 + self.registers)
        else:
            positions: Any = self.param("positions", small, x.shape)
            x = x + positions.astype(self.dtype)
        if self.registers:
            registers: Any = self.param("registers", small, (self.registers, self.width))
            x = jnp.concatenate([x[:1], registers.astype(self.dtype), x[1:]])
        for index in range(self.depth):
            block = Block(self.heads, self.dtype, self.layer_scale, epsilon, name=f"block{index}")
            x = block(x, None, turns)
        x = nn.LayerNorm(epsilon, dtype=self.dtype, name="norm")(x)
        return nn.Dense(self.n_findings, name=HEAD)(x[0].astype(jnp.float32))


class ViTBase(ViT):
    """ViT-B/16: 85,798,656 parameters without the head at 224 pixels.

    Attributes: those of `ViT`.
    """

    width: int = 768
    heads: int = 12


def rotary(grid: tuple[int, int], width: int, before: int, base: float = 100.0) -> Turns:
    """Turns of the tokens of a grid of patches, of heads of `width` features (Su et al. 2021, arXiv
    2104.09864, in two dimensions as in DINOv3); `before` tokens come before them and are not turned.

    The centre of each patch is at (y, x) in [-1, 1]; a quarter of the features turn by 2 pi y / base^(4 i /
    width), the next quarter by the same of x, and so the second half.
    """
    y, x = (2 * (jnp.arange(n) + 0.5) / n - 1 for n in grid)
    centres = jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    frequencies = 1 / base ** jnp.arange(0, 1, 4 / width)
    angles = (2 * jnp.pi * centres[:, :, None] * frequencies).reshape(len(centres), -1)
    angles = jnp.pad(jnp.tile(angles, 2), ((before, 0), (0, 0)))
    return jnp.cos(angles), jnp.sin(angles)


def _turned(x: Float[Array, "tokens heads width"], turns: Turns) -> Array:
    cosines, sines = (t[:, None].astype(x.dtype) for t in turns)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cosines + jnp.concatenate([-second, first], axis=-1) * sines
