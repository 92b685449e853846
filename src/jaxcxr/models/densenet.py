"""DenseNet (Huang et al. 2017, arXiv 1608.06993) of one image, with frozen batch norms or group norms."""

import re
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxcxr.models.backbone import HEAD, IMAGENET, Input, Network
from jaxcxr.models.naming import LEAVES, LeafShapes, Naming, Path, State

EPSILON = 1e-5
XRV = ((0.5,), (0.5 / 1024,))
"""Mean and standard deviation of torchxrayvision's one channel: grey values from -1024 to 1024."""


class DenseNet(Network):
    """The defaults are DenseNet-121: 6,953,856 parameters without the head, 83,648 frozen statistics beside
    them, 1,024 features.

    Attributes:
        mean, std: as of `Input`; one number each for a network of one channel, such as torchxrayvision's.
        width: channels of the stem.
        growth: channels that a layer adds.
        depths: layers of each dense block.
        groups: of group norms, which divide `width`, `growth` and the channels after each block; 0 for batch
            norms by their frozen statistics.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    width: int = 64
    growth: int = 32
    depths: tuple[int, ...] = (6, 12, 24, 16)
    groups: int = 0

    LAST_STAGE: ClassVar[tuple[str, ...]] = ("stage3", "norm")

    @property
    def input(self) -> Input:
        """Normalised copies, 32 pixels a side or more."""
        return Input(self.mean, self.std, least=32)

    @nn.compact
    def __call__(self, image: Any) -> Float[Array, "findings"]:
        """Logits of one image (`Input.normalised`)."""

        def conv(x: Array, width: int, side: int, name: str, stride: int = 1) -> Array:
            options = {"padding": side // 2, "use_bias": False, "dtype": self.dtype, "name": name}
            return nn.Conv(width, (side, side), (stride, stride), **options)(x)

        def norm_relu(x: Array, name: str) -> Array:
            options: dict[str, Any] = {"epsilon": EPSILON, "dtype": self.dtype, "name": name}
            if self.groups:
                norm: Any = nn.GroupNorm(self.groups, reduction_axes=(-3, -2, -1), **options)
            else:
                norm = nn.BatchNorm(use_running_average=True, **options)
            return nn.relu(norm(x))

        x = self.input.normalised(image)
        x = norm_relu(conv(x, self.width, 7, "stem", stride=2), "stem_norm")
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
        return nn.Dense(self.n_findings, name=HEAD)(self.pooled(norm_relu(x, "norm")))


_OLD = re.compile(r"\.(norm|conv)\.([12])\.")
"""Names of torchvision's published files, which it renames itself when it loads them."""


def _torch_name(path: Path) -> str:
    module, leaf = path
    end = LEAVES[leaf]
    if module == HEAD:
        return f"classifier.{end}"
    if module in ("stem", "stem_norm", "norm"):
        return f"features.{ {'stem': 'conv0', 'stem_norm': 'norm0', 'norm': 'norm5'}[module] }.{end}"
    if shrink := re.fullmatch(r"shrink(\d+)(_norm)?", module):
        return f"features.transition{shrink[1]}.{'norm' if shrink[2] else 'conv'}.{end}"
    layer = re.fullmatch(r"stage(\d+)_layer(\d+)_(\w+)", module)
    assert layer is not None
    return f"features.denseblock{int(layer[1]) + 1}.denselayer{int(layer[2]) + 1}.{layer[3]}.{end}"


def _renamed(state: State, shapes: LeafShapes) -> State:  # noqa: ARG001 - one signature
    return {_OLD.sub(r".\1\2.", name): array for name, array in state.items()}


def _options(state: State) -> dict[str, Any]:
    first = state["features.conv0.weight"]
    return {"mean": XRV[0], "std": XRV[1]} if first.ndim == 4 and first.shape[1] == 1 else {}


NAMINGS = (
    Naming(
        "torchvision and torchxrayvision",
        "features.conv0.weight",
        _torch_name,
        arranged=_renamed,
        passed_over=re.compile(r"^op_threshs$"),
        options=_options,
    ),
)
