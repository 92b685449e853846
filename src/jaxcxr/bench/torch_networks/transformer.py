"""The torch twin of `networks/transformer.py`."""

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from jaxcxr.bench.torch_networks.block import EPSILON, TorchBlock


class TorchTransformer(nn.Module):
    """A decoder; tied, its last layer shares its weight with the table of tokens, as Opacus asks for."""

    def __init__(
        self,
        vocabulary: int = 8192,
        length: int = 256,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for index in range(depth):
            self.add_module(f"block{index}", TorchBlock(width, heads, causal=True))
        self.norm, self.head = nn.LayerNorm(width, EPSILON), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [n, tokens, vocabulary] of texts [n, tokens]."""
        x = self.tokens(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        )
        for index in range(self.depth):
            x = self.get_submodule(f"block{index}")(x)
        return self.head(self.norm(x))
