"""ResNet9 with group normalisation: the paper's network (Network Architecture; Klause et al. 2022, He et al.
2016, Wu & He 2018).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxcxr.models.layers import GroupNorm, Stem, max_pool

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Block(nn.Module):
    """A basic residual block: two 3 x 3 convolutions, and a 1 x 1 one on the shortcut where the shape
    changes.
    """

    features: int
    stride: int
    activation: str
    dtype: Any
    scale_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """One map in, one map out."""
        conv = partial(
            nn.Conv, self.features, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal()
        )
        y = conv((3, 3), self.stride, padding=1, name="conv1")(x)
        y = GroupNorm(name="norm1")(y, activation=self.activation)
        y = conv((3, 3), padding=1, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv((1, 1), self.stride, name="shortcut_conv")(x)
            x = GroupNorm(name="shortcut_norm")(x)
        y = GroupNorm(name="norm2")(y, residual=x, activation=self.activation)
        return GroupNorm(name="scale_norm")(y) if self.scale_norm else y


class ResNet9(nn.Module):
    """Logits of the findings from one grey film.

    4,909,896 parameters with eight findings and width 64. The film is copied to three channels for the
    pretrained first layer, without materialising the copies (`layers.Stem`).

    Attributes:
        n_findings: number of outputs.
        activation: `mish` (private runs) or `relu` (non-private ones).
        width: channels of the first stage, doubled in each later one.
        dtype: of convolutions and activations; norms, pooling's mean, head and logits are float32.
        remat: see `ModelConfig`; it is for whoever differentiates the network.
        scale_norm: normalise each block's output, so that residual and shortcut add up to one scale (Klause
            et al. 2022).
    """

    n_findings: int
    activation: str = "mish"
    width: int = 64
    dtype: Any = jnp.float32
    scale_norm: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, image: UInt8[Array, "h w"] | Float[Array, "h w"]) -> Float[Array, "findings"]:
        """Logits of one film with grey values in [0, 255]; they are scaled to [0, 1] here, as the paper's
        loader does.
        """
        x = (image.astype(jnp.float32) / 255.0).astype(self.dtype)
        x = Stem(self.width, dtype=self.dtype, name="conv1")(x)
        x = GroupNorm(name="norm1")(x, activation=self.activation)
        x = max_pool(x)
        for stage in range(4):
            x = Block(
                self.width * 2**stage,
                1 if stage == 0 else 2,
                self.activation,
                self.dtype,
                self.scale_norm,
                name=f"stage{stage + 1}_block1",
            )(x)
        x = x.astype(jnp.float32).mean(axis=(0, 1))
        return nn.Dense(self.n_findings, name="head")(x)
