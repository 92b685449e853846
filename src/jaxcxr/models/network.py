"""From a configuration to its network: the one place, outside the benchmark, that names a class of networks.

Training, prediction, audit and release all take the network from `make_network`, so that the same
configuration is the same network everywhere. What they must know of it otherwise, its input and the names of
its parts, stands here and in `backbone`. A network takes one image and gives the logits of its findings.
"""

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from flax.errors import FlaxError
from jaxtyping import Array, Key, PyTree

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models.backbone import HEAD, Input, Network
from jaxcxr.models.resnet9 import DTYPES

__all__ = ["HEAD", "Input", "Network", "make_network"]

NETWORKS: Mapping[str, str] = {
    "resnet9": "jaxcxr.models.resnet9:ResNet9",
    "densenet121": "jaxcxr.models.densenet:DenseNet",
    "efficientnet_lite0": "jaxcxr.models.efficientnet:EfficientNetLite0",
    "convnext_tiny": "jaxcxr.models.convnext:ConvNeXt",
    "vit_small": "jaxcxr.models.vit:ViT",
    "vit_base": "jaxcxr.models.vit:ViTBase",
}
"""The networks that come with the package: name -> where its class is."""

NOT_OF_THE_NETWORK = ("weights", "pretraining", "test_time_augmentation", "weights_ids_unrelated")
"""Fields of `ModelConfig` that say where weights come from and how predictions are averaged."""
_OF_RESNET9 = ("activation", "width", "scale_norm")


def make_network(data: DataConfig, model: ModelConfig) -> Network:
    """The network that a configuration asks for.

    Raises:
        InputError: there is no such network, a field is not one of it, or it does not take images of
            `data.size`.
    """
    common = {
        "dtype": DTYPES[model.dtype],
        "remat": model.remat,
        "lora_rank": model.lora_rank,
        "thumbnail": model.thumbnail,
        "stage_statistics": model.stage_statistics,
    }
    if model.network == "resnet9":
        own = {name: getattr(model, name) for name in _OF_RESNET9}
    else:
        own = {}
        _require_defaults(model)
    cls = network_class(model.network)
    network = cls(len(data.findings), **common, **own, **_options(cls, model, taken={*common, *own}))
    if model.stage_statistics and not cls.STAGES:
        known = [name for name in NETWORKS if network_class(name).STAGES]
        raise InputError(
            f"model.stage_statistics: {model.network} does not say where its stages end (STAGES); expected "
            f"{' or '.join(known)}, or false"
        )
    if not network.input.fits(data.size):
        expected = network.input
        raise InputError(
            f"data.size: {model.network} takes images of at least {expected.least} pixels a side"
            f"{f', a multiple of {expected.multiple}' if expected.multiple > 1 else ''}; found {data.size}"
        )
    return network


def _options(cls: type[Network], model: ModelConfig, taken: set[str]) -> dict[str, Any]:
    """The fields that `model.options` sets, in the types of their defaults."""
    passed_over = {"n_findings", "parent", "name", *taken}
    fields = {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.init and field.name not in passed_over
    }
    found: dict[str, Any] = {}
    for option in model.options:
        name, equals, text = option.partition("=")
        if name not in fields or not equals or name in found:
            raise InputError(
                f"model.options: expected NAME=VALUE with different names among "
                f"{', '.join(fields) or f'none, {model.network} has no options'}; found {option!r}"
            )
        found[name] = _value(option, text, fields[name])
    return found


def _value(option: str, text: str, default: Any) -> Any:
    """The value that a text stands for, of the kind of the default."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, list) and isinstance(default, tuple):
        value = tuple(float(v) if isinstance(v, int) and isinstance(default[0], float) else v for v in value)
        kinds = {type(v) for v in default}
        if value and all(type(v) in kinds for v in value):
            return value
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is type(default):
        return value
    shown = list(default) if isinstance(default, tuple) else default
    raise InputError(f"model.options: expected a value like {shown}, found {option!r}")


def network_class(name: str) -> type[Network]:
    """The class of networks called `name`: one of `NETWORKS`, or `package.module:Class`.

    Raises:
        InputError: there is none, or it is no subclass of `Network`.
    """
    if name not in NETWORKS and ":" not in name:
        raise InputError(
            f"model.network: expected one of {', '.join(NETWORKS)}, or package.module:Class of your own; "
            f"found {name!r}"
        )
    module, _, called = NETWORKS.get(name, name).partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), called)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"model.network: cannot import {name!r} ({error}); expected package.module:Class of an installed "
            "package, or of one in a folder that PYTHONPATH names"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Network)):
        raise InputError(f"model.network: {name!r} is no subclass of jaxcxr.models.network.Network")
    return found


def _require_defaults(model: ModelConfig) -> None:
    defaults = ModelConfig()
    changed = [name for name in _OF_RESNET9 if getattr(model, name) != getattr(defaults, name)]
    if changed:
        raise InputError(
            f"model.{changed[0]}: a field of resnet9, not of {model.network}; leave it out"
            + (f", and {', '.join(f'model.{name}' for name in changed[1:])}" if changed[1:] else "")
        )


def random_params(network: Network, size: int, key: Key[Array, ""]) -> PyTree:
    """Parameters to start from, for images of `size` x `size` pixels."""
    return network.init(key, jnp.zeros((size, size), jnp.uint8))


def shapes_of(network: Network, size: int) -> PyTree:
    """Shape and dtype of every parameter, without computing any.

    Raises:
        InputError: the network is not what `backbone` describes; says what is wrong.
    """
    key: Any = network
    try:
        hash(key)
    except TypeError:  # a field of a user's own is a list
        return _shapes_of.__wrapped__(network, size)
    return _shapes_of(key, size)


@functools.lru_cache
def _shapes_of(network: Network, size: int) -> PyTree:
    image = jax.ShapeDtypeStruct((size, size), jnp.uint8)
    called = type(network).__name__
    try:
        shapes: Any = jax.eval_shape(network.init, jax.random.key(0), image)
        logits: Any = jax.eval_shape(network.apply, shapes, image)
    except (FlaxError, TypeError, ValueError) as error:
        raise InputError(
            f"model.network: {called} cannot be applied to one image of {size} x {size} grey values "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    head = shapes["params"].get(HEAD, {})
    if "kernel" not in head or getattr(logits, "shape", None) != (network.n_findings,):
        raise InputError(
            f"model.network: {called} must end in an nn.Dense(n_findings, name={HEAD!r}) whose output it "
            f"returns, {network.n_findings} logits; found {getattr(logits, 'shape', logits)}, and the parts "
            f"{', '.join(shapes['params'])}"
        )
    return shapes


def definition_digest(network: Network, size: int) -> str:
    """SHA-256 of what the network computes, and of its gradients, as compiled for this platform.

    The code of the package is bound to a run by its sources (`records.provenance`), that of a network of the
    user's own by this.
    """

    def total(params: PyTree, image: Array) -> Array:
        return jnp.sum(jnp.square(jnp.asarray(network.apply(params, image))))

    image = jax.ShapeDtypeStruct((size, size), jnp.uint8)
    lowered = jax.jit(jax.value_and_grad(total)).lower(shapes_of(network, size), image)
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def n_features(params: PyTree) -> int:
    """Length of the vector that the head sees (`features.features`); `params` may be shapes."""
    return params["params"][HEAD]["kernel"].shape[0]


def is_head(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` (names below `params`) belongs to the last layer."""
    return path[0] == HEAD


def is_norm(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` is the scale or bias of a norm."""
    return path[-1] == "scale" or (path[-1] == "bias" and "norm" in path[-2:][0].lower())


def is_bias(path: Sequence[str]) -> bool:
    """Whether the parameter at `path` is a bias, of a norm or of any other layer."""
    return path[-1] == "bias"


def is_last_stage(network: Network, path: Sequence[str]) -> bool:
    """Whether the parameter at `path` belongs to the network's last stage."""
    return path[0].startswith(network.LAST_STAGE)
