"""The torch twin of `the block of `models.vit``."""

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

EPSILON = 1e-6


class Attention(nn.Module):
    """Dot-product attention with dense layers for query, key, value and output, which Opacus knows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, tokens, width] -> the same shape."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class TorchBlock(nn.Module):
    """Attention and a perceptron, each on a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.attention = nn.LayerNorm(width, EPSILON), Attention(width, heads)
        self.norm2, self.expand, self.project = (
            nn.LayerNorm(width, EPSILON),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, tokens, width] -> the same shape."""
        x = x + self.attention(self.norm1(x), self.causal)
        return x + self.project(functional.gelu(self.expand(self.norm2(x))))
