"""The head sees a thumbnail of the image, wherever it is asked what it sees, and nothing changes at zeros."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.config import ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models.backbone import with_rows
from jaxcxr.models.features import features, with_features
from jaxcxr.models.network import Network
from jaxcxr.models.published import torch_state
from jaxcxr.models.saliency import activation_map
from jaxcxr.models.thumbnail import thumbnail

SIDE, CHANNELS = 4, 5


class Small(Network):
    """One convolution, the mean over places and the head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """Logits of one image."""
        x = nn.Conv(CHANNELS, (3, 3), 2, name="conv1")(self.input.normalised(image))
        return nn.Dense(self.n_findings, name="head")(self.pooled(x))


PLAIN, SEEING = Small(2), Small(2, thumbnail=SIDE)
IMAGE = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 16)), jnp.uint8)


@pytest.fixture(scope="module")
def params() -> Any:
    return SEEING.init(jax.random.key(0), IMAGE)


def test_a_thumbnail_is_the_image_made_small() -> None:
    small = np.asarray(thumbnail(IMAGE, 16)).reshape(16, 16)
    np.testing.assert_allclose(small, np.asarray(IMAGE) / 255 - 0.5, atol=1e-6)
    halves = np.zeros((16, 16), np.uint8)
    halves[:, 8:] = 255
    small = np.asarray(thumbnail(halves, 2)).reshape(2, 2)
    assert small[0, 0] < -0.3
    assert small[0, 1] > 0.3
    np.testing.assert_allclose(
        np.asarray(thumbnail(halves[:, ::-1], 2)).reshape(2, 2), small[:, ::-1], atol=1e-6
    )


def test_the_logits_are_those_of_features_and_thumbnail(params: Any) -> None:
    assert params["params"]["head"]["kernel"].shape == (CHANNELS + SIDE**2, 2)
    logits, seen = with_features(SEEING, params, IMAGE)
    assert seen.shape == (CHANNELS + SIDE**2,)
    np.testing.assert_array_equal(seen[CHANNELS:], thumbnail(IMAGE, SIDE))
    head = params["params"]["head"]
    np.testing.assert_allclose(logits, seen @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(SEEING.apply)(params, IMAGE), logits, rtol=1e-5, atol=1e-6)
    seen_of_many = jax.vmap(lambda image: features(SEEING, params, image))(jnp.stack([IMAGE[::-1], IMAGE]))
    np.testing.assert_allclose(seen_of_many[1], seen, atol=1e-6)


def test_an_image_that_is_normalised_already_has_the_same_thumbnail(params: Any) -> None:
    given = SEEING.apply(params, SEEING.input.normalised(IMAGE))
    np.testing.assert_allclose(given, SEEING.apply(params, IMAGE), rtol=1e-4, atol=1e-5)


def test_rows_of_zeros_change_nothing() -> None:
    params = PLAIN.init(jax.random.key(1), IMAGE)
    grown = with_rows(params, "head", CHANNELS + SIDE**2)
    assert grown["params"]["head"]["kernel"].shape == (CHANNELS + SIDE**2, 2)
    np.testing.assert_allclose(SEEING.apply(grown, IMAGE), PLAIN.apply(params, IMAGE), rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_new_rows(params: Any) -> None:
    kernel = jax.grad(lambda p: SEEING.apply(p, IMAGE)[1])(params)["params"]["head"]["kernel"]  # type: ignore[index]
    np.testing.assert_allclose(kernel[CHANNELS:, 1], thumbnail(IMAGE, SIDE), atol=1e-6)


def test_the_activation_map_is_of_the_network_alone(params: Any) -> None:
    cells = activation_map(SEEING, params, np.asarray(IMAGE), 0)
    head, seen = params["params"]["head"], features(SEEING, params, IMAGE)
    assert cells.sum() == pytest.approx(float(seen[:CHANNELS] @ head["kernel"][:CHANNELS, 0]), rel=1e-4)


def test_torch_has_no_such_part(params: Any) -> None:
    model = dataclasses.replace(ModelConfig(width=32), thumbnail=SIDE)
    with pytest.raises(InputError, match=r"model.thumbnail: the torch network has no such part.*stablehlo"):
        torch_state(model, params)
