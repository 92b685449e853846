"""Features that are computed once: right, private, of each image alone, and made anew where they must be."""

import dataclasses
import errno
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import expit

from jaxcxr.atomic import BusyError
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.store import Store, open_store
from jaxcxr.errors import InputError
from jaxcxr.inference import Model
from jaxcxr.launch.jobs import claimed
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.training import kept_features
from jaxcxr.training.head_data import logits_by_features
from jaxcxr.training.kept_features import (
    BATCH,
    features_by,
    features_of_images,
    features_of_store,
    folder_of,
    origin_of,
)
from tests.conftest import FINDINGS
from tests.training.tiny import ManyWeights, TinyNet

NETWORK = TinyNet(len(FINDINGS))


@pytest.fixture(scope="module")
def params() -> Any:
    return NETWORK.init(jax.random.key(0), np.zeros((32, 32), np.uint8))


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    """A copy, whose features nobody else keeps."""
    shutil.copytree(tiny_store.path, tmp_path / "tiny")
    return open_store(tmp_path / "tiny")


def quiet(_: str) -> None:
    """Say nothing."""


def files(store: Store) -> list[Path]:
    return sorted(path for path in folder_of(store.path).glob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("views", ["one", "mirrored", "mirrored_moved"])
def test_a_head_predicts_by_features_what_the_network_predicts(store: Store, params: Any, views: Any) -> None:
    kept = features_of_store(NETWORK, params, store, views, say=quiet)
    assert {name: len(rows) for name, rows in kept.items()} == {"train": 50, "valid": 20, "test": 20}
    model = Model(FINDINGS, 32, NETWORK, params, views)
    expected = model.predict_prepared(store.split("test").read_all())
    found = expit(logits_by_features(params, kept["test"], mirror_permutation(FINDINGS)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_views_may_differ_by_split(store: Store, params: Any) -> None:
    """Then they are kept in a file of their own; the same views in all splits are those of the store."""
    both: Any = {"train": "one", "valid": "mirrored", "test": "mirrored"}
    kept = features_of_store(NETWORK, params, store, both, say=quiet)
    assert {name: rows.shape[1] for name, rows in kept.items()} == {"train": 1, "valid": 2, "test": 2}
    one = features_of_store(NETWORK, params, store, "one", say=quiet)
    np.testing.assert_allclose(kept["train"], one["train"], atol=1e-5)
    features_of_store(NETWORK, params, store, dict.fromkeys(both, "one"), say=quiet)
    assert len(files(store)) == 2


def test_they_are_read_again_and_are_their_owners_alone(
    store: Store, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = features_of_store(NETWORK, params, store, "one", say=quiet)
    (file,) = files(store)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o077) == (0o600, 0)

    def refuse(*_: Any) -> Any:
        raise AssertionError("computed a second time")

    monkeypatch.setattr("jaxcxr.training.kept_features.features_of_images", refuse)
    again = features_of_store(NETWORK, params, store, "one", say=refuse)
    assert {name: rows.tobytes() for name, rows in again.items()} == {
        name: rows.tobytes() for name, rows in first.items()
    }


def test_another_head_needs_no_other_features_and_anything_else_does(store: Store, params: Any) -> None:
    def digest(network: Any = NETWORK, own: Any = params, **changed: Any) -> str:
        described: dict[str, Any] = {"images": store.fingerprint, "size": 32, "views": "one", **changed}
        return origin_of(network, own, **described).digest

    def moved(part: str) -> Any:
        leaves = jax.tree.map(lambda leaf: leaf + 0.5, params["params"][part])
        return {"params": {**params["params"], part: leaves}}

    assert digest(own=moved("head")) == digest()
    assert digest(network=ResNet9(3)) == digest(network=ResNet9(7)) != digest()
    others = [
        digest(own=moved("conv1")),
        digest(network=ManyWeights(len(FINDINGS))),
        digest(images="other"),
        digest(views="mirrored"),
        digest(size=64),
    ]
    assert len({digest(), *others}) == 6


def test_a_full_disk_is_said_and_leaves_nothing(
    store: Store, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match="free some space"):
        features_of_store(NETWORK, params, store, "one", say=quiet)
    assert files(store) == []


def test_random_weights_leave_no_file(store: Store, params: Any) -> None:
    features_of_store(NETWORK, params, store, "one", keep=False, say=quiet)
    assert not folder_of(store.path).exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "renamed"])
def test_a_damaged_file_is_refused(store: Store, params: Any, damage: str) -> None:
    features_of_store(NETWORK, params, store, "one", say=quiet)
    (file,) = files(store)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "changed":
        with np.load(file) as content:
            arrays = dict(content)
        arrays["test"] = arrays["test"] + np.float32(1e-3)
        np.savez(file, **arrays)
    else:
        other = jax.tree.map(lambda leaf: leaf + 0.5, params)
        name = origin_of(NETWORK, other, store.fingerprint, 32, "one").digest[:32]
        file.rename(file.with_name(f"{name}.npz"))
        params = other
    with pytest.raises(InputError, match="not the features that were kept there"):
        features_of_store(NETWORK, params, store, "one", say=quiet)


def test_an_image_has_the_same_bits_in_any_company(store: Store, params: Any) -> None:
    """Each image's place follows from its own name: others may come or go."""
    split = store.split("train")
    images, names = split.read_all(), split.frame["image_id"].tolist()
    compute = features_by(NETWORK, params, "mirrored")
    whole = features_of_images(compute, images.__getitem__, names)
    for kept in (np.arange(1, 50), np.array([3, 7, 40]), np.random.default_rng(0).permutation(50)):
        some = features_of_images(compute, images[kept].__getitem__, [names[i] for i in kept])
        assert some.tobytes() == whole[kept].tobytes()
    assert len(set(names)) > BATCH  # more than one round


def test_what_they_follow_from_is_written_with_them(store: Store, params: Any) -> None:
    features_of_store(NETWORK, params, store, "one", say=quiet)
    with np.load(files(store)[0]) as content:
        described = str(content["description"])
    origin = origin_of(NETWORK, params, store.fingerprint, 32, "one")
    for value in dataclasses.asdict(origin).values():
        assert str(value).replace('"', '\\"') in described


def test_one_process_computes_what_several_need(
    store: Store, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_features, "A_DAY", 0.0)  # else they wait for each other
    digest = origin_of(NETWORK, params, store.fingerprint, store.size, "one").digest[:32]
    monkeypatch.setattr(kept_features, "features_of_images", lambda *_: pytest.fail("computed twice"))
    with claimed(folder_of(store.path), digest), pytest.raises(BusyError, match="another process is at work"):
        features_of_store(NETWORK, params, store, "one", say=quiet)
