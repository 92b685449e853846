"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) of one image: depthwise 7 x 7, layer norm, layer scale; no
stochastic depth.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

EPSILON = 1e-6


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7, then a perceptron on each place, scaled per channel and added to the input."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """One map -> one map of the same shape."""
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width, dtype=self.dtype, name="depthwise")(
            x
        )
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(y)
        y = nn.Dense(4 * width, dtype=self.dtype, name="expand")(y)
        y = nn.Dense(width, dtype=self.dtype, name="project")(jax.nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
        return x + y * scale.astype(self.dtype)


class ConvNeXt(nn.Module):
    """The defaults are ConvNeXt-T: 28,589,128 parameters.

    Attributes:
        n_classes: outputs.
        widths: channels of each stage.
        depths: blocks of each stage.
        dtype: of the arithmetic; parameters are float32.
    """

    n_classes: int = 1000
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "classes"]:
        """Logits of one image, whose sides are multiples of 4 and of 2 for each stage after the first."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(EPSILON, dtype=self.dtype, name=name)

        def shrink(width: int, by: int, name: str) -> nn.Conv:
            return nn.Conv(width, (by, by), (by, by), padding="VALID", dtype=self.dtype, name=name)

        x = norm("stem_norm")(shrink(self.widths[0], 4, "stem")(image))
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if stage > 0:
                x = shrink(width, 2, f"shrink{stage}")(norm(f"shrink{stage}_norm")(x))
            for index in range(depth):
                x = ConvNeXtBlock(self.dtype, name=f"stage{stage}_block{index}")(x)
        return nn.Dense(self.n_classes, dtype=self.dtype, name="head")(norm("norm")(x.mean((0, 1))))
