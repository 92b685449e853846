"""Build a store from a manifest and its files: in parallel, in constant memory, and crash-safe.

After a crash at most one image per worker process is prepared again.

Each shard is made by one process (`jaxcxr.data.journal`). Everything is written to a hidden folder beside the
store, which becomes the store in one rename.
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

from jaxcxr.atomic import exclusive_lock
from jaxcxr.data.duplicates import DUPLICATES_FILE, near_duplicates
from jaxcxr.data.fingerprint import rows_of, versions_of
from jaxcxr.data.images import Preprocessing
from jaxcxr.data.journal import ShardTask, commit_shard, make_shard, prepare, write_whole
from jaxcxr.data.manifest import SPLITS, check_manifest
from jaxcxr.data.shards import shard_name
from jaxcxr.data.store import (
    SHARD_BYTES,
    Store,
    declared,
    finish,
    open_store,
    publish,
)  # fmt: skip
from jaxcxr.data.store_checks import CURE, STORE_FILE
from jaxcxr.digests import check, sealed
from jaxcxr.errors import InputError

QUARANTINE_FILE = "quarantine.csv"
FLAGGED_FILE = "flagged.csv"
_PLAN_FILE = "plan.json"
LEAST_SHARD_BYTES = 4 << 20
"""A shard is at least this large unless it is its split's last: files for a few images help nobody."""
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
    compared: Callable[[float], object] = lambda _: None,
) -> Store:
    """Build a store from files, or resume an interrupted build; return the opened store.

    Args:
        path: folder to make; it must not exist. `.<name>.partial` beside it holds the work in progress.
        manifest: one row per image, with paths relative to `images`.
        images: folder of the files.
        size: side of the images, in pixels.
        findings: label columns of the manifest.
        how: preprocessing of each image; the paper's by default.
        groups: further columns to keep.
        refused: files rejected earlier, with reasons, for quarantine.csv.
        sources: where the data come from, for the data card.
        split: how the splits were made (`jaxcxr.data.splits`); None if that is not known.
        processes: number of worker processes; 1 tasks in the calling process.
        shards: number of shards in all, at least one per split; by default as many as keep each below 128
            MiB.
        strict: stop at the first file that cannot be used; otherwise it goes to quarantine.csv.
        refuse_flagged: quarantine flagged images (burnt-in annotation, for example) instead of listing them
            in flagged.csv.
        duplicates: search for near-duplicate images of different patients and list them in duplicates.csv.
        progress: called with the number of images done since the last call; images done by an earlier run
            come first.
        compared: called with the share of the search for near-duplicates done since the last call.

    Raises:
        InputError: the store exists, another process is building it, the unfinished build has another
            manifest or preprocessing, the disk is full, worker processes keep dying, no file can be used, or
            (`strict`) one file cannot.
    """
    path, how = Path(path), how or Preprocessing()
    if path.exists():
        raise InputError(f"{path}: exists already, expected a new folder for the store")
    frame = check_manifest(declared(manifest, findings, groups), findings, f"manifest of {path}")
    preprocessing = how.described()
    building = _building(path)
    tasks = _shard_tasks(building, frame, images, size, how, shards, strict, refuse_flagged)
    with _on_disk(path, building):
        building.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(building / "lock", f"{path}: another process is making this store"):
            _same_plan(building, path, frame, size, findings, preprocessing, tasks, split)
            if not (building / STORE_FILE).exists():
                try:
                    _run(tasks, processes, progress)
                except InputError:
                    if not any(
                        task.file(suffix).exists() for task in tasks for suffix in ("json", "journal")
                    ):
                        shutil.rmtree(building)
                    raise
                _assemble(
                    building, path, frame, tasks, list(refused), size, how, findings, preprocessing,
                    sources or {}, split
                )  # fmt: skip
            if duplicates and not (building / DUPLICATES_FILE).exists():
                with sealed(building / DUPLICATES_FILE) as part:
                    near_duplicates(open_store(building), progress=compared).to_csv(part, index=False)
            for leftover in building.glob("shard-*"):
                leftover.unlink()
            publish(building, path)
            # The plan is deleted last: without it, a build from another manifest could resume this one.
            for name in (_PLAN_FILE, "lock"):
                (path / name).unlink(missing_ok=True)
    return open_store(path)


def _building(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _on_disk(path: Path, building: Path) -> Iterator[None]:
    """Turn a full or write-protected disk, which the user can mend, into an InputError."""
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
    """Key of the random splits of the unfinished store that is to become `path`; None if there is none."""
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
    check(path, CURE)
    return (
        pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.is_file()
        else pd.DataFrame(columns=["path", "reason"])
    )


def _shard_tasks(
    building: Path,
    frame: pd.DataFrame,
    images: Path,
    size: int,
    how: Preprocessing,
    shards: int | None,
    strict: bool,
    refuse: bool,
) -> list[ShardTask]:
    """The shards to make, per split; they follow from manifest and options, so a resumed build agrees."""
    most = max(1, SHARD_BYTES // (size**2 * np.dtype(how.dtype).itemsize))
    least = max(16, LEAST_SHARD_BYTES // (size**2 * np.dtype(how.dtype).itemsize))
    per_shard = -(-len(frame) // shards) if shards else min(most, max(least, -(-len(frame) // 32)))
    tasks: list[ShardTask] = []
    for split in SPLITS:
        rows = np.flatnonzero((frame["split"] == split).to_numpy())
        for start in range(0, len(rows), per_shard):
            some = rows[start : start + per_shard]
            names, ids = frame["path"].iloc[some], frame["image_id"].iloc[some]
            tasks.append(
                ShardTask(
                    building, len(tasks), tuple(some.tolist()), tuple(names), tuple(ids), images, size, how,
                    strict, refuse )
            )  # fmt: skip
    return tasks


def _same_plan(
    building: Path, path: Path, frame: pd.DataFrame, size: int, findings: Sequence[str],
    preprocessing: Mapping[str, str], tasks: Sequence[ShardTask], split: Mapping[str, object] | None,
) -> None:  # fmt: skip
    """Record what the unfinished store is to become, or refuse to resume a build of something else.

    The key of random splits is recorded too, so that a resumed build makes the same splits
    (`begun_split_key`).
    """
    content = {
        "rows": {**rows_of(frame, findings), "path": frame["path"].tolist()},
        "cuts": [len(task.rows) for task in tasks],
        "refuse_flagged": bool(tasks and tasks[0].refuse_flagged),
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
            f"{' and '.join(differing)} differ); give the same command again to go on with it, or delete "
            "that folder"
        )


def _run(tasks: Sequence[ShardTask], processes: int, progress: Callable[[int], object]) -> None:
    waiting = [task for task in tasks if not task.file("json").exists()]
    progress(sum(len(task.rows) for task in tasks) - sum(len(task.rows) for task in waiting))
    if processes == 1:
        for task in waiting:
            commit_shard(task, make_shard(task, progress))
        return
    # The largest first, so that no process is left with a long task when the others are done.
    waiting.sort(key=lambda task: len(task.rows), reverse=True)
    before: list[tuple[ShardTask, int]] | None = None
    while waiting:
        try:
            _run_in_pool(waiting, processes, progress)
            return
        except BrokenProcessPool as error:
            waiting = _without_fatal_files([task for task in waiting if not task.file("json").exists()])
            now = [(task, _journaled(task)) for task in waiting]
            if now == before:
                raise InputError(
                    f"{tasks[0].building}: its worker processes died twice before any had prepared an "
                    f"image; expected memory for {processes} images at once, and a program that starts "
                    "under `if __name__ == '__main__'`"
                ) from error
            before = now


def _journaled(task: ShardTask) -> int:
    journal = task.file("journal")
    return journal.stat().st_size if journal.exists() else 0


def _run_in_pool(tasks: Sequence[ShardTask], processes: int, progress: Callable[[int], object]) -> None:
    # A fresh interpreter per worker: a fork would copy the locks of threads that libraries may have started.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    reported = 0
    initial = (os.getpid(), done, stop)
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=initial
    ) as pool:
        task_of = {pool.submit(_make_shard_in_worker, task): task for task in tasks}
        waiting = set(task_of)
        try:
            while waiting:
                finished, waiting = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                now = done.value
                progress(now - reported)
                reported = now
                for future in finished:
                    commit_shard(task_of[future], future.result())
        finally:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


def _without_fatal_files(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """The tasks after a worker died, with files marked as fatal that kill a process again when read alone."""
    found = []
    for task in tasks:
        trying = task.file("trying")
        text = trying.read_text(encoding="ascii") if trying.exists() else ""
        if text.isdigit() and int(text) in task.rows and not _survives(task, int(text)):
            task = dataclasses.replace(task, fatal=task.fatal | {int(text)})
        found.append(task)
    return found


def _survives(task: ShardTask, row: int) -> bool:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(prepare, task, task.rows.index(row)).result()
        except BrokenProcessPool:
            return False
    return True


_progress: Any = None
_stop: Any = None


def _start_worker(parent: int, done: Any, stop: Any) -> None:
    global _progress, _stop
    _progress, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which then stops its workers
    _be_quiet()
    # A worker whose parent was killed would wait for ever.
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.CRITICAL)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _make_shard_in_worker(task: ShardTask) -> str | None:
    def count(images: int) -> None:
        with _progress.get_lock():
            _progress.value += images

    return make_shard(task, count, lambda: bool(_stop.value))


def _assemble(
    building: Path, path: Path, frame: pd.DataFrame, tasks: Sequence[ShardTask],
    refused: list[tuple[str, str]], size: int, how: Preprocessing, findings: Sequence[str],
    preprocessing: Mapping[str, str], sources: Mapping[str, object], split: Mapping[str, object] | None,
) -> None:  # fmt: skip
    """Name the shards as TFDS does (skipping empty ones) and write the tables; repeatable after a crash."""
    shards: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    entries: list[dict[str, Any]] = []
    for task in tasks:
        made = json.loads(task.file("json").read_text(encoding="utf-8"))
        entries += made["entries"]
        if made["count"]:
            side = frame["split"].iat[task.rows[0]]
            final = building / shard_name(side, len(shards[side]))
            if task.file("array_record").exists():
                task.file("array_record").rename(final)
            shards[side].append((made["count"], made["bytes"]))
    entries.sort(key=lambda entry: entry["row"])
    names = frame["path"].tolist()
    bad = [(names[entry["row"]], entry["reason"]) for entry in entries if "reason" in entry]
    if bad and tasks[0].strict:  # given up because of a crash, or by an earlier run that was not strict
        raise InputError(f"{tasks[0].images / bad[0][0]}: {bad[0][1]}")
    if len(bad) == len(names):
        shutil.rmtree(building)
        raise InputError(
            f"{path}: none of the {len(names)} images could be used; the first: {bad[0][0]}: {bad[0][1]}"
        )
    odd = [(names[entry["row"]], flag) for entry in entries for flag in entry.get("flags", ())]
    for name, rows in ((QUARANTINE_FILE, refused + bad), (FLAGGED_FILE, odd)):
        if rows:
            with sealed(building / name) as part:
                pd.DataFrame(rows, columns=["path", "reason"]).to_csv(part, index=False)
    kept = [entry for entry in entries if "sha256" in entry]
    records = pd.DataFrame({key: [entry[key] for entry in kept] for key in ("row", "sha256", "phash")})
    finish(
        building, frame, records, shards, size=size, dtype=how.dtype, findings=findings,
        preprocessing=preprocessing, sources=sources, split=split,
    )  # fmt: skip
