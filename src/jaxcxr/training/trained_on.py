"""Salted hashes of what weights were trained on, so that no private run starts from its own images.

The guarantee of a run does not cover what its starting weights know already. Weights made here carry
`trained_on.npz` beside `provenance.json`: for each training that they come from, a random salt and hashes of
its training images' pixels (the digests of `records.parquet`), image ids and patient ids. A private run
hashes its own images with the same salt and refuses to start if it finds one again (`checked_start`).

Pixels have too much entropy to be guessed, so they get one HMAC-SHA256; they match where two stores were
prepared in the same way. Ids match however the images were prepared, but are short: each gets scrypt (RFC
7914), about 0.2 ms and 64 KiB, so that 150,000 take half a minute on one core. That makes guessing expensive,
not impossible: whoever can list every possible id can test them all, one salt at a time, so a record stays
with its weights and never enters a release.

Hashes are cut to 8 bytes. N hashes against M others agree by chance with probability N M / 2^64 at most:
2.2e-9 for 200,000 against 200,000, 6.5e-9 over the three kinds.
"""

import dataclasses
import hashlib
import hmac
import io
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import UInt64

from jaxcxr.atomic import replacing
from jaxcxr.data.store import Store
from jaxcxr.data.store_checks import RECORDS_FILE
from jaxcxr.errors import InputError

TRAINED_ON_FILE = "trained_on.npz"
_HASH_BYTES, _SALT_BYTES = 8, 16
_SCRYPT = (64, 8, 1)
"""n, r and p of scrypt; its memory is 128 n r bytes."""
_MOST_COST = 1 << 17
"""Largest n r p accepted in a record: 16 MiB and tens of milliseconds per id, whoever wrote it."""
_FORMAT = 1

Known = Literal["recorded", "ids_declared_unrelated", "none"]
"""What is known of starting weights.

`recorded`: their record shares nothing with the private images; `ids_declared_unrelated`: it shares no
pixels, and the configuration declares that equal ids are different people; `none`: some of their training is
not recorded, so it is an assumption that the private images took no part in it.
"""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one split: SHA-256 of their pixels, their ids and their patients' ids, as far as known."""

    pixels: Sequence[str]
    image_ids: Sequence[str]
    patient_ids: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Training:
    """Hashed images and patients of one training; the arrays are sorted, without repetition.

    Attributes:
        salt: random bytes.
        cost: n, r and p of scrypt, for the ids.
        pixels, image_ids, patient_ids: the hashes.
    """

    salt: bytes
    cost: tuple[int, int, int]
    pixels: UInt64[np.ndarray, " images"]
    image_ids: UInt64[np.ndarray, " ids"]
    patient_ids: UInt64[np.ndarray, " patients"]


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """All recorded trainings that weights come from.

    Attributes:
        trainings: most recent first.
        complete: whether none is missing.
    """

    trainings: tuple[Training, ...]
    complete: bool


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Numbers of images and patients of a split that weights were trained on.

    Attributes:
        pixels: number of images with the same pixels.
        image_ids: number of images with the same image id.
        patient_ids: number of patients with the same id.
    """

    pixels: int
    image_ids: int
    patient_ids: int

    def __bool__(self) -> bool:
        """Whether there is any overlap."""
        return bool(self.pixels or self.image_ids or self.patient_ids)

    def __str__(self) -> str:
        """In words: '3 images with the same pixels and 2 patients with the same patient_id', for example."""
        kinds = (
            (self.pixels, "image", "pixels"),
            (self.image_ids, "image", "image_id"),
            (self.patient_ids, "patient", "patient_id"),
        )
        named = [
            f"{count:,} {what}{'s' if count > 1 else ''} with the same {same}"
            for count, what, same in kinds
            if count
        ]
        return " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))


@dataclasses.dataclass(frozen=True)
class Start:
    """What is known of the weights that a private run starts from.

    Attributes:
        known: see `Known`.
        held_out: a warning for the operator if the weights were trained on validation or test images, which
            affects the evaluation, not the guarantee.
    """

    known: Known
    held_out: str | None = None


def images_of(store: Store, split: str) -> Images:
    """The images of one split of a store; an older store without digests has its pixels read.

    Images of a single grey value are left out: they show nobody, and any two stores may hold one.
    """
    rows = store.manifest["split"].to_numpy() == split
    frame = store.manifest.loc[rows]
    if (store.path / RECORDS_FILE).is_file():
        digests = pd.read_parquet(store.path / RECORDS_FILE, columns=["sha256"])["sha256"].to_numpy()
        if len(digests) != len(rows):
            raise InputError(
                f"{store.path}: {RECORDS_FILE} names {len(digests)} images, the manifest {len(rows)}; "
                "prepare it again"
            )
        pixels = digests[rows].tolist()
    else:
        images = store.split(split)
        pixels = [_sha256(images.read(np.array([row]))[0]) for row in range(len(images))]
    blank = {_sha256(np.full((store.size,) * 2, grey, np.uint8)) for grey in range(256)}
    seen = [digest for digest in pixels if digest not in blank]
    return Images(seen, _texts(frame["image_id"]), _texts(frame["patient_id"]))


def with_training(images: Images, before: TrainedOn | None, from_random: bool) -> TrainedOn:
    """The record for weights that were just trained.

    Args:
        images: the training images.
        before: record of the weights that the training started from, or None.
        from_random: whether it started at random, and so from no other training.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    training = Training(salt, _SCRYPT, *(np.unique(hashes) for hashes in _hashed(images, salt, _SCRYPT)))
    earlier = before.trainings if before is not None else ()
    return TrainedOn((training, *earlier), from_random or (before is not None and before.complete))


def overlap(record: TrainedOn, images: Images, ids: bool = True) -> Overlap:
    """The overlap of `images` with all recorded trainings; with `ids` False, by pixels alone."""
    patients = sorted(set(images.patient_ids))
    seen = [
        np.zeros(len(images.pixels), bool),
        np.zeros(len(images.image_ids), bool),
        np.zeros(len(patients), bool),
    ]
    for training in record.trainings:
        mine = Images(images.pixels, images.image_ids if ids else (), patients if ids else ())
        hashes = _hashed(mine, training.salt, training.cost)
        known = (training.pixels, training.image_ids, training.patient_ids)
        for place in range(3 if ids else 1):
            seen[place] |= np.isin(hashes[place], known[place])
    return Overlap(*(int(found.sum()) for found in seen))


def checked_start(folder: Path, provenance: Mapping[str, Any], store: Store, ids_unrelated: bool) -> Start:
    """What is known of starting weights, checked for a private run on the training split of `store`.

    Args:
        folder: of the weights.
        provenance: their `provenance.json`.
        store: of the private images.
        ids_unrelated: whether equal ids in the record and in the store are declared to be different images
            and people.

    Raises:
        InputError: the weights were trained on images or patients that the run must protect, or their record
            is damaged.
    """
    if provenance.get("store_fingerprint") == store.fingerprint:
        raise _refusal(folder, store, "they were trained on that very store", "")
    record = read(folder, provenance)
    if record is None:
        return Start("none")
    found = overlap(record, images_of(store, "train"), ids=not ids_unrelated)
    if found:
        only_ids = (
            ""
            if found.pixels
            else "; if equal ids are different images and people, set model.weights_ids_unrelated to true"
        )
        raise _refusal(folder, store, f"they were trained on {found} as its training split", only_ids)
    held_out = {
        split: overlap(record, images_of(store, split), ids=not ids_unrelated) for split in ("valid", "test")
    }
    told = "; ".join(f"{split}: {seen}" for split, seen in held_out.items() if seen)
    warning = (
        f"{folder}: these weights were trained on held-out images, whose results will be too good ({told})"
    )
    known: Known = "ids_declared_unrelated" if ids_unrelated else "recorded"
    return Start(known if record.complete else "none", warning if told else None)


def write(folder: Path, record: TrainedOn) -> dict[str, str]:
    """Write a record beside weights; return its file name and SHA-256, for `provenance.json`."""
    arrays: dict[str, np.ndarray] = {"format": np.array(_FORMAT), "complete": np.array(record.complete)}
    for place, training in enumerate(record.trainings):
        arrays |= {
            f"{place}_salt": np.frombuffer(training.salt, np.uint8),
            f"{place}_cost": np.array(training.cost),
            **{f"{place}_{kind}": getattr(training, kind) for kind in ("pixels", "image_ids", "patient_ids")},
        }
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with replacing(folder / TRAINED_ON_FILE) as part:
        part.write_bytes(content.getvalue())
    return {"file": TRAINED_ON_FILE, "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


def read(folder: Path, provenance: Mapping[str, Any]) -> TrainedOn | None:
    """The record beside weights; None if they have none.

    Raises:
        InputError: `provenance.json` names a record that is missing or was changed.
    """
    named = provenance.get("trained_on")
    if named is None:
        return None
    path = folder / TRAINED_ON_FILE
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != named["sha256"]:
            raise ValueError("its SHA-256 is another")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        if arrays["format"] != _FORMAT:
            raise ValueError(f"format {arrays['format']}, expected {_FORMAT}")
        count = sum(name.endswith("_salt") for name in arrays)
        return TrainedOn(tuple(_training(arrays, place) for place in range(count)), bool(arrays["complete"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: the record of what these weights were trained on is missing or damaged "
            f"({' '.join(str(error).split())}); expected the file that was written with them"
        ) from error


def _training(arrays: Mapping[str, np.ndarray], place: int) -> Training:
    n, r, p = (int(value) for value in arrays[f"{place}_cost"])
    if min(n, r, p) < 1 or n * r * p > _MOST_COST:
        raise ValueError(f"a cost of {n}, {r} and {p}")
    hashes = [arrays[f"{place}_{kind}"].astype(np.uint64) for kind in ("pixels", "image_ids", "patient_ids")]
    return Training(arrays[f"{place}_salt"].tobytes(), (n, r, p), *hashes)


def _refusal(folder: Path, store: Store, why: str, further: str) -> InputError:
    return InputError(
        f"{folder}: a private run on {store.path} cannot start from these weights: {why}, outside of the "
        "run's budget, which would reveal those images; pretrain on other images, or start at random "
        f"(model.weights null){further}"
    )


def _hashed(
    images: Images, salt: bytes, cost: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of pixels, image ids and patient ids, each kind apart."""
    pixels = [
        hmac.digest(salt + b"pixels", bytes.fromhex(digest), "sha256")[:_HASH_BYTES]
        for digest in images.pixels
    ]
    return (
        _words(pixels),
        _slow(images.image_ids, salt + b"image", cost),
        _slow(images.patient_ids, salt + b"patient", cost),
    )


def _slow(ids: Sequence[str], salt: bytes, cost: tuple[int, int, int]) -> np.ndarray:
    n, r, p = cost

    def some(start: int) -> list[bytes]:
        return [
            hashlib.scrypt(text.encode(), salt=salt, n=n, r=r, p=p, maxmem=64 << 20, dklen=_HASH_BYTES)
            for text in ids[start : start + 256]
        ]

    # scrypt releases the GIL.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return _words([word for words in pool.map(some, range(0, len(ids), 256)) for word in words])


def _sha256(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _words(hashes: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)


def _texts(column: pd.Series) -> list[str]:
    """Ids as text, without unknown ones (of a store that names no patients, for example)."""
    return [text for text in column.dropna().astype(str).str.strip() if text]
