"""Are the weights that a run starts from weights of its network, for its findings and its images?

Asked before the noise is calibrated, which takes seconds to minutes, of what the weights' folder says of
itself; the arrays are checked again when they are read (`weights.load_weights`).
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcxr.config import DataConfig, Experiment, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models import network as networks
from jaxcxr.models.network import Network
from jaxcxr.training.weights import described, describes_itself, weights_folder

_FREE = ("n_findings", "parent", "name", "dtype", "remat", "activation")
"""Fields of a network that may differ from those that weights were trained with."""


def require_fitting_start(config: Experiment) -> None:
    """Refuse starting weights of another network, other findings, or another size where that matters.

    Raises:
        InputError: the weights do not fit; says in what, and what to do.
    """
    model, data = config.model, config.data
    if model.weights is None:
        return
    folder = weights_folder(model.weights)
    if not describes_itself(folder):
        return
    theirs, made_for = described(folder)
    if made_for.network != model.network:
        raise InputError(
            f"{folder}: these weights are of the network {made_for.network}, and model.network asks for "
            f"{model.network}"
        )
    _require_same_network(config, made_for, theirs, str(folder))
    if theirs.findings != data.findings:
        raise InputError(_other_findings(str(folder), theirs.findings, data.findings))
    if theirs.size != data.size and _shapes(data, model, theirs.size) != _shapes(data, model, data.size):
        raise InputError(
            f"{folder}: these weights are for images of {theirs.size} pixels a side, and {model.network} has "
            f"other parameters for those of data.size, {data.size}; make them again by convert-weights "
            f"--size {data.size}"
        )


def _require_same_network(config: Experiment, made_for: ModelConfig, theirs: DataConfig, source: str) -> None:
    data = dataclasses.replace(config.data, size=theirs.size)
    wanted, found = networks.make_network(data, config.model), networks.make_network(data, made_for)
    differing = [
        field.name
        for field in dataclasses.fields(wanted)
        if field.name not in _FREE and getattr(wanted, field.name) != getattr(found, field.name)
    ]
    if "lora_rank" in differing and found.lora_rank == 0:
        differing.remove("lora_rank")  # the factors start from nothing
    if not (found.thumbnail or found.stage_statistics):  # the head starts with zeros there
        differing = [name for name in differing if name not in ("thumbnail", "stage_statistics")]
    if differing:
        told = "; ".join(
            f"{name} is {_shown(found, name)} there, {_shown(wanted, name)} here" for name in differing
        )
        needed = list(made_for.options)
        advice = f"set model.options to {needed}" if made_for.network != "resnet9" else "set model to theirs"
        raise InputError(
            f"{source}: these weights are of another network than model asks for: {told}; {advice}"
        )


def _shown(network: Network, name: str) -> Any:
    value = getattr(network, name)
    return list(value) if isinstance(value, tuple) else value


def _shapes(data: DataConfig, model: ModelConfig, size: int) -> PyTree:
    network = networks.make_network(dataclasses.replace(data, size=size), model)
    return jax.tree.map(lambda leaf: leaf.shape, networks.shapes_of(network, size))


def _other_findings(source: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    if sorted(theirs) == sorted(ours):
        return (
            f"{source}: the head of these weights has the findings of data.findings in another order; set "
            f"data.findings to [{', '.join(theirs)}]"
        )
    return (
        f"{source}: the head of these weights predicts {', '.join(theirs)}, and data.findings asks for "
        f"{', '.join(ours)}; convert-weights --head map, zero or replace gives them another head"
    )
