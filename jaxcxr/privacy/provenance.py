"""Which code made a run."""

import hashlib
from pathlib import Path


def code_fingerprint() -> str:
    """SHA-256 over the package's source files, in the order of their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
