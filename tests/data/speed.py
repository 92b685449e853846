"""Images a second of scripts/prepare.py beside the library alone, and of reading the store it makes. Run by hand:

python tests/data/speed.py --images 20000 --folder FOLDER
"""

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from PIL import Image

from jaxcxr.config import SyntheticConfig
from jaxcxr.data.store import Split, open_store
from jaxcxr.data.synthetic.cohort import cohort
from jaxcxr.data.synthetic.render import render

SIZE = 512
MAP = """columns: {path: path, patient_id: patient_id, age: age, sex: sex}
graded: {a: {column: a}, b: {column: b}}
draw: {train: 0.7, valid: 0.1, test: 0.2}
"""


def main(folder: Path, images: int = 20_000, rounds: int = 1, processes: int = 2, batch: int = 256) -> None:
    """Measure in turns, so that both sides see the same machine.

    Args:
        folder: of the generated images; they are made if they are not there.
        images: how many.
        rounds: of decoding alone, preparing and reading.
        processes: for decoding and preparing.
        batch: images read at once.
    """
    names = made(folder, images)
    command = [sys.executable, "scripts/prepare.py", "csv", "--source", folder / "map.yaml", "--table", folder / "images.csv",
               "--images", folder, "--out", folder / "store", "--processes", str(processes), "--no-duplicates"]  # fmt: skip
    for _ in range(rounds):
        alone = timed("decode and resize alone", lambda: floor(folder, names, processes), images)
        for left in ("store", ".store.partial"):
            shutil.rmtree(folder / left, ignore_errors=True)
        ours = timed(
            "scripts/prepare.py", lambda: subprocess.run(command, check=True, capture_output=True), images
        )
        print(
            f"share of the floor: {alone[0] / ours[0]:.0%} by wall, {alone[1] / ours[1]:.0%} by processor",
            flush=True,
        )
        read(open_store(folder / "store").split("train"), batch)
    shutil.rmtree(folder / "store")


def made(folder: Path, images: int) -> list[str]:
    """PNGs of 200 synthetic images with noise, 2,000 different ones, and a table of them."""
    names = [f"{index // 1000:02d}/{index:05d}.png" for index in range(images)]
    rng = np.random.default_rng(0)
    rows = cohort(SyntheticConfig("private", 200, 0, 0, 7)).to_dict("records")
    bases: list[np.ndarray] = []
    for index, name in enumerate(names):
        file = folder / name
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if index >= 2000:
            shutil.copyfile(folder / names[index % 2000], file)
            continue
        bases = bases or [render(row, SIZE) for row in rows]
        noisy = bases[index % 200] + rng.normal(0, 2.5, (SIZE, SIZE))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, compress_level=3)
    index = np.arange(images)
    table = {
        "path": names,
        "patient_id": index // 2,
        "age": 20 + index % 70,
        "sex": np.where(index // 2 % 2, "M", "F"),
    }
    pd.DataFrame(table | {"a": (index % 3 == 0).astype(int), "b": (index % 7 == 0).astype(int)}).to_csv(
        folder / "images.csv"
    )
    (folder / "map.yaml").write_text(MAP)
    return names


def floor(folder: Path, names: list[str], processes: int) -> None:
    """Decode and resize with Pillow, and keep nothing."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_decoded, [str(folder / name) for name in names], chunksize=64):
            pass


def _decoded(path: str) -> int:
    with Image.open(path) as picture:
        grey = picture.convert("L")
        return np.asarray(
            grey if grey.size == (SIZE, SIZE) else grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        ).nbytes


def timed(what: str, work: Callable[[], object], images: int) -> tuple[float, float]:
    """Seconds by wall and of processor, with those of the processes that `work` starts."""
    start, before = time.perf_counter(), _processor()
    work()
    wall, processor = time.perf_counter() - start, _processor() - before
    print(
        f"{what:24s} {images / wall:6.0f} images/s, {wall:.1f} s, {processor:.1f} s of processor", flush=True
    )
    return wall, processor


def _processor() -> float:
    mine = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in mine)


def read(split: Split, batch: int) -> None:
    """Images a second in order and in a random one, in turns, from a warm page cache; the median of five."""
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {"in order": [], "shuffled": []}
    some = min(len(split), 4096)
    for start in range(0, some, batch):
        split.read(np.arange(start, min(start + batch, some)))
    for _ in range(5):
        for kind, found in rates.items():
            order = np.arange(some) if kind == "in order" else rng.permutation(some)
            start = time.perf_counter()
            for place in range(0, some, batch):
                split.read(order[place : place + batch])
            found.append(some / (time.perf_counter() - start))
    print(
        "read " + ", ".join(f"{kind} {np.median(found):.0f} images/s" for kind, found in rates.items()),
        flush=True,
    )
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
