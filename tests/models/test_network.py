"""The configuration decides the network, and the same one wherever it is used."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import DataConfig, Experiment, ModelConfig
from jaxcxr.config_files import dump
from jaxcxr.errors import InputError
from jaxcxr.inference import load_model
from jaxcxr.models.features import features
from jaxcxr.models.network import (
    HEAD,
    NOT_OF_THE_NETWORK,
    Input,
    definition_digest,
    is_head,
    is_last_stage,
    is_norm,
    make_network,
    n_features,
    random_params,
    shapes_of,
)
from jaxcxr.models.torch_files import write_state
from jaxcxr.models.trainable import trained_mask
from jaxcxr.training.parameters import network_of
from jaxcxr.training.weights import flat_weights

DATA = DataConfig(store="", size=32, findings=("cardiomegaly", "congestion"))
DEFAULT = ModelConfig("mish")
OTHER = {
    "activation": "relu",
    "width": 32,
    "dtype": "bfloat16",
    "scale_norm": True,
    "remat": True,
    "lora_rank": 4,
    "thumbnail": 4,
    "stage_statistics": True,
}
OWN = "tests.models.own:Own"
"""A value beside the default for each field of the network."""


def test_every_field_is_of_the_network_or_said_not_to_be() -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == OTHER.keys() | {"network", "options"} | set(NOT_OF_THE_NETWORK)


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
    network = make_network(DATA, dataclasses.replace(DEFAULT, width=32))
    shapes = shapes_of(network, DATA.size)["params"]
    paths = [
        tuple(str(part.key) for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]
    ]
    assert shapes[HEAD]["kernel"].shape == (256, 2)
    assert shapes["stage4_block1"]["conv2"]["kernel"].shape[-1] == 256
    assert {path for path in paths if is_head(path)} == {(HEAD, "kernel"), (HEAD, "bias")}
    assert {path[0] for path in paths if is_last_stage(network, path)} == {"stage4_block1"}
    norms = {path for path in paths if is_norm(path)}
    assert len(norms) == 2 * (1 + 4 * 2 + 3)  # scale and bias of the first, two a block, three shortcuts
    assert all(len(path) == 2 or path[0].startswith("stage") for path in norms)


def own(**fields: Any) -> ModelConfig:
    return dataclasses.replace(DEFAULT, network=fields.pop("network", OWN), **fields)


def test_a_network_of_ones_own() -> None:
    network = make_network(DATA, own(options=("width=8",), remat=True))
    assert (type(network).__name__, network.n_findings, network.remat) == ("Own", 2, True)
    shapes = shapes_of(network, DATA.size)
    assert shapes["params"]["conv1"]["kernel"].shape == (5, 5, 3, 8)
    assert n_features(shapes) == 8
    assert shapes.keys() == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"network": "resnet50"},
            "expected one of resnet9.*, or package.module:Class of your own; found 'resnet50'",
        ),
        ({"network": "no.such.module:Net"}, r"cannot import 'no.such.module:Net' \(No module named 'no'\)"),
        ({"network": "tests.models.own:Absent"}, "cannot import 'tests.models.own:Absent'"),
        ({"network": "tests.models.own:NoNetwork"}, "no subclass of jaxcxr.models.network.Network"),
        ({"options": ("widht=4",)}, "with different names among width; found 'widht=4'"),
        ({"options": ("width=4", "width=8")}, "with different names among width; found 'width=8'"),
        ({"options": ("width",)}, "expected NAME=VALUE .* found 'width'"),
        ({"options": ("width=four",)}, "expected a value like 4, found 'width=four'"),
        ({"options": ("width=true",)}, "expected a value like 4, found 'width=true'"),
        ({"network": "tests.models.own:Other", "options": ("width=4",)}, "none, .*:Other has no options"),
        (
            {"width": 32, "activation": "relu"},
            "model.activation: a field of resnet9, not of .*, and model.width",
        ),
    ],
)
def test_a_network_that_cannot_be_named_so(model: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_network(DATA, own(**model))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Headless", r"must end in an nn.Dense\(n_findings, name='head'\).*the parts Dense_0"),
        ("Training", "Training cannot be applied to one image of 32 x 32 grey values"),
    ],
)
def test_a_network_that_is_none(name: str, message: str) -> None:
    network = make_network(DATA, own(network=f"tests.models.own:{name}"))
    with pytest.raises(InputError, match=message):
        shapes_of(network, DATA.size)


def test_a_size_that_the_network_does_not_take() -> None:
    with pytest.raises(
        InputError,
        match=r"data.size: resnet9 takes images of at least 16 pixels a side, a multiple of 4; found 30",
    ):
        make_network(dataclasses.replace(DATA, size=30), DEFAULT)


def test_a_grey_image_is_normalised_for_each_channel() -> None:
    grey = np.array([[0, 255], [51, 102]], np.uint8)
    normalised = Input((0.5, 0.25, 0.0), (0.5, 0.25, 2.0)).normalised(grey)
    expected = np.stack([grey / 255 / 0.5 - 1, grey / 255 / 0.25 - 1, grey / 510], axis=-1)
    np.testing.assert_allclose(normalised, expected, atol=1e-6)
    np.testing.assert_array_equal(Input((0.5,), (0.1,)).normalised(expected), np.float32(expected))


def test_features_are_what_the_head_sees() -> None:
    network = make_network(DATA, own())
    params: Any = random_params(network, DATA.size, jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    seen = features(network, params, image)
    head = params["params"]["head"]
    np.testing.assert_allclose(seen @ head["kernel"] + head["bias"], network.apply(params, image), rtol=1e-6)
    assert seen.shape == (n_features(params),)


def test_constants_are_not_trained() -> None:
    network = make_network(DATA, own())
    mask = trained_mask("all", shapes_of(network, DATA.size), network)
    assert all(jax.tree.leaves(mask["params"]))
    assert len(jax.tree.leaves(mask["batch_stats"])) == 2
    assert not any(jax.tree.leaves(mask["batch_stats"]))


def test_the_digest_tells_definitions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(DATA, own())
    before = definition_digest(network, DATA.size)
    assert before == definition_digest(network, DATA.size)
    monkeypatch.setattr("tests.models.own.SLOPE", 2.0)
    assert definition_digest(network, DATA.size) != before
