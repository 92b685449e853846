"""Residual network of one volume or image sequence (R3D: Tran et al. 2018, arXiv 1711.11248), group norm."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class ResNet3D(nn.Module):
    """The defaults are R3D-18: 33,371,472 parameters with Kinetics' 400 classes (a group norm has as many as
    a batch norm).

    Attributes:
        n_classes: outputs.
        width: channels of the stem and first stage; they double from stage to stage.
        depths: residual blocks of each stage.
        groups: of the norms; they divide `width`.
        dtype: of the arithmetic; parameters are float32.
    """

    n_classes: int = 400
    width: int = 64
    depths: tuple[int, ...] = (2, 2, 2, 2)
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, volume: Float[Array, "d h w c"]) -> Float[Array, "classes"]:
        """Logits of one volume."""

        def conv(x: Array, width: int, sides: tuple[int, ...], strides: tuple[int, ...], name: str) -> Array:
            padding = [(side // 2, side // 2) for side in sides]
            return nn.Conv(
                width, sides, strides, padding=padding, use_bias=False, dtype=self.dtype, name=name
            )(x)

        def norm(x: Array, name: str) -> Array:
            return nn.GroupNorm(
                self.groups, epsilon=1e-5, reduction_axes=(-4, -3, -2, -1), dtype=self.dtype, name=name
            )(x)

        x = nn.relu(norm(conv(volume, self.width, (3, 7, 7), (1, 2, 2), "stem"), "stem_norm"))
        for stage, depth in enumerate(self.depths):
            width = self.width * 2**stage
            for index in range(depth):
                name = f"stage{stage}_block{index}"
                strides = (2, 2, 2) if stage > 0 and index == 0 else (1, 1, 1)
                y = nn.relu(norm(conv(x, width, (3, 3, 3), strides, f"{name}_conv1"), f"{name}_norm1"))
                y = norm(conv(y, width, (3, 3, 3), (1, 1, 1), f"{name}_conv2"), f"{name}_norm2")
                if x.shape != y.shape:
                    x = norm(conv(x, width, (1, 1, 1), strides, f"{name}_shortcut"), f"{name}_shortcut_norm")
                x = nn.relu(x + y)
        return nn.Dense(self.n_classes, dtype=self.dtype, name="head")(x.mean((0, 1, 2)))
