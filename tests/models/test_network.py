"""The configuration decides the network, and the same one wherever it is used."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import DataConfig, Experiment, ModelConfig, dump
from jaxcxr.inference import load_model
from jaxcxr.models.network import (
    HEAD,
    LAST_BLOCK,
    NOT_OF_THE_NETWORK,
    is_head,
    is_last_stage,
    is_norm,
    make_network,
    shapes_of,
)
from jaxcxr.models.torch_files import write_state
from jaxcxr.training.parameters import network_of
from jaxcxr.training.weights import flat_weights

DATA = DataConfig(store="", size=32, findings=("cardiomegaly", "congestion"))
DEFAULT = ModelConfig("mish")
OTHER = {"activation": "relu", "width": 32, "dtype": "bfloat16", "scale_norm": True, "remat": True}
"""A value beside the default for each field of the network."""


def test_every_field_is_of_the_network_or_said_not_to_be() -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == OTHER.keys() | set(NOT_OF_THE_NETWORK)


@pytest.mark.parametrize("field", OTHER)
def test_every_field_reaches_the_network(field: str) -> None:
    changed = dataclasses.replace(DEFAULT, **{field: OTHER[field]})
    assert make_network(DATA, changed) != make_network(DATA, DEFAULT)


def test_training_and_inference_have_the_same_network(tiny_config: Experiment, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config, data=DATA, model=dataclasses.replace(DEFAULT, **OTHER))
    trained: Any = network_of(config)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(trained, DATA.size))
    dump(config, tmp_path / "config.yaml")
    write_state(tmp_path / "model.safetensors", flat_weights(zeros))
    assert load_model(tmp_path).network == trained != make_network(DATA, DEFAULT)


def test_the_parts_that_others_ask_for_are_there() -> None:
    shapes = shapes_of(make_network(DATA, dataclasses.replace(DEFAULT, width=32)), DATA.size)["params"]
    paths = [
        tuple(str(part.key) for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]
    ]
    assert shapes[HEAD]["kernel"].shape == (256, 2)
    assert shapes[LAST_BLOCK]["conv2"]["kernel"].shape[-1] == 256
    assert {path for path in paths if is_head(path)} == {(HEAD, "kernel"), (HEAD, "bias")}
    assert {path[0] for path in paths if is_last_stage(path)} == {LAST_BLOCK}
    norms = {path for path in paths if is_norm(path)}
    assert len(norms) == 2 * (1 + 4 * 2 + 3)  # scale and bias of the first, two a block, three shortcuts
    assert all(len(path) == 2 or path[0].startswith("stage") for path in norms)
