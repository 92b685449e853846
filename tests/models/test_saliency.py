from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.errors import InputError
from jaxcxr.models.layers import GroupNorm
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.saliency import activation_map, integrated_gradients
from tests.per_example.problem import filled

FILM = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)


class Quick(ResNet9):
    """As many strides as in the paper's network, a norm, its last stage and its head: it compiles quickly."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.Conv(32, (8, 8), 8, name="conv1")(image.astype(jnp.float32)[..., None] / 255)
        x = GroupNorm(name="norm1")(x, activation="mish")
        x = nn.Conv(32, (4, 4), 4, name="stage4_block1")(x)
        return nn.Dense(self.n_findings, name="head")(self.pooled(x))


MODEL = Quick(2)


@pytest.fixture(scope="module")
def params() -> Any:
    return MODEL.init(jax.random.key(1), jnp.asarray(FILM))


def logit(params: Any, image: np.ndarray, finding: int, model: ResNet9 = MODEL) -> float:
    return float(model.apply(params, jnp.asarray(image))[finding])  # type: ignore[index]


@pytest.mark.parametrize("finding", [0, 1])
def test_shares_add_up_to_the_rise_over_a_black_image(params: Any, finding: int) -> None:
    """GroupNorm makes a faint image look like a bright one, so most of the rise lies next to black: many steps are needed."""
    shares = integrated_gradients(MODEL, params, FILM, finding, steps=512)
    rise = logit(params, FILM, finding) - logit(params, np.zeros_like(FILM), finding)
    assert shares.shape == FILM.shape
    assert shares.sum() == pytest.approx(rise, abs=float(0.02 * np.abs(shares).sum() + 0.02))


def test_black_pixels_have_no_share(params: Any) -> None:
    image = FILM.copy()
    image[:10] = 0
    shares = integrated_gradients(MODEL, params, image, 0, steps=8)
    assert np.all(shares[:10] == 0)
    assert np.any(shares[10:] != 0)


@pytest.mark.parametrize("finding", [0, 1])
def test_cells_add_up_to_the_logit_without_its_bias(params: Any, finding: int) -> None:
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["params"]["head"]["bias"] = moved["params"]["head"]["bias"] + 3.0
    cells = activation_map(MODEL, moved, FILM, finding)
    assert cells.shape == (1, 1)
    assert cells.sum() == pytest.approx(logit(moved, FILM, finding) - 3.0, abs=1e-4)


def test_one_cell_for_each_place_of_the_papers_networks_last_map() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)
    model = ResNet9(2, width=32)
    shapes = jax.eval_shape(model.init, jax.random.key(1), jnp.asarray(image))
    params = filled(shapes, scale=0.1)
    cells = activation_map(model, params, image, 1)
    assert cells.shape == (2, 2)
    assert cells.sum() == pytest.approx(
        float(logit(params, image, 1, model) - params["params"]["head"]["bias"][1]), abs=1e-4
    )


def test_a_network_without_a_last_map() -> None:
    class Flat(ResNet9):
        @nn.compact
        def __call__(self, image: Any) -> Any:
            return nn.Dense(self.n_findings, name="head")(image.reshape(-1).astype(jnp.float32))

    model = Flat(2)
    with pytest.raises(
        InputError, match=r"activation_map: Flat has no map .* expected the method integrated_gradients"
    ):
        activation_map(model, model.init(jax.random.key(0), jnp.asarray(FILM)), FILM, 0)
