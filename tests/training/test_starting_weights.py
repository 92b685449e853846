"""Weights that a run starts from are of its network, its findings and, where that matters, its size."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import DataConfig, Experiment, ModelConfig
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.inference import weights_record
from jaxcxr.models.network import make_network, shapes_of
from jaxcxr.training.plan import make_plan
from jaxcxr.training.starting_weights import require_fitting_start
from jaxcxr.training.weights import load_weights, save_weights
from tests.conftest import FINDINGS

DATA = DataConfig("", 32, FINDINGS)
OWN = "tests.models.own:Own"
TINY = ("width=16", "depth=1", "heads=2", "patch=8")


def written(folder: Path, model: ModelConfig, data: DataConfig = DATA, **record: Any) -> str:
    folder.mkdir(parents=True)
    described = weights_record("a test", data, model) | record
    (folder / "provenance.json").write_text(json.dumps(described))
    return str(folder)


def asking(config: Experiment, model: ModelConfig, data: DataConfig = DATA) -> Experiment:
    return dataclasses.replace(config, model=model, data=dataclasses.replace(data, store=config.data.store))


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({}, {"network": OWN}, "these weights are of the network resnet9, and model.network asks for tests"),
        (
            {"width": 64},
            {"width": 32},
            "another network than model asks for: width is 64 there, 32 here; set model to",
        ),
        ({"scale_norm": True}, {}, "scale_norm is True there, False here"),
        (
            {"network": OWN, "options": ("width=8",)},
            {"network": OWN},
            r"width is 8 there, 4 here; set model.options to \['width=8'\]",
        ),
        (
            {"network": "vit_small", "options": (*TINY, "mean=[0.5, 0.5, 0.5]")},
            {"network": "vit_small", "options": TINY},
            r"mean is \[0.5, 0.5, 0.5\] there, \[0.485, 0.456, 0.406\] here",
        ),
        ({"lora_rank": 2}, {}, "lora_rank is 2 there, 0 here"),
    ],
)
def test_another_network(
    tiny_config: Experiment, tmp_path: Path, theirs: Any, ours: Any, message: str
) -> None:
    folder = written(tmp_path / "w", ModelConfig(**theirs))
    with pytest.raises(InputError, match=message):
        require_fitting_start(asking(tiny_config, ModelConfig(**ours, weights=folder)))


def test_what_may_differ(tiny_config: Experiment, tmp_path: Path) -> None:
    folder = written(
        tmp_path / "w", ModelConfig("relu", network="resnet9"), dataclasses.replace(DATA, size=64)
    )
    model = ModelConfig(
        "mish", dtype="bfloat16", remat=True, lora_rank=2, test_time_augmentation="mirrored", weights=folder
    )
    require_fitting_start(asking(tiny_config, model))
    require_fitting_start(asking(tiny_config, dataclasses.replace(model, weights=None)))


def test_other_findings(tiny_config: Experiment, tmp_path: Path) -> None:
    first, *others = FINDINGS
    order = written(tmp_path / "order", ModelConfig(), dataclasses.replace(DATA, findings=(*others, first)))
    with pytest.raises(
        InputError, match=rf"in another order; set data.findings to \[{others[0]}, .*, {first}\]"
    ):
        require_fitting_start(asking(tiny_config, ModelConfig(weights=order)))
    names = written(tmp_path / "names", ModelConfig(), dataclasses.replace(DATA, findings=("a", "b", "c")))
    with pytest.raises(
        InputError, match=f"predicts a, b, c, and data.findings asks for {first}, .*--head map"
    ):
        require_fitting_start(asking(tiny_config, ModelConfig(weights=names)))


def test_a_size_that_decides_the_parameters(tiny_config: Experiment, tmp_path: Path) -> None:
    larger = dataclasses.replace(DATA, size=64)
    for name, options, fits in (("learned", TINY, False), ("rotary", (*TINY, "rotary=true"), True)):
        model = ModelConfig(network="vit_small", options=options)
        folder = written(tmp_path / name, model, larger)
        config = asking(tiny_config, dataclasses.replace(model, weights=folder))
        if fits:
            require_fitting_start(config)
            continue
        with pytest.raises(
            InputError, match=r"are for images of 64 pixels a side.*convert-weights --size 32"
        ):
            require_fitting_start(config)


def test_it_is_asked_before_the_noise_is_calibrated(
    tiny_config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "w", ModelConfig(width=64))
    model = ModelConfig(width=32, weights=folder)

    def never(*_: Any) -> Any:
        raise AssertionError("the noise was searched")

    monkeypatch.setattr("jaxcxr.training.plan.mechanism_of", never)
    with pytest.raises(InputError, match="width is 64 there, 32 here"):
        make_plan(dataclasses.replace(tiny_config, model=model), tiny_store)
    with pytest.raises(AssertionError, match="searched"):
        make_plan(tiny_config, tiny_store)


def test_factors_that_weights_lack_are_those_of_a_new_network(tmp_path: Path) -> None:
    model = ModelConfig(network="vit_small", options=TINY)
    plain = make_network(DATA, model)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes_of(plain, 32))
    save_weights(tmp_path / "w", params, {})
    adapted = make_network(DATA, dataclasses.replace(model, lora_rank=1))
    like = adapted.init(jax.random.key(1), np.zeros((32, 32), np.uint8))
    found = load_weights(tmp_path / "w", like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    np.testing.assert_array_equal(
        found["params"]["block0"]["expand"]["lora_in"], like["params"]["block0"]["expand"]["lora_in"]
    )
    assert np.all(np.asarray(found["params"]["block0"]["expand"]["kernel"]) == 1)
    with pytest.raises(InputError, match="lora_in'] is missing"):  # of shapes alone nothing can be taken
        load_weights(tmp_path / "w", shapes_of(adapted, 32))
