"""Which code made a run, and from which data."""

import hashlib
from pathlib import Path


def code_fingerprint() -> str:
    """SHA-256 over the package's source files, in the order of their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sealed_fingerprint(data_fingerprint: str, run: str) -> str:
    """What may be published of a data set's fingerprint: SHA-256 of it and the run's name; empty if the run has none.

    The bare fingerprint would break the guarantee: it is exact, so that whoever knows all films but one could try that one and
    see. The run's name (`ledger.run_name`) has 128 random bits and stays in the house with the ledger; who holds both can check
    the seal, and nobody else can try a guess.
    """
    return hashlib.sha256(f"jaxcxr sealed data {run} {data_fingerprint}".encode()).hexdigest() if run else ""
