"""The torch twin of `networks/convnext.py`."""

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

EPSILON = 1e-6


def places_of(x: torch.Tensor) -> torch.Tensor:
    """Maps [n, channels, h, w] -> [n, places, channels]; Opacus's `ghost` skips a dense layer on two axes of
    places.
    """
    return x.flatten(2).transpose(1, 2)


def map_of(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Places -> maps of that shape, channels first in memory: Opacus (1.6.0) reads the input of a convolution
    as if it were so, and its `hooks` give the kernel of a depthwise one the gradient zero where it is not.
    """
    return x.transpose(1, 2).reshape(shape).contiguous()


class LayerScale(nn.Module):
    """A factor for each channel: a module of its own, or Opacus would differentiate the block around it once
    more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., channels] -> the same shape."""
        return x * self.weight


class TorchConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7, then a perceptron on each place, scaled per channel and added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] -> the same shape."""
        y = self.norm(places_of(self.depthwise(x)))
        y = self.layer_scale(self.project(functional.gelu(self.expand(y))))
        return x + map_of(y, x.shape)


class TorchConvNeXt(nn.Module):
    """No stochastic depth."""

    def __init__(
        self,
        n_classes: int = 1000,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
    ) -> None:
        super().__init__()
        self.depths = depths
        self.stem, self.stem_norm = nn.Conv2d(3, widths[0], 4, 4), nn.LayerNorm(widths[0], EPSILON)
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage > 0:
                self.add_module(f"shrink{stage}_norm", nn.LayerNorm(widths[stage - 1], EPSILON))
                self.add_module(f"shrink{stage}", nn.Conv2d(widths[stage - 1], width, 2, 2))
            for index in range(depth):
                self.add_module(f"stage{stage}_block{index}", TorchConvNeXtBlock(width))
        self.norm, self.head = nn.LayerNorm(widths[-1], EPSILON), nn.Linear(widths[-1], n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""

        def normed(name: str, x: torch.Tensor) -> torch.Tensor:
            return map_of(self.get_submodule(name)(places_of(x)), x.shape)

        x = normed("stem_norm", self.stem(images))
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = self.get_submodule(f"shrink{stage}")(normed(f"shrink{stage}_norm", x))
            for index in range(depth):
                x = self.get_submodule(f"stage{stage}_block{index}")(x)
        return self.head(self.norm(x.mean((2, 3))))
