"""Turn a hospital's table and image files into a store that training reads.

python scripts/prepare.py --source configs/prepare_example.yaml --table metadata.csv --images FOLDER --out stores/example
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

from jaxcxr.config import load
from jaxcxr.console import run
from jaxcxr.data.images import PREPROCESSING, prepare_images
from jaxcxr.data.manifest import SPLITS, read_table, require_positives
from jaxcxr.data.sources.table import TableSource, to_manifest
from jaxcxr.data.store import write_store
from jaxcxr.errors import InputError

QUARANTINE_FILE = "quarantine.csv"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Turn a table and its image files into a store.

    Attributes:
        source: YAML column map of the table (configs/prepare_example.yaml).
        table: CSV or parquet file, one row an image.
        images: folder that the table's paths start from.
        out: folder of the store to make.
        size: side of the images, in pixels (the paper: 512).
        processes: how many decode images; by default one a usable core.
        strict: stop at the first file that cannot be used, instead of leaving it out and naming it in quarantine.csv.
    """

    source: Path
    table: Path
    images: Path
    out: Path
    size: int = 512
    processes: int | None = None
    strict: bool = False


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.size < 16:
        raise InputError(f"--size: found {arguments.size}, expected at least 16 pixels")
    if arguments.processes is not None and arguments.processes < 1:
        raise InputError(f"--processes: found {arguments.processes}, expected at least 1")
    if not arguments.images.is_dir():
        raise InputError(f"{arguments.images}: no such folder of images")
    source = load(TableSource, arguments.source)
    manifest = to_manifest(read_table(arguments.table), source, str(arguments.table))
    require_positives(manifest, source.findings, str(arguments.table))

    started = time.monotonic()
    quarantine: list[tuple[str, str]] = []
    films = _films(manifest, arguments, quarantine)
    store = write_store(
        arguments.out, manifest, films, size=arguments.size, findings=source.findings, preprocessing=PREPROCESSING
    )
    splits = store.manifest["split"].tolist()
    counts = ", ".join(f"{split} {splits.count(split):,}" for split in SPLITS)
    print(f"{store.path}: {len(store.manifest):,} images of {store.size} x {store.size} ({counts})")
    print(f"fingerprint {store.fingerprint}; {time.monotonic() - started:.1f} s")
    if quarantine:
        listing = store.path / QUARANTINE_FILE
        pd.DataFrame(quarantine, columns=["path", "reason"]).to_csv(listing, index=False)
        print(f"{len(quarantine):,} of {len(manifest):,} images could not be used and were left out; see {listing}")
        _warn_of_lost_findings(store.manifest, source)


def _films(manifest: pd.DataFrame, arguments: Arguments, quarantine: list[tuple[str, str]]) -> Iterator[np.ndarray | None]:
    """Decode the manifest's images in order; a bad file is noted and gives None."""
    names = manifest["path"].tolist()
    processes = arguments.processes or len(os.sched_getaffinity(0))
    films = prepare_images([arguments.images / name for name in names], arguments.size, processes)
    interval = 0.2 if sys.stderr.isatty() else 30.0
    for name, film in zip(names, tqdm(films, total=len(names), unit="images", mininterval=interval), strict=True):
        if not isinstance(film, InputError):
            yield film
            continue
        if arguments.strict:
            raise film
        quarantine.append((name, str(film)))
        yield None
    if len(quarantine) == len(names):
        raise InputError(f"none of the {len(names)} images could be used; the first: {quarantine[0][1]}")


def _warn_of_lost_findings(kept: pd.DataFrame, source: TableSource) -> None:
    try:
        require_positives(kept, source.findings, "warning: without those images")
    except InputError as error:
        print(error)


if __name__ == "__main__":
    run(main)
