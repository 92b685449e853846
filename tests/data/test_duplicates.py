import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.fft import dctn

from jaxcxr.data import close_pairs as search
from jaxcxr.data.build import build_store, read_listing
from jaxcxr.data.duplicates import (
    DUPLICATES_FILE,
    across_splits,
    listed_duplicates,
    near_duplicates,
    perceptual_hash,
)  # fmt: skip
from jaxcxr.data.store import Split
from jaxcxr.errors import InputError


def image(seed: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return np.asarray(coarse)


def bits(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_a_hash_outlives_noise_and_another_size_but_not_another_image():
    one = perceptual_hash(image(0, 256))
    noisy = np.clip(image(0, 256) + np.random.default_rng(1).normal(0, 3, (256, 256)), 0, 255).astype(
        np.uint8
    )
    assert len(one) == 64
    assert bits(one, perceptual_hash(noisy)) < 30
    assert bits(one, perceptual_hash(image(1, 256))) > 60
    assert bits(one, perceptual_hash(image(0, 256).astype(np.uint16) * 256 + 255 - image(1, 256))) == 0


@pytest.mark.parametrize("side", [64, 512])
def test_a_hash_says_which_low_cosines_are_above_their_median(side):
    small = image(0, side).reshape(64, side // 64, 64, side // 64).sum(axis=(1, 3), dtype=float)
    low = np.asarray(dctn(small, norm="ortho"))[:17, :17].ravel()[1:257]
    assert perceptual_hash(image(0, side)) == np.packbits(low > np.median(low)).tobytes().hex()


def hashes_with_near_ones(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (count, 4), dtype=np.uint64)
    for distance in [*range(60)] * 3:
        one, other = rng.choice(count, 2, replace=False)
        hashes[other] = hashes[one]
        for place in rng.choice(256, distance, replace=False):
            hashes[other, place // 64] ^= np.uint64(1 << int(place % 64))
    return hashes


@pytest.mark.parametrize("most", [0, 13, 28, 40])
def test_bands_find_the_pairs_of_the_exhaustive_search_and_each_once(most):
    hashes, done = hashes_with_near_ones(3000), []
    banded = np.concatenate(list(search._banded(hashes, most, done.append)))
    assert sum(done) == pytest.approx(1)
    done.clear()
    all_of_them = np.concatenate(list(search._all(hashes, most, done.append)))
    assert sum(done) == pytest.approx(1)
    assert len(all_of_them) >= 2 * most
    assert sorted(banded.tolist()) == sorted(all_of_them.tolist())


def test_hashes_that_are_all_alike_are_compared_one_by_one(monkeypatch):
    monkeypatch.setattr(search, "_FEW", 10)
    alike = np.zeros((60, 4), dtype=np.uint64)
    assert search._comparisons(alike, 40) > len(alike) ** 2
    assert sum(map(len, search.close_pairs(alike, 40))) == 60 * 59 // 2


@pytest.fixture
def store(tmp_path):
    images = [image(seed, 80) for seed in range(12)]
    images[9] = np.clip(
        images[2].astype(int) + np.random.default_rng(0).integers(-3, 4, (80, 80)), 0, 255
    ).astype(np.uint8)
    images[5] = images[4]
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    frame = pd.DataFrame(
        {
            "image_id": [f"f{i}" for i in range(12)],
            "patient_id": [f"p{i if i != 5 else 4}" for i in range(12)],
            "path": [f"{i}.png" for i in range(12)],
            "split": ["train"] * 8 + ["test"] * 4,
            "age": 1.0,
            "sex": "F",
            "a": 0.0,
        }
    )
    return build_store(tmp_path / "store", frame, tmp_path, size=64, findings=["a"], duplicates=True)


def test_one_person_under_two_ids_is_found_and_one_with_two_images_is_not(store):
    pairs = near_duplicates(store)
    assert pairs[
        ["image_id_a", "image_id_b", "patient_id_a", "patient_id_b", "split_a", "split_b"]
    ].to_numpy().tolist() == [["f2", "f9", "p2", "p9", "train", "test"]]
    assert len(across_splits(pairs)) == 1
    assert len(near_duplicates(store, most=256)) == 1  # whatever the hashes say, the images have to be alike
    same_side = dataclasses.replace(
        store, manifest=store.manifest.assign(patient_id=store.manifest["image_id"])
    )
    pairs = near_duplicates(same_side)
    assert pairs["image_id_a"].tolist() == ["f4", "f2"]
    assert len(across_splits(pairs)) == 1


def test_the_pairs_are_listed_in_the_store_from_the_start(store):
    listing = read_listing(store.path / DUPLICATES_FILE)
    assert listing[["image_id_a", "image_id_b"]].to_numpy().tolist() == [["f2", "f9"]]
    assert listing.columns.tolist() == near_duplicates(store).columns.tolist()
    assert float(listing["correlation"].iloc[0]) == pytest.approx(
        np.corrcoef(*(box(store, name, place) for name, place in (("train", 2), ("test", 1))))[0, 1], abs=1e-4
    )


def box(store, split, place):
    image = store.split(split).read(np.array([place]))[0]
    return image.reshape(64, 1, 64, 1).mean(axis=(1, 3)).ravel()


def test_black_images_resemble_nothing_and_each_image_is_read_once(tmp_path, monkeypatch):
    """Fifty black images and twenty copies of one: without a limit, 1,225 and 190 pairs would each be read again."""
    frame = pd.DataFrame(
        {
            "image_id": [f"f{i}" for i in range(70)],
            "patient_id": [f"p{i}" for i in range(70)],
            "path": [f"{i}.png" for i in range(70)],
            "split": ["train", "test"] * 35,
            "age": 1.0,
            "sex": "F",
            "a": 0.0,
        }
    )
    for i in range(70):
        Image.fromarray(image(0, 80) if i >= 50 else np.zeros((80, 80), np.uint8)).save(tmp_path / f"{i}.png")
    store = build_store(tmp_path / "store", frame, tmp_path, size=64, findings=["a"])
    read = []
    real = Split.read
    monkeypatch.setattr(Split, "read", lambda self, places: (read.extend(places), real(self, places))[1])
    pairs = near_duplicates(store)
    assert len(pairs) == 20 * 19 / 2
    assert len(across_splits(pairs)) == 10 * 10
    assert pairs["correlation"].to_numpy() == pytest.approx(1.0)
    assert len(read) == 20
    assert not (store.path / DUPLICATES_FILE).exists()


def test_a_store_without_hashes_has_no_pairs(tiny_store):
    assert near_duplicates(tiny_store).empty


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([], {"within": False, "across": False}),
        ([("train", "train")], {"within": True, "across": False}),
        ([("test", "train")], {"within": False, "across": True}),
        ([("train", "valid"), ("train", "train")], {"within": True, "across": True}),
        ([("valid", "test"), ("test", "test")], {"within": False, "across": False}),
    ],
)
def test_what_a_listing_says_of_the_training_split(tiny_store, tmp_path, splits, expected):
    store = dataclasses.replace(tiny_store, path=tmp_path)
    assert listed_duplicates(store) is None  # nobody has looked, which is not the same as nothing found
    pairs = near_duplicates(tiny_store)
    for place, (a, b) in enumerate(splits):
        pairs.loc[place] = [f"f{place}", f"g{place}", "p", "q", a, b, 3, 0.99]
    pairs.to_csv(tmp_path / DUPLICATES_FILE, index=False)
    assert listed_duplicates(store) == expected


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "split_a,split_b\n1,2,3\n4,5,6,7\n"])
def test_a_damaged_listing_is_refused(tiny_store, tmp_path, content):
    (tmp_path / DUPLICATES_FILE).write_text(content)
    with pytest.raises(InputError, match=r"duplicates\.csv: expected the listing"):
        listed_duplicates(dataclasses.replace(tiny_store, path=tmp_path))


def test_a_prepared_store_says_what_its_own_listing_says(store):
    assert listed_duplicates(store) == {"within": False, "across": True}
