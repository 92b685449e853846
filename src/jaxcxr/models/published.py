"""Published weights of the networks that come with the package: which names their files have, and which
options of the network they imply.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models.naming import Naming, Path, from_published, leaves_of, naming_of, nested, to_published
from jaxcxr.models.network import (
    HEAD,
    NETWORKS,
    NOT_OF_THE_NETWORK,
    make_network,
    n_features,
    network_class,
    shapes_of,
)
from jaxcxr.models.torch_weights import State, to_torch


def of_network(model: ModelConfig) -> ModelConfig:
    """The fields that describe the network; the others at their defaults."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(ModelConfig)
        if field.name in (*NOT_OF_THE_NETWORK, "dtype", "remat")
    }
    return dataclasses.replace(model, **defaults)


def published_params(
    data: DataConfig, model: ModelConfig, state: State, source: str
) -> tuple[ModelConfig, PyTree]:
    """Parameters from a state dict, by whichever of the network's namings it has, for images of `data.size`;
    and the model with the options that the file implies. Options that `model` sets are kept.

    The head is the file's, with as many outputs as that has: none if it has no head.

    Raises:
        InputError: it is no state dict of this network, or has another shape than the options say.
    """
    if all("/" in name for name in state):  # this package's own names
        shapes = shapes_of(make_network(data, model), data.size)
        params: Any = nested({tuple(name.split("/")): array for name, array in state.items()})
        _require_same(params, shapes, source)
        return model, params
    naming = naming_of(state, _namings(model.network), source)
    implied = dict(naming.options(state).items())
    model = dataclasses.replace(model, options=_joined(model, implied))
    shapes = shapes_of(make_network(data, model), data.size)
    params, has_head = from_published(state, naming, shapes, source)
    if not has_head:
        params["params"][HEAD] = {
            "kernel": np.zeros((n_features(shapes), 0), np.float32),
            "bias": np.zeros(0, np.float32),
        }
    return model, params


def torch_state(model: ModelConfig, params: PyTree) -> State:
    """The state dict of a network's parameters, by the first of its namings.

    Raises:
        InputError: the network is of the user's own, or has parts without torch names.
    """
    if model.network == "resnet9":
        if model.scale_norm:
            raise InputError(
                "model.scale_norm: the torch network has no such norms, and would compute otherwise"
            )
        return to_torch(params)
    return to_published(params, _namings(model.network)[0])


def _namings(network: str) -> tuple[Naming, ...]:
    if network not in NETWORKS:
        raise InputError(
            f"model.network: {network!r} has no torch names that are known here; expected a file or folder of "
            "this package"
        )
    return importlib.import_module(NETWORKS[network].partition(":")[0]).NAMINGS


def _joined(model: ModelConfig, implied: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that the model sets, and what a file implies beside them where that is not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(network_class(model.network))}
    given = {option.partition("=")[0] for option in model.options}
    further = [
        f"{name}={list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value}"
        for name, value in implied.items()
        if name not in given and value != defaults[name]
    ]
    return (*model.options, *further)


def _require_same(params: Mapping[str, Any], shapes: Mapping[str, Any], source: str) -> None:
    """The parameters have the network's shapes, but for the number of outputs of the head."""

    def measured(tree: Mapping[str, Any]) -> dict[Path, tuple[int, ...]]:
        return {
            path: leaf.shape[:-1] if path[1] == HEAD else leaf.shape for path, leaf in leaves_of(tree).items()
        }

    found, wanted = measured(params), measured(shapes)
    wrong = sorted(
        "/".join(path) for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path)
    )
    if wrong:
        raise InputError(f"{source}: does not fit the network: it differs in {', '.join(wrong[:8])}")
