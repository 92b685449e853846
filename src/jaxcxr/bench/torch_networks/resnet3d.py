"""The torch twin of `networks/resnet3d.py`."""

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


class TorchResNet3D(nn.Module):
    """Group norms, as Opacus requires."""

    def __init__(
        self, n_classes: int = 400, width: int = 64, depths: Sequence[int] = (2, 2, 2, 2), groups: int = 32
    ) -> None:
        super().__init__()
        self.depths = depths
        self.stem = nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem_norm = nn.GroupNorm(groups, width)
        into = width
        for stage, depth in enumerate(depths):
            out = width * 2**stage
            for index in range(depth):
                name, stride = f"stage{stage}_block{index}", 2 if stage > 0 and index == 0 else 1
                self.add_module(f"{name}_conv1", nn.Conv3d(into, out, 3, stride, 1, bias=False))
                self.add_module(f"{name}_norm1", nn.GroupNorm(groups, out))
                self.add_module(f"{name}_conv2", nn.Conv3d(out, out, 3, 1, 1, bias=False))
                self.add_module(f"{name}_norm2", nn.GroupNorm(groups, out))
                if into != out:
                    self.add_module(f"{name}_shortcut", nn.Conv3d(into, out, 1, stride, bias=False))
                    self.add_module(f"{name}_shortcut_norm", nn.GroupNorm(groups, out))
                into = out
        self.head = nn.Linear(into, n_classes)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of volumes [n, 3, d, h, w]."""

        def run(x: torch.Tensor, conv: str, norm: str) -> torch.Tensor:
            return self.get_submodule(norm)(self.get_submodule(conv)(x))

        x = torch.relu(run(volumes, "stem", "stem_norm"))
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                name = f"stage{stage}_block{index}"
                y = torch.relu(run(x, f"{name}_conv1", f"{name}_norm1"))
                y = run(y, f"{name}_conv2", f"{name}_norm2")
                if hasattr(self, f"{name}_shortcut"):
                    x = run(x, f"{name}_shortcut", f"{name}_shortcut_norm")
                x = torch.relu(x + y)
        return self.head(x.mean((2, 3, 4)))
