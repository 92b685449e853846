"""One shard of a store, made so that a kill at any moment costs one film.

While a shard is made, its films are appended to a plain file and each is noted in a journal with its
checksum; whoever goes on believes the journal as far as the checksums hold. The complete shard is rewritten
as ArrayRecord, and counts once it is on the disk; until then its films are kept.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcxr.atomic import alone, replacing
from jaxcxr.data.duplicates import perceptual_hash
from jaxcxr.data.images import Preprocessing, preprocess, read_film
from jaxcxr.data.shards import ShardWriter, encode
from jaxcxr.errors import InputError

_CRASHED = "the decoder crashed on it, or it needs more memory than there is"


@dataclasses.dataclass(frozen=True)
class Work:
    """One shard to be made.

    Attributes:
        building: folder of the unfinished store.
        number: of the shard, over all splits.
        rows: positions of its films in the manifest.
        names: paths of its films, relative to `images`.
        image_ids: of its films.
        images: folder of the files.
        size: side of the films, in pixels.
        how: what is done to each.
        strict: stop at the first file that cannot be used.
        refuse_flagged: leave odd films out instead of flagging them.
        fatal: rows whose file has ended a process and must not be tried again.
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
        """One of the files of the shard: `raw`, `journal`, `trying`, `array_record` or `json` (last, once on
        the disk).
        """
        return self.building / f"shard-{self.number:05d}.{suffix}"


def make_shard(
    work: Work, progress: Callable[[int], object], stopped: Callable[[], bool] = lambda: False
) -> str | None:
    """Make one shard, or what is missing of it; return what `settle` is to note of it, or None if stopped
    before.

    Raises:
        InputError: a file cannot be used and `work.strict` is set.
    """
    with (
        alone(work.file("lock"), f"shard {work.number}: another process is making it", patience=30.0),
        work.file("raw").open("ab+") as raw,
        work.file("journal").open("ab+") as journal,
        work.file("trying").open("w") as trying,
    ):
        entries = _believed(work, raw, journal)
        progress(len(entries))
        for place in range(len(entries), len(work.rows)):
            if stopped():
                return None
            os.pwrite(trying.fileno(), f"{work.rows[place]:012d}".encode(), 0)
            entry, content = prepare(work, place)
            raw.write(content)
            raw.flush()
            journal.write(json.dumps(entry).encode() + b"\n")
            journal.flush()
            entries.append(entry)
            progress(1)
        return _sealed(work, raw, entries)


def settle(work: Work, made: str | None) -> None:
    """Wait until a shard of `make_shard` is on the disk, and let it count; not by a process that has films to
    decode.
    """
    if made is None:
        return
    with work.file("array_record").open("rb") as file:
        os.fsync(file.fileno())
        # A cohort is larger than memory: its pages would push out the files that are yet to be read.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    write_whole(work.file("json"), made.encode())
    for suffix in ("raw", "journal", "trying"):
        work.file(suffix).unlink()


def prepare(work: Work, place: int) -> tuple[dict[str, Any], bytes]:
    """Journal entry and pixels of one film; an entry with a reason has none."""
    row, path = work.rows[place], work.images / work.names[place]
    if row in work.fatal:
        return {"row": row, "reason": _CRASHED}, b""
    try:
        film = read_film(path)
        if film.flags and work.refuse_flagged:
            raise InputError(f"{path}: {'; '.join(film.flags)}")
        prepared = preprocess(film.pixels, work.size, work.how)
    except InputError as error:
        if work.strict:
            raise
        return {"row": row, "reason": str(error).removeprefix(f"{path}: ")}, b""
    content = prepared.tobytes()
    entry = {"row": row, "sha256": hashlib.sha256(content).hexdigest(), "phash": perceptual_hash(prepared)}
    return (entry | {"flags": list(film.flags)} if film.flags else entry), content


def _believed(work: Work, raw: BinaryIO, journal: BinaryIO) -> list[dict[str, Any]]:
    """Entries of the journal whose films are whole; both files are cut behind the last of them."""
    entries: list[dict[str, Any]] = []
    kept_raw = kept_journal = 0
    journal.seek(0)
    raw.seek(0)
    for line in journal:
        entry = _entry(line)
        if entry is None or len(entries) == len(work.rows) or entry.get("row") != work.rows[len(entries)]:
            break
        if "sha256" in entry:
            content = raw.read(work.size**2 * np.dtype(work.how.dtype).itemsize)
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                break
            kept_raw += len(content)
        kept_journal += len(line)
        entries.append(entry)
    for file, length in ((raw, kept_raw), (journal, kept_journal)):
        file.truncate(length)  # what is written goes to the end of a file that was opened to append
    return entries


def _entry(line: bytes) -> dict[str, Any] | None:
    """One line of a journal; None if it is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and ("sha256" in entry or "reason" in entry) else None


def _sealed(work: Work, raw: BinaryIO, entries: Sequence[dict[str, Any]]) -> str:
    writer = ShardWriter(work.file("array_record"))
    raw.seek(0)
    for entry, image_id in zip(entries, work.image_ids, strict=True):
        if "sha256" in entry:
            content = raw.read(work.size**2 * np.dtype(work.how.dtype).itemsize)
            writer.write(encode(content, image_id))
    count, size = writer.close()
    return json.dumps({"count": count, "bytes": size, "entries": entries})


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
