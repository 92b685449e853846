"""ArrayRecord files of images in TFDS's encoding, written and read without TensorFlow.

A record is a `tf.train.Example` with the features `image` (raw bytes) and `image_id`. Records are not
compressed: histogram-equalised images hardly shrink, and reading then costs a copy instead of a
decompression.
"""

import bisect
import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # type: ignore[attr-defined]
from jaxtyping import Int, UInt

from jaxcxr.errors import InputError

_WRITER = "group_size:1,uncompressed,max_parallelism:1"
_READER = "readahead_buffer_size:0,max_parallelism:0"
_LENGTH_DELIMITED = 2
_DATASET = "films"


def encode(image: bytes, image_id: str) -> bytes:
    """One image serialised as a `tf.train.Example`."""
    heads: list[bytes] = []
    length = len(image)
    for _ in range(3):  # the value, the list of values, the feature
        number = 2 if len(heads) == 2 else 1
        heads.append(_head(number, length))
        length += len(heads[-1])
    name = _field(1, b"image")
    heads.append(name)
    heads.append(_head(1, length + len(name)))
    length += len(name) + len(heads[-1])
    other = _field(1, _field(1, b"image_id") + _field(2, _field(1, _field(1, image_id.encode()))))
    heads.append(_head(1, length + len(other)))
    # One copy of the pixels; nested fields would copy them once per level.
    return b"".join([*reversed(heads), image, other])


def image_of(record: bytes) -> memoryview:
    """The pixels of a record, as a view without a copy.

    Raises:
        ValueError: the record was written neither by `encode` nor by TFDS.
    """
    view = memoryview(record)
    for features in _fields(view, 1):
        for entry in _fields(features, 1):
            if any(bytes(key) == b"image" for key in _fields(entry, 1)):
                for feature in _fields(entry, 2):
                    for values in _fields(feature, 1):
                        for value in _fields(values, 1):
                            return value
    raise ValueError("a record without image")


class ShardWriter:
    """Writer of one shard, which counts its records and their bytes; raises OSError if it cannot write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._as_os_error():
            self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER)
        self.count = self.bytes = 0

    def write(self, record: bytes) -> None:
        """Add one record."""
        with self._as_os_error():
            self._writer.write(record)
        self.count, self.bytes = self.count + 1, self.bytes + len(record)

    def close(self) -> tuple[int, int]:
        """Finish the file; return the number of records and their bytes."""
        with self._as_os_error():
            self._writer.close()
        return self.count, self.bytes

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """Raise OSError for the library's RuntimeError, by which it also reports a full disk."""
        try:
            yield
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error).split(";")[0], str(self._path)) from error


class ImageReader:
    """Random access to the images of several shards as to one array; safe to use from several threads.

    Args:
        files: the shards, in order.
        lengths: number of records in each.
        size: side of the images, in pixels.
        dtype: of their pixels.
        digests: SHA-256 of each image's pixels; None if they are not known, and the images unchecked.
    """

    def __init__(
        self,
        files: Sequence[Path],
        lengths: Sequence[int],
        size: int,
        dtype: str,
        digests: UInt[np.ndarray, "n 32"] | None = None,
    ) -> None:
        self._files, self._starts = list(files), [0, *accumulate(lengths)]
        self._size, self._dtype, self._digests = size, np.dtype(dtype), digests
        self._readers: dict[int, object] = {}
        self._opening = threading.Lock()

    def read(self, positions: Int[np.ndarray, " k"]) -> UInt[np.ndarray, "k size size"]:
        """Images at `positions`, in that order; each is compared with its SHA-256, and copied once on its way
        out of the library.

        Raises:
            InputError: an image is not the one that was written, or cannot be read.
        """
        images = np.empty((len(positions), self._size, self._size), dtype=self._dtype)
        flat = images.reshape(len(positions), self._size**2).view(np.uint8)
        for place, position in enumerate(positions.tolist()):
            shard = bisect.bisect_right(self._starts, position) - 1
            try:
                # One at a time: the library's buffer then stays in the CPU cache, which more than halves the
                # time of reading lists.
                reader: Any = self._reader(shard)
                (record,) = reader.read([position - self._starts[shard]])
                flat[place] = np.frombuffer(image_of(record), dtype=np.uint8)
            except (RuntimeError, ValueError, IndexError) as error:
                raise self._damaged(shard, position, " ".join(str(error).split())[:200]) from error
            if self._digests is not None:
                found = hashlib.sha256(flat[place].data).digest()
                if found != self._digests[position].tobytes():
                    raise self._damaged(shard, position, "its pixels are not those that were written")
        return images

    def _damaged(self, shard: int, position: int, what: str) -> InputError:
        return InputError(
            f"{self._files[shard]}: record {position - self._starts[shard]} is damaged ({what}); put the "
            "file back from a copy, or prepare the store again"
        )

    def _reader(self, shard: int) -> object:
        found = self._readers.get(shard)
        if found is None:
            with self._opening:
                found = self._readers.get(shard)
                if found is None:
                    found = array_record_module.ArrayRecordReader(str(self._files[shard]), _READER)
                    self._readers[shard] = found
        return found


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, length: int) -> bytes:
    return bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(length)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _fields(view: memoryview, number: int) -> list[memoryview]:
    """Contents of all length-delimited fields with this number in a protocol-buffer message."""
    found, place = [], 0
    while place < len(view):
        tag, place = _read_varint(view, place)
        length, place = _read_varint(view, place)
        if tag & 7 != _LENGTH_DELIMITED or place + length > len(view):
            raise ValueError("not an image record")
        if tag >> 3 == number:
            found.append(view[place : place + length])
        place += length
    return found


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(view) and shift < 64:
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("not an image record")


def shard_name(split: str, shard: int) -> str:
    """File name of a split's shard, as TFDS expects it."""
    return f"{_DATASET}-{split}.array_record-{shard:05d}"


def write_dataset_info(
    folder: Path, shards: Mapping[str, Sequence[tuple[int, int]]], size: int, dtype: str
) -> None:
    """Write TFDS's description of the shards: the number of records and of bytes of each, by split."""
    # TFDS takes half a second to import: opening a store should not wait for it.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    # An image is stored as raw bytes: TFDS would otherwise spell each pixel out as a 64-bit integer.
    image = tfds.features.Tensor(shape=(size, size), dtype=np.dtype(dtype).type, encoding="bytes")
    features = tfds.features.FeaturesDict({"image": image, "image_id": tfds.features.Text()})
    identity = DatasetIdentity(
        name=_DATASET, version=tfds.core.Version("1.0.0"), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=_DATASET, data_dir=os.fspath(folder),  # type: ignore[arg-type]
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
    )  # fmt: skip
    info.set_splits(
        SplitDict(
            [
                SplitInfo(
                    name=split,
                    shard_lengths=[count for count, _ in lengths],
                    num_bytes=sum(size for _, size in lengths),
                    filename_template=template.replace(split=split),
                )
                for split, lengths in shards.items()
                if lengths
            ]
        )
    )
    info.write_to_directory(folder)
