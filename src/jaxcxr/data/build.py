"""From a manifest and its files to a store: in parallel, with flat memory, and so that a kill at any moment
loses one film a process.

Each shard is the work of one process (`jaxcxr.data.journal`). All that is done lies in a hidden folder beside
the store, which becomes the store in one rename.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.atomic import alone, replacing
from jaxcxr.data.duplicates import DUPLICATES_FILE, near_duplicates
from jaxcxr.data.images import Preprocessing
from jaxcxr.data.journal import Work, make_shard, prepare, settle, write_whole
from jaxcxr.data.manifest import SPLITS, check_manifest
from jaxcxr.data.shards import shard_name
from jaxcxr.data.store import (
    SHARD_BYTES,
    STORE_FILE,
    Store,
    declared,
    finish,
    open_store,
    publish,
    rows_of,
    versions_of,
)  # fmt: skip
from jaxcxr.errors import InputError

QUARANTINE_FILE = "quarantine.csv"
FLAGGED_FILE = "flagged.csv"
_PLAN_FILE = "plan.json"
_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR
)  # fmt: skip


def build_store(
    path: str | Path,
    manifest: pd.DataFrame,
    images: Path,
    *,
    size: int,
    findings: Sequence[str],
    how: Preprocessing | None = None,
    groups: Sequence[str] = (),
    refused: Sequence[tuple[str, str]] = (),
    sources: Mapping[str, object] | None = None,
    split: Mapping[str, object] | None = None,
    processes: int = 1,
    shards: int | None = None,
    strict: bool = False,
    refuse_flagged: bool = False,
    duplicates: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Store:
    """Make a store from files, or go on with one that was interrupted.

    Args:
        path: folder to make; it must not exist. `.<name>.partial` beside it holds what is done so far.
        manifest: one row an image, with paths relative to `images`.
        images: folder of the files.
        size: side of the films, in pixels.
        findings: label columns of the manifest.
        how: what is done to each film; the paper's preprocessing by default.
        groups: further columns to keep.
        refused: files that were given up before, with reasons, for quarantine.csv.
        sources: where the data come from, for the data card.
        split: how the splits came about (`jaxcxr.data.splits`); None where that is not known.
        processes: how many to use; 1 stays in this one.
        shards: how many to make in all, at least one a split; by default some of at most 128 MiB.
        strict: stop at the first file that cannot be used; otherwise it goes to quarantine.csv.
        refuse_flagged: quarantine films with burnt-in annotation and the like, instead of naming them in
            flagged.csv.
        duplicates: look for nearly equal films of different patients and list them in duplicates.csv.
        progress: called with the number of films done since the last call, those of an earlier run first.

    Raises:
        InputError: the store exists, another process is making it, what was begun has another manifest or
            preprocessing, the disk is full, processes keep ending, no file can be used, or (`strict`) one
            cannot.
    """
    path, how = Path(path), how or Preprocessing()
    if path.exists():
        raise InputError(f"{path}: exists already, expected a new folder for the store")
    frame = check_manifest(declared(manifest, findings, groups), findings, f"manifest of {path}")
    preprocessing = how.described()
    building = _building(path)
    works = _works(building, frame, images, size, how, shards, strict, refuse_flagged)
    with _on_disk(path, building):
        building.mkdir(parents=True, exist_ok=True)
        with alone(building / "lock", f"{path}: another process is making this store"):
            _same_plan(building, path, frame, size, findings, preprocessing, works, split)
            if not (building / STORE_FILE).exists():
                try:
                    _run(works, processes, progress)
                except InputError:
                    if not any(
                        work.file(suffix).exists() for work in works for suffix in ("json", "journal")
                    ):
                        shutil.rmtree(building)
                    raise
                _assemble(
                    building, path, frame, works, list(refused), size, how, findings, preprocessing, sources or {}, split
                )  # fmt: skip
            if duplicates and not (building / DUPLICATES_FILE).exists():
                with replacing(building / DUPLICATES_FILE) as part:
                    near_duplicates(open_store(building)).to_csv(part, index=False)
            for leftover in building.glob("shard-*"):
                leftover.unlink()
            publish(building, path)
            # The plan goes last: without it, another manifest's run could take over what was killed just
            # before.
            for name in (_PLAN_FILE, "lock"):
                (path / name).unlink(missing_ok=True)
    return open_store(path)


def _building(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _on_disk(path: Path, building: Path) -> Iterator[None]:
    """A disk that is full or may not be written is the user's to mend; any other failure of the system keeps
    its trace.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        kept = (
            f"; what is done is kept in {building.name}, give the same command again"
            if building.is_dir()
            else ""
        )
        raise InputError(f"{path}: cannot be written ({error.strerror}){kept}") from error


def begun_split_key(path: str | Path) -> str | None:
    """Key of the splits of an unfinished store that is to become `path`; None if there is none, or its splits
    are not drawn.
    """
    file = _building(Path(path)) / _PLAN_FILE
    try:
        split = json.loads(file.read_text(encoding="utf-8")).get("split")
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: expected the plan of an unfinished store; delete that folder to begin anew"
        ) from error
    return split.get("key") if isinstance(split, dict) else None


def read_listing(path: Path) -> pd.DataFrame:
    """A store's quarantine.csv, flagged.csv or duplicates.csv, as text; an empty table if there is none."""
    return (
        pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.is_file()
        else pd.DataFrame(columns=["path", "reason"])
    )


def _works(
    building: Path,
    frame: pd.DataFrame,
    images: Path,
    size: int,
    how: Preprocessing,
    shards: int | None,
    strict: bool,
    refuse: bool,
) -> list[Work]:
    """Cut each split into shards; the cuts depend on the manifest and the options alone, so that a resumed
    run has the same.
    """
    most = max(1, SHARD_BYTES // (size**2 * np.dtype(how.dtype).itemsize))
    per_shard = -(-len(frame) // shards) if shards else min(most, max(16, -(-len(frame) // 32)))
    works: list[Work] = []
    for split in SPLITS:
        rows = np.flatnonzero((frame["split"] == split).to_numpy())
        for start in range(0, len(rows), per_shard):
            some = rows[start : start + per_shard]
            names, ids = frame["path"].iloc[some], frame["image_id"].iloc[some]
            works.append(
                Work(
                    building, len(works), tuple(some.tolist()), tuple(names), tuple(ids), images, size, how, strict, refuse
                )
            )  # fmt: skip
    return works


def _same_plan(
    building: Path, path: Path, frame: pd.DataFrame, size: int, findings: Sequence[str], preprocessing: Mapping[str, str],
    works: Sequence[Work], split: Mapping[str, object] | None,
) -> None:  # fmt: skip
    """Note what the unfinished store is to become, or refuse to go on with another one.

    The key of drawn splits is noted with it, so that whoever goes on draws the same ones (`begun_split_key`).
    """
    content = {
        "rows": {**rows_of(frame, findings), "path": frame["path"].tolist()},
        "cuts": [len(work.rows) for work in works],
        "refuse_flagged": bool(works and works[0].refuse_flagged),
    }
    plan = {
        "manifest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "size": size,
        "findings": list(findings),
        "preprocessing": dict(preprocessing),
        "versions": versions_of(),
    }
    file = building / _PLAN_FILE
    if not file.exists():
        write_whole(file, json.dumps(plan | {"split": None if split is None else dict(split)}).encode())
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    differing = [key for key, value in plan.items() if before.get(key) != value]
    if differing:
        raise InputError(
            f"{path}: an unfinished store of another kind lies in {building.name} (its "
            f"{' and '.join(differing)} differ); "
            "give the same command again to go on with it, or delete that folder"
        )


def _run(works: Sequence[Work], processes: int, progress: Callable[[int], object]) -> None:
    waiting = [work for work in works if not work.file("json").exists()]
    progress(sum(len(work.rows) for work in works) - sum(len(work.rows) for work in waiting))
    if processes == 1:
        for work in waiting:
            settle(work, make_shard(work, progress))
        return
    # The largest first, so that no process has long to go when the others are done.
    waiting.sort(key=lambda work: len(work.rows), reverse=True)
    before: list[tuple[Work, int]] | None = None
    while waiting:
        try:
            _run_in_pool(waiting, processes, progress)
            return
        except BrokenProcessPool as error:
            waiting = _without_fatal_files([work for work in waiting if not work.file("json").exists()])
            now = [(work, _journaled(work)) for work in waiting]
            if now == before:
                raise InputError(
                    f"{works[0].building}: its processes end twice before any of them has done a film; "
                    "expected memory for "
                    f"{processes} films at once, and a program that starts under `if __name__ == '__main__'`"
                ) from error
            before = now


def _journaled(work: Work) -> int:
    journal = work.file("journal")
    return journal.stat().st_size if journal.exists() else 0


def _run_in_pool(works: Sequence[Work], processes: int, progress: Callable[[int], object]) -> None:
    # A fresh interpreter a worker: a fork would copy the locks of threads that libraries may have started.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    reported = 0
    initial = (os.getpid(), done, stop)
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=initial
    ) as pool:
        works_of = {pool.submit(_make_shard_in_worker, work): work for work in works}
        waiting = set(works_of)
        try:
            while waiting:
                finished, waiting = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                now = done.value
                progress(now - reported)
                reported = now
                for future in finished:
                    settle(works_of[future], future.result())
        finally:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


def _without_fatal_files(works: Sequence[Work]) -> list[Work]:
    """After a process died, try each file that was being read alone; one that ends its process again is given
    up.
    """
    found = []
    for work in works:
        trying = work.file("trying")
        text = trying.read_text(encoding="ascii") if trying.exists() else ""
        if text.isdigit() and int(text) in work.rows and not _survives(work, int(text)):
            work = dataclasses.replace(work, fatal=work.fatal | {int(text)})
        found.append(work)
    return found


def _survives(work: Work, row: int) -> bool:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(prepare, work, work.rows.index(row)).result()
        except BrokenProcessPool:
            return False
    return True


_progress: Any = None
_stop: Any = None


def _start_worker(parent: int, done: Any, stop: Any) -> None:
    global _progress, _stop
    _progress, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers
    _be_quiet()
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.CRITICAL)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _make_shard_in_worker(work: Work) -> str | None:
    def count(films: int) -> None:
        with _progress.get_lock():
            _progress.value += films

    return make_shard(work, count, lambda: bool(_stop.value))


def _assemble(
    building: Path, path: Path, frame: pd.DataFrame, works: Sequence[Work], refused: list[tuple[str, str]], size: int,
    how: Preprocessing, findings: Sequence[str], preprocessing: Mapping[str, str], sources: Mapping[str, object],
    split: Mapping[str, object] | None,
) -> None:  # fmt: skip
    """Name the shards as TFDS does, passing over empty ones, and write the tables; may be repeated after a
    kill.
    """
    shards: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    entries: list[dict[str, Any]] = []
    for work in works:
        made = json.loads(work.file("json").read_text(encoding="utf-8"))
        entries += made["entries"]
        if made["count"]:
            side = frame["split"].iat[work.rows[0]]
            final = building / shard_name(side, len(shards[side]))
            if work.file("array_record").exists():
                work.file("array_record").rename(final)
            shards[side].append((made["count"], made["bytes"]))
    entries.sort(key=lambda entry: entry["row"])
    names = frame["path"].tolist()
    bad = [(names[entry["row"]], entry["reason"]) for entry in entries if "reason" in entry]
    if bad and works[0].strict:  # given up because of a crash, or by an earlier run that was not strict
        raise InputError(f"{works[0].images / bad[0][0]}: {bad[0][1]}")
    if len(bad) == len(names):
        shutil.rmtree(building)
        raise InputError(
            f"{path}: none of the {len(names)} images could be used; the first: {bad[0][0]}: {bad[0][1]}"
        )
    odd = [(names[entry["row"]], flag) for entry in entries for flag in entry.get("flags", ())]
    for name, rows in ((QUARANTINE_FILE, refused + bad), (FLAGGED_FILE, odd)):
        if rows:
            pd.DataFrame(rows, columns=["path", "reason"]).to_csv(building / name, index=False)
    kept = [entry for entry in entries if "sha256" in entry]
    records = pd.DataFrame({key: [entry[key] for entry in kept] for key in ("row", "sha256", "phash")})
    finish(
        building, frame, records, shards, size=size, dtype=how.dtype, findings=findings, preprocessing=preprocessing,
        sources=sources, split=split,
    )  # fmt: skip
