"""Verify a store: every record against its checksum, the manifest against the fingerprint."""

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd

from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import MANIFEST_FILE, RECORDS_FILE, STORE_FILE, Store, fingerprint_of
from jaxcxr.errors import InputError


def verify(store: Store, progress: Callable[[int], object] = lambda _: None) -> int:
    """Compare every record with its checksum; return the number of images checked.

    Args:
        store: an open store.
        progress: called with the number of images checked since the last call.

    Returns:
        The number of images checked.

    Raises:
        InputError: an image's pixels or the manifest differ from what was written; the first one is named.
    """
    if not (store.path / RECORDS_FILE).is_file():
        raise InputError(
            f"{store.path}: an older store without {RECORDS_FILE}, so without checksums; prepare it again"
        )
    records = pd.read_parquet(store.path / RECORDS_FILE)
    if records["image_id"].tolist() != store.manifest["image_id"].tolist():
        raise InputError(f"{store.path}: {RECORDS_FILE} and {MANIFEST_FILE} do not name the same images")
    described = store.description()
    digest = hashlib.sha256("".join(records["sha256"]).encode()).hexdigest()
    known = described["preprocessing"], digest, described["versions"]
    if fingerprint_of(store.manifest, store.size, store.findings, *known) != store.fingerprint:
        raise InputError(
            f"{store.path}: the manifest or the checksums are not those of the fingerprint in {STORE_FILE}"
        )
    for name in SPLITS:
        rows = np.flatnonzero((store.manifest["split"] == name).to_numpy())
        split, expected = store.split(name), records["sha256"].to_numpy()[rows]
        for start in range(0, len(split), 64):
            some = np.arange(start, min(start + 64, len(split)))
            try:
                images = split.read(some)
            except Exception as error:
                raise InputError(
                    f"{store.path}: split {name!r} cannot be read ({' '.join(str(error).split())})"
                ) from error
            for index, image in zip(some, images, strict=True):
                if hashlib.sha256(image.tobytes()).hexdigest() != expected[index]:
                    image_id = split.frame["image_id"].iat[index]
                    raise InputError(
                        f"{store.path}: image {image_id!r} of split {name!r} is not what was written"
                    )
            progress(len(some))
    return len(store.manifest)
