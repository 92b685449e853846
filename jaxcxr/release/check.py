"""Whether a folder may leave the house: only known files, in their exact form, and no identifier of the manifest anywhere.

Two nets, each enough for most mistakes. The first lets only the files of a release pass, and each only in the form that the
builder gives it: cards that validate and whose page is the one their JSON gives, a configuration with its private paths
blanked, weights with nothing but weights. The second looks for every image id, patient id and file name of the manifest in the
names of files and folders and in the text within any file, inside archives and compressed streams too. Where the first net
leaves room for nothing but numbers of the training (a tensor's bytes, a learning rate), the second does not mistake them for
ids.
"""

import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import yaml

from jaxcxr.config import Experiment, validate
from jaxcxr.errors import InputError
from jaxcxr.report.card import NOT_FOR_RELEASE, card_html, card_json, foreign_texts, read_card

WEIGHTS, CONFIG, CARD_JSON, CARD_HTML, ORBAX = (
    "model.safetensors",
    "config.yaml",
    "privacy_card.json",
    "privacy_card.html",
    "orbax",
)
BLANK = "not released"
"""What stands in a released configuration where a private path was."""
_ORBAX_FILES = re.compile(
    r"orbax/params/(_METADATA|_CHECKPOINT_METADATA|_sharding|array_metadatas/process_0|manifest\.ocdbt|"
    r"(ocdbt\.process_0/)?(manifest\.ocdbt|d/[0-9a-f]{32}))"
)
_PARAMETER = re.compile(r"params(/[A-Za-z0-9_]+)+")
_SHORT = 4
"""Identifiers shorter than this are looked for as whole words only."""
_SHORTEST_IN_WEIGHTS = 6
"""Shorter texts occur by chance in the bytes of a few million weights."""
_DEEPEST = 4
_PACKED_AT_MOST = 1 << 24
_ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le")


def check_release(folder: Path, manifest: pd.DataFrame | None) -> list[str]:
    """Everything that is wrong with a release folder, a sentence each; an empty list lets it pass.

    Args:
        folder: to be checked.
        manifest: of the cohort (`image_id`, `patient_id`, `path`); None checks the files' form only.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = sorted(folder.rglob("*"))
    files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file() and not path.is_symlink()}
    wrong = [f"{path.relative_to(folder)}: is a link" for path in paths if path.is_symlink()]
    wrong += [f"{name}: no part of a release" for name in files if not _is_known(name)]
    wrong += [f"{name}: is missing" for name in (WEIGHTS, CONFIG, CARD_JSON, CARD_HTML) if name not in files]
    wrong += _wrong_forms(files)
    if manifest is not None:
        identifiers = Identifiers(manifest)
        for path in paths:
            name = path.relative_to(folder).as_posix()
            wrong += [f"{name}: its name holds {found}" for found in identifiers.in_text(name)]
        for name, path in files.items():
            wrong += [f"{name}: holds {found}" for found in _identifiers_in(name, path.read_bytes(), identifiers)]
    return wrong


def _is_known(name: str) -> bool:
    return name in (WEIGHTS, CONFIG, CARD_JSON, CARD_HTML, f"{ORBAX}/provenance.json") or bool(_ORBAX_FILES.fullmatch(name))


def _identifiers_in(name: str, content: bytes, identifiers: "Identifiers") -> list[str]:
    """What a file holds; in one whose form is checked, its numbers are not taken for ids."""
    if name in (CARD_JSON, CARD_HTML):  # they say what every card says, and numbers, or they were refused
        return []
    if not _is_known(name):
        return identifiers.in_bytes(content)
    structured = _structure(name, content)
    found: dict[str, None] = {}
    if structured is None:
        for text in _parameter_names(content) if name == WEIGHTS else ():
            found |= dict.fromkeys(identifiers.in_text(text))
        return list(found | dict.fromkeys(identifiers.in_bytes(content, shortest=_SHORTEST_IN_WEIGHTS)))
    for text in _strings(structured, with_numbers=name != CONFIG):
        found |= dict.fromkeys(identifiers.in_text(text, shortest=_SHORT if text.isdigit() else 1))
    return list(found)


def _parameter_names(content: bytes) -> list[str]:
    try:
        return [str(name) for name in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])]
    except ValueError:  # no header, refused elsewhere
        return []


def _structure(name: str, content: bytes) -> Any:
    """The values in a file of JSON or YAML; None for a binary file."""
    try:
        values = yaml.safe_load(content) if name == CONFIG else json.loads(content)
    except (yaml.YAMLError, ValueError):
        return None
    if isinstance(values, dict) and re.fullmatch(r"jaxcxr [\d.]+", str(values.get("made_by"))):
        del values["made_by"]  # a version is no id
    return values


def _strings(values: Any, with_numbers: bool) -> Iterator[str]:
    """Keys and texts at any depth, and numbers if they are asked for."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield str(name)
            yield from _strings(value, with_numbers)
    elif isinstance(values, list):
        for value in values:
            yield from _strings(value, with_numbers)
    elif isinstance(values, str):
        try:
            packed = json.loads(values)  # orbax packs JSON into JSON
        except ValueError:
            packed = None
        if isinstance(packed, (dict, list)):
            yield from _strings(packed, with_numbers)
        else:
            yield values
    elif with_numbers:
        yield str(values)


def _wrong_forms(files: dict[str, Path]) -> Iterator[str]:
    checks = {WEIGHTS: _check_weights, CONFIG: _check_config, CARD_JSON: _check_card_json}
    for name, check in checks.items():
        if name in files:
            try:
                check(files[name])
            except InputError as error:
                yield str(error).replace(str(files[name]), name)
    if CARD_JSON in files and CARD_HTML in files:
        try:
            expected = card_html(read_card(files[CARD_JSON]))
        except InputError:
            return
        if files[CARD_HTML].read_bytes() != expected.encode():
            yield f"{CARD_HTML}: is not the page that {CARD_JSON} gives"


def _check_card_json(path: Path) -> None:
    card = read_card(path)
    if not card.for_release:
        raise InputError(f"{path}: {NOT_FOR_RELEASE}: {'; '.join(card.reasons_against_release)}")
    if foreign := foreign_texts(card):
        raise InputError(f"{path}: says what no card says: {foreign[0]!r}")
    if path.read_text(encoding="utf-8") != card_json(card):
        raise InputError(f"{path}: is not written as a card is")
    if any(row.patient is not None for row in card.patients):
        raise InputError(f"{path}: shows the cohort's films a patient, which are private")


def _check_config(path: Path) -> None:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if any(line.lstrip().startswith("#") for line in path.read_text(encoding="utf-8").splitlines()):
        raise InputError(f"{path}: holds a comment; expected the bare configuration")
    config = validate(Experiment, values, source=str(path))
    if config.data.store != BLANK or config.model.weights not in (None, BLANK) or config.model.pretraining is not None:
        raise InputError(f"{path}: data.store, model.weights and model.pretraining are paths of the house; expected {BLANK!r}")
    if config.training.seed is not None:
        raise InputError(f"{path}: training.seed: a seeded run is {NOT_FOR_RELEASE}")


def _check_weights(path: Path) -> None:
    """A safetensors file: header, tensors that fill the rest without a gap, no metadata but the watermark."""
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        form = all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from error
    if metadata:
        raise InputError(f"{path}: holds metadata {metadata}; expected none")
    unknown = [name for name in header if not _PARAMETER.fullmatch(name)]
    if unknown or not form:
        raise InputError(f"{path}: holds entries that are no parameters of the network: {unknown}")
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or ends[-1] != len(content) - 8 - length:
        raise InputError(f"{path}: holds bytes that belong to no parameter")


class Identifiers:
    """Every identifier of a manifest, to be found in texts and bytes, in any case."""

    def __init__(self, manifest: pd.DataFrame) -> None:
        names: dict[str, str] = {}
        for column in ("path", "patient_id", "image_id"):
            if column not in manifest.columns:
                raise InputError(f"manifest: column {column!r} is missing")
            for value in manifest[column].astype(str).unique():
                path = PurePosixPath(value.replace("\\", "/"))
                forms = {value, path.name, path.stem} if column == "path" else {value}
                names |= {form.strip().lower(): column for form in forms if form.strip()}
        self._columns = names
        self._foreign = [name for name in names if not name.isascii()]
        self._lengths = sorted({len(name) for name in names if len(name) >= _SHORT})

    def in_text(self, text: str, shortest: int = 1) -> list[str]:
        """What is found in a text, each with its column; identifiers shorter than `shortest` are left out."""
        text = text.lower()
        found = set()
        for length in self._lengths:
            for start in range(len(text) - length + 1):
                word = text[start : start + length]
                if word in self._columns and self._stands_alone(text, start, length):
                    found.add(word)
        if shortest < _SHORT:
            words = {*re.split(r"[^a-z0-9]+", text), *re.split(r"[^\w.-]+", text)}
            found |= {word for word in words if len(word) < _SHORT and word in self._columns}
        return [f"the {self._columns[word]} {word!r}" for word in sorted(found) if len(word) >= shortest]

    def in_bytes(self, content: bytes, shortest: int = 1) -> list[str]:
        """What is found in a file's text, in UTF-8 or UTF-16, inside archives and compressed streams too."""
        found: dict[str, None] = {}
        for piece in _unpacked(content, _DEEPEST):
            for text in _texts(piece, shortest):
                found |= dict.fromkeys(self.in_text(text, shortest))
            for name in self._foreign:
                if any(_encoded(name, encoding) in piece.lower() for encoding in _ENCODINGS):
                    found |= {f"the {self._columns[name]} {name!r}": None}
        return list(found)

    @staticmethod
    def _stands_alone(text: str, start: int, length: int) -> bool:
        """A bare number inside a longer number is not the id."""
        word = text[start : start + length]
        if not word.isdigit():
            return True
        before, after = text[start - 1 : start], text[start + length : start + length + 1]
        return not before.isdigit() and not after.isdigit()


def _encoded(name: str, encoding: str) -> bytes:
    """As bytes; a letter that the encoding lacks becomes one that no text has."""
    return name.encode(encoding, errors="replace").replace(b"?", b"\xff") if encoding == "latin-1" else name.encode(encoding)


def _texts(content: bytes, shortest: int) -> Iterator[str]:
    """The whole as UTF-8, or else every run of printable characters in it, of one, two or four bytes each."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        least = b"{%d,}" % max(2, shortest)
        for character in (rb"[\x20-\x7e]", rb"(?:[\x20-\x7e]\x00)", rb"(?:\x00[\x20-\x7e])", rb"(?:[\x20-\x7e]\x00{3})"):
            for run in re.findall(character + least, content):
                yield run.replace(b"\x00", b"").decode("ascii")
        return
    yield text
    if "\x00" in text:
        yield text.replace("\x00", "")


def _unpacked(content: bytes, depth: int) -> Iterator[bytes]:
    """The bytes themselves, and what lies packed in them."""
    yield content
    if depth:
        for inner in _members(content):
            yield from _unpacked(inner, depth - 1)


def _members(content: bytes) -> Iterable[bytes]:
    """What is packed in an archive or stream; nothing if it cannot be unpacked (such a file is no part of a release anyway)."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return [archive.comment, *(part for info in archive.infolist() for part in _zip_parts(archive, info))]
        if content[:2] == b"\x1f\x8b":
            return [gzip.decompress(content)]
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, zlib.error):
        return []
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            members = [(info.name.encode(), archive.extractfile(info)) for info in archive]
            return [part for name, file in members for part in (name, file.read() if file else b"")]
    except (tarfile.TarError, OSError, EOFError):
        return list(_deflated(content))


def _zip_parts(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> list[bytes]:
    return [info.filename.encode(), info.comment, archive.read(info)]


def _deflated(content: bytes) -> Iterator[bytes]:
    """zlib streams anywhere in the bytes, such as the chunks of an HDF5 or PNG file."""
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content):
        try:
            yield zlib.decompressobj().decompress(content[match.start() : match.start() + _PACKED_AT_MOST], _PACKED_AT_MOST)
        except zlib.error:
            continue
