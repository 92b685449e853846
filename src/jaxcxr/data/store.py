"""The store of prepared images: a TFDS dataset in ArrayRecord files, with its manifest and fingerprint.

A store is a folder:

    manifest.parquet    the checked manifest, one row per image, in the order the images were given
    digests.json        SHA-256 of the tables and of store.json
    records.parquet     SHA-256 of each image's pixels (and its perceptual hash), in manifest order
    store.json          size, findings, counts, preprocessing, versions, digests, how the splits were made
                        and the key of random splits (never released); written last
    quarantine.csv      files that could not be used, and why
    flagged.csv         images that were used although something about them is unusual, and what
    dataset_info.json, features.json, films-<split>.array_record-<shard>
                        the TFDS dataset `films`; `tfds.builder_from_directory(folder)` reads it too

Records lie in manifest order within each split, so that row i of a split is its record i. No TensorFlow is
needed.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int, UInt

from jaxcxr.data.findings import require_findings
from jaxcxr.data.fingerprint import EXTRA_DECODERS, PIXEL_LIBRARIES, fingerprint_of, versions_of
from jaxcxr.data.manifest import REQUIRED, SPLITS, check_manifest
from jaxcxr.data.shards import ImageReader, ShardWriter, encode, shard_name, write_dataset_info
from jaxcxr.data.store_checks import (
    INFO_FILE,
    MANIFEST_FILE,
    RECORDS_FILE,
    STORE_FILE,
    counts_of,
    image_digests,
    require_files,
    require_tables,
)
from jaxcxr.digests import seal, write_json
from jaxcxr.errors import InputError

SHARD_BYTES = 128 << 20
_FORMAT = 2
_READABLE = (1, _FORMAT)
_LIBRARIES = ("array_record", *PIXEL_LIBRARIES, *EXTRA_DECODERS, "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a store, with random access to its images; safe to use from several threads.

    Attributes:
        frame: the manifest's rows of this split; row i is record i.
        findings: names of the label columns.
        labels: 1, 0 or NaN (unknown), shape [n, findings].
        size: side of the images, in pixels.
    """

    frame: pd.DataFrame
    findings: tuple[str, ...]
    labels: Float32[np.ndarray, "n findings"]
    size: int
    _source: Any = dataclasses.field(repr=False)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.frame)

    def read(self, indices: Int[np.ndarray, " k"]) -> UInt[np.ndarray, "k size size"]:
        """The images at `indices`, in that order; an index may repeat. Random order is as fast as sequential.

        Raises:
            IndexError: an index is outside [0, n).
            InputError: an image is not the one that was written, or cannot be read.
        """
        positions = np.asarray(indices, dtype=np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(
                f"expected indices in [0, {len(self)}), found {positions.min()}..{positions.max()}"
            )
        return self._source.read(positions)

    def read_all(self) -> UInt[np.ndarray, "n size size"]:
        """All images, in manifest order."""
        return self.read(np.arange(len(self)))


@dataclasses.dataclass(frozen=True)
class Store:
    """Prepared images of one cohort.

    Attributes:
        path: folder of the store.
        size: side of the images, in pixels.
        findings: names of the label columns.
        fingerprint: SHA-256 over manifest, preprocessing, library versions and pixels; two stores with the
            same fingerprint hold the same data.
        manifest: one row per image, in the order the images were given.
        dtype: of the pixels, `uint8` or `uint16`.
        shards: number of records in each shard, by split.
    """

    path: Path
    size: int
    findings: tuple[str, ...]
    fingerprint: str
    manifest: pd.DataFrame = dataclasses.field(repr=False)
    dtype: str = "uint8"
    shards: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict, repr=False)

    def split(self, name: str, findings: Sequence[str] | None = None) -> Split:
        """One split; a split without images has length 0.

        Args:
            name: `train`, `valid` or `test`.
            findings: label columns in the wanted order; all of the store's if omitted.

        Raises:
            InputError: there is no such split, a finding is not in the store, or the checksums are damaged.
        """
        if name not in SPLITS:
            raise InputError(f"{self.path}: expected a split among {list(SPLITS)}, found {name!r}")
        wanted = self.findings if findings is None else tuple(findings)
        require_findings(wanted, self.findings, str(self.path))
        rows = (self.manifest["split"] == name).to_numpy()
        frame = self.manifest.loc[rows].reset_index(drop=True)
        labels = frame.loc[:, list(wanted)].to_numpy(dtype=np.float32)
        lengths = self.shards.get(name, ())
        files = [self.path / shard_name(name, shard) for shard in range(len(lengths))]
        reader = ImageReader(files, lengths, self.size, self.dtype, image_digests(self.path, rows))
        return Split(frame, wanted, labels, self.size, reader)

    def description(self) -> dict[str, Any]:
        """The contents of `store.json`."""
        return json.loads((self.path / STORE_FILE).read_text(encoding="utf-8"))

    def split_origin(self) -> Literal["keyed_hash", "given", "unknown"]:
        """How the splits were made.

        Returns:
            `keyed_hash` if they follow from each patient's id and a key alone (`jaxcxr.data.splits`),
            possibly on top of published splits; `given` if they were taken from the source's own table or
            list, or from the recipe of a synthetic cohort; `unknown` if nothing is recorded: the store was
            made by an earlier version, which could make each patient's split depend on all others, or by a
            program that did not say.
        """
        match self.description().get("split"):
            case {"method": "keyed hash"}:
                return "keyed_hash"
            case {"method": "given"}:
                return "given"
        return "unknown"


def declared(manifest: pd.DataFrame, findings: Sequence[str], groups: Sequence[str] = ()) -> pd.DataFrame:
    """The manifest with only the columns that may enter a store: contract, findings and declared groups."""
    wanted = [*REQUIRED, "view", "comorbidities", *groups, *findings]
    kept = manifest.loc[:, [column for column in dict.fromkeys(wanted) if column in manifest.columns]]
    kept.attrs = {}  # parquet files would carry these notes from table to table
    return kept


def write_store(
    path: str | Path,
    manifest: pd.DataFrame,
    images: Iterable[UInt[np.ndarray, "size size"] | None],
    *,
    size: int,
    findings: Sequence[str],
    preprocessing: Mapping[str, object],
    split: Mapping[str, object] | None = None,
) -> Store:
    """Write a store from images in memory and open it (`jaxcxr.data.build` makes one from files).

    The images are taken one by one, so memory does not grow with their number. The store is built in a hidden
    sibling folder (`.<name>.<digits>.partial`) and renamed when it is complete; a killed process leaves that
    folder behind, never half a store.

    Args:
        path: folder to make; it must not exist.
        manifest: one row per image (see `jaxcxr.data.manifest`); only the columns of the contract enter the
            store.
        images: in the order of the manifest's rows; None (an image that could not be read) leaves its row out
            of the store.
        size: side of the images, in pixels.
        findings: label columns of the manifest.
        preprocessing: what was done to the images, as values JSON can hold; part of the fingerprint.
        split: how the splits were made (`jaxcxr.data.splits`); None if that is not known.

    Raises:
        InputError: `path` exists, the manifest breaks its contract, or there are more or fewer images than
            rows.
        ValueError: an image is not UInt8 of shape [size, size].
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already, expected a new folder for the store")
    frame = check_manifest(declared(manifest, findings), findings, f"manifest of {path}")
    json.dumps(dict(preprocessing))  # a value JSON cannot hold must not surface after hours of decoding
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    building.mkdir()
    try:
        records, shards = _write_in_order(building, frame, images, size)
        if not any(shards.values()):
            raise InputError(
                f"{path}: none of the {len(frame)} images could be used, so there is no store to write"
            )
        finish(
            building, frame, records, shards, size=size, dtype="uint8", findings=findings,
            preprocessing=preprocessing, split=split,
        )  # fmt: skip
        publish(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return open_store(path)


def finish(
    building: Path,
    frame: pd.DataFrame,
    records: pd.DataFrame,
    shards: Mapping[str, Sequence[tuple[int, int]]],
    *,
    size: int,
    dtype: str,
    findings: Sequence[str],
    preprocessing: Mapping[str, object],
    sources: Mapping[str, object] | None = None,
    split: Mapping[str, object] | None = None,
) -> None:
    """Write everything of a store except its shards, which exist already; `store.json` comes last.

    Args:
        building: folder with the shards.
        frame: the checked manifest.
        records: `row` (position in `frame`, ascending), `sha256` and optionally `phash`, one row per image
            kept.
        shards: number of records and of bytes of each shard, by split.
        size: side of the images, in pixels.
        dtype: of their pixels.
        findings: label columns.
        preprocessing: what was done to the images.
        sources: where the data come from, for the data card; not part of the fingerprint.
        split: how the splits were made; not part of the fingerprint, which covers the splits themselves.
    """
    kept = frame.iloc[records["row"].to_numpy()].reset_index(drop=True)
    kept.to_parquet(building / MANIFEST_FILE, index=False)
    records.drop(columns="row").assign(image_id=kept["image_id"].to_numpy()).to_parquet(
        building / RECORDS_FILE, index=False
    )
    write_dataset_info(building, shards, size, dtype)
    digest = hashlib.sha256("".join(records["sha256"]).encode()).hexdigest()
    versions = versions_of(_LIBRARIES)
    description = {
        "format": _FORMAT,
        "size": size,
        "dtype": dtype,
        "findings": list(findings),
        "counts": counts_of(kept),
        "shards": {split: [count for count, _ in lengths] for split, lengths in shards.items() if lengths},
        "preprocessing": dict(preprocessing),
        "versions": versions,
        "sources": dict(sources or {}),
        **({} if split is None else {"split": dict(split)}),
        "images_sha256": digest,
        "fingerprint": fingerprint_of(kept, size, findings, preprocessing, digest),
    }
    seal(*(building / name for name in (MANIFEST_FILE, RECORDS_FILE, INFO_FILE, "features.json")))
    write_json(building / STORE_FILE, description)


def publish(building: Path, path: Path) -> None:
    """Force a finished folder to the disk and rename it to the store's path."""
    for file in building.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        building.rename(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot become a store ({error.strerror}), expected no folder there"
        ) from error


def open_store(path: str | Path) -> Store:
    """Open a store for reading; its tables are compared with their checksums.

    Raises:
        InputError: there is no complete store at `path`, or a table is not what was written.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such store; scripts/prepare.py makes one")
    try:
        description = json.loads((path / STORE_FILE).read_text(encoding="utf-8"))
        if description["format"] not in _READABLE:
            raise InputError(
                f"{path / STORE_FILE}: found store format {description['format']}, expected {_FORMAT}"
            )
        manifest = pd.read_parquet(path / MANIFEST_FILE)
        counts, shards = description["counts"], _shards(path)
        require_tables(path, manifest, description)
        store = Store(
            path,
            description["size"],
            tuple(description["findings"]),
            description["fingerprint"],
            manifest,
            description.get("dtype", "uint8"),
            shards,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a complete store ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    require_files(path, manifest, counts, shards)
    return store


def _shards(path: Path) -> dict[str, tuple[int, ...]]:
    info = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    return {split["name"]: tuple(int(length) for length in split["shardLengths"]) for split in info["splits"]}


def _write_in_order(
    folder: Path, frame: pd.DataFrame, images: Iterable[Any], size: int
) -> tuple[pd.DataFrame, dict[str, list[tuple[int, int]]]]:
    """Write the shards of all splits, one image in memory at a time; return records and shard lengths."""
    per_shard = max(1, SHARD_BYTES // size**2)
    checked = _checked(images, frame, size)
    rows: list[tuple[int, str]] = []
    shards: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    open_shards: dict[str, ShardWriter] = {}
    try:
        for row, image in checked:
            split, image_id = frame["split"].iat[row], frame["image_id"].iat[row]
            content = image.tobytes()
            rows.append((row, hashlib.sha256(content).hexdigest()))
            if split not in open_shards:
                open_shards[split] = ShardWriter(folder / shard_name(split, len(shards[split])))
            open_shards[split].write(encode(content, image_id))
            if open_shards[split].count == per_shard:
                shards[split].append(open_shards.pop(split).close())
    finally:
        for split, shard in open_shards.items():
            shards[split].append(shard.close())
    return pd.DataFrame(rows, columns=["row", "sha256"]).astype({"row": np.int64}), shards


def _checked(images: Iterable[Any], frame: pd.DataFrame, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for row, image in enumerate(_exactly(images, len(frame))):
        if image is None:
            continue
        if image.shape != (size, size) or image.dtype != np.uint8:
            raise ValueError(
                f"image {row}: expected UInt8 [{size}, {size}], found {image.dtype} {list(image.shape)}"
            )
        yield row, image


def _exactly(images: Iterable[Any], count: int) -> Iterator[Any]:
    given = 0
    for image in images:
        given += 1
        if given > count:
            raise InputError(f"store: expected {count} images, one per row of the manifest; found more")
        yield image
    if given < count:
        raise InputError(f"store: expected {count} images, one per row of the manifest; found {given}")
