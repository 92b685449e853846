"""Shared by the adapters of published data sets: options, tables, and mapping of labels to findings.

An adapter is a module with a `PROVENANCE` and a function `read(folder, images, options)` that returns a
`Cohort`.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
import pandas as pd
from pydantic import Field

from jaxcxr.config import STRICT
from jaxcxr.data.ages import plausible_age
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import check_manifest, missing_column, text_cells, text_of
from jaxcxr.data.sources.cohort import Cohort, Provenance
from jaxcxr.data.sources.identities import remarks, with_one_id
from jaxcxr.data.splits import GIVEN, SplitDraw, described, split_by_patient, valid_from_train
from jaxcxr.errors import InputError

Policy = Literal["unknown", "negative", "positive"]
_MEANING: Mapping[str, float] = {"unknown": np.nan, "negative": 0.0, "positive": 1.0}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every adapter.

    Attributes:
        labels: `native` keeps the data set's own findings; `paper` maps them to the paper's eight. A data set
            without sides can only say that both sides are free of a finding; a positive label leaves both
            sides unknown.
        uncertain: meaning of an uncertain label, by the data set's own name of the finding; `default` for all
            others.
        unmentioned: meaning of an empty label in data sets labelled from reports.
        no_finding: what a positive 'No Finding' says of the labels that CheXpert's labeller left empty:
            `others_negative` (as torchxrayvision reads it; support devices are no finding and stay), or
            `alone`: nothing.
        split: the data set's own (`official`), or random by patient (`drawn`; `jaxcxr.data.splits`).
        valid_fraction: fraction of the training patients to move to `valid` if no validation split is
            published.
        draw: fractions of the patients for `drawn`, and the key for it and for `valid_fraction`.
        views: frontal views to keep.
        max_age: in years; a higher age counts as unknown.
        same_patient: alias -> id, for patients with several ids (near-duplicates can show them); an id may
            itself be an alias.
    """

    __pydantic_config__ = STRICT
    labels: Literal["native", "paper"] = "native"
    uncertain: dict[str, Policy] = dataclasses.field(default_factory=lambda: {"default": "unknown"})
    unmentioned: Policy = "unknown"
    no_finding: Literal["others_negative", "alone"] = "others_negative"
    split: Literal["official", "drawn"] = "official"
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    draw: SplitDraw = dataclasses.field(default_factory=lambda: SplitDraw(0.7, 0.1, 0.2))
    views: tuple[Literal["AP", "PA", "unknown"], ...] = ("AP", "PA")
    max_age: Annotated[float, Field(gt=0)] = 120.0
    same_patient: dict[str, str] = dataclasses.field(default_factory=dict)


def read_csv(folder: Path, names: Sequence[str], columns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The first existing table of `names` (also with `.gz`), with cells as text; and its path, for messages.

    Raises:
        InputError: none exists, it cannot be read, or one of `columns` is missing.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return read_columns(path, columns), str(path)
    raise InputError(f"{folder}: expected the table {' or '.join(names)}, found none")


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV table with cells as text; a comma at the end of each row does not make another column.

    Raises:
        InputError: the table cannot be read, or a column is missing.
    """
    try:
        table = text_cells(path)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({' '.join(str(error).split())})") from error
    for column in columns:
        if column not in table.columns:
            raise InputError(f"{path}: {missing_column(column, table.columns)}")
    return table


def optional_csv(folder: Path, names: Sequence[str], columns: Sequence[str]) -> pd.DataFrame | None:
    """The table of `read_csv`, or None if there is none."""
    there = any((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)
    return read_csv(folder, names, columns)[0] if there else None


def translated(table: pd.DataFrame, column: str, meanings: Mapping[str, str], name: str) -> list[str]:
    """The meaning of each cell of a column.

    Raises:
        InputError: a cell holds another value; its row is named, counted from 1 without the header.
    """
    return [
        meanings[text] if text in meanings else _unknown_value(name, row, column, text, meanings)
        for row, text in zip(table.index + 1, text_of(table, column), strict=True)
    ]


def graded(table: pd.DataFrame, column: str, meanings: Mapping[str, float], name: str) -> np.ndarray:
    """Labels of a column: 1, 0 or NaN; numbers compare as numbers (`1` covers `1.0`).

    Raises:
        InputError: a cell holds a value that is not among `meanings`.
    """
    labels = np.empty(len(table))
    for place, (row, text) in enumerate(zip(table.index + 1, text_of(table, column), strict=True)):
        key = text if text in meanings else _short(text)
        labels[place] = (
            meanings[key] if key in meanings else _unknown_value(name, row, column, text, meanings)
        )
    return labels


def uncertain_meanings(finding: str, options: Options) -> dict[str, float]:
    """Label for each of the cells 1, 0, -1 and empty that CheXpert's labeller writes."""
    policy = options.uncertain.get(finding, options.uncertain.get("default", "unknown"))
    return {"1": 1.0, "0": 0.0, "-1": _MEANING[policy], "": _MEANING[options.unmentioned]}


def require_known(options: Options, findings: Iterable[str], name: str) -> None:
    """Refuse a policy for a finding that the data set does not have."""
    known = {*findings, "default"}
    for finding in options.uncertain:
        if finding not in known:
            raise InputError(
                f"{name}: uncertain: no finding {finding!r}; expected one of {', '.join(sorted(known))}"
            )


def snake(label: str) -> str:
    """A label as a column name: `Pleural Effusion` becomes `pleural_effusion`."""
    return "_".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def either(*labels: np.ndarray) -> np.ndarray:
    """1 where any label is 1, 0 where all are 0, else NaN."""
    stacked = np.stack(labels)
    any_positive = (stacked == 1).any(axis=0)
    return np.where(any_positive, 1.0, np.where((stacked == 0).all(axis=0), 0.0, np.nan))


def paper_findings(
    cardiomegaly: np.ndarray,
    congestion: np.ndarray,
    effusion: np.ndarray,
    infiltrates: np.ndarray,
    atelectasis: np.ndarray,
) -> dict[str, np.ndarray]:
    """The paper's findings from labels without sides: negative on both sides, or unknown on both."""
    columns = {"cardiomegaly": cardiomegaly, "congestion": congestion}
    for stem, labels in (
        ("pleural_effusion", effusion),
        ("pneumonic_infiltrates", infiltrates),
        ("atelectasis", atelectasis),
    ):
        for side in ("right", "left"):
            columns[f"{stem}_{side}"] = np.where(labels == 0, 0.0, np.nan)
    return {finding: columns[finding] for finding in UKA_FINDINGS}


def ages_or_unknown(ages: Iterable[float], options: Options) -> list[float]:
    """Ages in years, NaN for implausible ones."""
    return [age if age <= options.max_age else np.nan for age in map(plausible_age, ages)]


def located(images: Path, expected: Sequence[str]) -> list[str]:
    """Paths relative to `images`: the expected one, else the first in alphabetical order with that name.

    What is found for one name does not depend on the others.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    there = [(images / name).is_file() for name in expected]
    if all(there):
        return list(expected)
    by_name: dict[str, str] = {}
    for folder, _, files in os.walk(images):
        for file in files:
            path = os.path.relpath(Path(folder) / file, images)
            if is_utf8(path):
                by_name[file] = min(path, by_name.get(file, path))
    return [
        name if found else by_name.get(Path(name).name, name)
        for name, found in zip(expected, there, strict=True)
    ]


def require_images(images: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which none of a hundred images, evenly spread over the table, is found.

    Raises:
        InputError: names the first, and where below or above the folder it lies, if that is soon found.
    """
    some = list(names)[:: max(1, len(names) // 100)]
    if any(_is_there(images / name) for name in some):
        return
    first = some[0]
    parts = Path(first).parts
    nearby = [images.parent, *images.parents[1:3], *sorted(p for p in images.iterdir() if p.is_dir())[:100]]
    found = next((folder for folder in nearby if _is_there(folder / first)), None)
    if found is None and len(parts) > 1 and _is_there(images / Path(*parts[1:])):
        hint = f"; without {parts[0]!r} it is there: give the folder above"
    else:
        hint = f"; it lies in {found}" if found else "; give the folder that the table's paths start from"
    raise InputError(
        f"{images}: none of {len(some)} images of the table is in this folder, the first is {first!r}{hint}"
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


def is_utf8(path: str) -> bool:
    """Whether a file name is valid UTF-8, so that a table can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def keep_views(frame: pd.DataFrame, options: Options, excluded: dict[str, int]) -> pd.DataFrame:
    """The rows with a wanted view; the others are counted in `excluded`."""
    kept = frame["view"].isin(options.views).to_numpy()
    for view, count in frame.loc[~kept, "view"].value_counts().items():
        excluded[f"view {view}"] = excluded.get(f"view {view}", 0) + int(count)
    return frame.loc[kept]


def cohort(
    frame: pd.DataFrame, findings: Sequence[str], options: Options, provenance: Provenance, name: str,
    excluded: Mapping[str, int], *, publishes_valid: bool,
) -> Cohort:  # fmt: skip
    """The cohort, with a split for every row and a checked manifest.

    `publishes_valid` says whether the data set has a validation split of its own. That is known from its
    tables, not from the rows that are left: no row may decide for the others.
    """
    if frame.empty:
        raise InputError(f"{name}: none of its rows is a usable image ({dict(excluded)})")
    seen = remarks(frame["patient_id"], options.same_patient)
    frame = frame.assign(patient_id=with_one_id(frame["patient_id"], options.same_patient))
    draw, split = options.draw.keyed(), dict(GIVEN)
    if options.split == "drawn" or "split" not in frame.columns:
        frame, split = split_by_patient(frame, draw), described(draw, draw.fractions())
    elif options.valid_fraction > 0 and not publishes_valid:
        frame = valid_from_train(frame, options.valid_fraction, draw)
        fractions = {"train": 1 - options.valid_fraction, "valid": options.valid_fraction}
        split = described(draw, fractions) | {"of": "the published training patients"}
    return Cohort(
        check_manifest(frame, findings, name), tuple(findings), provenance, dict(excluded), split=split,
        remarks=seen,
    )  # fmt: skip


def _short(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if np.isfinite(number) and number == int(number) else text


def _unknown_value(name: str, row: int, column: str, text: str, meanings: Mapping[str, object]) -> NoReturn:
    expected = ", ".join(map(repr, meanings))
    raise InputError(f"{name}: row {row}, column {column!r}: found {text!r}, expected one of {expected}")
