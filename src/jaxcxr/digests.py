"""The SHA-256 of what a folder holds, in its `digests.json`: no file is used that was cut, changed or
exchanged.

A digest is on the disk before what it is about (`sealed`), so that a kill at any moment leaves a file that is
right: the old one or the new one, whole. `digests.json` covers itself as well. It is no signature: it reveals
accidents and files of another folder, not a forger who rewrites both.

Folders of earlier versions have no digests; their files are used unchecked, which `check` tells its caller.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from jaxcxr import atomic
from jaxcxr.atomic import replacing
from jaxcxr.errors import InputError

DIGESTS: Final = "digests.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.sha256).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """What `digests.json` of a folder says, by name; empty if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digests, own = content["digests"], content["sha256"]
        found = digest_of(digests)
    except (ValueError, KeyError, TypeError, RecursionError):
        digests, own, found = None, None, ""
    if not isinstance(digests, dict) or found != own:
        raise InputError(
            f"{path}: is damaged (its content does not give its own SHA-256), so that nothing in the "
            "folder can be checked; put it back from a copy, or delete it to use the folder unchecked"
        )
    return digests


def record(folder: Path, entries: Mapping[str, Any], without: frozenset[str] = frozenset()) -> None:
    """Add entries to a folder's `digests.json`, completely or not at all; those of `without` are dropped."""
    digests = {name: value for name, value in recorded(folder).items() if name not in without} | dict(entries)
    atomic.write_json(folder / DIGESTS, {"digests": digests, "sha256": digest_of(digests)})


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """As `atomic.replacing`, and the file's SHA-256 is recorded beside it; while it is replaced, both the old
    file and the new one are right.
    """
    with replacing(path) as part:
        yield part
        new = file_digest(part)
        before = [file_digest(path)] if path.is_file() else []
        record(path.parent, {path.name: [*before, new]})
    if before:
        record(path.parent, {path.name: [new]})


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, sealed."""
    with sealed(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def unlink(path: Path) -> None:
    """Delete a file that is no longer true, if there is one, and what is recorded of it."""
    if path.name in recorded(path.parent):
        record(path.parent, {}, frozenset({path.name}))
    path.unlink(missing_ok=True)


def seal(*paths: Path) -> None:
    """Record the SHA-256 of files of one folder that are complete."""
    record(paths[0].parent, {path.name: [file_digest(path)] for path in paths})


def check(path: Path, cure: str = "put it back from a copy") -> bool:
    """Whether a file's SHA-256 is recorded, and is its own; call it before the file is read.

    Args:
        path: the file.
        cure: what to do if it is not, for the message.

    Returns:
        False if nothing is recorded of it: it was written by an earlier version, or by somebody else.

    Raises:
        InputError: it is missing, or not the one that was written, or `digests.json` is damaged.
    """
    known = recorded(path.parent).get(path.name)
    if known is None:
        return False
    if not path.is_file():
        raise InputError(f"{path}: is missing, and {DIGESTS} names it; {cure}")
    if file_digest(path) not in known:
        raise InputError(
            f"{path}: is not the file that was written (its SHA-256 is not the one in {DIGESTS}): it was "
            f"cut, changed or exchanged; {cure}"
        )
    return True
