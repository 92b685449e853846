"""Published weights of the networks that come with the package: which names their files have, and which
options of the network they imply.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models import convnext, densenet, efficientnet, vit_names
from jaxcxr.models.lora import merged
from jaxcxr.models.naming import Naming, from_published, leaves_of, naming_of, nested, to_published
from jaxcxr.models.network import (
    HEAD,
    NOT_OF_THE_NETWORK,
    make_network,
    n_features,
    network_class,
    shapes_of,
)
from jaxcxr.models.torch_weights import State, to_torch

NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    "densenet121": densenet.NAMINGS,
    "efficientnet_lite0": efficientnet.NAMINGS,
    "convnext_tiny": convnext.NAMINGS,
    "vit_small": vit_names.NAMINGS,
    "vit_base": vit_names.NAMINGS,
}
"""The networks whose published files are known -> the namings that these have."""


def of_network(model: ModelConfig) -> ModelConfig:
    """The fields that describe the network; the others at their defaults."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(ModelConfig)
        if field.name in (*NOT_OF_THE_NETWORK, "dtype", "remat")
    }
    return dataclasses.replace(model, **defaults)


def published_params(
    data: DataConfig,
    model: ModelConfig,
    state: State,
    source: str,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ModelConfig, PyTree]:
    """Parameters from a state dict, by whichever of the network's namings it has, for images of `data.size`;
    and the model with the options that the file implies, or that are `known` otherwise. Options that `model`
    sets are kept.

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
    model = dataclasses.replace(model, options=_joined(model, {**naming.options(state), **known}))
    shapes = shapes_of(make_network(data, model), data.size)
    params, has_head = from_published(state, naming, shapes, source)
    if not has_head:
        params["params"][HEAD] = {
            "kernel": np.zeros((n_features(shapes), 0), np.float32),
            "bias": np.zeros(0, np.float32),
        }
    return model, params


def normalisation_beside(file: Path) -> dict[str, Any]:
    """Mean and standard deviation that a folder of weights says beside the file: `preprocessor_config.json`
    of transformers, or `pretrained_cfg` in timm's `config.json`; empty if it says none.

    Raises:
        InputError: what is there cannot be read.
    """
    for name, inside, keys in (
        ("preprocessor_config.json", None, ("image_mean", "image_std")),
        ("config.json", "pretrained_cfg", ("mean", "std")),
    ):
        path = file.with_name(name)
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            part = found if inside is None else found.get(inside, {})
            given = [part.get(key) for key in keys]
            if all(given):
                return {
                    n: tuple(float(v) for v in values)
                    for n, values in zip(("mean", "std"), given, strict=True)
                }
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: expected an object with lists of numbers for {keys[0]} and {keys[1]} ({error})"
            ) from error
    return {}


def torch_state(model: ModelConfig, params: PyTree, naming: str | None = None) -> State:
    """The state dict of a network's parameters, factors multiplied out, under the first of its namings that
    suits its options.

    Args:
        model: the network.
        params: of it.
        naming: name of another naming.

    Raises:
        InputError: the network is of the user's own, or has parts without torch names.
    """
    for part in (name for name in ("thumbnail", "stage_statistics") if getattr(model, name)):
        raise InputError(
            f"model.{part}: the torch network has no such part, and would compute something else; expected "
            "a .stablehlo file, which computes all of it"
        )
    if model.network == "resnet9":
        if model.scale_norm:
            raise InputError(
                "model.scale_norm: the torch network has no such norms, and would compute something else"
            )
        return to_torch(merged(params))
    enabled = {option.removesuffix("=true") for option in model.options if option.endswith("=true")}
    namings = _namings(model.network)
    ways = [n for n in namings if n.name == naming or (naming is None and n.writes in enabled)]
    return to_published(merged(params), (ways or namings)[0])


def _namings(network: str) -> tuple[Naming, ...]:
    if network not in NAMINGS:
        raise InputError(
            f"model.network: {network!r} has no torch names that are known here; expected a file or folder "
            "of this package"
        )
    return NAMINGS[network]


def _joined(model: ModelConfig, implied: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that the model sets, and what a file implies beside them where that is not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(network_class(model.network))}
    given = {option.partition("=")[0] for option in model.options}
    further = [
        f"{name}={json.dumps(value)}"
        for name, value in implied.items()
        if name not in given and value != defaults[name]
    ]
    return (*model.options, *further)


def _require_same(params: Mapping[str, Any], shapes: Mapping[str, Any], source: str) -> None:
    """The parameters have the network's shapes, but for the number of outputs of the head."""

    def measured(tree: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
        return {
            path: leaf.shape[:-1] if path[1] == HEAD else leaf.shape for path, leaf in leaves_of(tree).items()
        }

    found, wanted = measured(params), measured(shapes)
    wrong = sorted(
        "/".join(path) for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path)
    )
    if wrong:
        raise InputError(f"{source}: does not fit the network: it differs in {', '.join(wrong[:8])}")
