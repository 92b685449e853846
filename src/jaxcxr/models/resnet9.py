"""ResNet9 with group normalisation: the paper's network.

Sources: the paper, Network Architecture; Klause et al. 2022; He et al. 2016; Wu & He 2018.
"""

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from jaxcxr.models.backbone import HEAD, Input, Network
from jaxcxr.models.layers import GroupNorm, Stem, max_pool

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Block(nn.Module):
    """A basic residual block: two 3 x 3 convolutions, and 1 x 1 on the shortcut if the shape changes."""

    features: int
    stride: int
    activation: str
    dtype: Any
    scale_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """The output map for an input map."""
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


class ResNet9(Network):
    """The network: logits of the findings from one grey image.

    4,909,896 parameters with eight findings and width 64. The image is copied to three channels for the
    pretrained first layer, without materialising the copies (`layers.Stem`).

    Attributes:
        activation: `mish` (private runs) or `relu` (non-private ones).
        width: channels of the first stage, doubled in each later one.
        scale_norm: normalise each block's output, so that the sum of residual and shortcut has a fixed scale
            (Klause et al. 2022).
    """

    activation: str = "mish"
    width: int = 64
    scale_norm: bool = False

    LAST_STAGE: ClassVar[tuple[str, ...]] = ("stage4",)
    STAGES: ClassVar[tuple[str, ...]] = ("stage1_block1", "stage2_block1", "stage3_block1")

    @property
    def input(self) -> Input:
        """Grey values from 0 to 1, as in the paper's loader."""
        return Input((0.0,) * 3, (1.0,) * 3, multiple=4)

    @nn.compact
    def __call__(self, image: UInt8[Array, "h w"] | Float[Array, "h w"]) -> Float[Array, "findings"]:
        """Logits of one image; grey values in [0, 255] are scaled to [0, 1], as in the paper's loader."""
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
        return nn.Dense(self.n_findings, name=HEAD)(self.pooled(x))
