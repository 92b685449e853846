"""Convert the network's parameters to and from torch's names and layout.

The authors' checkpoints are state dicts of a torchvision residual network with one block per stage:
conv1.weight, bn1.weight, layer1.0.conv1.weight, ..., layer2.0.downsample.0.weight, fc.weight. This module
only knows names, shapes and axes and imports neither torch nor jax; `torch_files` reads and writes the files.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxcxr.errors import InputError

State = dict[str, np.ndarray]
"""torch name -> array in torch's layout."""
STAGES = 4
_OF_MODULE = {"conv1": "conv1", "conv2": "conv2", "bn1": "norm1", "bn2": "norm2", "fc": "head"}
_OF_SHORTCUT = {"0": "shortcut_conv", "1": "shortcut_norm"}


def torch_shapes(n_findings: int, width: int = 64) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of torch's `state_dict()`."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}

    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 7, 7), **norm("bn1", width)}
    into = width
    for stage in range(STAGES):
        block, out = f"layer{stage + 1}.0", width * 2**stage
        shapes |= {f"{block}.conv1.weight": (out, into, 3, 3), **norm(f"{block}.bn1", out)}
        shapes |= {f"{block}.conv2.weight": (out, out, 3, 3), **norm(f"{block}.bn2", out)}
        if stage > 0:
            shapes |= {
                f"{block}.downsample.0.weight": (out, into, 1, 1),
                **norm(f"{block}.downsample.1", out),
            }
        into = out
    return shapes | {"fc.weight": (n_findings, into), "fc.bias": (n_findings,)}


def flax_path(name: str) -> tuple[str, ...]:
    """Path in the `params` collection of the parameter that torch calls `name`.

    Raises:
        KeyError: the network has no such parameter.
    """
    *modules, leaf = name.split(".")
    path: list[str] = []
    if modules and (stage := re.fullmatch(r"layer([1-4])", modules[0])) and modules[1:2] == ["0"]:
        path.append(f"stage{stage[1]}_block1")
        modules = modules[2:]
    shortcut = len(modules) == 2 and modules[0] == "downsample"
    module = _OF_SHORTCUT[modules[1]] if shortcut else _OF_MODULE[".".join(modules)]
    kernel = "scale" if "norm" in module else "kernel"
    return (*path, module, {"weight": kernel, "bias": "bias"}[leaf])


def to_torch(params: PyTree) -> State:
    """The state dict of the network's parameters (`{"params": ...}`).

    Kernels [h, w, in, out] become [out, in, h, w], the head [in, out] becomes [out, in].
    """
    head, first = _leaf(params, flax_path("fc.weight")), _leaf(params, flax_path("conv1.weight"))
    names = torch_shapes(head.shape[1], first.shape[3])
    return {name: _to_torch_axes(_leaf(params, flax_path(name))) for name in names}


def from_torch(
    state: Mapping[str, np.ndarray], n_findings: int, width: int = 64, source: str = "state dict"
) -> PyTree:
    """The network's parameters from a state dict, in float32.

    Raises:
        InputError: keys are missing or surplus, or an array has another shape or is not finite; the message
            names all.
    """
    want = torch_shapes(n_findings, width)
    wrong = [f"{name} is missing" for name in want if name not in state]
    wrong += [f"{name} is surplus" for name in state if name not in want]
    for name in want:
        if name not in state:
            continue
        if state[name].shape != want[name]:
            wrong.append(f"{name} has shape {state[name].shape}, expected {want[name]}")
        elif not np.all(np.isfinite(state[name])):
            wrong.append(f"{name} holds numbers that are not finite")
    if wrong:
        raise InputError(
            f"{source}: does not fit the network of width {width} with {n_findings} findings: "
            f"{'; '.join(wrong)}"
        )
    tree: dict[str, Any] = {}
    for name in want:
        *parents, leaf = flax_path(name)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _from_torch_axes(np.asarray(state[name], np.float32))
    return {"params": tree}


def _leaf(params: PyTree, path: tuple[str, ...]) -> np.ndarray:
    node = params["params"]
    for part in path:
        node = node[part]
    return np.asarray(node)


def _to_torch_axes(array: np.ndarray) -> np.ndarray:
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def _from_torch_axes(array: np.ndarray) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes)) if axes else array
