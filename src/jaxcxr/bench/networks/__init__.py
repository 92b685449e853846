"""Networks other than the paper's, in plain Flax and for one example each; batching is `jax.vmap`."""

from typing import Any

from flax import linen as nn

from jaxcxr.bench.networks.convnext import ConvNeXt
from jaxcxr.bench.networks.densenet import DenseNet
from jaxcxr.bench.networks.resnet3d import ResNet3D
from jaxcxr.bench.networks.transformer import Transformer
from jaxcxr.bench.networks.vit import ViT


def network(name: str, size: int, **options: Any) -> nn.Module:
    """The network that the benchmark calls `name`, for examples of this size; `options` are fields of its
    class.
    """
    match name:
        case "vit_s":
            return ViT(**options)
        case "convnext_t":
            return ConvNeXt(**options)
        case "densenet121":
            return DenseNet(**options)
        case "resnet18_3d":
            return ResNet3D(**options)
        case "transformer":
            return Transformer(length=size, **options)
    raise ValueError(name)
