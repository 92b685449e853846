"""Vision transformers as timm, Meta and transformers publish them: names, fused layers, positions of another
image size.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxcxr.models.backbone import HEAD
from jaxcxr.models.naming import LEAVES, LeafShapes, Naming, Path, State

_MASK = re.compile(r"(^|\.)mask_token$|^rope_embed\.|^pooler\.")


def _named(fixed: dict[str, str], block: str, inside: dict[str, str]) -> Callable[[Path], str]:
    """Torch names from those of whole modules, of blocks (their number as {}), and of parts of blocks."""

    def torch_name(path: Path) -> str:
        module, *inner = path
        end = LEAVES.get(path[-1])
        name = fixed.get(module)
        if name is None:
            part = inside["/".join(inner if end is None else inner[:-1])]
            name = f"{block.format(module.removeprefix('block'))}.{part}"
        return name if end is None else f"{name}.{end}"

    return torch_name


_TIMM = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/query": "attn.query",
    "attention/key": "attn.key",
    "attention/value": "attn.value",
    "attention/out": "attn.proj",
    "expand": "mlp.fc1",
    "project": "mlp.fc2",
    "layer_scale1": "ls1.gamma",
    "layer_scale2": "ls2.gamma",
}
_DINOV2 = {
    **{part: part for part in ("norm1", "norm2")},
    **{f"attention/{part}": f"attention.attention.{part}" for part in ("query", "key", "value")},
    "attention/out": "attention.output.dense",
    "expand": "mlp.fc1",
    "project": "mlp.fc2",
    "layer_scale1": "layer_scale1.lambda1",
    "layer_scale2": "layer_scale2.lambda1",
}
_DINOV3 = {
    **_DINOV2,
    **{f"attention/{part}": f"attention.{part[0]}_proj" for part in ("query", "key", "value", "out")},
    "expand": "mlp.up_proj",
    "project": "mlp.down_proj",
}
_PARTS = ("query", "key", "value")
_FUSED = re.compile(r"^(blocks\.\d+\.attn)\.qkv\.(weight|bias)$")
_RENAMED = (
    (re.compile(r"^(register_tokens|storage_tokens)$"), "reg_token"),  # of Meta
    (re.compile(r"^(blocks\.\d+)\.gamma_([12])$"), r"\1.ls\2.gamma"),  # of timm's DINOv3
    (re.compile(r"^fc_norm\."), "norm."),
)


def _parted(state: State, shapes: LeafShapes) -> State:
    """One array for each of query, key and value, biases of zero where there are none, tokens in two axes."""
    found: State = {}
    for name, array in state.items():
        for old, new in _RENAMED:
            name = old.sub(new, name)
        if fused := _FUSED.match(name):
            found |= {
                f"{fused[1]}.{part}.{fused[2]}": third
                for part, third in zip(_PARTS, np.split(array, 3), strict=True)
            }
        elif biases := re.match(r"^(blocks\.\d+\.attn)\.([qv])_bias$", name):
            found[f"{biases[1]}.{'query' if biases[2] == 'q' else 'value'}.bias"] = array
        elif not name.endswith("qkv.bias_mask"):
            found[name] = array
    for part in _PARTS:
        for name in [n for n in found if n.endswith(f".attn.{part}.weight")]:
            found.setdefault(f"{name.removesuffix('weight')}bias", np.zeros(len(found[name]), np.float32))
    return _with_positions(_flat(found, ("cls_token", "pos_embed", "reg_token")), "pos_embed", shapes)


def _flat(state: State, tokens: tuple[str, ...]) -> State:
    """Tokens as [tokens, width] instead of [1, tokens, width]."""
    return {n: a[0] if n in tokens and a.ndim == 3 else a for n, a in state.items()}


def _with_positions(state: State, name: str, shapes: LeafShapes) -> State:
    """The state with positions for the grid that is wanted, the first one of the class token (zeros where the
    file has none for it).
    """
    wanted = shapes.get(("params", "positions"))
    if wanted is None or name not in state:
        return state
    positions = state[name]
    if math.isqrt(len(positions)) ** 2 == len(positions):
        positions = np.concatenate([np.zeros_like(positions[:1]), positions])
    return {**state, name: resized_positions(positions, math.isqrt(wanted[0] - 1))}


def resized_positions(positions: Float[np.ndarray, "n width"], side: int) -> Float[np.ndarray, "m width"]:
    """Positions of a class token and of a square grid of patches, for a grid of `side` x `side`.

    Bicubic with Catmull-Rom's parameter at -0.75, without antialiasing: as torch's `interpolate`, and as
    transformers does for DINOv2.
    """
    before = math.isqrt(len(positions) - 1)
    if before == side or before**2 != len(positions) - 1:
        return positions
    matrix = bicubic(before, side)
    grid = positions[1:].reshape(before, before, -1).astype(np.float64)
    resized = np.einsum("ai,bj,ijc->abc", matrix, matrix, grid).reshape(side * side, -1)
    return np.concatenate([positions[:1], resized.astype(np.float32)])


def bicubic(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """The matrix of one-dimensional cubic interpolation (Keys 1981) with a = -0.75, edges repeated."""

    def weight(distance: float) -> float:
        a, d = -0.75, abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    matrix = np.zeros((after, before))
    for i in range(after):
        place = (i + 0.5) * before / after - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), before - 1)] += weight(place - j)
    return matrix


def _fused(state: State) -> State:
    """The inverse of `_parted`, in timm's form."""
    found: State = {}
    for name, array in state.items():
        part = re.match(r"^(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)$", name)
        if part is None:
            found[name] = array[None] if name in ("cls_token", "pos_embed", "reg_token") else array
        elif part[2] == "query":
            names = [f"{part[1]}.{p}.{part[3]}" for p in _PARTS]
            found[f"{part[1]}.qkv.{part[3]}"] = np.concatenate([state[n] for n in names])
    return found


def _name_in_files(name: str) -> str:
    """Transformers 5 has other names in memory than in the files that it writes; and models around a backbone
    put theirs before it.
    """
    name = re.sub(
        r"^(dinov2|dinov2_with_registers|dinov3_vit|model)\.(?=embeddings|encoder|layer|norm)", "", name
    )
    if projection := re.match(r"^(encoder\.layer\.\d+\.attention)\.([qkvo])_proj\.(.*)$", name):
        before, which, after = projection.groups()
        parts = {part[0]: f"attention.{part}" for part in _PARTS} | {"o": "output.dense"}
        return f"{before}.{parts[which]}.{after}"
    return name


def _of_transformers(state: State, shapes: LeafShapes) -> State:
    embeddings = tuple(f"embeddings.{n}" for n in ("cls_token", "position_embeddings", "register_tokens"))
    found = _flat({_name_in_files(name): array for name, array in state.items()}, embeddings)
    for name in [n for n in found if n.endswith("_proj.weight")]:
        found.setdefault(f"{name.removesuffix('weight')}bias", np.zeros(len(found[name]), np.float32))
    return _with_positions(found, "embeddings.position_embeddings", shapes)


def _for_transformers(state: State) -> State:
    tokens = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens")
    return {n: a[None] if n in tokens else a for n, a in state.items()}


def _for_dinov3(state: State) -> State:
    """A key's bias changes nothing, and DINOv3 has none."""
    return {n: a for n, a in _for_transformers(state).items() if not n.endswith("k_proj.bias")}


def _options(
    patches: str, registers: tuple[str, ...], scale: str, positions: str, plain: tuple[float, float] | None
) -> Callable[[State], dict[str, Any]]:
    """Options from shapes and names in a file; `plain` is the normalisation of those without layer scale."""

    def options(state: State) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kernel = next((a for n, a in state.items() if n.endswith(patches)), None)
        if kernel is not None and kernel.ndim == 4:
            found["patch"] = int(kernel.shape[-1])
        tokens = next((a for n, a in state.items() if n.endswith(registers)), None)
        if tokens is not None:
            found["registers"] = int(tokens.shape[-2])
        found["layer_scale"] = any(re.search(scale, n) for n in state)
        found["rotary"] = not any(n.endswith(positions) for n in state)
        if plain is not None and not found["layer_scale"]:
            found["mean"], found["std"] = (plain[0],) * 3, (plain[1],) * 3
        return found

    return options


_TIMM_FIXED = {"patches": "patch_embed.proj", "class_token": "cls_token", "positions": "pos_embed"}
_TIMM_FIXED |= {"registers": "reg_token", "norm": "norm", HEAD: "head"}
_HF_FIXED = {
    "class_token": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    HEAD: "classifier",
}
_HF_TOKENS = ("embeddings.register_tokens",)

NAMINGS = (
    Naming(
        "timm and Meta",
        "patch_embed.proj.weight",
        _named(_TIMM_FIXED, "blocks.{}", _TIMM),
        arranged=_parted,
        published=_fused,
        passed_over=_MASK,
        options=_options(
            "patch_embed.proj.weight",
            ("reg_token", "register_tokens", "storage_tokens"),
            r"^blocks\.0\.(ls1\.gamma|gamma_1)$",
            "pos_embed",
            (0.5, 0.5),
        ),
    ),
    Naming(
        "transformers (DINOv2, RAD-DINO)",
        "embeddings.patch_embeddings.projection.weight",
        _named(
            {
                **_HF_FIXED,
                "patches": "embeddings.patch_embeddings.projection",
                "positions": "embeddings.position_embeddings",
                "norm": "layernorm",
            },
            "encoder.layer.{}",
            _DINOV2,
        ),
        arranged=_of_transformers,
        published=_for_transformers,
        passed_over=_MASK,
        options=_options(
            "patch_embeddings.projection.weight",
            _HF_TOKENS,
            r"layer\.0\.layer_scale1\.lambda1$",
            "position_embeddings",
            None,
        ),
    ),
    Naming(
        "transformers (DINOv3)",
        "embeddings.patch_embeddings.weight",
        _named({**_HF_FIXED, "patches": "embeddings.patch_embeddings", "norm": "norm"}, "layer.{}", _DINOV3),
        arranged=_of_transformers,
        published=_for_dinov3,
        passed_over=_MASK,
        options=_options(
            "patch_embeddings.weight",
            _HF_TOKENS,
            r"layer\.0\.layer_scale1\.lambda1$",
            "position_embeddings",
            None,
        ),
        writes="rotary",
    ),
)
