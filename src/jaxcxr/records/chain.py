"""Append-only files of JSON lines, each chained to all lines before it.

Every line carries its number and `chain`, the SHA-256 of the previous chain value and of its own content, so
that a lost, moved or changed line is found and named. The chain has no key: it reveals accidents and edits,
but neither a forger who rewrites the whole file nor lines cut off the end, which `require_mark` misses.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jaxcxr.digests import record, recorded
from jaxcxr.errors import InputError, faults_in

EntryT = TypeVar("EntryT", bound=BaseModel)
CHARACTERS = 32
"""Hexadecimal digits of a chain value: 128 bits."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """Contents of a chained file.

    Attributes:
        lines: content of each complete line, without its number and chain value.
        heads: chain value of each line; the last one covers the whole file.
        complete: length of the complete lines in bytes; anything after them is an incomplete line.
    """

    lines: tuple[dict[str, Any], ...] = ()
    heads: tuple[str, ...] = ()
    complete: int = 0

    @property
    def head(self) -> str:
        """Chain value of the last line; empty if there is none."""
        return self.heads[-1] if self.heads else ""


def chained(kind: str, head: str, number: int, values: dict[str, Any]) -> tuple[str, str]:
    """The text of line `number` (from 1) after the line with chain value `head`, and its own chain value."""
    line = {"line": number, **values}
    chain = _link(kind, head, line)
    return json.dumps({**line, "chain": chain}) + "\n", chain


def read_chain(path: Path, kind: str) -> Chain:
    """The contents of a chained file, every complete line checked against its chain value.

    Args:
        path: the file; a missing file has no lines.
        kind: kind of file, such as `ledger`: part of every chain value and of error messages.

    Raises:
        InputError: a line is missing, moved, changed or damaged; the message names it.
    """
    content = path.read_bytes() if path.exists() else b""
    complete = content.rfind(b"\n") + 1
    texts = content[:complete].splitlines()
    lines: list[dict[str, Any]] = []
    heads: list[str] = []
    head = ""
    for number, text in enumerate(texts, start=1):
        values, stated = _parse(path, kind, number, text)
        if _link(kind, head, values) != stated or values["line"] != number:
            raise InputError(f"{path}: {_broken(kind, number, head, texts, values, stated)}")
        head = stated
        del values["line"]
        lines.append(values)
        heads.append(head)
    return Chain(tuple(lines), tuple(heads), complete)


def append(path: Path, kind: str, chain: Chain, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to the file that `chain` was read from. When this returns they are on the disk, and the
    file's length is recorded. An incomplete line after the others is dropped: what it was about never took
    place.

    Raises:
        OSError: the file cannot be written to.
    """
    head, number = chain.head, len(chain.heads)
    with path.open("a", encoding="utf-8") as file:
        os.truncate(path, chain.complete)
        for values in lines:
            number += 1
            text, head = chained(kind, head, number, values)
            file.write(text)
        file.flush()
        os.fsync(file.fileno())
    record(path.parent, {path.name: mark_of(number, head)})


def entry_of(model: type[EntryT], values: dict[str, Any], path: Path, number: int, otherwise: str) -> EntryT:
    """A line of a chained file as `model`.

    Args:
        model: of such lines.
        values: of the line.
        path: the file.
        number: of the line.
        otherwise: what the sentence says of a line that is none, as `no entry of a tuning's ledger`.

    Raises:
        InputError: the line does not fit the model.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: line {number} is {otherwise} ({faults_in(error)[0]})") from None


@contextmanager
def needed(store: Path, what: str) -> Iterator[None]:
    """Turn an error of writing a file without which nothing is released into a sentence.

    Args:
        store: folder of the file.
        what: the file, as `the register of released models`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{store}: {what} cannot be written ({error.strerror}), and nothing is released without; make "
            "the folder writable, or name the store's place with --store"
        ) from error


def mark_of(lines: int, head: str) -> dict[str, Any]:
    """The length of a chained file and its last chain value, to be recorded in `digests.json` of its folder
    once the lines are on the disk.
    """
    return {"lines": lines, "head": head}


def require_mark(path: Path, heads: Sequence[str]) -> None:
    """Refuse a chained file that lacks lines which it had when its length was last recorded (`mark_of`);
    files of earlier versions have no such record.

    Raises:
        InputError: lines were lost, or it is another file.
    """
    mark = recorded(path.parent).get(path.name)
    if mark is not None and (len(heads) < mark["lines"] or heads[mark["lines"] - 1] != mark["head"]):
        raise InputError(
            f"{path}: had {mark['lines']} lines when it was last recorded, and now has {len(heads)} or "
            "others: lines were lost or exchanged; put back the file that was written last"
        )


def _link(kind: str, before: str, line: dict[str, Any]) -> str:
    content = json.dumps(line, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"jaxcxr {kind} {before} {content}".encode()).hexdigest()[:CHARACTERS]


def _parse(path: Path, kind: str, number: int, text: bytes) -> tuple[dict[str, Any], str]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: line {number} is not a {kind} entry ({error})") from error
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("line"), int)
        or not isinstance(values.get("chain"), str)
    ):
        raise InputError(
            f"{path}: line {number} is not a {kind} entry (expected an object with its line number and chain)"
        )
    return values, values.pop("chain")


def _broken(
    kind: str, number: int, head: str, texts: list[bytes], values: dict[str, Any], stated: str
) -> str:
    """What happened to the line that does not follow from those before it, as a sentence."""
    found = values["line"]
    if found == number or _link(kind, head, {**values, "line": number}) == stated:
        return f"line {number} was edited: its content does not give its chain value"
    if number in {_line_number(text) for text in texts}:
        return f"lines were reordered: line {found} stands where line {number} belongs"
    return f"line {number} is missing: line {found} stands in its place"


def _line_number(text: bytes) -> int | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values.get("line") if isinstance(values, dict) else None
