"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) of one image: depthwise 7 x 7, layer norm, layer scale; no
stochastic depth.
"""

import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.models.backbone import HEAD, IMAGENET, Input, Network
from jaxcxr.models.naming import LeafShapes, Naming, Path, State

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


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TORCHVISION = {"depthwise": "block.0", "norm": "block.2", "expand": "block.3", "project": "block.5"}
_TIMM = {"depthwise": "conv_dw", "norm": "norm", "expand": "mlp.fc1", "project": "mlp.fc2"}
_FACEBOOK = {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "project": "pwconv2"}
_DINOV3 = {"depthwise": "depthwise_conv", "norm": "layer_norm", "expand": "pointwise_conv1"}
_DINOV3 |= {"project": "pointwise_conv2"}


def _torchvision_name(path: Path) -> str:
    """Of torchvision: stages and what shrinks maps between them are counted through."""
    module, *inner = path
    end = _LEAVES.get(path[-1], path[-1])
    fixed = {
        "stem": "features.0.0",
        "stem_norm": "features.0.1",
        "norm": "classifier.0",
        HEAD: "classifier.2",
    }
    if module in fixed:
        return f"{fixed[module]}.{end}"
    if shrink := re.fullmatch(r"shrink(\d+)(_norm)?", module):
        return f"features.{2 * int(shrink[1])}.{0 if shrink[2] else 1}.{end}"
    stage, index = _place(module)
    layer = "layer_scale" if inner == ["layer_scale"] else f"{_TORCHVISION[inner[0]]}.{end}"
    return f"features.{2 * stage + 1}.{index}.{layer}"


def _timm_name(path: Path) -> str:
    module, *inner = path
    end = _LEAVES.get(path[-1], path[-1])
    fixed = {"stem": "stem.0", "stem_norm": "stem.1", "norm": "head.norm", HEAD: "head.fc"}
    if module in fixed:
        return f"{fixed[module]}.{end}"
    if shrink := re.fullmatch(r"shrink(\d+)(_norm)?", module):
        return f"stages.{shrink[1]}.downsample.{0 if shrink[2] else 1}.{end}"
    stage, index = _place(module)
    layer = "gamma" if inner == ["layer_scale"] else f"{_TIMM[inner[0]]}.{end}"
    return f"stages.{stage}.blocks.{index}.{layer}"


def _facebook_name(path: Path) -> str:
    """Of the authors, and of DINOv3's ConvNeXt in its own repository."""
    module, *inner = path
    end = _LEAVES.get(path[-1], path[-1])
    fixed = {
        "stem": "downsample_layers.0.0",
        "stem_norm": "downsample_layers.0.1",
        "norm": "norm",
        HEAD: "head",
    }
    if module in fixed:
        return f"{fixed[module]}.{end}"
    if shrink := re.fullmatch(r"shrink(\d+)(_norm)?", module):
        return f"downsample_layers.{shrink[1]}.{0 if shrink[2] else 1}.{end}"
    stage, index = _place(module)
    layer = "gamma" if inner == ["layer_scale"] else f"{_FACEBOOK[inner[0]]}.{end}"
    return f"stages.{stage}.{index}.{layer}"


def _dinov3_name(path: Path) -> str:
    """Of DINOv3's ConvNeXt in transformers."""
    module, *inner = path
    end = _LEAVES.get(path[-1], path[-1])
    fixed = {"stem": "stages.0.downsample_layers.0", "stem_norm": "stages.0.downsample_layers.1"}
    fixed |= {"norm": "layer_norm", HEAD: "classifier"}
    if module in fixed:
        return f"{fixed[module]}.{end}"
    if shrink := re.fullmatch(r"shrink(\d+)(_norm)?", module):
        return f"stages.{shrink[1]}.downsample_layers.{0 if shrink[2] else 1}.{end}"
    stage, index = _place(module)
    layer = "gamma" if inner == ["layer_scale"] else f"{_DINOV3[inner[0]]}.{end}"
    return f"stages.{stage}.layers.{index}.{layer}"


def _place(module: str) -> tuple[int, int]:
    stage, index = module.removeprefix("stage").split("_block")
    return int(stage), int(index)


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
