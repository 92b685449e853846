"""The manifest: one row per image, with its patient, split, groups and findings.

It is the contract between a hospital's tables and everything after them; it is checked once, here, and
trusted afterwards.
"""

import difflib
import posixpath
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.data.csv_dialect import csv_text, with_point
from jaxcxr.errors import InputError

SPLITS: tuple[str, ...] = ("train", "valid", "test")
SEXES: tuple[str, ...] = ("F", "M", "unknown")
VIEWS: tuple[str, ...] = ("AP", "PA", "unknown")
REQUIRED: tuple[str, ...] = ("image_id", "patient_id", "path", "split", "age", "sex")
"""Columns a manifest must have besides one per finding; those in `OPTIONAL` may be missing."""

OPTIONAL: tuple[str, ...] = ("view", "comorbidities")

_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType({"split": SPLITS, "sex": SEXES, "view": VIEWS})
_IDENTIFIERS = ("image_id", "patient_id", "path")
_BEYOND = "(beyond the header)"


def declared_groups(frame: pd.DataFrame, findings: Sequence[str]) -> list[str]:
    """Columns of a store's manifest that its column map declared as further groups, such as a scanner.

    Args:
        frame: manifest of a store.
        findings: all of its label columns.
    """
    known = {*REQUIRED, *OPTIONAL, *findings}
    return [str(column) for column in frame.columns if column not in known]


def read_manifest(path: str | Path, findings: Sequence[str]) -> pd.DataFrame:
    """A manifest read from parquet (`.parquet`) or CSV (`.csv`), and checked.

    Args:
        path: the file.
        findings: columns that hold a label.

    Returns:
        The checked, typed manifest (see `check_manifest`).

    Raises:
        InputError: the file is missing, unreadable or breaks the contract.
    """
    return check_manifest(read_table(path), findings, str(path))


def read_table(path: str | Path) -> pd.DataFrame:
    """A parquet or CSV table; every cell of a CSV stays text, so that an id such as 007 keeps its zeros.

    A comma at the end of each row does not make another column; encoding and separator are found
    (`jaxcxr.data.csv_dialect`).

    Raises:
        InputError: the file is missing, neither parquet nor CSV, or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            return text_cells(path)
    # Pyarrow and pandas raise these for damaged files.
    except (
        ValueError, OSError, EOFError, KeyError, TypeError, NotImplementedError, zlib.error
    ) as error:  # fmt: skip
        raise InputError(
            f"{path}: cannot be read as a {path.suffix[1:]} table ({' '.join(str(error).split())})"
        ) from error
    raise InputError(f"{path}: expected a .parquet or .csv file, found suffix {path.suffix!r}")


def text_cells(path: Path) -> pd.DataFrame:
    """A CSV table (also compressed) whose cells all stay text.

    Raises:
        ValueError: it cannot be parsed, two columns have one name, or rows hold more cells than the header.
        OSError: it cannot be read.
    """
    text, separator = csv_text(path)
    how: dict[str, Any] = {"dtype": str, "keep_default_na": False, "index_col": False, "sep": separator}

    def read(**more: Any) -> pd.DataFrame:
        text.seek(0)
        return pd.read_csv(text, **how, **more)

    header = list(read(nrows=0).columns)
    named = [name.strip() for name in read(nrows=1, header=None).iloc[0]]
    for place, name in enumerate(named):
        if name and name in named[:place]:  # pandas would rename it silently
            pair = f"{named.index(name) + 1} and {place + 1}"
            raise ValueError(f"columns {pair} of the header have the same name; is its first row the header?")
    too_many = (
        f"rows have more cells than the {len(header)} of the header; if a title stands above the header, "
        "take its lines away"
    )
    with warnings.catch_warnings():
        # Pandas would cut rows that are longer than the header, or shift all columns by one; only empty cells
        # may be cut.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return read()
        except pd.errors.ParserWarning:
            pass
        except pd.errors.ParserError as error:
            raise ValueError(too_many if "fields" in str(error) else str(error)) from error
        try:
            table = read(names=[*header, _BEYOND], header=0)
        except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
            raise ValueError(too_many) from error
    if (table[_BEYOND].to_numpy() != "").any():
        raise ValueError(too_many)
    return table.drop(columns=_BEYOND)


def missing_column(column: str, columns: Iterable[object]) -> str:
    """The error message for a missing column.

    Only names like the wanted one are shown: in a table without a header, a patient's cells stand in place of
    the names.
    """
    names = {str(name).casefold(): str(name) for name in columns}
    alike = [names[name] for name in difflib.get_close_matches(column.casefold(), names, cutoff=0.7)]
    if len(names) == 1:
        hint = "are its cells separated by commas?"
    else:
        hint = f"did you mean {' or '.join(map(repr, alike))}?" if alike else "is its first row the header?"
    return f"column {column!r} is missing among the {len(names)} of the table; {hint}"


def check_manifest(frame: pd.DataFrame, findings: Sequence[str], source: str) -> pd.DataFrame:
    """The manifest, checked against the contract, with every column in its type.

    Args:
        frame: one row per image, cells as text or typed, index of whole numbers; an empty cell is unknown.
        findings: columns that hold a label.
        source: name of the table in error messages, such as its file.

    Returns:
        A copy in the same row order with a fresh index: ids and paths as text, age (years) as float64 with
        NaN for unknown, `sex` and `view` with `unknown` filled in, labels as float32 in {0, 1, NaN}; other
        columns are kept as they are.

    Raises:
        InputError: a column is missing, the table is empty, a cell is outside its range, an `image_id` or
            `path` repeats, or a patient is on two sides of a split. A row is named by its index label plus 1:
            counted from 1, without the header.
    """
    for place, finding in enumerate(findings):
        if finding in (*REQUIRED, "view", "comorbidities") or finding in findings[:place]:
            raise InputError(
                f"{source}: finding {finding!r}: expected a name that no other finding and no column of "
                "every manifest has"
            )
    missing = [column for column in (*REQUIRED, *findings) if column not in frame.columns]
    if missing:
        raise InputError(f"{source}: {missing_column(missing[0], frame.columns)}")
    if frame.empty:
        raise InputError(f"{source}: expected at least one image, found no rows")
    checked = frame if "view" in frame.columns else frame.assign(view="unknown")
    columns: dict[str, np.ndarray] = {}
    for column in _IDENTIFIERS:
        columns[column] = text_of(checked, column)
        _refuse(columns[column] == "", checked, column, source, "a text that is not empty")
    for column, choices in _CHOICES.items():
        values = text_of(checked, column)
        if "unknown" in choices:
            values[values == ""] = "unknown"
        _refuse(~np.isin(values, choices), checked, column, source, "one of " + ", ".join(choices))
        columns[column] = values
    columns["age"], wrong = _numbers(checked, "age")
    _refuse(wrong | (columns["age"] < 0), checked, "age", source, "a number of years, at least 0, or empty")
    for finding in findings:
        labels, wrong = _numbers(checked, finding)
        _refuse(
            wrong | ~(np.isnan(labels) | np.isin(labels, (0, 1))), checked, finding, source, "1, 0 or empty"
        )
        columns[finding] = labels.astype(np.float32)
    checked = checked.assign(**columns)
    if "comorbidities" in checked.columns:
        counts, wrong = _numbers(checked, "comorbidities")
        wrong |= (counts < 0) | (np.nan_to_num(counts) % 1 != 0)
        _refuse(wrong, checked, "comorbidities", source, "a whole number, at least 0, or empty")
        checked = checked.assign(comorbidities=pd.array(counts, dtype="Int64"))
    _refuse_repeated(checked, "image_id", "unique ids", source)
    # An image under two ids would count twice in a step, and the guarantee for one image would not hold for
    # it.
    one_name = checked.assign(path=[posixpath.normpath(path) for path in checked["path"]])
    _refuse_repeated(one_name, "path", "one row per image", source)
    _refuse_shared_patients(checked, source)
    return checked.reset_index(drop=True)


def require_positives(frame: pd.DataFrame, findings: Sequence[str], source: str = "manifest") -> None:
    """Refuse a split in which a finding has no positive or no negative image: training and AUROC need both.

    Raises:
        InputError: names the split and the finding.
    """
    for split, rows in frame.groupby("split", sort=False):
        for finding in findings:
            for value, kind in ((1, "positive"), (0, "negative")):
                if not np.any(rows.loc[:, finding] == value):
                    raise InputError(
                        f"{source}: split {split!r} has no {kind} image of {finding!r} among {len(rows)}; "
                        "expected one"
                    )


def text_of(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Cells of a column as stripped text; an absent cell is an empty text."""
    cells = frame.loc[:, column]
    return np.array(
        ["" if absent else str(cell).strip() for cell, absent in zip(cells, cells.isna(), strict=True)],
        dtype=object,
    )


def _numbers(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a column as float64 (NaN if empty), and a mask of cells neither empty nor finite."""
    text = text_of(frame, column)
    points = [with_point(cell) for cell in text] if any("," in cell for cell in text) else text
    numbers = pd.Series(pd.to_numeric(pd.Series(points), errors="coerce")).to_numpy(dtype=np.float64)
    return numbers, (text != "") & ~np.isfinite(numbers)


def _refuse(wrong: np.ndarray, frame: pd.DataFrame, column: str, source: str, expected: str) -> None:
    if wrong.any():
        first = frame.iloc[np.flatnonzero(wrong)[:1]]
        found = text_of(first, column)[0]
        raise InputError(
            f"{source}: row {first.index[0] + 1}, column {column!r}: found {found!r}, expected {expected}"
        )


def _refuse_repeated(frame: pd.DataFrame, column: str, expected: str, source: str) -> None:
    first_row: dict[str, int] = {}
    for row, cell in zip(frame.index + 1, frame[column], strict=True):
        first = first_row.setdefault(cell, row)
        if first != row:
            raise InputError(
                f"{source}: rows {first} and {row}, column {column!r}: {cell!r} occurs twice, expected "
                f"{expected}"
            )


def _refuse_shared_patients(frame: pd.DataFrame, source: str) -> None:
    side: dict[str, str] = {}
    for patient, split in zip(frame["patient_id"], frame["split"], strict=True):
        first = side.setdefault(patient, split)
        if first != split:
            raise InputError(
                f"{source}: patient {patient!r} has images in splits {first!r} and {split!r}, expected one "
                "split"
            )
