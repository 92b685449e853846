"""The same network in torch, for the parity tests and the benchmark: what the paper's authors ran, but for
its training.
"""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, UInt8
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from jaxcxr.models.torch_weights import State

GROUPS = 32
ACTIVATIONS = {"mish": nn.Mish, "relu": nn.ReLU}


class TorchBlock(nn.Module):
    """A basic residual block with group normalisation."""

    def __init__(self, into: int, out: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.GroupNorm(GROUPS, out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.GroupNorm(GROUPS, out)
        self.act1, self.act2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.GroupNorm(GROUPS, out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, into, h, w] -> [n, out, h / stride, w / stride]."""
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet9(nn.Module):
    """The paper's network; parameter names are those of torchvision and so of the authors' checkpoints."""

    def __init__(self, n_findings: int, activation: str = "mish", width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.GroupNorm(GROUPS, width)
        self.act = ACTIVATIONS[activation]()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        into = width
        for stage in range(4):
            out = width * 2**stage
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(TorchBlock(into, out, 1 if stage == 0 else 2, activation))
            )
            into = out
        self.fc = nn.Linear(into, n_findings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [n, findings] of films [n, 3, h, w] in [0, 1]."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def torch_net(weights: State, activation: str) -> TorchResNet9:
    """The network with given weights (torch layout)."""
    n_findings, width = weights["fc.weight"].shape[0], weights["conv1.weight"].shape[0]
    net = TorchResNet9(n_findings, activation, width)
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    return net


def torch_films(films: UInt8[np.ndarray, "n h w"]) -> torch.Tensor:
    """Grey films -> what the paper's loader hands to the network: [n, 3, h, w] in [0, 1], three copies."""
    grey = torch.from_numpy(films.astype(np.float32) / 255.0)
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def losses(logits: torch.Tensor, labels: torch.Tensor, positive_weights: torch.Tensor) -> torch.Tensor:
    """The paper's loss of each film: binary cross-entropy, positives weighted, mean over findings; [n]."""
    terms = functional.binary_cross_entropy_with_logits(
        logits.float(), labels, pos_weight=positive_weights, reduction="none"
    )
    return terms.mean(dim=1)


def torch_probabilities(
    weights: State, activation: str, films: UInt8[np.ndarray, "n h w"]
) -> Float[np.ndarray, "n findings"]:
    """Probability of each finding on each film."""
    with torch.no_grad():
        return torch.sigmoid(torch_net(weights, activation)(torch_films(films))).numpy()
