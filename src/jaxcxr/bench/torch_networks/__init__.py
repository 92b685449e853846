"""The networks of `jaxcxr.bench.networks` in torch: parameters of the same names, for Opacus. Their sums of
gradients agree.
"""

from typing import Any

from torch import nn  # pyright: ignore[reportMissingImports]

from jaxcxr.bench.torch_networks.convnext import TorchConvNeXt
from jaxcxr.bench.torch_networks.densenet import TorchDenseNet
from jaxcxr.bench.torch_networks.resnet3d import TorchResNet3D
from jaxcxr.bench.torch_networks.transformer import TorchTransformer
from jaxcxr.bench.torch_networks.vit import TorchViT


def torch_network(name: str, size: int, **options: Any) -> nn.Module:
    """The network that the benchmark calls `name`, for examples of this size; `options` as in
    `networks.network`.
    """
    match name:
        case "vit_s":
            return TorchViT(size=size, **options)
        case "convnext_t":
            return TorchConvNeXt(**options)
        case "densenet121":
            return TorchDenseNet(**options)
        case "resnet18_3d":
            return TorchResNet3D(**options)
        case "transformer":
            return TorchTransformer(length=size, **options)
    raise ValueError(name)
