"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) of one image: depthwise 7 x 7, layer norm, layer scale; no
stochastic depth.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.models.backbone import HEAD, IMAGENET, Input, Network
from jaxcxr.models.naming import LEAVES, LeafShapes, Naming, Path, State, stage_and_block

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


class ConvNeXt(Network):
    """The defaults are ConvNeXt-T: 27,820,128 parameters without the head, 768 features.

    Attributes:
        mean, std: as of `Input`.
        widths: channels of each stage.
        depths: blocks of each stage.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)

    LAST_STAGE: ClassVar[tuple[str, ...]] = ("stage3", "shrink3", "norm")
    STAGES: ClassVar[tuple[str, ...]] = ("stage0_block2", "stage1_block2", "stage2_block8")

    @property
    def input(self) -> Input:
        """Normalised copies, 32 pixels a side or more."""
        return Input(self.mean, self.std, least=4 * 2 ** (len(self.widths) - 1))

    @nn.compact
    def __call__(self, image: Any) -> Float[Array, "findings"]:
        """Logits of one image (`Input.normalised`). What does not fill a patch of 4, or of 2 before the later
        stages, is left out, as in torch.
        """

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(EPSILON, dtype=self.dtype, name=name)

        def shrink(width: int, by: int, name: str) -> nn.Conv:
            return nn.Conv(width, (by, by), (by, by), padding="VALID", dtype=self.dtype, name=name)

        x = norm("stem_norm")(shrink(self.widths[0], 4, "stem")(self.input.normalised(image)))
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if stage > 0:
                x = shrink(width, 2, f"shrink{stage}")(norm(f"shrink{stage}_norm")(x))
            for index in range(depth):
                x = ConvNeXtBlock(self.dtype, name=f"stage{stage}_block{index}")(x)
        features = norm("norm")(x.mean((0, 1))).astype(jnp.float32)
        return nn.Dense(self.n_findings, name=HEAD)(features)


_PARTS = ("depthwise", "norm", "expand", "project")


def _naming(
    outside: tuple[str, str, str, str],
    shrink: Callable[[int], str],
    block: Callable[[int, int], str],
    parts: tuple[str, str, str, str],
    scale: str = "gamma",
) -> Callable[[Path], str]:
    """The torch name of each leaf, by the names of its modules.

    Args:
        outside: of the stem, its norm, the last norm and the head.
        shrink: stage -> of the norm (0) and the convolution (1) before it, without that number.
        block: stage, block -> of a block.
        parts: of a block's depthwise convolution, norm and two dense layers.
        scale: of a block's layer scale.
    """
    fixed = dict(zip(("stem", "stem_norm", "norm", HEAD), outside, strict=True))
    of_part: dict[str, str] = dict(zip(_PARTS, parts, strict=True))

    def torch_name(path: Path) -> str:
        module, *inner = path
        end = LEAVES.get(path[-1], path[-1])
        if module in fixed:
            return f"{fixed[module]}.{end}"
        if shrunk := re.fullmatch(r"shrink(\d+)(_norm)?", module):
            return f"{shrink(int(shrunk[1]))}.{0 if shrunk[2] else 1}.{end}"
        layer = scale if inner == ["layer_scale"] else f"{of_part[inner[0]]}.{end}"
        return f"{block(*stage_and_block(module))}.{layer}"

    return torch_name


_torchvision_name = _naming(  # stages and what shrinks maps between them are counted through
    ("features.0.0", "features.0.1", "classifier.0", "classifier.2"),
    lambda stage: f"features.{2 * stage}",
    lambda stage, block: f"features.{2 * stage + 1}.{block}",
    ("block.0", "block.2", "block.3", "block.5"),
    scale="layer_scale",
)
_timm_name = _naming(
    ("stem.0", "stem.1", "head.norm", "head.fc"),
    lambda stage: f"stages.{stage}.downsample",
    lambda stage, block: f"stages.{stage}.blocks.{block}",
    ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
)
_facebook_name = _naming(  # the authors', and DINOv3's ConvNeXt in its own repository
    ("downsample_layers.0.0", "downsample_layers.0.1", "norm", "head"),
    lambda stage: f"downsample_layers.{stage}",
    lambda stage, block: f"stages.{stage}.{block}",
    ("dwconv", "norm", "pwconv1", "pwconv2"),
)
_dinov3_name = _naming(  # DINOv3's ConvNeXt in transformers
    ("stages.0.downsample_layers.0", "stages.0.downsample_layers.1", "layer_norm", "classifier"),
    lambda stage: f"stages.{stage}.downsample_layers",
    lambda stage, block: f"stages.{stage}.layers.{block}",
    ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2"),
)


def _scales_flat(state: State, shapes: LeafShapes) -> State:  # noqa: ARG001 - one signature
    """Torchvision keeps a layer scale as [channels, 1, 1]."""
    return {n: a.reshape(-1) if n.endswith("layer_scale") else a for n, a in state.items()}


def _scales_as_maps(state: State) -> State:
    return {n: a[:, None, None] if n.endswith("layer_scale") else a for n, a in state.items()}


def _without_model(state: State, shapes: LeafShapes) -> State:  # noqa: ARG001 - one signature
    """Transformers 5 puts `model.` before the stages' names in memory, and not in files."""
    return {name.removeprefix("model."): array for name, array in state.items()}


NAMINGS = (
    Naming(
        "torchvision",
        "features.0.0.weight",
        _torchvision_name,
        arranged=_scales_flat,
        published=_scales_as_maps,
    ),
    Naming("timm", "stem.0.weight", _timm_name),
    Naming("facebook", "downsample_layers.0.0.weight", _facebook_name, passed_over=re.compile(r"^norms\.")),
    Naming(
        "transformers (DINOv3)",
        "stages.0.downsample_layers.0.weight",
        _dinov3_name,
        arranged=_without_model,
    ),
)
