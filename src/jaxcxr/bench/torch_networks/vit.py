"""The torch twin of `networks/vit.py`."""

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from jaxcxr.bench.torch_networks.block import EPSILON, TorchBlock


class TorchViT(nn.Module):
    """Class token and positions are embeddings, which Opacus knows; a bare parameter would make it
    differentiate the whole network once more.
    """

    def __init__(
        self,
        n_classes: int = 1000,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 16,
        size: int = 224,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Embedding(1, width)
        self.positions = nn.Embedding(1 + (size // patch) ** 2, width)
        for index in range(depth):
            self.add_module(f"block{index}", TorchBlock(width, heads))
        self.norm, self.head = nn.LayerNorm(width, EPSILON), nn.Linear(width, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, classes] of images [n, 3, size, size]."""
        n, device = len(images), images.device
        first = self.class_token(torch.zeros(n, 1, dtype=torch.long, device=device))
        x = torch.cat([first, self.patches(images).flatten(2).transpose(1, 2)], dim=1)
        x = x + self.positions(torch.arange(x.shape[1], device=device).repeat(n, 1))
        for index in range(self.depth):
            x = self.get_submodule(f"block{index}")(x)
        return self.head(self.norm(x)[:, 0])
