"""The torch networks of the benchmark are those of torchvision and timm, where these load: same parameters, same outputs.

Batch norms are group norms here, as Opacus requires; they are exchanged in the originals, too.
"""

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from jaxcxr.bench.torch_networks import torch_network  # noqa: E402


def imported(name: str) -> Any:
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:  # torchvision's operators are compiled for one build of torch
        pytest.skip(f"{name} does not load: {error}")


def with_group_norms(net: Any) -> Any:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                setattr(module, name, torch.nn.GroupNorm(32, child.num_features))
    return net


def agrees(ours: Any, theirs: Any, weights: list[Any], shape: tuple[int, ...]) -> None:
    """`weights` are those of `theirs` in the order of `ours`."""
    mine = ours.state_dict()
    assert [array.numel() for array in mine.values()] == [array.numel() for array in weights]
    ours.load_state_dict(
        {name: array.reshape(mine[name].shape) for (name, array) in zip(mine, weights, strict=True)}
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def randomised(net: Any) -> Any:
    """No parameter at its initial value: layer scales of 1e-6 would hide what they scale."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            spread = (
                1 / math.sqrt(max(1, p[0].numel()))
                if p.ndim > 1 and p.shape[0] > 1 and p[0].numel() > 1
                else 0.1
            )
            p.copy_(spread * torch.randn(p.shape, generator=generator) + (1.0 if p.ndim == 1 else 0.0))
    return net


def test_densenet121() -> None:
    imported("torchvision")
    from torchvision.models import densenet121  # pyright: ignore[reportMissingImports]

    theirs = randomised(with_group_norms(densenet121()))
    agrees(torch_network("densenet121", 64), theirs, list(theirs.state_dict().values()), (1, 3, 64, 64))


def test_r3d_18() -> None:
    imported("torchvision")
    from torchvision.models.video import r3d_18  # pyright: ignore[reportMissingImports]

    theirs = randomised(with_group_norms(r3d_18()))
    agrees(torch_network("resnet18_3d", 32), theirs, list(theirs.state_dict().values()), (1, 3, 16, 32, 32))


def test_convnext_tiny() -> None:
    imported("torchvision")
    from torchvision.models import convnext_tiny  # pyright: ignore[reportMissingImports]

    theirs, ours = randomised(convnext_tiny()), torch_network("convnext_t", 64)
    others = iter([array for name, array in theirs.state_dict().items() if not name.endswith("layer_scale")])
    scales = iter([array for name, array in theirs.state_dict().items() if name.endswith("layer_scale")])
    weights = [next(scales if "layer_scale" in name else others) for name in ours.state_dict()]
    agrees(ours, theirs, weights, (1, 3, 64, 64))


def test_vit_small() -> None:
    imported("torchvision")  # timm needs it
    timm = imported("timm")

    theirs = randomised(timm.create_model("vit_small_patch16_224", img_size=32))
    state = theirs.state_dict()
    order = ["patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"]
    weights = [state[name] for name in order]
    for index in range(12):
        block = f"blocks.{index}"
        weights += [state[f"{block}.norm1.{kind}"] for kind in ("weight", "bias")]
        fused = [state[f"{block}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias")]
        weights += [fused[kind][part] for part in range(3) for kind in range(2)]
        weights += [
            state[f"{block}.{layer}.{kind}"]
            for layer in ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            for kind in ("weight", "bias")
        ]
    weights += [state[f"{layer}.{kind}"] for layer in ("norm", "head") for kind in ("weight", "bias")]
    agrees(torch_network("vit_s", 32), theirs, weights, (1, 3, 32, 32))
