"""What every contender of the benchmark is given: the same network, weights, films, labels, loss and
precision.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from jaxcxr.models.torch_weights import State, torch_shapes

GradientSums = dict[str, np.ndarray]
"""Gradient sums by the torch name and in the torch layout of each parameter."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One size, batch and precision of the paper's network.

    Attributes:
        size: side of the films, in pixels.
        batch: films a step.
        dtype: `float32`, or `bfloat16` (torch: autocast) with float32 parameters.
        activation: `mish` or `relu`.
        width: channels of the first stage (the paper: 64).
        n_findings: outputs.
        l2_clip_norm: bound on each film's gradient; with these weights it clips some films and leaves others,
            at any size.
        peers_keep_memory: whether the other libraries, too, run with the setting of the C library that this
            package's scripts make (`training.cpu_allocator.keep_memory`); without it they run as their users
            get them.
    """

    network: ClassVar[str] = "resnet9"
    size: int
    batch: int
    dtype: str = "float32"
    activation: str = "mish"
    width: int = 64
    n_findings: int = 8
    l2_clip_norm: float = 12.0
    peers_keep_memory: bool = False

    def weights(self) -> State:
        """Random parameters in the torch layout; the norms' scales and biases are not at their initial one
        and zero.
        """
        rng = np.random.default_rng(0)

        def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if len(shape) > 1:
                return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
            return rng.normal(0.0 if name.endswith("bias") else 1.0, 0.1, shape).astype(np.float32)

        return {name: draw(name, shape) for name, shape in torch_shapes(self.n_findings, self.width).items()}

    def films(self) -> UInt8[np.ndarray, "batch size size"]:
        """Grey films of differing contrast, so that gradient norms differ."""
        rng = np.random.default_rng(1)
        contrast = rng.uniform(5, 60, (self.batch, 1, 1))
        noise = rng.normal(0, 1, (self.batch, self.size, self.size))
        return np.clip(128 + contrast * noise, 0, 255).astype(np.uint8)

    def labels(self) -> Float[np.ndarray, "batch n_findings"]:
        """Labels, one in four positive."""
        return (np.random.default_rng(2).random((self.batch, self.n_findings)) < 0.25).astype(np.float32)

    def positive_weights(self) -> Float[np.ndarray, "n_findings"]:
        """Weight of a positive label of each finding in the loss."""
        return np.linspace(1, 4, self.n_findings).astype(np.float32)

    def least_flops(self) -> float:
        """Floating-point operations of the convolutions of one non-private step.

        Forward, input gradient and weight gradient cost the same; the first layer needs no input gradient.
        The first layer counts with three input channels, as the paper wrote it.
        """
        side, total = self.size, 0.0
        for name, shape in torch_shapes(self.n_findings, self.width).items():
            if len(shape) != 4:
                continue
            # the size of the map that leaves the layer; a shortcut reads the map that entered its block
            if name == "conv1.weight":
                side = -(-side // 2)
            elif name.endswith("conv1.weight"):
                side = -(-side // 2)  # by max-pool before the first stage, by stride in the later ones
            forward = 2.0 * math.prod(shape) * side * side
            total += forward * (2 if name == "conv1.weight" else 3)
        return total * self.batch


@dataclasses.dataclass(frozen=True)
class Usual:
    """How large a network's examples are where nobody says otherwise.

    Attributes:
        size: pixels of a side, or tokens.
        batch: examples a step.
        multiple: sizes are multiples of this.
    """

    size: int
    batch: int
    multiple: int


NETWORKS: Mapping[str, Usual] = {
    "vit_s": Usual(224, 8, multiple=16),
    "convnext_t": Usual(224, 8, multiple=32),
    "densenet121": Usual(224, 8, multiple=32),
    "transformer": Usual(256, 8, multiple=1),
    "resnet18_3d": Usual(56, 8, multiple=8),
}
"""The networks other than the paper's. Two CPU cores take a few seconds for a non-private step."""
FRAMES = 16
"""Depth of a volume, whatever its other sides: what R3D-18 was trained on."""


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """One size, batch and precision of another network.

    Attributes:
        network: a key of `NETWORKS`.
        size: side of the images or volumes in pixels, or tokens of the texts.
        batch: examples a step.
        dtype: `float32`, or `bfloat16` (torch: autocast) with float32 parameters.
        l2_clip_norm: bound on each example's gradient.
        peers_keep_memory: as of `Case`.
        options: of the network (`networks.network`), where they are not those of the published one.
    """

    network: str
    size: int
    batch: int
    dtype: str = "float32"
    l2_clip_norm: float = 1.0
    peers_keep_memory: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def parameter(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The random parameter of this torch name and shape: outputs of layers are of the order of their
        inputs. Scales, also those of ConvNeXt's blocks, are near one, so that every parameter has a say in
        the gradient.
        """
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            return rng.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape).astype(np.float32)
        return rng.normal(0.0 if name.endswith("bias") else 1.0, 0.1, shape).astype(np.float32)

    def examples(self) -> dict[str, np.ndarray]:
        """Input and label of each example. Images and volumes have their channels last; the label of a text
        is the text a token later.
        """
        rng = np.random.default_rng(1)
        if self.network == "transformer":
            texts = rng.integers(0, self.options.get("vocabulary", 8192), (self.batch, self.size + 1)).astype(
                np.int32
            )
            return {"input": texts[:, :-1], "label": texts[:, 1:]}
        sides = (FRAMES, self.size, self.size) if self.network == "resnet18_3d" else (self.size, self.size)
        contrast = rng.uniform(0.2, 2, (self.batch, *(1 for _ in sides), 1))
        images = 0.5 + contrast * rng.normal(0, 1, (self.batch, *sides, 3))
        n_classes = self.options.get("n_classes", 400)
        return {
            "input": images.astype(np.float32),
            "label": rng.integers(0, n_classes, self.batch).astype(np.int32),
        }


AnyCase = Case | NetworkCase


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way of computing the gradient sum of a case, ready to run.

    Attributes:
        step: computes the sum once and returns when it is there.
        on_host: what `step` returned -> gradient sums in the torch layout.
        held_bytes: parameters and batch.
        device_peak: most bytes ever allocated on the accelerator, or None where the process's own memory is
            what counts.
    """

    step: Callable[[], Any]
    on_host: Callable[[Any], GradientSums]
    held_bytes: int
    device_peak: Callable[[], int | None]
