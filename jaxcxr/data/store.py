"""Where prepared films lie: a TFDS dataset in ArrayRecord files, beside its manifest and its fingerprint.

A store is a folder:

    manifest.parquet           the checked manifest, one row an image, in the order the images were given
    store.json                 size, findings, counts, preprocessing, versions, digests; written last
    dataset_info.json, features.json, films-<split>.array_record-<shard>
                               the TFDS dataset `films`; `tfds.builder_from_directory(folder)` reads it too

Records lie in manifest order within each split, so that row i of a split is its record i. No TensorFlow is needed.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int, UInt8

from jaxcxr.data.manifest import SPLITS, check_manifest
from jaxcxr.errors import InputError

MANIFEST_FILE = "manifest.parquet"
STORE_FILE = "store.json"

_FORMAT = 1
_DATASET = "films"
_SHARD_BYTES = 128 << 20
_BUFFER_BYTES = 4 << 20
_LIBRARIES = ("array_record", "numpy", "pillow", "pydicom", "scikit-image", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Split:
    """One side of the data, read at random positions. Safe to use from several threads.

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

    def read(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k size size"]:
        """Read the images at `indices`, in that order; an index may repeat.

        Raises:
            IndexError: an index is outside [0, n).
        """
        positions = np.asarray(indices, dtype=np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"expected indices in [0, {len(self)}), found {positions.min()}..{positions.max()}")
        images = np.empty((len(positions), self.size, self.size), dtype=np.uint8)
        step = max(1, _SHARD_BYTES // self.size**2)
        for start in range(0, len(positions), step):
            records = self._source.__getitems__(positions[start : start + step].tolist())
            for place, record in enumerate(records, start):
                images[place] = record["image"]
        return images

    def read_all(self) -> UInt8[np.ndarray, "n size size"]:
        """Read every image, in manifest order."""
        return self.read(np.arange(len(self)))


@dataclasses.dataclass(frozen=True)
class Store:
    """Prepared films of one cohort.

    Attributes:
        path: folder of the store.
        size: side of the images, in pixels.
        findings: names of the label columns.
        fingerprint: SHA-256 over manifest, preprocessing and image bytes; two stores with one fingerprint hold the same data.
        manifest: every row, in the order the images were written.
    """

    path: Path
    size: int
    findings: tuple[str, ...]
    fingerprint: str
    manifest: pd.DataFrame = dataclasses.field(repr=False)

    def split(self, name: str, findings: Sequence[str] | None = None) -> Split:
        """Open one split; a split without images has length 0.

        Args:
            name: `train`, `valid` or `test`.
            findings: label columns in the wanted order; all of the store's if omitted.

        Raises:
            InputError: there is no such split, or a finding is not in this store.
        """
        if name not in SPLITS:
            raise InputError(f"{self.path}: expected a split among {list(SPLITS)}, found {name!r}")
        wanted = self.findings if findings is None else tuple(findings)
        for finding in wanted:
            if finding not in self.findings:
                raise InputError(f"{self.path}: finding {finding!r} is not in this store; it has {list(self.findings)}")
        frame = self.manifest.loc[self.manifest["split"] == name].reset_index(drop=True)
        labels = frame.loc[:, list(wanted)].to_numpy(dtype=np.float32)
        return Split(frame, wanted, labels, self.size, self._builder.as_data_source(name) if len(frame) else ())

    @functools.cached_property
    def _builder(self) -> Any:
        # TFDS takes half a second to import: opening a store should not wait for it.
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.path)


def write_store(
    path: str | Path,
    manifest: pd.DataFrame,
    images: Iterable[UInt8[np.ndarray, "size size"] | None],
    *,
    size: int,
    findings: Sequence[str],
    preprocessing: Mapping[str, object],
) -> Store:
    """Write a store, all of it or nothing.

    The images are taken one by one, so memory does not grow with their number. The store is built in a hidden sibling folder
    and renamed when it is complete; a killed process leaves that folder (`.<name>.<digits>.partial`), never a half store.

    Args:
        path: folder to make; it must not exist.
        manifest: one row an image (see `jaxcxr.data.manifest`); columns that start with `draw_` (how a synthetic film was
            drawn) are left out of the store.
        images: in the order of the manifest's rows; None leaves its row out of the store (a film that could not be read).
        size: side of the images, in pixels.
        findings: label columns of the manifest.
        preprocessing: what was done to the images, as values JSON can hold; part of the fingerprint.

    Raises:
        InputError: `path` exists, the manifest breaks its contract, or there are more or fewer images than rows.
        ValueError: an image is not UInt8 of shape [size, size].
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already, expected a new folder for the store")
    shown = manifest.loc[:, [column for column in manifest.columns if not str(column).startswith("draw_")]]
    frame = check_manifest(shown, findings, f"manifest of {path}")
    json.dumps(dict(preprocessing))  # a value JSON cannot hold must not surface after hours of decoding
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    building.mkdir()
    try:
        digest, kept = _write_records(building, frame, images, size)
        frame = frame.loc[kept].reset_index(drop=True)
        if frame.empty:
            raise InputError(f"{path}: none of the {len(kept)} images could be used, so there is no store to write")
        frame.to_parquet(building / MANIFEST_FILE, index=False)
        description = {
            "format": _FORMAT,
            "size": size,
            "findings": list(findings),
            "counts": _counts(frame),
            "preprocessing": dict(preprocessing),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "images_sha256": digest,
            "fingerprint": _fingerprint(frame, size, findings, preprocessing, digest),
        }
        (building / STORE_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        _publish(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return open_store(path)


def open_store(path: str | Path) -> Store:
    """Open a store for reading.

    Raises:
        InputError: there is no complete store at `path`.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such store; scripts/prepare.py makes one")
    try:
        description = json.loads((path / STORE_FILE).read_text(encoding="utf-8"))
        manifest = pd.read_parquet(path / MANIFEST_FILE)
        version, counts = description["format"], description["counts"]
        store = Store(path, description["size"], tuple(description["findings"]), description["fingerprint"], manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a complete store ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if version != _FORMAT:
        raise InputError(f"{path / STORE_FILE}: found store format {version}, expected {_FORMAT}")
    _check_files(path, manifest, counts)
    return store


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    splits = frame["split"].tolist()
    return {name: splits.count(name) for name in SPLITS}


def _check_files(path: Path, manifest: pd.DataFrame, counts: Mapping[str, int]) -> None:
    for name, rows in _counts(manifest).items():
        if rows != counts.get(name, 0):
            raise InputError(
                f"{path}: {MANIFEST_FILE} has {rows} rows of split {name!r}, {STORE_FILE} names {counts.get(name, 0)}"
            )
    try:
        info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a complete store ({' '.join(str(error).split())})") from error
    for split in info["splits"]:
        for shard in range(len(split["shardLengths"])):
            file = path / f"{_DATASET}-{split['name']}.array_record-{shard:05d}"
            if not file.is_file():
                raise InputError(f"{path}: not a complete store; {file.name} is missing")


def _write_records(
    folder: Path, frame: pd.DataFrame, images: Iterable[UInt8[np.ndarray, "size size"] | None], size: int
) -> tuple[str, np.ndarray]:
    """Write the TFDS dataset; return the SHA-256 of all image bytes and which rows were kept, shape [rows]."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    # A film is stored as raw bytes: TFDS would otherwise spell each pixel out as a 64-bit integer.
    image = tfds.features.Tensor(shape=(size, size), dtype=np.uint8, encoding="bytes")
    features = tfds.features.FeaturesDict({"image": image, "image_id": tfds.features.Text()})
    identity = DatasetIdentity(
        name=_DATASET, version=tfds.core.Version("1.0.0"), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    # The sequential writer streams interleaved splits in order; a GeneratorBasedBuilder takes one split after another.
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=max(1, _SHARD_BYTES // size**2), file_format="array_record"
    )
    writer.initialize_splits([name for name, count in _counts(frame).items() if count])
    digest = hashlib.sha256()
    kept = np.zeros(len(frame), dtype=bool)
    capacity = max(1, _BUFFER_BYTES // size**2)
    buffer: dict[str, list[dict[str, Any]]] = {}
    for row, film in enumerate(_exactly(images, len(frame))):
        if film is None:
            continue
        if film.shape != (size, size) or film.dtype != np.uint8:
            raise ValueError(f"image {row}: expected UInt8 [{size}, {size}], found {film.dtype} {list(film.shape)}")
        digest.update(film.tobytes())
        kept[row] = True
        example = {"image": film, "image_id": frame["image_id"].iat[row]}
        buffer.setdefault(frame["split"].iat[row], []).append(example)
        # The writer rewrites its metadata at every call, which costs more than the films themselves if called for each.
        if sum(map(len, buffer.values())) >= capacity:
            writer.add_examples(buffer)
            buffer = {}
    if buffer:
        writer.add_examples(buffer)
    writer.close_all()
    return digest.hexdigest(), kept


def _exactly(images: Iterable[Any], count: int) -> Iterator[Any]:
    given = 0
    for image in images:
        given += 1
        if given > count:
            raise InputError(f"store: expected {count} images, one a row of the manifest; found more")
        yield image
    if given < count:
        raise InputError(f"store: expected {count} images, one a row of the manifest; found {given}")


def _fingerprint(
    frame: pd.DataFrame, size: int, findings: Sequence[str], preprocessing: Mapping[str, object], digest: str
) -> str:
    """Digest what the data are; where the original files lay (`path`) is not part of it."""
    columns = ["image_id", "patient_id", "split", "age", "sex", "view", *findings]
    columns += ["comorbidities"] if "comorbidities" in frame.columns else []
    rows = {column: [None if pd.isna(value) else value for value in frame[column].tolist()] for column in columns}
    content = {"rows": rows, "size": size, "findings": list(findings), "preprocessing": dict(preprocessing), "images": digest}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _publish(building: Path, path: Path) -> None:
    for file in building.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        building.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot become a store ({error.strerror}), expected no folder there") from error
