"""The fingerprint of a store: SHA-256 over its manifest, preprocessing, library versions and pixels."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

PIXEL_LIBRARIES = (
    "imagecodecs",
    "numpy",
    "pillow",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "tifffile",
)
EXTRA_DECODERS = ("pylibjpeg-libjpeg", "python-gdcm")  # a user may add them for JPEG lossless


def versions_of(libraries: Sequence[str] = (*PIXEL_LIBRARIES, *EXTRA_DECODERS)) -> dict[str, str]:
    """Installed versions of the libraries that decode and preprocess images (or of `libraries`)."""
    found = {}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name not in EXTRA_DECODERS:
                found[name] = "absent"
    return found


def rows_of(frame: pd.DataFrame, findings: Sequence[str]) -> dict[str, list[Any]]:
    """The manifest as values for a digest; where the original files lay (`path`) is not part of it."""
    columns = [column for column in frame.columns if column != "path" and column not in findings]
    return {
        column: [None if pd.isna(value) else value for value in frame[column].tolist()]
        for column in [*sorted(columns), *findings]
    }


def fingerprint_of(
    frame: pd.DataFrame,
    size: int,
    findings: Sequence[str],
    preprocessing: Mapping[str, object],
    digest: str,
    versions: Mapping[str, str] | None = None,
) -> str:
    """SHA-256 over the data and the versions of the libraries that made the pixels."""
    versions = versions or versions_of()
    content = {
        "rows": rows_of(frame, findings),
        "size": size,
        "findings": list(findings),
        "preprocessing": dict(preprocessing),
        "versions": {
            name: versions[name] for name in (*PIXEL_LIBRARIES, *EXTRA_DECODERS) if name in versions
        },
        "images": digest,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
