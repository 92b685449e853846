"""Weights as others publish them, by their torch names: to this package's parameters and back.

A network may be known by several namings (torchvision's, timm's, ...). Each says what the torch name of every
parameter is; files that keep several parameters in one array, or one in several, are rearranged before.
Torch is not imported here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcxr.errors import InputError
from jaxcxr.models.backbone import HEAD
from jaxcxr.models.torch_weights import State

Path = tuple[str, ...]
"""Names from below the collection to a leaf, such as ("stem", "conv", "kernel")."""
LeafShapes = Mapping[Path, tuple[int, ...]]
"""Path from the collection on -> shape in our layout."""
Shapes = Mapping[str, Any]
"""Collection -> nested shapes (anything with `.shape`)."""
LEAVES: Mapping[str, str] = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our leaves -> torch's."""
_COUNTERS = re.compile(r"(^|\.)num_batches_tracked$")


def _none(state: State) -> dict[str, Any]:  # noqa: ARG001 - one signature
    return {}


def _same(state: State, shapes: LeafShapes) -> State:  # noqa: ARG001 - one signature
    return state


@dataclasses.dataclass(frozen=True)
class Naming:
    """One way in which a network's parameters are published.

    Attributes:
        name: whose it is.
        sign: how the name of an entry ends that only files of this naming have.
        torch_name: path of a leaf -> its torch name.
        arranged: (state, shapes in our layout) -> the same with one array per leaf of ours, by `torch_name`.
        published: the inverse of `arranged`, for writing.
        passed_over: entries that are no parameters, beside counters of batches.
        options: fields of the network that a file of this naming implies.
        writes: option without whose being true no file of this naming is written; empty for no condition.
    """

    name: str
    sign: str
    torch_name: Callable[[Path], str]
    arranged: Callable[[State, LeafShapes], State] = _same
    published: Callable[[State], State] = dict
    passed_over: re.Pattern[str] = re.compile(r"(?!)")
    options: Callable[[State], dict[str, Any]] = _none
    writes: str = ""


def naming_of(state: State, namings: Sequence[Naming], source: str) -> Naming:
    """The naming of a state dict.

    Raises:
        InputError: it is of none; says which ones are known.
    """
    for naming in namings:
        if any(name.endswith(naming.sign) for name in state):
            return naming
    known = ", ".join(f"{naming.name}" for naming in namings)
    first = ", ".join(list(state)[:3])
    raise InputError(
        f"{source}: not weights of this network: expected the names of one of {known}; found {first}, ..."
    )


def leaves_of(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, Any]:
    """Path from the collection on -> leaf."""
    found: dict[Path, Any] = {}
    for name, value in tree.items():
        found |= leaves_of(value, (*path, name)) if isinstance(value, Mapping) else {(*path, name): value}
    return found


def from_published(state: State, naming: Naming, shapes: Shapes, source: str) -> tuple[dict[str, Any], bool]:
    """The parameters of the network of these shapes, in float32, and whether the state has a head for it.

    The head of a state may have any number of rows, or be missing; its own rows are kept.

    Raises:
        InputError: entries are missing or surplus, or an array has another shape or is not finite; the
            message names the first of them.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in leaves_of(shapes).items()}
    state = {name: array for name, array in state.items() if not _COUNTERS.search(name)}
    state = naming.arranged({n: a for n, a in state.items() if not naming.passed_over.search(n)}, wanted)
    found: dict[Path, np.ndarray] = {}
    wrong: list[str] = []
    names = {path: naming.torch_name(path[1:]) for path in wanted}
    has_head = all(names[path] in state for path in wanted if path[1] == HEAD)
    for path, shape in wanted.items():
        is_head = path[1] == HEAD
        if is_head and not has_head:
            continue
        given = state.get(names[path])
        if given is None:
            wrong.append(f"{names[path]} is missing")
            continue
        array = from_torch_axes(path[-1], np.asarray(given, np.float32))
        fits = array.shape[:-1] == shape[:-1] if is_head else array.shape == shape
        if not fits:
            wrong.append(
                f"{names[path]} has shape {np.shape(given)}, expected {to_torch_shape(path[-1], shape)}"
            )
        elif not np.all(np.isfinite(array)):
            wrong.append(f"{names[path]} holds numbers that are not finite")
        found[path] = array
    wrong += [f"{name} is surplus" for name in state if name not in set(names.values())]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(
            f"{source}: does not fit the network by the names of {naming.name}: {'; '.join(wrong[:8])}{more}"
        )
    return nested(found), has_head


def to_published(params: Mapping[str, Any], naming: Naming) -> State:
    """The state dict of a network's parameters under a naming."""
    arrays = {
        naming.torch_name(path[1:]): to_torch_axes(path[-1], np.asarray(leaf))
        for path, leaf in leaves_of(params).items()
    }
    return naming.published(arrays)


def from_torch_axes(leaf: str, array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, h, w] -> [h, w, in, out], [out, in] -> [in, out]; other leaves stay."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim) if leaf == "kernel" else None
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def to_torch_axes(leaf: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch_axes`."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim) if leaf == "kernel" else None
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def to_torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf in torch's layout."""
    return to_torch_axes(leaf, np.broadcast_to(np.float32(0), shape)).shape


def stage_and_block(module: str) -> tuple[int, int]:
    """The numbers of a module such as `stage2_block1`."""
    stage, block = module.removeprefix("stage").split("_block")
    return int(stage), int(block)


def nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The tree with these leaves: the inverse of `leaves_of`."""
    tree: dict[str, Any] = {}
    for (*parents, last), leaf in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
