"""The torch twin of `networks/densenet.py`."""

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]


class TorchDenseNet(nn.Module):
    """Group norms, as Opacus requires."""

    def __init__(
        self,
        n_classes: int = 1000,
        width: int = 64,
        growth: int = 32,
        depths: Sequence[int] = (6, 12, 24, 16),
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.depths = depths
        self.stem, self.stem_norm = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.GroupNorm(groups, width)
        for stage, depth in enumerate(depths):
            if stage > 0:
                self.add_module(f"shrink{stage}_norm", nn.GroupNorm(groups, width))
                self.add_module(f"shrink{stage}", nn.Conv2d(width, width // 2, 1, bias=False))
                width //= 2
            for index in range(depth):
                name = f"stage{stage}_layer{index}"
                self.add_module(f"{name}_norm1", nn.GroupNorm(groups, width))
                self.add_module(f"{name}_conv1", nn.Conv2d(width, 4 * growth, 1, bias=False))
                self.add_module(f"{name}_norm2", nn.GroupNorm(groups, 4 * growth))
                self.add_module(f"{name}_conv2", nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))
                width += growth
        self.norm, self.head = nn.GroupNorm(groups, width), nn.Linear(width, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""

        def run(x: torch.Tensor, norm: str, conv: str) -> torch.Tensor:
            return self.get_submodule(conv)(torch.relu(self.get_submodule(norm)(x)))

        x = functional.max_pool2d(torch.relu(self.stem_norm(self.stem(images))), 3, 2, 1)
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = functional.avg_pool2d(run(x, f"shrink{stage}_norm", f"shrink{stage}"), 2)
            for index in range(depth):
                name = f"stage{stage}_layer{index}"
                y = run(run(x, f"{name}_norm1", f"{name}_conv1"), f"{name}_norm2", f"{name}_conv2")
                x = torch.cat([x, y], dim=1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))
