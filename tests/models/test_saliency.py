from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.saliency import activation_map, integrated_gradients

FILM = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
MODEL = ResNet9(2, width=32)


@pytest.fixture(scope="module")
def params() -> Any:
    return MODEL.init(jax.random.key(1), jnp.asarray(FILM))


def logit(params: Any, film: np.ndarray, finding: int) -> float:
    return float(MODEL.apply(params, jnp.asarray(film))[finding])  # type: ignore[index]


@pytest.mark.parametrize("finding", [0, 1])
def test_shares_add_up_to_the_rise_over_a_black_film(params: Any, finding: int) -> None:
    """GroupNorm makes a faint film look like a bright one, so most of the rise lies next to black: many steps are needed."""
    shares = integrated_gradients(MODEL, params, FILM, finding, steps=512)
    rise = logit(params, FILM, finding) - logit(params, np.zeros_like(FILM), finding)
    assert shares.shape == FILM.shape
    assert shares.sum() == pytest.approx(rise, abs=float(0.02 * np.abs(shares).sum() + 0.02))


def test_black_pixels_have_no_share(params: Any) -> None:
    film = FILM.copy()
    film[:10] = 0
    shares = integrated_gradients(MODEL, params, film, 0, steps=8)
    assert np.all(shares[:10] == 0)
    assert np.any(shares[10:] != 0)


@pytest.mark.parametrize("finding", [0, 1])
def test_cells_add_up_to_the_logit_without_its_bias(params: Any, finding: int) -> None:
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["params"]["head"]["bias"] = moved["params"]["head"]["bias"] + 3.0
    cells = activation_map(MODEL, moved, FILM, finding)
    assert cells.shape == (1, 1)
    assert cells.sum() == pytest.approx(logit(moved, FILM, finding) - 3.0, abs=1e-4)


def test_one_cell_for_each_place_of_the_last_map(params: Any) -> None:
    film = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)
    cells = activation_map(MODEL, params, film, 1)
    assert cells.shape == (2, 2)
    assert cells.sum() == pytest.approx(logit(params, film, 1), abs=1e-4)
