"""Whether the files of a store are those that were written, asked when it is opened; its images are compared
with their checksums one by one, as they are read (`shards.ImageReader`).
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from jaxcxr.data.fingerprint import fingerprint_of
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.shards import shard_name
from jaxcxr.digests import check
from jaxcxr.errors import InputError

MANIFEST_FILE = "manifest.parquet"
RECORDS_FILE = "records.parquet"
STORE_FILE = "store.json"
INFO_FILE = "dataset_info.json"
CURE = "put the file back from a copy, or prepare the store again"


def require_tables(path: Path, manifest: pd.DataFrame, description: Mapping[str, Any]) -> None:
    """Refuse a manifest that is not the one that was written, or whose labels are none.

    The SHA-256 of the files is compared where it was recorded; in stores of earlier versions the fingerprint
    is computed anew, which covers all columns but `path`. A store without checksums is said to be unchecked.

    Raises:
        InputError: a file was cut, changed or exchanged, or a label is not 1, 0 or empty.
    """
    checked = [check(path / name, CURE) for name in (STORE_FILE, MANIFEST_FILE, RECORDS_FILE, INFO_FILE)]
    findings = tuple(description["findings"])
    _require_labels(path, manifest, findings)
    if all(checked):
        return
    if not (path / RECORDS_FILE).is_file():
        print(
            f"warning: {path}: a store of an earlier version, without checksums; its labels and images "
            "are used unchecked (prepare it again to have them checked)",
            file=sys.stderr,
            flush=True,
        )
        return
    require_fingerprint(path, manifest, description)


def counts_of(frame: pd.DataFrame) -> dict[str, int]:
    """Number of rows of each split."""
    splits = frame["split"].tolist()
    return {name: splits.count(name) for name in SPLITS}


def require_files(
    path: Path, manifest: pd.DataFrame, counts: Mapping[str, int], shards: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a store whose shards, manifest and description do not have the same numbers of images.

    Raises:
        InputError: as it says, or a shard is missing.
    """
    for name, rows in counts_of(manifest).items():
        if rows != counts.get(name, 0) or rows != sum(shards.get(name, ())):
            raise InputError(
                f"{path}: {MANIFEST_FILE} has {rows} rows of split {name!r}, {STORE_FILE} names "
                f"{counts.get(name, 0)}, the shards hold {sum(shards.get(name, ()))}"
            )
    for split, lengths in shards.items():
        for shard in range(len(lengths)):
            if not (path / shard_name(split, shard)).is_file():
                raise InputError(f"{path}: not a complete store; {shard_name(split, shard)} is missing")


def require_fingerprint(path: Path, manifest: pd.DataFrame, description: Mapping[str, Any]) -> None:
    """Compute the fingerprint of manifest and checksums anew.

    Raises:
        InputError: it is another one than `store.json` says, or the two tables are about other images.
    """
    records = _records(path)
    if records["image_id"].tolist() != manifest["image_id"].tolist():
        raise InputError(f"{path}: {RECORDS_FILE} and {MANIFEST_FILE} do not name the same images; {CURE}")
    digest = hashlib.sha256("".join(records["sha256"]).encode()).hexdigest()
    found = fingerprint_of(
        manifest,
        description["size"],
        tuple(description["findings"]),
        description["preprocessing"],
        digest,
        description["versions"],
    )
    if found != description["fingerprint"]:
        raise InputError(
            f"{path}: the manifest or the checksums are not those of the fingerprint in {STORE_FILE}; {CURE}"
        )


def image_digests(path: Path, rows: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, "n 32"] | None:
    """SHA-256 of the pixels of the images in the rows of a mask, as bytes; None of a store without checksums.

    Raises:
        InputError: the table is damaged.
    """
    if not (path / RECORDS_FILE).is_file():
        return None
    written = _records(path)["sha256"].to_numpy()
    if len(written) != len(rows):
        raise InputError(
            f"{path / RECORDS_FILE}: names {len(written)} images, the manifest {len(rows)}; {CURE}"
        )
    try:
        content = bytes.fromhex("".join(written[rows]))
        return np.frombuffer(content, np.uint8).reshape(-1, hashlib.sha256().digest_size)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path / RECORDS_FILE}: its checksums are damaged; {CURE}") from error


def _records(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path / RECORDS_FILE, columns=["image_id", "sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path / RECORDS_FILE}: cannot be read ({' '.join(str(error).split())[:200]}); {CURE}"
        ) from error


def _require_labels(path: Path, manifest: pd.DataFrame, findings: Sequence[str]) -> None:
    for finding in findings:
        if finding not in manifest:
            raise InputError(
                f"{path / MANIFEST_FILE}: column {finding!r} is missing, and {STORE_FILE} names it"
            )
        given = manifest[finding]
        numbers = pd.Series(pd.to_numeric(given, errors="coerce"), dtype=np.float64)
        wrong = (numbers.isna() & given.notna()) | ~(numbers.isna() | numbers.isin([0, 1]))
        if wrong.any():
            row = int(np.argmax(wrong.to_numpy()))
            raise InputError(
                f"{path / MANIFEST_FILE}: row {row + 1} (image_id {manifest['image_id'].iat[row]!r}), column "
                f"{finding!r}: expected 1, 0 or empty, found {given.iat[row]!r}; {CURE}"
            )
