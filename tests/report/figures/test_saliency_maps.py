from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.report.figures.saliency_maps import overlay, saliency_figure


def test_the_overlay_keeps_place_and_sign() -> None:
    shares = np.zeros((64, 64), np.float32)
    shares[10, 50], shares[40, 5] = 3.0, -1.5
    shown = overlay(shares, 64)
    assert np.unravel_index(shown.argmax(), shown.shape) == (10, 50)
    assert np.unravel_index(shown.argmin(), shown.shape) == (40, 5)
    assert shown.max() == 1
    assert shown.min() == pytest.approx(-0.5, abs=0.01)


def test_cells_are_spread_over_the_film() -> None:
    shown = overlay(np.asarray([[1.0, 0.0], [0.0, -0.5]], np.float32), 32)
    assert shown.shape == (32, 32)
    assert shown[0, 0] == 1
    assert shown[-1, -1] == pytest.approx(-0.5)


def test_nothing_to_show() -> None:
    assert np.all(overlay(np.zeros((8, 8), np.float32), 8) == 0)


def test_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (32, 32)).astype(np.uint8)
    maps = [rng.normal(size=(32, 32)).astype(np.float32), rng.normal(size=(2, 2)).astype(np.float32)]
    saliency_figure(
        film, maps, ["cardiomegaly", "congestion"], [0.9, 0.1], "integrated gradients", tmp_path / "s.png"
    )
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 1000
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 200
