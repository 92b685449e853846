"""How a CSV table is written: its encoding, what separates its cells, and what stands above its header.

Spreadsheets write semicolons and decimal commas in half of Europe, tabs and UTF-16 for 'Unicode text', and a
line `sep=;`. These are read. A table in another encoding, or with a title above its header, is refused with
what to do: a guess could change an id.
"""

import codecs
import csv
import gzip
import io
import re
from pathlib import Path

_HEAD = 1 << 16
_SEPARATORS = (",", ";", "\t", "|")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+\Z")


def csv_text(path: Path) -> tuple[io.StringIO, str]:
    """The text of a CSV file (also `.gz`), without the line `sep=`, and what separates its cells.

    Raises:
        ValueError: it is not text in UTF-8 or UTF-16, is empty, or holds NUL characters.
        OSError: it cannot be read.
        EOFError: it is compressed and cut short.
    """
    raw = path.read_bytes()
    text = _decoded(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    if "\0" in text:
        raise ValueError("it holds NUL characters, so it is no table of text")
    start = text.lstrip("\r\n")
    if start[:4].casefold() == "sep=" and start[4:5] and start[5:6] in ("\r", "\n"):
        return io.StringIO(start[5:].lstrip("\r\n"), newline=""), start[4]
    return io.StringIO(text, newline=""), _separator(text[:_HEAD])


def _decoded(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    head = raw[:_HEAD]
    if head.count(0) > len(head) // 4:  # UTF-16 without a mark: every other byte of Latin text is 0
        return raw.decode("utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 text; save the table as UTF-8 (in Excel: 'CSV UTF-8'), so that no "
            "letter of an id is guessed"
        ) from None


def _separator(head: str) -> str:
    """The separator of the header; a comma unless the header has none and another splits it."""
    header = next((line for line in head.splitlines() if line.strip()), "")
    counts = {separator: len(_cells(header, separator)) for separator in _SEPARATORS}
    if counts[","] > 1 and counts[";"] > 1:
        # Both occur: the one that splits the next lines into as many cells as the header.
        lines = [line for line in head.splitlines() if line.strip()][1:20]
        fits = {s: sum(len(_cells(line, s)) == counts[s] for line in lines) for s in (",", ";")}
        return ";" if fits[";"] > fits[","] else ","
    if counts[","] > 1:
        return ","
    return max(_SEPARATORS, key=lambda separator: counts[separator])  # the first of equals is the comma


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def with_point(text: str) -> str:
    """A number with a decimal comma as one with a point; any other text unchanged."""
    return text.replace(",", ".") if _DECIMAL_COMMA.match(text) else text
