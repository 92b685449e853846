"""Search for a manifest's identifiers in texts and bytes, whatever their encoding, spelling or compression.

Identifiers are image and patient ids, paths and those of their parts that belong to one patient only, and the
texts of any other column that is named like an identifier or distinguishes images (accession numbers, DICOM
UIDs, names, dates of birth).
"""

import base64
import bz2
import contextlib
import decimal
import functools
import gzip
import hashlib
import io
import itertools
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

import pandas as pd

from jaxcxr.data.manifest import REQUIRED, text_of
from jaxcxr.errors import InputError
from jaxcxr.release.ciphers import picked, shifted, with_digits, written_out
from jaxcxr.release.readings import escaped, folded, readings, spelt, squeezed

SHORT = 4
"""Identifiers shorter than this are searched for as whole words only."""
TELLING = 5
"""Identifiers with fewer letters and digits are searched for as they are written only."""
_TELLING_LETTERS = 8
"""The same for those without any digit."""
_IN_DIGESTS = 6
_SHIFTED_LETTERS = 3
"""Letters that an identifier has at least, to be looked for in a shifted alphabet."""
_USUAL = ("md5", "sha1", "sha256")
_UNUSUAL = ("sha224", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s")
_DEEPEST = 4
_PACKED_AT_MOST = 1 << 24
"""Largest number of bytes read of a packed file; a release holds none."""
_STREAMS_AT_MOST = 2000
_ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le")
_KNOWN_COLUMNS = (*REQUIRED, "view", "comorbidities")
_NAMED_LIKE_ONE = re.compile(
    r"(^|_|(?<=[a-z]))(id|ids|uid|name|mrn|accession|birth|birthdate|dob|date|datetime|time)$", re.I
)


class Identifiers:
    """The identifiers of a manifest, with searches in texts and bytes, ignoring case.

    Raises:
        InputError: the manifest has no rows, or lacks `image_id`, `patient_id` or `path`.
    """

    def __init__(self, manifest: pd.DataFrame) -> None:
        for column in ("path", "patient_id", "image_id"):
            if column not in manifest.columns:
                raise InputError(f"manifest: column {column!r} is missing; found {list(manifest.columns)}")
        if manifest.empty:
            raise InputError("manifest: holds no image, hence no identifier to look for")
        columns: dict[str, str] = {}
        for column in _other_columns(manifest):
            columns |= dict.fromkeys(_texts_of(manifest, column), column)
        columns |= dict.fromkeys(_of_paths(manifest), "path")
        for column in ("patient_id", "image_id"):
            columns |= dict.fromkeys(_texts_of(manifest, column), column)
        names = {_normal(form): column for text, column in columns.items() for form in _forms(text)}
        self._columns = {name: column for name, column in names.items() if name}
        self._foreign = [name for name in self._columns if not name.isascii()]
        self._folded = {folded(name): name for name in self._columns if folded(name)}
        self._squeezed = {squeezed(name): name for name in self._columns if _is_telling(squeezed(name))}
        self._alike = {
            squeezed(with_digits(folded(name))): name
            for squeezed_name, name in self._squeezed.items()
            if not squeezed_name.isalpha()
        }
        self._texts = tuple(columns)
        self._beginnings: dict[str, set[int]] = {}
        for name in self._folded:
            if len(name) >= SHORT:
                self._beginnings.setdefault(name[:SHORT], set()).add(len(name))
        self._squeezed_beginnings: dict[str, set[int]] = {}
        for name in self._squeezed:
            self._squeezed_beginnings.setdefault(name[:SHORT], set()).add(len(name))

    def __len__(self) -> int:
        """Count the identifiers."""
        return len(self._columns)

    def shorter_than(self, length: int) -> int:
        """Number of identifiers with fewer characters."""
        return sum(len(name) < length for name in self._columns)

    def bare_numbers(self) -> int:
        """Number of identifiers that are numbers of fewer than four digits, such as 1, 2, 3."""
        return sum(len(name) < SHORT and name.isdigit() for name in self._columns)

    def in_text(self, text: str, shortest: int = 1, bare_numbers: bool = True) -> list[str]:
        """Identifiers found in a text, each with its column.

        Args:
            text: plain, or with characters written as HTML, URL or JSON escapes.
            shortest: identifiers with fewer characters are left out.
            bare_numbers: whether a number of fewer than four digits counts.
        """
        found: set[str] = set()
        for reading in {folded(reading) for reading in escaped(text)}:
            found |= {self._folded[word] for word in _within(reading, self._folded, self._beginnings)}
            if shortest < SHORT:
                words = {*re.split(r"[^a-z0-9]+", reading), *re.split(r"[^\w.-]+", reading)}
                short = {word for word in words if 0 < len(word) < SHORT and word in self._folded}
                found |= {self._folded[word] for word in short if bare_numbers or not word.isdigit()}
        return self._named({word for word in found if len(word) >= shortest})

    def in_words(self, text: str) -> list[str]:
        """Identifiers found in a text that somebody wrote freely, each with its column.

        Beside what `in_text` finds: identifiers of `TELLING` letters or digits or more in any of the text's
        other readings (`readings`, `ciphers`), with other separators or leading zeros, and their digests.
        """
        found = set(self._by_hand(text))
        for reading in readings(text):
            found |= {it for it in self._telling(squeezed(reading)) if not squeezed(it).isalpha()}
            for part in spelt(reading):  # letters alone would be found across ordinary words
                found |= set(self._telling(part))
            for word in _within(folded(reading), self._folded, self._beginnings):
                if _is_telling(squeezed(word)):
                    found.add(self._folded[word])
        named = [*self.in_text(text, bare_numbers=False), *self._named(found), *self.in_digests(text)]
        return list(dict.fromkeys(named))

    def _by_hand(self, text: str) -> Iterator[str]:
        """Telling identifiers that somebody wrote out, enciphered by hand, or wrote with O for 0."""
        for reading in written_out(text):
            yield from self._telling(squeezed(reading))
        for reading in shifted(text):  # digits are not shifted: without letters, it is the text itself
            for part in spelt(reading):
                yield from (it for it in self._telling(part) if sum(map(str.isalpha, it)) >= _SHIFTED_LETTERS)
        for reading in picked(text):
            whole = squeezed(reading)
            yield from (it for it in self._telling(whole) if whole == squeezed(it) or not it.isdigit())
        for word in text.split():
            if any(c.isdigit() for c in word):
                yield from filter(None, [self._alike.get(squeezed(with_digits(folded(word))))])

    def _telling(self, reading: str) -> Iterator[str]:
        """Telling identifiers in letters and digits that have no spaces."""
        for word in _within(reading, self._squeezed, self._squeezed_beginnings):
            yield self._squeezed[word]

    def in_number(self, value: float | int) -> list[str]:
        """Identifiers of `TELLING` digits or more that a number's significant digits are."""
        digits = f"{decimal.Decimal(repr(value)):f}".replace(".", "").strip("0-")
        same = [
            name
            for form, name in self._squeezed.items()
            if form.isdigit() and form.strip("0") == digits and len(digits) >= TELLING
        ]
        return self._named(set(same))

    def in_digests(self, text: str) -> list[str]:
        """Identifiers whose digest (in hexadecimal or base 64) or bytes in hexadecimal stand in a text."""
        words = re.findall(r"\b[0-9a-f]{8}\b|[0-9a-f]{16,}", text.lower())
        for word in re.findall(r"[A-Za-z0-9+/_-]{22,}", text):
            with contextlib.suppress(ValueError):
                plain = word.replace("-", "+").replace("_", "/")
                words.append(base64.b64decode(plain + "=" * (-len(plain) % 4)).hex())
        found = {self._digests[word[:16]] for word in words if word[:16] in self._digests}
        for word in words:
            bytes_ = bytes.fromhex(word[: len(word) // 2 * 2]).decode("latin-1")
            inside = _within(folded(bytes_), self._folded, self._beginnings)
            found |= {self._folded[name] for name in inside if len(name) >= _IN_DIGESTS}
        return self._named(found)

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        """First 64 bits of each digest of each identifier, the usual ones in either case, and CRC-32."""
        found = {f"{zlib.crc32(text.encode()):08x}": _normal(text) for text in self._texts}
        for text in self._texts:
            forms = dict.fromkeys((text, text.lower(), text.upper(), f"{text}\n"))
            for kind, of in (*itertools.product(_USUAL, forms), *((kind, text) for kind in _UNUSUAL)):
                digest = hashlib.new(kind, of.encode(), usedforsecurity=False)
                found[digest.hexdigest()[:16]] = _normal(text)
        return found

    def _named(self, names: set[str]) -> list[str]:
        return [f"the {self._columns.get(name, 'text')} {name!r}" for name in sorted(names)]

    def in_bytes(self, content: bytes, shortest: int = 1) -> list[str]:
        """Identifiers found in bytes (UTF-8, UTF-16 or UTF-32), also inside archives and packed streams."""
        found: dict[str, None] = {}
        for piece in _unpacked(content[:_PACKED_AT_MOST], _DEEPEST):
            for text in _runs(piece, shortest):
                found |= dict.fromkeys(self.in_text(text, shortest))
            lower = piece.lower()
            for name in self._foreign:
                if len(name) >= shortest and any(
                    _encoded(name, encoding) in lower for encoding in _ENCODINGS
                ):
                    found |= {f"the {self._columns[name]} {name!r}": None}
        return list(found)


def _other_columns(manifest: pd.DataFrame) -> list[str]:
    """Columns outside the contract named like an identifier, or whose texts distinguish most images."""
    chosen = []
    for column in manifest.columns:
        if column in _KNOWN_COLUMNS:
            continue
        texts = [text for text in text_of(manifest, column) if text]
        tells_apart = len(set(texts)) > len(texts) / 2 and any(
            re.search(r"[^\d.eE+-]", text) for text in texts
        )
        if texts and (tells_apart or _NAMED_LIKE_ONE.search(str(column))):
            chosen.append(str(column))
    return chosen


def _texts_of(manifest: pd.DataFrame, column: str) -> set[str]:
    """The cells that are not empty."""
    return {text for text in text_of(manifest, column) if text}


def _of_paths(manifest: pd.DataFrame) -> set[str]:
    """Paths, and those of their parts that belong to one patient only: a common folder identifies nobody."""
    owner: dict[str, str] = {}
    shared: set[str] = set()
    whole: set[str] = set()
    for text, patient in zip(text_of(manifest, "path"), text_of(manifest, "patient_id"), strict=True):
        if not text:
            continue
        whole.add(text)
        path = PurePosixPath(text.replace("\\", "/"))
        for part in {*path.parts, path.stem}:
            if owner.setdefault(part, patient) != patient:
                shared.add(part)
    parts = {part.strip("/") for part in owner.keys() - shared}
    return whole | (parts if len(set(owner.values())) > 1 else set())


def _forms(text: str) -> set[str]:
    """Spellings of an identifier: unchanged, without a table's `.0`, and without leading zeros."""
    forms = {text}
    if re.fullmatch(r"\d+\.0", text):
        forms.add(text[:-2])
    if re.fullmatch(r"0+\d+", text) and len(text.lstrip("0")) >= SHORT:
        forms.add(text.lstrip("0"))
    return forms


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold().strip()


def _within(reading: str, names: Mapping[str, str], beginnings: Mapping[str, set[int]]) -> Iterator[str]:
    """The names of `SHORT` characters or more that a reading holds."""
    for start in range(len(reading) - SHORT + 1):
        for length in beginnings.get(reading[start : start + SHORT], ()):
            word = reading[start : start + length]
            if word in names and _stands_alone(reading, start, length):
                yield word


def _is_telling(name: str) -> bool:
    """Whether a name is long enough to be no part of ordinary words and numbers, however those are read."""
    return len(name) >= TELLING and (len(name) >= _TELLING_LETTERS or any(c.isdigit() for c in name))


def _stands_alone(text: str, start: int, length: int) -> bool:
    """Whether a match is an identifier: a bare number in a longer one is not, but for leading zeros."""
    if not text[start : start + length].isdigit():
        return True
    before, after = text[:start].rstrip("0")[-1:], text[start + length : start + length + 1]
    return not before.isdigit() and not after.isdigit()


def _encoded(name: str, encoding: str) -> bytes:
    """The name as bytes; a letter that the encoding lacks becomes a byte that no text has."""
    return (
        name.encode(encoding, errors="replace").replace(b"?", b"\xff")
        if encoding == "latin-1"
        else name.encode(encoding)
    )


def _runs(content: bytes, shortest: int) -> Iterator[str]:
    """The content as UTF-8, or else every run of printable characters of one, two or four bytes each."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        least = b"{%d,}" % max(2, shortest)
        for character in (
            rb"[\x20-\x7e]",
            rb"(?:[\x20-\x7e]\x00)",
            rb"(?:\x00[\x20-\x7e])",
            rb"(?:[\x20-\x7e]\x00{3})",
        ):
            for run in re.findall(character + least, content):
                yield run.replace(b"\x00", b"").decode("ascii")
        return
    yield text
    if "\x00" in text:
        yield text.replace("\x00", "")


def _unpacked(content: bytes, depth: int) -> Iterator[bytes]:
    """The bytes themselves, and everything packed in them."""
    yield content
    if depth:
        for inner in _members(content):
            yield from _unpacked(inner, depth - 1)


def _members(content: bytes) -> Iterable[bytes]:
    """Contents of an archive or compressed stream; nothing if it cannot be unpacked."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return [
                    archive.comment,
                    *(part for info in archive.infolist() for part in _zip_parts(archive, info)),
                ]
        for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
            if content.startswith(magic):
                with opened(io.BytesIO(content)) as stream:
                    return [stream.read(_PACKED_AT_MOST)]  # type: ignore[list-item]
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return []
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [(info.name.encode(), archive.extractfile(info)) for info in archive]
            return [
                part for name, file in members for part in (name, file.read(_PACKED_AT_MOST) if file else b"")
            ]
    except (tarfile.TarError, OSError, EOFError):
        return list(_deflated(content))


def _zip_parts(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> list[bytes]:
    with archive.open(info) as file:
        return [info.filename.encode(), info.comment, file.read(_PACKED_AT_MOST)]


def _deflated(content: bytes) -> Iterator[bytes]:
    """zlib streams anywhere in the bytes, such as the chunks of an HDF5 or PNG file."""
    view = memoryview(content)
    for count, match in enumerate(re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content)):
        if count == _STREAMS_AT_MOST:
            return
        try:
            yield zlib.decompressobj().decompress(view[match.start() :], _PACKED_AT_MOST)
        except zlib.error:
            continue
