"""Networks other than the paper's, in plain Flax and for one example each; batching is `jax.vmap`.

Those of images are `jaxcxr.models`'s, DenseNet with group norms, which Opacus requires.
"""

from typing import Any

from flax import linen as nn

from jaxcxr.bench.networks.resnet3d import ResNet3D
from jaxcxr.bench.networks.transformer import Transformer
from jaxcxr.models.convnext import ConvNeXt
from jaxcxr.models.densenet import DenseNet
from jaxcxr.models.vit import ViT


def network(name: str, size: int, **options: Any) -> nn.Module:
    """The network that the benchmark calls `name`, for examples of this size; `options` are fields of its
    class, and `n_classes` of those of images (ImageNet's 1,000).
    """
    if name in ("vit_s", "convnext_t", "densenet121"):
        options["n_findings"] = options.pop("n_classes", 1000)
    match name:
        case "vit_s":
            return ViT(**options)
        case "convnext_t":
            return ConvNeXt(**options)
        case "densenet121":
            return DenseNet(**{"groups": 32, **options})
        case "resnet18_3d":
            return ResNet3D(**options)
        case "transformer":
            return Transformer(length=size, **options)
    raise ValueError(name)
