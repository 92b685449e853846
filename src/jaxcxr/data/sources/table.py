"""Turn a hospital's table and a folder of images into a manifest, by a column map in YAML.

Nothing is guessed: every allowed value of a mapped column is named in the configuration, and any other is
refused, with its row. Findings come either from one column each, whose grades are mapped to 1, 0 or null
(unknown), or from a single column of labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from jaxcxr.config import STRICT
from jaxcxr.data.ages import MAX_AGE, age_years
from jaxcxr.data.csv_dialect import with_point
from jaxcxr.data.manifest import (
    REQUIRED,
    SEXES,
    SPLITS,
    VIEWS,
    check_manifest,
    missing_column,
    read_table,
    text_of,
)
from jaxcxr.data.sources.cohort import Cohort, Provenance
from jaxcxr.data.sources.identities import remarks, with_one_id
from jaxcxr.data.splits import GIVEN, SplitDraw, described, split_by_patient
from jaxcxr.errors import InputError

Label = Literal[0, 1] | None
Value = TypeVar("Value")
_OWN = Provenance("table and image files", "the user's own", "the user's own", "the user's own")
_PER_YEAR = {"years": 1.0, "months": 12.0, "days": 365.25}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the table's columns; null if the table has none.

    Attributes:
        path: image file, relative to the images folder.
        patient_id: the patient; the same text is the same person.
        image_id: unique; null uses `path`.
        split: null makes random splits by patient (`TableSource.draw`).
    """

    __pydantic_config__ = STRICT
    path: str
    patient_id: str
    image_id: str | None = None
    age: str | None = None
    sex: str | None = None
    view: str | None = None
    split: str | None = None
    comorbidities: str | None = None


@dataclasses.dataclass(frozen=True)
class Graded:
    """A finding with a column of its own; an empty cell is unknown unless `grades` says otherwise.

    Attributes:
        column: holds the grade.
        grades: label of each grade: 1, 0, or null for unknown. Numbers compare as numbers: `1` covers the
            cell `1.0`.
    """

    __pydantic_config__ = STRICT
    column: str
    grades: dict[str, Label] = dataclasses.field(default_factory=lambda: {"0": 0, "1": 1})


@dataclasses.dataclass(frozen=True)
class Listed:
    """Findings that share one column of labels; an empty cell leaves all of an image's findings unknown.

    Attributes:
        column: holds the labels.
        findings: labels that make each finding positive; an image that names none of them is negative.
        unlabelled: labels that mark an image as not read for these findings: findings it names are positive,
            the others unknown.
        other: further allowed labels, such as one for no finding.
        separator: text between two labels.
    """

    __pydantic_config__ = STRICT
    column: str
    findings: dict[str, tuple[str, ...]]
    unlabelled: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    separator: str = "|"


@dataclasses.dataclass(frozen=True)
class TableSource:
    """The column map of one table.

    Attributes:
        columns: names of its columns.
        graded: findings with a column each, in output order; set exactly one of `graded` and `listed`.
        listed: findings in one column of labels.
        sex, view, split: value in the table -> value in the manifest; an empty cell is `unknown`. With null,
            the table must hold manifest values.
        age_unit: unit of ages; with years, DICOM's notation (058Y, 18M) is accepted too.
        max_age: in years; a higher age counts as unknown.
        groups: further columns for the store, such as an ethnic group or a scanner: manifest column -> table
            column.
        keep: for a column, the values of the rows to keep.
        drop: for a column, the values of the rows to leave out.
        same_patient: alias -> id, for patients with several ids; an id may itself be an alias.
        draw: random splits, where `columns.split` is null (`jaxcxr.data.splits`).
        provenance: where the images come from, for the data card.
    """

    __pydantic_config__ = STRICT
    columns: Columns
    graded: dict[str, Graded] | None = None
    listed: Listed | None = None
    sex: dict[str, Literal["F", "M", "unknown"]] | None = None
    view: dict[str, Literal["AP", "PA", "unknown"]] | None = None
    split: dict[str, Literal["train", "valid", "test"]] | None = None
    age_unit: Literal["years", "months", "days"] = "years"
    max_age: Annotated[float, Field(gt=0)] = MAX_AGE
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    keep: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    drop: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    same_patient: dict[str, str] = dataclasses.field(default_factory=dict)
    draw: SplitDraw | None = None
    provenance: Provenance = _OWN

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings, in output order."""
        return tuple(self.graded or (self.listed.findings if self.listed else ()))


def read(table: Path, source: TableSource) -> Cohort:
    """The cohort in a CSV or parquet table with one row per image.

    Raises:
        InputError: the table cannot be read, or `to_manifest` refuses it.
    """
    source = keyed(source)
    rows = read_table(table)
    manifest = to_manifest(rows, source, str(table))
    excluded = {"rows left out by the column map": len(rows) - len(manifest)}
    return Cohort(
        manifest, source.findings, source.provenance, excluded, split=split_of(source),
        remarks=remarks(text_of(_kept(rows, source), source.columns.patient_id), source.same_patient),
    )  # fmt: skip


def keyed(source: TableSource, begun: str | None = None) -> TableSource:
    """The column map with the key of its random splits set (`SplitDraw.keyed`), if it has random splits."""
    return source if source.draw is None else dataclasses.replace(source, draw=source.draw.keyed(begun))


def split_of(source: TableSource) -> Mapping[str, object]:
    """Record of how the splits of a `keyed` column map are made."""
    return dict(GIVEN) if source.draw is None else described(source.draw, source.draw.fractions())


def to_manifest(table: pd.DataFrame, source: TableSource, name: str) -> pd.DataFrame:
    """The checked manifest of a table.

    Args:
        table: one row per image, as `jaxcxr.data.manifest.read_table` gives it.
        source: the column map.
        name: name of the table in error messages, such as its file.

    Returns:
        The manifest of the rows kept, in table order (see `jaxcxr.data.manifest.check_manifest`).

    Raises:
        InputError: a mapped column is missing, a cell holds a value that the map does not name, no row is
            kept, or the manifest breaks its contract. Rows are counted from 1, without the header.
    """
    if (source.graded is None) == (source.listed is None) or not source.findings:
        raise InputError(f"{name}: the column map must name findings in exactly one of 'graded' and 'listed'")
    if (source.columns.split is None) == (source.draw is None):
        raise InputError(f"{name}: the column map must set exactly one of 'columns.split' and 'draw'")
    table = table.reset_index(drop=True)
    _require_columns(table, source, name)
    rows = _kept(table, source)
    if rows.empty:
        raise InputError(f"{name}: none of its {len(table)} rows is left to use after 'keep' and 'drop'")
    columns = source.columns
    patients = with_one_id(text_of(rows, columns.patient_id), source.same_patient)
    manifest = pd.DataFrame(
        {
            "image_id": text_of(rows, columns.image_id or columns.path),
            "patient_id": patients,
            "path": text_of(rows, columns.path),
            "age": _ages(rows, source, name),
            "sex": _mapped(rows, columns.sex, source.sex or {value: value for value in SEXES}, name),
            "view": _mapped(rows, columns.view, source.view or {value: value for value in VIEWS}, name),
        },
        index=rows.index,
    )
    if columns.comorbidities is not None:
        manifest["comorbidities"] = text_of(rows, columns.comorbidities)
    if columns.split is not None:
        manifest["split"] = _mapped(
            rows, columns.split, source.split or {value: value for value in SPLITS}, name
        )
    if source.graded is not None:
        manifest = manifest.assign(**_graded(rows, source.graded, name))
    if source.listed is not None:
        manifest = manifest.assign(**_listed(rows, source.listed, name))
    manifest = manifest.assign(**{group: text_of(rows, column) for group, column in source.groups.items()})
    if source.draw is not None:
        manifest = split_by_patient(manifest, source.draw.keyed())
    return check_manifest(manifest, source.findings, name)


def _require_columns(table: pd.DataFrame, source: TableSource, name: str) -> None:
    named = [column for column in dataclasses.astuple(source.columns) if column is not None]
    named += [graded.column for graded in (source.graded or {}).values()]
    named += [source.listed.column] if source.listed else []
    taken = {*REQUIRED, "view", "comorbidities", *source.findings}
    for finding in source.findings:
        if finding in (*REQUIRED, "view", "comorbidities"):
            raise InputError(
                f"{name}: finding {finding!r}: a column that every manifest has bears this name, expected "
                "another name"
            )
    for group in source.groups:
        if group in taken:
            raise InputError(
                f"{name}: groups: {group!r} is a column that every manifest or a finding has, expected "
                "another name"
            )
    for column in [*named, *source.groups.values(), *source.keep, *source.drop]:
        if column not in table.columns:
            raise InputError(f"{name}: {missing_column(column, table.columns)}")


def _kept(table: pd.DataFrame, source: TableSource) -> pd.DataFrame:
    kept = np.ones(len(table), dtype=bool)
    for column, values in source.keep.items():
        kept &= _among(table, column, values)
    for column, values in source.drop.items():
        kept &= ~_among(table, column, values)
    return table.loc[kept]


def _among(table: pd.DataFrame, column: str, values: Sequence[str]) -> np.ndarray:
    wanted = {_canonical(value) for value in values}
    return np.array([_canonical(text) in wanted for text in text_of(table, column)], dtype=bool)


def _ages(rows: pd.DataFrame, source: TableSource, name: str) -> list[float]:
    if source.columns.age is None:
        return [np.nan] * len(rows)
    ages = []
    for row, text in _cells(rows, source.columns.age):
        age = _age(text, source.age_unit)
        if age < 0 or np.isinf(age):
            expected = f"a number of {source.age_unit}, at least 0, or empty"
            raise InputError(
                f"{name}: row {row}, column {source.columns.age!r}: found {text!r}, expected {expected}"
            )
        ages.append(age if age <= source.max_age else np.nan)
    return ages


def _age(text: str, unit: str) -> float:
    """Age in years; NaN for an empty text, below 0 for a text that is not an age."""
    try:
        return float(with_point(text) or "nan") / _PER_YEAR[unit]
    except ValueError:
        pass
    try:
        return age_years(text) if unit == "years" else -1.0
    except ValueError:
        return -1.0


def _mapped(rows: pd.DataFrame, column: str | None, values: Mapping[str, str], name: str) -> list[str]:
    """The meaning of every cell by `values`; an empty cell, or a missing column, gives an empty text."""
    if column is None:
        return [""] * len(rows)
    found = {_canonical(value): meaning for value, meaning in values.items()} | {"": values.get("", "")}
    return [_look_up(found, text, row, column, name, values) for row, text in _cells(rows, column)]


def _graded(rows: pd.DataFrame, graded: Mapping[str, Graded], name: str) -> dict[str, list[Label]]:
    labels: dict[str, list[Label]] = {}
    for finding, how in graded.items():
        grades: dict[str, Label] = {_canonical(grade): label for grade, label in how.grades.items()}
        grades.setdefault("", None)
        labels[finding] = [
            _look_up(grades, text, row, how.column, name, how.grades)
            for row, text in _cells(rows, how.column)
        ]
    return labels


def _listed(rows: pd.DataFrame, listed: Listed, name: str) -> dict[str, list[Label]]:
    allowed = [label for group in listed.findings.values() for label in group] + [
        *listed.unlabelled,
        *listed.other,
    ]
    known = {label: label for label in allowed}
    labels: dict[str, list[Label]] = {finding: [] for finding in listed.findings}
    for row, cell in _cells(rows, listed.column):
        named = {part.strip() for part in cell.split(listed.separator)} - {""}
        for label in sorted(named):
            _look_up(known, label, row, listed.column, name, known)
        absent: Label = 0 if named and named.isdisjoint(listed.unlabelled) else None
        for finding, group in listed.findings.items():
            labels[finding].append(absent if named.isdisjoint(group) else 1)
    return labels


def _cells(rows: pd.DataFrame, column: str) -> list[tuple[int, str]]:
    return list(zip(rows.index + 1, text_of(rows, column), strict=True))


def _look_up(
    found: Mapping[str, Value], text: str, row: int, column: str, name: str, allowed: Mapping[str, object]
) -> Value:
    key = text if text in found else _canonical(text)
    if key not in found:
        raise InputError(
            f"{name}: row {row}, column {column!r}: found {text!r}, expected one of "
            f"{', '.join(map(repr, allowed))}"
        )
    return found[key]


def _canonical(text: str) -> str:
    """A number in one spelling: `1`, `1.0`, `1,0` and `01` match the same key; other text unchanged."""
    try:
        return repr(float(with_point(text)))
    except ValueError:
        return text
