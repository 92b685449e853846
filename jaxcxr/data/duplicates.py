"""Films that are nearly the same although their ids differ: one person under two ids, or one film filed twice.

Each film has a perceptual hash of 256 bits; films whose hashes nearly agree are compared again, pixel by pixel at low
resolution. A split by patient does not protect against them, so `scripts/prepare.py` reports them.

Source of the hash: Zauner, Implementation and benchmarking of perceptual image hash functions (2010), with 16 x 16 cosines.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt
from PIL import Image
from scipy.fft import dctn

from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import RECORDS_FILE, Split, Store

_SIDE = 64
_BLOCK = 1024


def perceptual_hash(film: UInt[np.ndarray, "size size"]) -> str:
    """256 bits as hexadecimal: which of the low cosines of the film are above their median."""
    values = film if film.dtype == np.uint8 else (film >> 8).astype(np.uint8)
    picture = Image.fromarray(values)
    # Whole boxes are averaged much faster than fractions of them.
    whole = len(film) % _SIDE == 0
    picture = picture.reduce(len(film) // _SIDE) if whole else picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    small = np.asarray(picture, dtype=np.float32)
    low = np.asarray(dctn(small, norm="ortho"))[:17, :17].ravel()[1:257]
    return np.packbits(low > np.median(low)).tobytes().hex()


def close_pairs(hashes: UInt[np.ndarray, "n 4"], most: int) -> Int[np.ndarray, "pairs 3"]:
    """All pairs of hashes (four 64-bit words each) that differ in at most `most` bits: first, second, bits; first < second."""
    return np.concatenate([np.zeros((0, 3), dtype=np.int64), *_close_pairs(hashes, most)])


def _close_pairs(hashes: np.ndarray, most: int) -> Iterator[np.ndarray]:
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        for other in range(start, len(hashes), 16 * _BLOCK):
            against = hashes[other : other + 16 * _BLOCK]
            bits = np.zeros((len(block), len(against)), dtype=np.uint16)
            for word in range(hashes.shape[1]):
                bits += np.bitwise_count(block[:, None, word] ^ against[None, :, word])
            first, second = np.nonzero(bits <= most)
            pairs = np.stack([first + start, second + other, bits[first, second].astype(np.int64)], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]]


def near_duplicates(store: Store, most: int = 40, at_least: float = 0.97) -> pd.DataFrame:
    """Pairs of nearly equal films of different patients.

    Args:
        store: with hashes (`jaxcxr.data.build` writes them); without, there are no pairs.
        most: bits in which two hashes may differ, of 256.
        at_least: correlation of the two films at 64 x 64 pixels.

    Returns:
        `image_id_a`, `image_id_b`, `patient_id_a`, `patient_id_b`, `split_a`, `split_b`, `bits`, `correlation`, closest first.
    """
    columns = ["image_id_a", "image_id_b", "patient_id_a", "patient_id_b", "split_a", "split_b", "bits", "correlation"]
    file = store.path / RECORDS_FILE
    records = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
    if "phash" not in records.columns:
        return pd.DataFrame(columns=columns)
    hashes = np.frombuffer(bytes.fromhex("".join(records["phash"])), dtype=np.uint64).reshape(-1, 4)
    pairs = close_pairs(hashes, most)
    patients = pd.factorize(store.manifest["patient_id"])[0]
    pairs = pairs[patients[pairs[:, 0]] != patients[pairs[:, 1]]]
    sides = store.manifest["split"].to_numpy()
    splits = {name: store.split(name) for name in SPLITS}
    places = store.manifest.groupby("split").cumcount().to_numpy()
    rows = []
    for first, second, bits in pairs.tolist():
        one, other = (_thumbnail(splits[str(sides[row])], int(places[row])) for row in (first, second))
        correlation = float(np.corrcoef(one, other)[0, 1])
        if correlation >= at_least:
            a, b = store.manifest.iloc[first], store.manifest.iloc[second]
            rows.append((*(side[key] for key in ("image_id", "patient_id", "split") for side in (a, b)), bits, correlation))
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("correlation", ascending=False, kind="stable").reset_index(drop=True)


def across_splits(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs that leak: one film on each of two sides."""
    return pairs.loc[pairs["split_a"] != pairs["split_b"]]


def _thumbnail(split: Split, place: int) -> np.ndarray:
    film = split.read(np.array([place]))[0].astype(np.float32)
    small = Image.fromarray(film).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel()
