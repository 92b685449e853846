"""The head sees mean and spread of earlier maps, and nothing changes at zeros."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models.backbone import Network, with_rows
from jaxcxr.models.features import features, with_features
from jaxcxr.models.network import NETWORKS, make_network, network_class, shapes_of
from jaxcxr.models.thumbnail import thumbnail
from jaxcxr.training.directions import directions_of


class Small(Network):
    """Two maps, of 3 and 5 channels."""

    STAGES = ("stage1",)

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """Logits of one image."""
        x = nn.relu(nn.Conv(3, (3, 3), 2, name="stage1")(self.input.normalised(image)))
        x = nn.Conv(5, (3, 3), 2, name="last")(x)
        return nn.Dense(self.n_findings, name="head")(self.pooled(x))


PLAIN, SEEING = Small(2), Small(2, stage_statistics=True, thumbnail=2)
IMAGE = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 16)), jnp.uint8)


def test_the_head_sees_features_then_statistics_then_the_thumbnail() -> None:
    params: Any = SEEING.init(jax.random.key(0), IMAGE)
    head = params["params"]["head"]
    assert SEEING.seen_parts(params, 16) == (5, 3, 3, 4)
    assert head["kernel"].shape == (15, 2)
    logits, seen = with_features(SEEING, params, IMAGE)
    inner = {"params": {**params["params"], "head": {**head, "kernel": head["kernel"][:5]}}}
    np.testing.assert_allclose(seen[:5], features(PLAIN, inner, IMAGE), rtol=1e-5, atol=1e-6)
    conv = nn.Conv(3, (3, 3), 2).apply({"params": params["params"]["stage1"]}, SEEING.input.normalised(IMAGE))
    found = np.asarray(conv)
    np.testing.assert_allclose(seen[5:8], found.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[8:11], found.std(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(seen[11:], thumbnail(IMAGE, 2))
    np.testing.assert_allclose(logits, seen @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    many = jax.jit(jax.vmap(lambda image: features(SEEING, params, image)))(jnp.stack([IMAGE[::-1], IMAGE]))
    np.testing.assert_allclose(many[1], seen, rtol=1e-4, atol=1e-5)


def test_rows_of_zeros_change_nothing() -> None:
    params: Any = PLAIN.init(jax.random.key(1), IMAGE)
    grown = with_rows(params, "head", 15)
    np.testing.assert_allclose(SEEING.apply(grown, IMAGE), PLAIN.apply(params, IMAGE), rtol=1e-5, atol=1e-6)
    assert PLAIN.seen_parts(params, 16) == (5,)


def test_every_part_counts_alike() -> None:
    """Whatever their scales, public images differ as much in each part as in the others."""
    rng = np.random.default_rng(0)
    parts = (4, 2, 3)
    public = rng.normal(size=(200, 9)) * np.repeat([1.0, 100.0, 0.01], parts)
    scaled = public * np.repeat([0.1, 7.0, 3.0], parts)
    one, other = (directions_of(x, 5, parts).coordinates(x) for x in (public, scaled))
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-4)
    assert not np.allclose(np.abs(directions_of(public, 5).coordinates(public)), np.abs(one), atol=1e-2)


@pytest.mark.parametrize("name", [name for name in NETWORKS if network_class(name).STAGES])
def test_the_stages_are_those_of_the_network(name: str) -> None:
    data = DataConfig(store="", size=64, findings=("cardiomegaly",))
    network = make_network(data, ModelConfig(network=name, stage_statistics=True))
    shapes: Any = shapes_of(network, 64)
    first, *stages = network.seen_parts(shapes, 64)
    assert (
        first
        == network_class(name)(1).seen_parts(
            shapes_of(dataclasses.replace(network, stage_statistics=False), 64), 64
        )[0]
    )
    assert stages[::2] == stages[1::2]
    assert len(stages) == 2 * len(network.STAGES)


def test_a_network_that_does_not_say_its_stages_is_refused() -> None:
    data = DataConfig(store="", size=64, findings=("cardiomegaly",))
    with pytest.raises(InputError, match=r"model.stage_statistics: densenet121 .* expected resnet9"):
        make_network(data, ModelConfig(network="densenet121", stage_statistics=True))
