"""Networks in torch's functions, straight from the entries of published state dicts."""

from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional as f  # pyright: ignore[reportMissingImports]

State = Mapping[str, Any]


def batch_norm(state: State, name: str, x: Any, epsilon: float) -> Any:
    statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return f.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], eps=epsilon)


def linear(state: State, name: str, x: Any) -> Any:
    return f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state: State, name: str, x: Any, epsilon: float = 1e-6) -> Any:
    return f.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def same_conv(x: Any, weight: Any, stride: int = 1, groups: int = 1) -> Any:
    """Padded as by TensorFlow: what a stride leaves odd, at the end."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        needed = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
        pads += [needed // 2, needed - needed // 2]
    return f.conv2d(f.pad(x, pads), weight, stride=stride, groups=groups)


def efficientnet_lite0(state: State, x: Any) -> Any:
    """By the names of the PyPI package; the strides of the sixteen blocks from the paper's table."""

    def layer(x: Any, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Any:
        return batch_norm(state, norm, same_conv(x, state[f"{conv}.weight"], stride, groups), 1e-3)

    x = f.relu6(layer(x, "_conv_stem", "_bn0", 2))
    for number in range(16):
        block, entered = f"_blocks.{number}", x
        if number > 0:
            x = f.relu6(layer(x, f"{block}._expand_conv", f"{block}._bn0"))
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = f.relu6(layer(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, x.shape[1]))
        x = layer(x, f"{block}._project_conv", f"{block}._bn2")
        x = x + entered if x.shape == entered.shape else x
    return linear(state, "_fc", f.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3)))


def densenet(state: State, x: Any) -> Any:
    """By torchvision's names."""

    def norm_relu(x: Any, name: str) -> Any:
        return f.relu(batch_norm(state, f"features.{name}", x, 1e-5))

    def conv(x: Any, name: str, **options: Any) -> Any:
        return f.conv2d(x, state[f"features.{name}.weight"], **options)

    x = f.max_pool2d(norm_relu(conv(x, "conv0", stride=2, padding=3), "norm0"), 3, 2, 1)
    stage = 1
    while f"features.denseblock{stage}.denselayer1.norm1.weight" in state:
        if stage > 1:
            name = f"transition{stage - 1}"
            x = f.avg_pool2d(conv(norm_relu(x, f"{name}.norm"), f"{name}.conv"), 2)
        layer = 1
        while f"features.denseblock{stage}.denselayer{layer}.norm1.weight" in state:
            name = f"denseblock{stage}.denselayer{layer}"
            y = conv(norm_relu(x, f"{name}.norm1"), f"{name}.conv1")
            x = torch.cat([x, conv(norm_relu(y, f"{name}.norm2"), f"{name}.conv2", padding=1)], dim=1)
            layer += 1
        stage += 1
    return linear(state, "classifier", norm_relu(x, "norm5").mean((2, 3)))


def convnext(state: State, x: Any) -> Any:
    """By timm's names."""

    def on_places(name: str, x: Any) -> Any:
        return layer_norm(state, name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def conv(name: str, x: Any, **options: int) -> Any:
        return f.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    x, stage = on_places("stem.1", conv("stem.0", x, stride=4)), 0
    while f"stages.{stage}.blocks.0.gamma" in state:
        if stage > 0:
            name = f"stages.{stage}.downsample"
            x = conv(f"{name}.1", on_places(f"{name}.0", x), stride=2)
        index = 0
        while f"stages.{stage}.blocks.{index}.gamma" in state:
            name = f"stages.{stage}.blocks.{index}"
            y = on_places(f"{name}.norm", conv(f"{name}.conv_dw", x, padding=3, groups=x.shape[1]))
            y = linear(
                state, f"{name}.mlp.fc2", f.gelu(linear(state, f"{name}.mlp.fc1", y.permute(0, 2, 3, 1)))
            )
            x = x + (state[f"{name}.gamma"] * y).permute(0, 3, 1, 2)
            index += 1
        stage += 1
    return linear(state, "head.fc", layer_norm(state, "head.norm", x.mean((2, 3))))


def vit(state: State, x: Any, heads: int) -> Any:
    """By timm's names; layer scales, registers and positions as far as there are any. DINOv3 has no positions."""
    kernel = state["patch_embed.proj.weight"]
    x = f.conv2d(x, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])
    n, side = len(x), x.shape[-1]
    x = torch.cat([state["cls_token"].expand(n, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    turns = None
    if "pos_embed" in state:
        x = x + state["pos_embed"]
    else:
        turns = rotary(side, x.shape[-1] // heads)
    if "reg_token" in state:
        x = torch.cat([x[:, :1], state["reg_token"].expand(n, -1, -1), x[:, 1:]], dim=1)
    epsilon, index = 1e-6 if turns is None else 1e-5, 0
    while f"blocks.{index}.norm1.weight" in state:
        name = f"blocks.{index}"
        y = attention(state, f"{name}.attn", layer_norm(state, f"{name}.norm1", x, epsilon), heads, turns)
        x = x + y * state.get(f"{name}.ls1.gamma", 1.0)
        y = f.gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x, epsilon)))
        x = x + linear(state, f"{name}.mlp.fc2", y) * state.get(f"{name}.ls2.gamma", 1.0)
        index += 1
    return linear(state, "head", layer_norm(state, "norm", x, epsilon)[:, 0])


def attention(state: State, name: str, x: Any, heads: int, turns: Any) -> Any:
    parts = linear(state, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = parts
    if turns is not None:
        query, key = turned(query, turns), turned(key, turns)
    y = f.scaled_dot_product_attention(query, key, value)
    return linear(state, f"{name}.proj", y.transpose(1, 2).flatten(2))


def rotary(side: int, width: int) -> tuple[Any, Any]:
    """Cosines and sines of a square grid, patch by patch: a loop where the package has arrays."""
    rows = []
    for i in range(side):
        for j in range(side):
            places = [2 * (place + 0.5) / side - 1 for place in (i, j)]
            angles = [2 * torch.pi * p / 100 ** (4 * k / width) for p in places for k in range(width // 4)]
            rows.append(angles * 2)
    return torch.cos(torch.tensor(rows)), torch.sin(torch.tensor(rows))


def turned(x: Any, turns: tuple[Any, Any]) -> Any:
    cosines, sines = turns
    before = x.shape[-2] - len(cosines)
    patches = x[..., before:, :]
    half = x.shape[-1] // 2
    swapped = torch.cat([-patches[..., half:], patches[..., :half]], dim=-1)
    return torch.cat([x[..., :before, :], patches * cosines + swapped * sines], dim=-2)
