"""Make one shard of a store, crash-safe: a kill at any moment costs one image.

While a shard is made, its images are appended to a raw file, and a journal records each with its checksum. On
resume the journal is trusted up to the first bad checksum. The complete shard is rewritten as ArrayRecord and
committed once it is on the disk; until then the raw file is kept.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcxr.atomic import exclusive_lock, renaming
from jaxcxr.data.decoded import odd
from jaxcxr.data.duplicates import perceptual_hash
from jaxcxr.data.images import Preprocessing, decode_image, preprocess
from jaxcxr.data.shards import ShardWriter, encode
from jaxcxr.errors import InputError

_CRASHED = "the decoder crashed on it, or it needs more memory than there is"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One shard to be made.

    Attributes:
        building: folder of the unfinished store.
        number: of the shard, counted over all splits.
        rows: positions of its images in the manifest.
        names: paths of its images, relative to `images`.
        image_ids: ids of its images.
        images: folder of the files.
        size: side of the images, in pixels.
        how: preprocessing.
        strict: stop at the first file that cannot be used.
        refuse_flagged: leave flagged images out.
        fatal: rows whose file has killed a process and must not be tried again.
    """

    building: Path
    number: int
    rows: tuple[int, ...]
    names: tuple[str, ...]
    image_ids: tuple[str, ...]
    images: Path
    size: int
    how: Preprocessing
    strict: bool = False
    refuse_flagged: bool = False
    fatal: frozenset[int] = frozenset()

    def file(self, suffix: str) -> Path:
        """Path of the shard's file with this suffix: `raw`, `journal`, `trying`, `array_record` or `json`."""
        return self.building / f"shard-{self.number:05d}.{suffix}"


def make_shard(
    task: ShardTask, progress: Callable[[int], object], stopped: Callable[[], bool] = lambda: False
) -> str | None:
    """Make one shard, or what is missing of it; return its record for `commit_shard`, None if stopped early.

    Raises:
        InputError: a file cannot be used and `task.strict` is set.
    """
    with (
        exclusive_lock(
            task.file("lock"), f"shard {task.number}: another process is making it", patience=30.0
        ),
        task.file("raw").open("ab+") as raw,
        task.file("journal").open("ab+") as journal,
        task.file("trying").open("w") as trying,
    ):
        entries = _trusted_entries(task, raw, journal)
        progress(len(entries))
        for place in range(len(entries), len(task.rows)):
            if stopped():
                return None
            os.pwrite(trying.fileno(), f"{task.rows[place]:012d}".encode(), 0)
            entry, content = prepare(task, place)
            raw.write(content)
            raw.flush()
            journal.write(json.dumps(entry).encode() + b"\n")
            journal.flush()
            entries.append(entry)
            progress(1)
        return _as_array_record(task, raw, entries)


def commit_shard(task: ShardTask, made: str | None) -> None:
    """Force a finished shard to the disk and commit it (call from the parent process, not from a decoder)."""
    if made is None:
        return
    with task.file("array_record").open("rb") as file:
        os.fsync(file.fileno())
        # A cohort is larger than memory: cached pages of the shard would displace files that are still to be
        # read.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    write_whole(task.file("json"), made.encode())
    for suffix in ("raw", "journal", "trying"):
        task.file(suffix).unlink()


def prepare(task: ShardTask, place: int) -> tuple[dict[str, Any], bytes]:
    """Journal entry and pixels of one image; an entry with a reason (a rejected file) has no pixels."""
    row, path = task.rows[place], task.images / task.names[place]
    if row in task.fatal:
        return {"row": row, "reason": _CRASHED}, b""
    try:
        image = decode_image(path)
        prepared = preprocess(image.pixels, task.size, task.how)
        flags = image.flags + odd(image.pixels, prepared)
        if flags and task.refuse_flagged:
            raise InputError(f"{path}: {'; '.join(flags)}")
    except InputError as error:
        if task.strict:
            raise
        return {"row": row, "reason": str(error).removeprefix(f"{path}: ")}, b""
    content = prepared.tobytes()
    entry = {"row": row, "sha256": hashlib.sha256(content).hexdigest(), "phash": perceptual_hash(prepared)}
    return (entry | {"flags": list(flags)} if flags else entry), content


def _trusted_entries(task: ShardTask, raw: BinaryIO, journal: BinaryIO) -> list[dict[str, Any]]:
    """Journal entries up to the first bad checksum; both files are truncated after the last of them."""
    entries: list[dict[str, Any]] = []
    kept_raw = kept_journal = 0
    journal.seek(0)
    raw.seek(0)
    for line in journal:
        entry = _entry(line)
        if entry is None or len(entries) == len(task.rows) or entry.get("row") != task.rows[len(entries)]:
            break
        if "sha256" in entry:
            content = raw.read(task.size**2 * np.dtype(task.how.dtype).itemsize)
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                break
            kept_raw += len(content)
        kept_journal += len(line)
        entries.append(entry)
    for file, length in ((raw, kept_raw), (journal, kept_journal)):
        file.truncate(length)  # opened for appending: the next write goes to the new end
    return entries


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry in one line of a journal; None if the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and ("sha256" in entry or "reason" in entry) else None


def _as_array_record(task: ShardTask, raw: BinaryIO, entries: Sequence[dict[str, Any]]) -> str:
    writer = ShardWriter(task.file("array_record"))
    raw.seek(0)
    for entry, image_id in zip(entries, task.image_ids, strict=True):
        if "sha256" in entry:
            content = raw.read(task.size**2 * np.dtype(task.how.dtype).itemsize)
            writer.write(encode(content, image_id))
    count, size = writer.close()
    return json.dumps({"count": count, "bytes": size, "entries": entries})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all, forced to the disk."""
    with renaming(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
