"""Check a release folder: it must be, byte for byte, the release of its own weights, configuration and card.

Two checks. The first accepts only what the builder writes: weights with nothing but the parameters of the
network that the configuration describes, a configuration with its private paths blanked, a card whose every
figure and sentence follows from its ledger entries, and the other files as they follow from these three. The
second searches for the identifiers of the manifest in the names of files and folders, in foreign files, and
wherever the first check leaves room for text (names of findings, fingerprints and versions, runs of letters
in the bytes of the weights).
"""

import dataclasses
import datetime
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load

from jaxcxr.config import Experiment
from jaxcxr.config_files import load as load_config
from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.release.agreement import card_with_itself, config_and_card
from jaxcxr.release.attributes import attributes_of, numbers_beside, unusual
from jaxcxr.release.contents import (
    ALWAYS,
    CARD_JSON,
    ORBAX,
    REGISTRY,
    SOURCES,
    WEIGHTS,
    not_the_cards,
    own_words,
)
from jaxcxr.release.identifiers import SHORT, Identifiers
from jaxcxr.release.public_config import not_public
from jaxcxr.release.register import register_of
from jaxcxr.release.registry import lacking
from jaxcxr.release.released_weights import read_weights
from jaxcxr.release.write import write_release
from jaxcxr.report.card.card import differing, recomputed
from jaxcxr.report.card.card_schema import NOT_FOR_RELEASE, PrivacyCard, read_card, read_identity
from jaxcxr.run_folder import CONFIG, is_run, read_config
from jaxcxr.training.weights import nested_weights, weights_digest

OWN_NAMES = ("release", ".release.partial")
"""Names of a release folder, finished and while it is built."""
_LEAST_IN_WEIGHTS = 6
_HEADER_AT_MOST = 1 << 20
_DIGESTS = 4 * 64
"""Number of letters of all fingerprints on a card."""
_VERSIONS = ("jaxcxr", "written_by", "dp_accounting")
_BY_CHANCE = 1e-3
"""Accepted probability that an identifier occurs in the bytes of the weights by chance."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        wrong: one sentence per reason that forbids release; the folder passes if there is none.
        unchecked: one sentence per search that was not possible, or per remark that forbids nothing.
    """

    wrong: tuple[str, ...]
    unchecked: tuple[str, ...]


def check_release(folder: Path, manifest: pd.DataFrame | None, leaves: bool = True) -> Verdict:
    """The verdict on a release folder.

    Args:
        folder: to be checked.
        manifest: of the cohort (`image_id`, `patient_id`, `path`); None skips the search for identifiers.
        leaves: whether the folder itself is to leave, with its name and the attributes of its files; if not,
            what is made from it does.

    Raises:
        InputError: there is no such folder, or the manifest lacks a column.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    identifiers = None if manifest is None else Identifiers(manifest)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in paths.items() if path.is_file() and not path.is_symlink()}
    sources = _read_sources(folder)
    expected = _expected(sources, record=(folder / REGISTRY).is_file())
    known = {
        *(expected or ALWAYS),
        *(parent.as_posix() for name in expected for parent in Path(name).parents),
    }
    foreign = [name for name in paths if name not in known]
    wrong = [f"{name}: is a link" for name, path in paths.items() if path.is_symlink()]
    wrong += sources.wrong
    remarks = unusual(folder) if leaves else ()
    wrong += attributes_of(folder) if leaves else ()
    wrong += [] if sources.card is None else not_the_cards(folder, sources.card)
    wrong += [
        f"{name}: is not part of a release" for name in foreign if expected or not name.startswith(ORBAX)
    ]
    wrong += [f"{name}: is missing" for name in expected if name not in files]
    spoilt = [
        name for name, content in expected.items() if name in files and files[name].read_bytes() != content
    ]
    wrong += [f"{name}: is not the file that {', '.join(SOURCES)} give" for name in spoilt]
    if identifiers is None:
        return Verdict(tuple(wrong), ("no manifest was given, so no identifier was searched for", *remarks))
    wrong += [
        f"{place}: its {what} is {it}"
        for place, what, number in (numbers_beside(folder) if leaves else ())
        for it in identifiers.in_number(number)
    ]
    wrong += [f"{name}: its name holds {it}" for name in foreign for it in identifiers.in_text(name)]
    own = folder.resolve().name
    if leaves and own not in OWN_NAMES:
        wrong += [f"the folder's own name, {own}, holds {it}" for it in identifiers.in_words(own)]
    for name, path in files.items():
        if name not in expected or name in spoilt:
            found = _in_file(path, identifiers, numbers=not expected and _is_numbers(name))
            wrong += [f"{name}: holds {it}" for it in found]
    wrong += [f"{name}: holds {it}" for name, it in _in_sources(sources, identifiers)]
    return Verdict(tuple(dict.fromkeys(wrong)), (*_unchecked(sources, identifiers), *remarks))


def check_registered(folder: Path, store: Path | None) -> Verdict:
    """The verdict of the cohort's register on a release: its weights, card and earlier models.

    Files that cannot be read are reported by `check_release`.

    Args:
        folder: to be checked.
        store: of the cohort; by default, for a release in its run folder, the run's store.

    Raises:
        InputError: there is no such store, or its register is damaged.
    """
    store = store or store_of_run(folder.resolve().parent)
    if store is None:
        return Verdict(
            (), ("no store was given, and its register of released models was not asked (--store)",)
        )
    try:
        card, weights = read_identity(folder / CARD_JSON), load((folder / WEIGHTS).read_bytes())
    except (InputError, OSError, SafetensorError):
        return Verdict((), ())
    return Verdict(tuple(register_of(store).at_odds(card, weights_digest(nested_weights(weights)))), ())


def manifest_of(folder: Path, store: Path | None) -> pd.DataFrame | None:
    """The manifest of a release's cohort: of the store, or, for a release in its run folder, of the run's
    store; None if there is neither.
    """
    store = store or store_of_run(folder.resolve().parent)
    return None if store is None else open_store(store).manifest


def store_of_run(run: Path) -> Path | None:
    """The store of a run's cohort; None if there is no run, or its store is not there."""
    if not is_run(run):
        return None
    store = Path(read_config(run).data.store)
    return store if store.is_dir() else None


@dataclasses.dataclass(frozen=True)
class _Sources:
    """The sources of all other files; None for a source that is wrong."""

    config: Experiment | None
    card: PrivacyCard | None
    weights: dict[str, np.ndarray] | None
    wrong: tuple[str, ...]


def _read_sources(folder: Path) -> _Sources:
    wrong: list[str] = []
    config = card = weights = None
    try:
        config = _checked_config(folder / CONFIG)
    except InputError as error:
        wrong.append(str(error))
    try:
        card = _checked_card(folder / CARD_JSON)
    except InputError as error:
        wrong.append(str(error))
    try:
        weights = read_weights(folder / WEIGHTS, config)
    except InputError as error:
        wrong.append(str(error))
    if config is not None and card is not None:
        wrong += [*config_and_card(config, card), *card_with_itself(card, datetime.date.today())]
        wrong += not_public(config, card.steps_planned)
    return _Sources(config, card, weights, tuple(sentence.replace(f"{folder}/", "") for sentence in wrong))


def _expected(sources: _Sources, record: bool) -> dict[str, bytes]:
    """The files that a folder must hold, by name, with or without a record for the registry; none if one of
    its sources is wrong.
    """
    if sources.config is None or sources.card is None or sources.weights is None:
        return {}
    record = record and not lacking(sources.card)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        write_release(again, nested_weights(sources.weights), sources.config, sources.card, record=record)
        return {
            path.relative_to(again).as_posix(): path.read_bytes()
            for path in sorted(again.rglob("*"))
            if path.is_file()
        }


def _checked_config(path: Path) -> Experiment:
    config = load_config(Experiment, path)
    if wrong := list(not_public(config, None)):
        raise InputError("; ".join(wrong))
    return config


def _checked_card(path: Path) -> PrivacyCard:
    card = read_card(path)
    if not card.for_release or card.watermark or card.reasons_against_release:
        raise InputError(f"{path}: {NOT_FOR_RELEASE}: {'; '.join(card.reasons_against_release)}")
    if any(row.patient is not None for row in card.patients):
        raise InputError(f"{path}: shows the cohort's images per patient, which are private")
    changed = differing(card, recomputed(card))
    if changed:
        raise InputError(
            f"{path}: does not follow from its own mechanisms: {', '.join(changed)} (edited, or another "
            "version)"
        )
    return card


def _is_numbers(name: str) -> bool:
    """Whether a file holds the bytes of weights, in which short texts occur by chance."""
    return name == WEIGHTS or (
        name.startswith(f"{ORBAX}/params/") and name.rpartition("/")[2].replace(".", "").isdigit()
    )


def _in_file(path: Path, identifiers: Identifiers, numbers: bool) -> list[str]:
    content = path.read_bytes()
    if not numbers:
        return identifiers.in_bytes(content)
    length = int.from_bytes(content[:8], "little") if path.name == WEIGHTS else 0
    header, body = content[8 : 8 + length], content[8 + length :] if length else content
    shortest = max(_LEAST_IN_WEIGHTS, _shortest(identifiers, len(body), 128))
    return identifiers.in_bytes(header[:_HEADER_AT_MOST]) + identifiers.in_bytes(body, shortest)


def _in_sources(sources: _Sources, identifiers: Identifiers) -> Iterator[tuple[str, str]]:
    """Identifiers found where correct files leave room for text; numbers there are not ids."""
    for text in _free_texts(sources.config):
        for it in identifiers.in_words(text):
            yield CONFIG, it
    for value in _free_numbers(sources.config):
        for it in identifiers.in_number(value):
            yield CONFIG, it
    if sources.card is not None:
        yield from ((CARD_JSON, it) for it in _in_fingerprints(sources.card, identifiers))
        for place, number in _free_numbers_of_card(sources.card):
            for it in identifiers.in_number(number):
                yield f"{CARD_JSON} ({place})", it
        for place, text in own_words(sources.card).items():
            for it in identifiers.in_words(text):
                yield f"{CARD_JSON} ({place})", it
    shortest = _shortest_in_weights(sources, identifiers)
    for name, array in (sources.weights or {}).items():
        for it in identifiers.in_bytes(array.tobytes(), shortest):
            yield f"{WEIGHTS} ({name})", it


def _in_fingerprints(card: PrivacyCard, identifiers: Identifiers) -> Iterator[str]:
    """Identifiers in digests, as they stand, as bytes or as a digest of themselves, and in versions."""
    shortest = _shortest(identifiers, _DIGESTS, 16)
    fingerprints = card.fingerprints.model_dump()
    libraries = list(fingerprints.pop("libraries").values())
    digests = [*fingerprints.values(), *(row.ledger for row in card.siblings or ())]
    digests += [card.audit.code, card.audit.training_code] if card.audit is not None else []
    for text in digests:
        yield from identifiers.in_text(text, shortest)
        yield from identifiers.in_digests(text)
    for version in (*libraries, *(fingerprints[name] for name in _VERSIONS)):
        yield from _in_digits(version, identifiers)
    yield from _in_digits("".join(libraries), identifiers)


def _in_digits(text: str, identifiers: Identifiers) -> list[str]:
    """Identifiers that all digits of a text together are."""
    digits = "".join(c for c in text if c.isdigit())
    return identifiers.in_number(int(digits or "0"))


def _free_numbers(config: Experiment | None) -> Iterator[float]:
    """Numbers of a released configuration that may have many digits: budgets, bounds, declared rates."""
    for value in config.digest_fields().values() if config else ():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                yield number


def _free_texts(config: Experiment | None) -> Iterator[str]:
    """Texts of a released configuration, one by one and together, as an identifier may be in pieces."""
    if config is not None:
        for texts in (config.data.findings, (config.model.network,), config.model.options):
            yield from dict.fromkeys((*texts, " ".join(texts)))


def _free_numbers_of_card(card: PrivacyCard) -> Iterator[tuple[str, float]]:
    """Numbers of a card that nothing else decides, with their places. What the register knows is left to it:
    steps are counts, among which an identifier may be by chance.
    """
    yield from ((f"statement.{name}", value) for name, value in card.statement.numbers().items())
    parts = {"audit": card.audit, "tuning": card.tuning}
    for place, row in enumerate(card.siblings or ()):
        parts[f"siblings.{place}"] = row
    for name, part in parts.items():
        for value in _numbers_in(None if part is None else part.model_dump()):
            if name == "audit" or isinstance(value, float):
                yield name, value


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _shortest(identifiers: Identifiers, size: int, letters: int) -> int:
    """Length from which on an identifier among `size` random letters is not there by chance."""
    return math.ceil(math.log(max(1, len(identifiers)) * max(1, size) / _BY_CHANCE) / math.log(letters))


def _shortest_in_weights(sources: _Sources, identifiers: Identifiers) -> int:
    size = sum(array.nbytes for array in (sources.weights or {}).values())
    return max(
        _LEAST_IN_WEIGHTS, _shortest(identifiers, size, 128)
    )  # two of 256 bytes match a letter, in either case


def _unchecked(sources: _Sources, identifiers: Identifiers) -> Iterator[str]:
    if bare := identifiers.bare_numbers():
        yield (
            f"{bare} of {len(identifiers)} identifiers are numbers of fewer than {SHORT} digits: any number "
            "might be one, and they were searched for in the names and texts of foreign files only"
        )
    shortest = _shortest_in_weights(sources, identifiers)
    if short := identifiers.shorter_than(shortest):
        yield (
            f"{short} of {len(identifiers)} identifiers have fewer than {shortest} characters: such texts "
            f"occur by chance in the numbers of {WEIGHTS}, and were not searched for there"
        )
