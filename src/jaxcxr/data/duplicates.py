"""Near-duplicate images under different ids: one person with two ids, or one image filed twice.

Each image has a perceptual hash of 256 bits; images whose hashes nearly agree are compared again, pixel by
pixel at low resolution. A split by patient does not protect against near-duplicates, so `scripts/prepare.py`
reports them.

Source of the hash: Zauner, Implementation and benchmarking of perceptual image hash functions (2010), with 16
x 16 cosines.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import UInt
from PIL import Image

from jaxcxr.data.close_pairs import close_pairs
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store
from jaxcxr.data.store_checks import CURE, RECORDS_FILE
from jaxcxr.digests import check
from jaxcxr.errors import InputError

DUPLICATES_FILE = "duplicates.csv"
"""The pairs found by `near_duplicates`; if a store lacks this file, near-duplicates were not searched for."""

_SIDE = 64
_IMAGES_AT_ONCE = 256
# The first rows of the cosine transform (type II), not yet scaled; the others are not needed.
_COSINES = np.cos(np.pi / _SIDE * np.arange(17)[:, None] * (np.arange(_SIDE) + 0.5)).astype(np.float32)
_COSINES[0] /= np.sqrt(2)


def perceptual_hash(image: UInt[np.ndarray, "size size"]) -> str:
    """The hash, 256 bits as hexadecimal: which low-frequency cosine coefficients exceed their median."""
    values = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    box = len(values) // _SIDE
    if box * _SIDE == len(values) and box <= 256:
        # Whole boxes are summed much faster than fractions of boxes; a sum of 256 bytes fits in 16 bits.
        rows = np.add.reduce(values.reshape(_SIDE, box, len(values)), axis=1, dtype=np.uint16)
        small = np.einsum("ijk->ij", rows.astype(np.float32).reshape(_SIDE, _SIDE, box))
    else:
        small = np.asarray(
            Image.fromarray(values).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32
        )
    low = (_COSINES @ small @ _COSINES.T).ravel()[1:257]
    # Half of 256 numbers are above the 128th smallest, as above their median.
    return np.packbits(low > np.sort(low)[127]).tobytes().hex()


def near_duplicates(
    store: Store,
    most: int = 40,
    at_least: float = 0.97,
    progress: Callable[[float], object] = lambda _: None,
) -> pd.DataFrame:
    """Pairs of near-duplicate images of different patients; an image of a single grey value is in no pair.

    Args:
        store: with hashes (`jaxcxr.data.build` writes them); without hashes no pairs are found.
        most: bits in which two hashes may differ, of 256.
        at_least: correlation of the two images at 64 x 64 pixels.
        progress: called with the share of the comparisons done since the last call.

    Returns:
        `image_id_a`, `image_id_b`, `patient_id_a`, `patient_id_b`, `split_a`, `split_b`, `bits`,
        `correlation`, closest first.
    """
    named = ("image_id", "patient_id", "split")
    columns = [*(f"{column}_{side}" for column in named for side in "ab"), "bits", "correlation"]
    file = store.path / RECORDS_FILE
    records = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
    if "phash" not in records.columns:
        return pd.DataFrame(columns=columns)
    hashes = np.frombuffer(bytes.fromhex("".join(records["phash"])), dtype=np.uint64).reshape(-1, 4)
    candidates = np.flatnonzero(hashes.any(axis=1))
    patients = pd.factorize(store.manifest["patient_id"])[0][candidates]
    pairs = np.concatenate(
        [
            np.zeros((0, 3), dtype=np.int64),
            *(
                some[patients[some[:, 0]] != patients[some[:, 1]]]
                for some in close_pairs(hashes[candidates], most, progress)
            ),
        ]
    )
    pairs[:, :2] = candidates[pairs[:, :2]]
    pairs, correlations = _alike(store, pairs, at_least)
    sides = [store.manifest.iloc[pairs[:, place]].reset_index(drop=True) for place in (0, 1)]
    found = pd.DataFrame(
        {
            **{
                f"{column}_{side}": rows[column]
                for column in named
                for side, rows in zip("ab", sides, strict=True)
            },
            "bits": pairs[:, 2],
            "correlation": correlations,
        }
    )
    return found.sort_values("correlation", ascending=False, kind="stable").reset_index(drop=True)


def across_splits(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose two images are in different splits, which makes the evaluation too good."""
    return pairs.loc[pairs["split_a"] != pairs["split_b"]]


def listed_duplicates(store: Store) -> dict[str, bool] | None:
    """Whether near-duplicates of different patients were found within or across the training split.

    A pair within the training split may be one person who counts as two units: that person has the guarantee
    for two units only. A pair across splits makes the evaluation too good. Counts are private and are not
    returned.

    Returns:
        `within`: two training images are near-duplicates; `across`: a training image and one of another split
        are. None if near-duplicates were not searched for (`prepare.py --no-duplicates`, or a store without
        perceptual hashes).

    Raises:
        InputError: the listing is damaged.
    """
    path = store.path / DUPLICATES_FILE
    check(path, CURE)
    if not path.is_file():
        return None
    try:
        pairs = pd.read_csv(path, dtype=str, keep_default_na=False)
        first, second = pairs["split_a"] == "train", pairs["split_b"] == "train"
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected the listing of nearly equal images, with columns split_a and split_b"
        ) from error
    return {"within": bool((first & second).any()), "across": bool((first ^ second).any())}


def _alike(store: Store, pairs: np.ndarray, at_least: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose images also correlate, with their correlations; each image is read once."""
    rows, positions = np.unique(pairs[:, :2], return_inverse=True)
    small = np.empty((len(rows), _SIDE**2), dtype=np.float32)
    sides = store.manifest["split"].to_numpy()
    places = store.manifest.groupby("split").cumcount().to_numpy()
    for name in SPLITS:
        split, mine = store.split(name), np.flatnonzero(sides[rows] == name)
        for start in range(0, len(mine), _IMAGES_AT_ONCE):
            some = mine[start : start + _IMAGES_AT_ONCE]
            small[some] = _thumbnails(split.read(places[rows[some]]))
    first, second = positions.reshape(-1, 2).T
    correlations = np.empty(len(pairs))
    for start in range(0, len(pairs), _IMAGES_AT_ONCE):
        some = slice(start, start + _IMAGES_AT_ONCE)
        correlations[some] = np.einsum("ij,ij->i", small[first[some]], small[second[some]])
    alike = correlations >= at_least
    return pairs[alike], correlations[alike]


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Images at low resolution with mean 0 and length 1, so that the product of two is their correlation."""
    box = (_SIDE, _SIDE), Image.Resampling.BOX
    small = np.array(
        [np.asarray(Image.fromarray(image.astype(np.float32)).resize(*box)).ravel() for image in images]
    )
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return np.divide(small, length, out=np.zeros_like(small), where=length > 0)
