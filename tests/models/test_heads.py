"""Heads for other findings: fresh, of zeros, mapped and averaged."""

from typing import Any

import numpy as np
import pytest

from jaxcxr.errors import InputError
from jaxcxr.models.heads import map_head, replace_head, zero_head

FINDINGS = ("heart", "water_right", "water_left")
FEATURES = 256


def params() -> Any:
    rng = np.random.default_rng(0)
    head = {
        "kernel": rng.normal(size=(FEATURES, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    return {
        "params": {"conv1": {"kernel": np.ones(2, np.float32)}, "head": head},
        "batch_stats": {"norm": np.ones(2)},
    }


def head_of(tree: Any) -> tuple[np.ndarray, np.ndarray]:
    return tree["params"]["head"]["kernel"], tree["params"]["head"]["bias"]


def test_a_fresh_head() -> None:
    before = params()
    after = replace_head(before, 5, seed=1)
    kernel, bias = head_of(after)
    assert kernel.shape == (FEATURES, 5)
    assert kernel.dtype == np.float32
    assert np.all(bias == 0)
    assert 0.8 / 16 < kernel.std() < 1.2 / 16
    assert after["params"]["conv1"] is before["params"]["conv1"]
    assert after["batch_stats"] is before["batch_stats"]
    assert head_of(before)[0].shape == (FEATURES, 3)


def test_a_head_of_zeros() -> None:
    kernel, bias = head_of(zero_head(params(), 2))
    assert (kernel.shape, bias.shape) == ((FEATURES, 2), (2,))
    assert not kernel.any()
    assert not bias.any()


def test_a_head_by_names() -> None:
    kernel, bias = head_of(params())
    wanted = ("water_left", "heart", "other_right", "air", "bone", "water")
    mapping = {
        "other_right": "water_right",
        "air": "new",
        "bone": "zero",
        "water": ("water_right", "water_left"),
    }
    found, biases = head_of(map_head(params(), FINDINGS, wanted, mapping))
    np.testing.assert_array_equal(found[:, :3], kernel[:, [2, 0, 1]])
    np.testing.assert_array_equal(biases[:3], bias[[2, 0, 1]])
    assert biases[3] == 0
    assert not np.any(np.isin(found[:, 3], kernel))
    assert found[:, 3].std() > 0.05
    assert not found[:, 4].any()
    assert biases[4] == 0
    np.testing.assert_allclose(found[:, 5], (kernel[:, 1] + kernel[:, 2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(biases[5], (bias[1] + bias[2]) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("trained", "wanted", "mapping", "text"),
    [
        (
            FINDINGS,
            ("heart", "air", "bone"),
            {},
            "no counterpart for air, bone; map each to one of heart, water_right",
        ),
        (FINDINGS, ("heart", "air"), {"air": "wind"}, r"no counterpart for air \(from wind\)"),
        (FINDINGS, ("air",), {"air": ("heart", "wind")}, r"no counterpart for air \(from heart and wind\)"),
        (FINDINGS, ("air",), {"air": ("heart", "new")}, r"no counterpart for air \(from heart and new\)"),
        (FINDINGS, ("air",), {"air": ()}, r"no counterpart for air \(from nothing\)"),
        (FINDINGS, ("heart",), {"air": "heart"}, "mapped but not wanted: air"),
        (FINDINGS[:2], ("heart",), {}, "predict 3 findings, 2 are named"),
    ],
)
def test_heads_that_cannot_be_mapped(trained: Any, wanted: Any, mapping: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        map_head(params(), trained, wanted, mapping)
