"""Read and write torch weights: checkpoints (.pth, .pt) and safetensors, without running code from a file."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxcxr.atomic import replacing
from jaxcxr.errors import InputError
from jaxcxr.models.torch_weights import State

_COUNTS = ("num_batches_tracked", "position_ids", "relative_position_index")
"""Buffers of whole numbers that torch keeps beside weights."""
PREFIXES = ("_module.", "module.", "_orig_mod.", "model.", "net.")
"""Prefixes that wrappers put before every name: Opacus, DataParallel, torch.compile, Lightning and others."""


def read_state(path: Path, key: str | None = None) -> State:
    """The state dict in a file, with plain names and float32 arrays.

    A checkpoint may be the state dict itself or a dictionary that holds one beside other things (epoch,
    optimiser). Pickles are read with torch's `weights_only` loader, which builds tensors and plain containers
    and refuses everything else.

    Args:
        path: .safetensors, or a file of `torch.save`.
        key: entry of the checkpoint that holds the state dict; needed only if there are several.

    Raises:
        InputError: there is no such file, it cannot be read or is refused, or it holds no or several state
            dicts.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, key)
    return _plain_names(state, path)


def read_metadata(path: Path) -> dict[str, str]:
    """Texts in a file beside its state dict: metadata of .safetensors, texts of a checkpoint dictionary.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    if path.suffix != ".safetensors":
        found = _loaded(path)
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, Mapping) else {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file of weights ({_first_line(error)})") from error


def write_state(
    path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a state dict as .safetensors, or as .pth or .pt for `torch.load`; the file appears when complete.

    With metadata, a .pth or .pt file is a dictionary of them with the state dict under `state_dict`, so that
    loading the file shows them.

    Raises:
        InputError: the name has another ending, or torch is needed and not installed.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise InputError(f"{path}: expected a name that ends in .safetensors, .pth or .pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
            save_file(arrays, part, metadata=dict(metadata) or None)
        else:
            torch = _torch(path)
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
            torch.save({**metadata, "state_dict": tensors} if metadata else tensors, part)


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: torch is needed for this file (pip install torch); .safetensors files need none"
        ) from error
    return torch


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: not a safetensors file of weights ({_first_line(error)})") from error


def _loaded(path: Path) -> Any:
    torch = _torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"it names {named[1].rstrip('.')}" if named else "it holds more than tensors and plain containers"
        )
        raise InputError(
            f"{path}: refused, {what}, and loading that could run code; expected a state dict of tensors "
            "(save one with torch.save(model.state_dict(), ...))"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: damaged, or not a file of torch.save ({_first_line(error)})") from error


def _read_torch(path: Path, key: str | None) -> Mapping[str, Any]:
    torch = _torch(path)
    state = _state_within(_loaded(path), path, key, torch)
    return {
        name: value.detach().float().numpy() if torch.is_floating_point(value) else value.detach().numpy()
        for name, value in state.items()
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _state_within(found: Any, path: Path, key: str | None, torch: Any) -> Mapping[str, Any]:
    """The state dict: `found` itself, or the one that the checkpoint dictionary holds."""

    def is_state(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
        )

    if key is None and is_state(found):
        return found
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path}: holds a {type(found).__name__}, expected a state dict or a dictionary with one"
        )
    states = [str(name) for name, value in found.items() if is_state(value)]
    if key is not None:
        if key not in states:
            raise InputError(
                f"{path}: no state dict under {key!r}; there is one under: {', '.join(states) or 'no key'}"
            )
        return found[key]
    if len(states) != 1:
        keys = ", ".join(map(str, found)) or "none"
        several = (
            f"several state dicts, under {', '.join(states)}: name one"
            if states
            else f"no state dict, its keys are {keys}"
        )
        raise InputError(f"{path}: holds {several}")
    return found[states[0]]


def _plain_names(state: Mapping[str, Any], path: Path) -> State:
    names = list(state)
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    if not names:
        raise InputError(f"{path}: holds no tensors")
    arrays = [np.asarray(array) for array in state.values()]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind in "iub" and array.ndim and not name.endswith(_COUNTS):
            raise InputError(
                f"{path}: {name!r} holds numbers of type {array.dtype}, expected weights in floating point "
                "(quantised weights must be turned back into floats first)"
            )
    return {
        n: a.astype(np.float32) if a.dtype.kind not in "iub" else a
        for n, a in zip(names, arrays, strict=True)
    }
