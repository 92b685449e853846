"""Fingerprints of the code and data of a run."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

TRAINS = (
    "accounting",
    "per_example",
    "privacy",
    "records",
    "models",
    "training",
    "data/augment.py",
    "data/findings.py",
    "data/shards.py",
    "data/fingerprint.py",
    "data/store.py",
    "data/store_checks.py",
)
"""Folders and files of the package that determine what a run releases: what training samples, reads and
computes. The rest (evaluation, reports, preparation, configuration, errors) is not run by training, or acts
only through the configuration.
"""


def code_fingerprint() -> str:
    """SHA-256 over the package's source files, in the order of their names."""
    return _digest(_package().rglob("*.py"))


def training_code_fingerprint() -> str:
    """SHA-256 over the source files that determine what a run releases (`TRAINS`), in order of name."""
    return _digest(
        path
        for name in TRAINS
        for path in ((_package() / name).rglob("*.py") if "." not in name else [_package() / name])
    )


def _package() -> Path:
    return Path(__file__).parents[1]


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(_package()).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sealed_fingerprint(data_fingerprint: str, run: str) -> str:
    """The publishable form of a data fingerprint: SHA-256 of it and the run's name; empty without a name.

    Publishing the bare fingerprint would break the guarantee: it is exact, so whoever knows all images but
    one could confirm a guess at that one. The run's name (`ledger.run_name`) has 128 random bits and stays in
    the hospital with the ledger; whoever holds both can check the seal, and nobody else can confirm a guess.
    """
    return hashlib.sha256(f"jaxcxr sealed data {run} {data_fingerprint}".encode()).hexdigest() if run else ""
