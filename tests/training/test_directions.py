"""Directions by public images alone: what they are, how many, and that private images cannot choose them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxcxr.data.store import Store, open_store, write_store
from jaxcxr.errors import InputError
from jaxcxr.training.directions import (
    LEAST,
    MOST,
    WHITENING,
    directions_of,
    number_of_directions,
    require_apart,
)
from tests.conftest import FINDINGS


def public(n: int = 300, d: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=(n, d)) * np.geomspace(4, 0.05, d) @ turned + rng.normal(5, 1, d)


def test_coordinates_are_centred_uncorrelated_and_of_unit_length_on_average() -> None:
    features, k = public(), 7
    x = directions_of(features, k).coordinates(features)
    assert x.shape == (300, k + 1)
    np.testing.assert_allclose(x[:, :-1].mean(axis=0), 0, atol=1e-4)
    assert np.mean(np.sum(np.square(x), axis=1)) == pytest.approx(1, rel=1e-3)
    moments = x.T @ x / len(x)
    np.testing.assert_allclose(moments - np.diag(np.diag(moments)), 0, atol=1e-5)
    assert (x[:, -1] == x[0, -1]).all()
    assert x[0, -1] ** 2 == pytest.approx(np.mean(np.diag(moments)[:-1]), rel=1e-3)
    np.testing.assert_allclose(np.sqrt(np.diag(moments)), directions_of(features, k).spread, rtol=1e-3)


def test_the_directions_are_those_in_which_public_images_differ_most() -> None:
    features, k = public(), 7
    values, vectors = np.linalg.eigh(np.cov(features.T, bias=True))
    order = np.argsort(values)[::-1][:k]
    plain = (features - features.mean(axis=0)) @ vectors[:, order]
    expected = plain * values[order] ** (-WHITENING / 2)
    found = directions_of(features, k).coordinates(features)[:, :-1]
    ratio = np.linalg.norm(found) / np.linalg.norm(expected)
    np.testing.assert_allclose(np.abs(found), ratio * np.abs(expected), rtol=1e-2, atol=1e-3)


def test_constant_and_repeated_features_get_no_coordinate() -> None:
    features = np.concatenate([public(50, 3), np.ones((50, 2)), public(50, 3)], axis=1)
    found = directions_of(features, 6)
    x = found.coordinates(features)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:, 3:-1], 0, atol=1e-5)
    assert (found.axes[3:5] == 0).all() or np.abs(found.axes[3:5]).max() < 1e-5


@pytest.mark.parametrize(("n", "k"), [(5, 5), (5, 0), (100, 21)])
def test_more_directions_than_images_or_features_are_refused(n: int, k: int) -> None:
    with pytest.raises(InputError, match=r"head\.directions: expected 1 to"):
        directions_of(public(n), k)


def test_the_digest_covers_every_number() -> None:
    found = directions_of(public(), 4)
    digests = {found.digest}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        other = float(value) + 1e-3 if field.name == "constant" else value + np.float32(1e-3)
        digests.add(dataclasses.replace(found, **{field.name: other}).digest)
    assert len(digests) == 5


def test_the_number_rises_with_units_and_budget_and_falls_with_findings() -> None:
    def number(n: int = 3000, epsilon: float | None = 1.0, findings: int = 1) -> int:
        return number_of_directions(n, epsilon, findings, 2000, 2000)

    assert LEAST < number() < MOST
    assert number(6000) > number() > number(1500)
    assert number(epsilon=2.0) > number() > number(epsilon=0.5)
    assert number(findings=8) < number() < number(epsilon=None)
    assert (number(1), number(10**7)) == (LEAST, MOST)
    assert number(600, 100.0) == number(600, None) == 100
    assert number_of_directions(10**7, 8.0, 1, 100, 2000) == 100
    assert number_of_directions(10**7, 8.0, 1, 1280, 60) == 59
    assert number_of_directions(10, 1.0, 1, 5, 4) == 3


def other_store(path: Path, **changed: Any) -> Store:
    """Twenty images that share nothing with the tiny store unless `changed` says so."""
    rng = np.random.default_rng(7)
    images = changed.pop("images", rng.integers(0, 256, (20, 32, 32)).astype(np.uint8))
    frame = pd.DataFrame(
        {
            "image_id": [f"public{i}" for i in range(20)],
            "patient_id": [f"other{i}" for i in range(20)],
            "path": [f"{i}.png" for i in range(20)],
            "split": "train", "age": 50.0, "sex": "F", "view": "PA",
            **dict.fromkeys(FINDINGS, 0.0),
        }
    ).assign(**changed)  # fmt: skip
    return write_store(path, frame, iter(images), size=32, findings=FINDINGS, preprocessing={"made": "there"})


def test_other_images_are_taken(tiny_store: Store, tmp_path: Path) -> None:
    require_apart(other_store(tmp_path / "public"), tiny_store, ids_unrelated=False)


@pytest.mark.parametrize("what", ["pixels", "image_id", "patient_id"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_private_images_cannot_choose_the_directions(
    tiny_store: Store, tmp_path: Path, what: str, split: str
) -> None:
    """One image or patient of any split is enough to refuse."""
    theirs = tiny_store.split(split)
    rng = np.random.default_rng(8)
    if what == "pixels":
        images = rng.integers(0, 256, (20, 32, 32)).astype(np.uint8)
        images[11] = theirs.read(np.array([3]))[0]
        changed: dict[str, Any] = {"images": images}
    else:
        ids = [f"own{i}" for i in range(20)]
        ids[11] = theirs.frame[what].iloc[3]
        changed = {what: ids}
    public_store = other_store(tmp_path / "public", **changed)
    with pytest.raises(InputError, match=f"1 with the same {what}"):
        require_apart(public_store, tiny_store, ids_unrelated=False)
    if what == "pixels":
        with pytest.raises(InputError, match="same pixels"):
            require_apart(public_store, tiny_store, ids_unrelated=True)
    else:
        require_apart(public_store, tiny_store, ids_unrelated=True)


def test_a_copy_of_the_private_store_is_refused(tiny_store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_store.path, copy)
    with pytest.raises(InputError, match="is the private store itself"):
        require_apart(open_store(copy), tiny_store, ids_unrelated=True)
