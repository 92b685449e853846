"""Verify a store: every record against its checksum, the manifest against the fingerprint."""

from collections.abc import Callable

import numpy as np

from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store
from jaxcxr.data.store_checks import RECORDS_FILE, require_fingerprint
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
    require_fingerprint(store.path, store.manifest, store.description())
    for name in SPLITS:
        split = store.split(name)
        for start in range(0, len(split), 64):
            some = np.arange(start, min(start + 64, len(split)))
            split.read(some)
            progress(len(some))
    return len(store.manifest)
