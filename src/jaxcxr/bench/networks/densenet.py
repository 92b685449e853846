"""DenseNet (Huang et al. 2017, arXiv 1608.06993) of one image, with group norm in place of batch norm."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class DenseNet(nn.Module):
    """The defaults are DenseNet-121: 7,978,856 parameters (a group norm has as many as a batch norm).

    Attributes:
        n_classes: outputs.
        width: channels of the stem.
        growth: channels that a layer adds.
        depths: layers of each dense block.
        groups: of the norms; they divide `width`, `growth` and the channels after each block.
        dtype: of the arithmetic; parameters are float32.
    """

    n_classes: int = 1000
    width: int = 64
    growth: int = 32
    depths: tuple[int, ...] = (6, 12, 24, 16)
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "classes"]:
        """Logits of one image, at least 32 pixels a side by default."""

        def conv(x: Array, width: int, side: int, name: str, stride: int = 1) -> Array:
            options = {"padding": side // 2, "use_bias": False, "dtype": self.dtype, "name": name}
            return nn.Conv(width, (side, side), (stride, stride), **options)(x)

        def norm_relu(x: Array, name: str) -> Array:
            y = nn.GroupNorm(
                self.groups, epsilon=1e-5, reduction_axes=(-3, -2, -1), dtype=self.dtype, name=name
            )(x)
            return nn.relu(y)

        x = norm_relu(conv(image, self.width, 7, "stem", stride=2), "stem_norm")
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = conv(norm_relu(x, f"shrink{stage}_norm"), x.shape[-1] // 2, 1, f"shrink{stage}")
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for index in range(depth):
                name = f"stage{stage}_layer{index}"
                y = conv(norm_relu(x, f"{name}_norm1"), 4 * self.growth, 1, f"{name}_conv1")
                y = conv(norm_relu(y, f"{name}_norm2"), self.growth, 3, f"{name}_conv2")
                x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(self.n_classes, dtype=self.dtype, name="head")(norm_relu(x, "norm").mean((0, 1)))
