"""Logits and gradients of this package's networks beside the originals, at random weights.

python -m tests.models.parity

prints the table of docs/backbones.md. It needs torch, torchvision, timm, transformers and torchxrayvision; the
tests of test_published.py take what is installed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.models.naming import naming_of
from jaxcxr.models.network import Network, make_network
from jaxcxr.models.published import NAMINGS, published_params, torch_state
from jaxcxr.models.vit_names import bicubic

N = 5
FAST = {"xla_backend_optimization_level": 0}
"""Compiled in a fraction of the time; a few images are computed soon enough."""


@dataclasses.dataclass(frozen=True)
class Original:
    """Somebody else's network.

    Attributes:
        name: for the table.
        network: of `model.network`.
        make: side of the images in pixels -> the torch module, and the function [n, channels, side, side] ->
            logits.
        sizes: sides of the images.
        options: of the network beside those that the weights imply.
        needs: packages.
    """

    name: str
    network: str
    make: Callable[[int], tuple[Any, Callable[[Any], Any]]]
    sizes: tuple[int, ...]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("torch",)


def _torchvision(name: str) -> Callable[[int], Any]:
    def make(size: int) -> Any:
        import torchvision  # pyright: ignore[reportMissingImports]

        net = getattr(torchvision.models, name)(num_classes=N)
        return net, net

    return make


def _timm(name: str, **options: Any) -> Callable[[int], Any]:
    def make(size: int) -> Any:
        import timm  # pyright: ignore[reportMissingImports]

        sized = {"img_size": size} if name.startswith("vit") and "dinov3" not in name else {}
        net = timm.create_model(name, num_classes=N, **sized, **options)
        return net, net

    return make


def _xrv(size: int) -> Any:
    import torchxrayvision as xrv  # pyright: ignore[reportMissingImports]

    net = xrv.models.DenseNet(num_classes=N, weights=None)
    return net, net


def _transformers(kind: str, trained_at: int | None = None, **options: Any) -> Callable[[int], Any]:
    """A backbone with the class token's features, and a dense layer on them, as its users put one there."""

    def make(size: int) -> Any:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]

        config = getattr(transformers, f"{kind}Config")(**{"image_size": trained_at or size, **options})
        net = getattr(transformers, f"{kind}Model")(config)
        net.classifier = torch.nn.Linear(
            config.hidden_sizes[-1] if "ConvNext" in kind else config.hidden_size, N
        )

        def logits(images: Any) -> Any:
            return net.classifier(net(images).pooler_output)

        return net, logits

    return make


SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
V3 = {"intermediate_size": 1536, "patch_size": 16, "num_register_tokens": 4, "key_bias": False}
ORIGINALS = (
    Original("torchvision densenet121", "densenet121", _torchvision("densenet121"), (64, 97, 224)),
    Original(
        "torchxrayvision DenseNet", "densenet121", _xrv, (64, 224), needs=("torchxrayvision", "torchvision")
    ),
    Original(
        "timm tf_efficientnet_lite0", "efficientnet_lite0", _timm("tf_efficientnet_lite0"), (64, 97, 224)
    ),
    Original("torchvision convnext_tiny", "convnext_tiny", _torchvision("convnext_tiny"), (64, 97, 224)),
    Original("timm convnext_tiny", "convnext_tiny", _timm("convnext_tiny"), (64, 224)),
    Original(
        "transformers DINOv3 ConvNeXt-T",
        "convnext_tiny",
        _transformers("DINOv3ConvNext", hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3]),
        (64, 224),
    ),
    Original("timm vit_small_patch16_224", "vit_small", _timm("vit_small_patch16_224"), (64, 224)),
    Original("timm vit_base_patch16_224", "vit_base", _timm("vit_base_patch16_224"), (64,)),
    Original("timm vit_small_patch14_dinov2", "vit_small", _timm("vit_small_patch14_dinov2"), (70, 224)),
    Original(
        "timm vit_small_patch14_reg4_dinov2", "vit_small", _timm("vit_small_patch14_reg4_dinov2"), (70, 224)
    ),
    Original(
        "timm vit_small_patch16_dinov3",
        "vit_small",
        _timm("vit_small_patch16_dinov3", global_pool="token"),
        (64, 224),
    ),
    Original(
        "transformers DINOv2-S (positions of 224)",
        "vit_small",
        _transformers("Dinov2", 224, patch_size=14, **SMALL),
        (70, 126, 224),
    ),
    Original(
        "transformers RAD-DINO (DINOv2-B, positions of 518)",
        "vit_base",
        _transformers("Dinov2", 518, patch_size=14, **BASE),
        (70, 140),
        ("mean=[0.5307, 0.5307, 0.5307]", "std=[0.2583, 0.2583, 0.2583]"),
    ),
    Original(
        "transformers DINOv2-S with registers",
        "vit_small",
        _transformers("Dinov2WithRegisters", patch_size=14, num_register_tokens=4, **SMALL),
        (70, 224),
    ),
    Original("transformers DINOv3-S", "vit_small", _transformers("DINOv3ViT", **SMALL, **V3), (64, 224)),
)
"""All but the first say what they need in their names, too."""


def compared(original: Original, size: int) -> tuple[float, float]:
    """Largest difference of the logits of two grey images, as a share of the largest logit; and of the
    gradients of a weighted sum of them, each parameter's as a share of its length.
    """
    import torch  # pyright: ignore[reportMissingImports]

    net, of_images = original.make(size)
    randomise(net)
    net.eval()
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    data = DataConfig("", size, tuple("abcde"))
    model, params = published_params(
        data, ModelConfig(network=original.network, options=original.options), state, original.name
    )
    network = make_network(data, model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, size, size)).astype(np.uint8)
    weights = rng.normal(size=(2, N)).astype(np.float32)
    logits, gradient = logits_and_gradient(network, params, images, weights)
    theirs = of_images(torch.from_numpy(normalised(network, images)))
    (theirs * torch.from_numpy(weights)).sum().backward()
    expected = {n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None}
    naming = naming_of(state, NAMINGS[original.network], original.name)
    found = torch_state(model, {"params": gradient}, naming.name)
    return distance({"": np.asarray(logits)}, {"": theirs.detach().numpy()}), distance(found, expected)


def logits_and_gradient(
    network: Network, params: Any, images: np.ndarray, weights: np.ndarray
) -> tuple[Any, Any]:
    """Logits of images, and the gradient of their weighted sum in the trained parameters."""

    def total(own: Any) -> Any:
        logits: Any = jax.vmap(lambda image: network.apply({**params, "params": own}, image))(images)
        return (logits * weights).sum(), logits

    differentiated = jax.value_and_grad(total, has_aux=True)
    (_, logits), gradient = jax.jit(differentiated, compiler_options=FAST)(params["params"])
    return logits, gradient


def normalised(network: Network, images: np.ndarray) -> np.ndarray:
    """Grey images as the original networks are given them, [n, channels, side, side]."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (network.input.mean, network.input.std))
    return (images[:, None] / np.float32(255) - mean) / std


def distance(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference of an array, as a share of its length (of a hundredth of the longest at least)."""
    longest = max(float(np.linalg.norm(array)) for array in expected.values())
    differences = []
    for name, theirs in expected.items():
        ours = _renamed(found, name)
        if ours.shape != theirs.shape:
            ours = _of_positions(ours, theirs.shape[1])
        length = max(float(np.linalg.norm(theirs)), 0.01 * longest)
        differences.append(float(np.linalg.norm(ours - theirs)) / length)
    return max(differences)


def _of_positions(ours: np.ndarray, n: int) -> np.ndarray:
    """The gradient of n published positions: they may lack the class token's, or be of another grid, from which
    ours were interpolated.
    """
    if ours.shape[1] == n + 1:
        return ours[:, 1:]
    before, after = (math.isqrt(rows - 1) for rows in (n, ours.shape[1]))
    matrix = bicubic(before, after)
    grid = np.einsum("ai,bj,abc->ijc", matrix, matrix, ours[0, 1:].reshape(after, after, -1))
    return np.concatenate([ours[:, :1], grid.reshape(1, before * before, -1)], axis=1)


def _renamed(found: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Our array of their name: timm's DINOv3 has names of its own, and transformers others than in its files."""
    name = re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)
    name = re.sub(r"^model\.(?=layer|stages)", "", name)
    for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
        name = re.sub(rf"^(encoder\..*attention)\.{short}_proj", rf"\1.attention.{long}", name)
    return found[re.sub(r"^(encoder\..*attention)\.o_proj", r"\1.output.dense", name)]


def randomise(net: Any) -> None:
    """No parameter or statistic at its initial value; outputs of layers are of the order of their inputs."""
    import torch  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point() or name == "op_threshs":
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.squeeze().ndim > 1 and "token" not in name and "pos" not in name:
            tensor.copy_(noise * (1.4 / tensor[0].numel() ** 0.5))
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.2 * noise.abs())
        elif "token" in name or "pos" in name:
            tensor.copy_(0.5 * noise)
        else:
            tensor.copy_(0.1 * noise + (0.0 if name.endswith(("bias", "running_mean")) else 1.0))


def main() -> None:
    """Print the table."""
    print("| original | side | logits | gradients |\n|---|---|---|---|")
    for original in ORIGINALS:
        for size in original.sizes:
            logits, gradients = compared(original, size)
            print(f"| {original.name} | {size} | {logits:.1e} | {gradients:.1e} |", flush=True)


if __name__ == "__main__":
    main()
