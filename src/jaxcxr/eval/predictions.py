"""Read and check a predictions file, from any model.

The file needs `image_id`, `patient_id`, `split`, and for each finding `y_<finding>` (1, 0 or empty) and
`p_<finding>` (a probability). Other columns, such as age and sex, are kept; groups are made of them
(`jaxcxr.eval.groups`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from jaxcxr.data.csv_dialect import csv_text
from jaxcxr.digests import check
from jaxcxr.errors import InputError

ID_COLUMNS: tuple[str, ...] = ("image_id", "patient_id", "split")
SPLITS: tuple[str, ...] = ("train", "valid", "test")
KEPT_NAMES: tuple[str, ...] = ("average", "any")
"""Names that no finding may have: the evaluation uses them for the mean over findings and for any finding."""

SCHEMA_VERSION = 1
"""Version of this schema; a parquet file may state its own as `schema_version` in the table's attributes."""


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table and findings of a predictions file (`.parquet` or `.csv`), checked.

    Returns:
        The table, with text ids and float64 labels and probabilities and its path as `attrs["source"]`, and
        the names of its findings in file order.

    Raises:
        InputError: the file cannot be read, is empty or states another schema version; a column is missing;
            an id is missing or an image is there twice; a split has an unknown name or shares patients with
            another; a label is not 1, 0 or empty; a probability is missing or not in [0, 1]; or there are no
            test rows.
    """
    path = Path(path)
    table = _read(path)
    version = table.attrs.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: written with version {version!r} of the predictions schema; expected version "
            f"{SCHEMA_VERSION}: predict again with this version of jaxcxr"
        )
    findings = _check_columns(path, table)
    if table.empty:
        raise InputError(f"{path}: expected one row per image, found a file without rows")
    for column in ID_COLUMNS:
        _refuse(path, table, column, table[column].isna(), "a value")
    _refuse(path, table, "image_id", table["image_id"].duplicated(), "each image once")
    _refuse(path, table, "split", ~table["split"].isin(SPLITS), f"one of {', '.join(SPLITS)}")
    first_split = table.groupby("patient_id")["split"].transform("first")
    _refuse(path, table, "patient_id", table["split"] != first_split, "each patient in one split only")
    if "test" not in set(table["split"]):
        raise InputError(f"{path}: column 'split': expected rows of split 'test', found none")

    numbers = {}
    for finding in findings:
        numbers[f"y_{finding}"] = _numbers(path, table, f"y_{finding}", "1, 0 or empty")
        _refuse(path, table, f"y_{finding}", ~numbers[f"y_{finding}"].isin([0, 1, np.nan]), "1, 0 or empty")
        numbers[f"p_{finding}"] = _numbers(path, table, f"p_{finding}", "a probability in [0, 1]")
        _refuse(
            path, table, f"p_{finding}", ~numbers[f"p_{finding}"].between(0, 1), "a probability in [0, 1]"
        )
    table = table.assign(**numbers).reset_index(drop=True)
    table.attrs["source"] = str(path)
    return table, findings


def _check_columns(path: Path, table: pd.DataFrame) -> tuple[str, ...]:
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise InputError(f"{path}: column {twice[0]!r} is there twice; expected each column once")
    missing = [c for c in ID_COLUMNS if c not in table]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing; expected {', '.join(ID_COLUMNS)}, y_<finding> and "
            "p_<finding>"
        )
    findings = tuple(str(c)[2:] for c in table.columns if str(c).startswith("p_"))
    labelled = [str(c)[2:] for c in table.columns if str(c).startswith("y_")]
    if not findings:
        raise InputError(f"{path}: expected at least one column p_<finding>, found none")
    for prefix, unmatched in (("y_", set(findings) - set(labelled)), ("p_", set(labelled) - set(findings))):
        if unmatched:
            raise InputError(
                f"{path}: column '{prefix}{min(unmatched)}' is missing; each finding needs both y_ and p_"
            )
    for name in KEPT_NAMES:
        if name in findings:
            raise InputError(
                f"{path}: column 'p_{name}': the name {name!r} is kept for the evaluation; rename the finding"
            )
    for finding in findings:
        if not finding or finding in (*ID_COLUMNS, "age", "sex", "view", "comorbidities"):
            raise InputError(
                f"{path}: column 'p_{finding}': found a finding named {finding!r}, expected a name that no "
                "column of images or patients has"
            )
    return findings


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such predictions file")
    check(
        path,
        "put it back from a copy, or delete it and evaluation.csv, and resume the run, which predicts again",
    )
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(
            f"{path}: expected a file ending in .parquet or .csv, found {path.suffix or 'no ending'!r}"
        )
    if not path.stat().st_size:
        raise InputError(f"{path}: expected a predictions file, found an empty file")
    ids = ("image_id", "patient_id")
    try:
        csv = path.suffix == ".csv"
        table = _read_csv(path, ids) if csv else pd.read_parquet(path)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        NotImplementedError,
    ) as error:  # pyarrow's and pandas' parsing errors are ValueErrors
        raise InputError(
            f"{path}: cannot be read as {path.suffix[1:]} ({' '.join(str(error).split())[:200]})"
        ) from error
    return table.assign(**{c: table[c].astype("string") for c in ids if c in table})


def _read_csv(path: Path, ids: Sequence[str]) -> pd.DataFrame:
    """A CSV table with ids as text; it may have semicolons with decimal commas, tabs, or be in UTF-16."""
    text, separator = csv_text(path)
    header = pd.read_csv(text, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = [name.strip() for name in header.iloc[0]]
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:  # pandas would rename the second
        raise InputError(f"{path}: column {twice!r} is there twice; expected each column once")
    text.seek(0)
    decimal = "," if separator == ";" and not _has_points(text.read(1 << 16)) else "."
    text.seek(0)
    return pd.read_csv(
        text, sep=separator, decimal=decimal, dtype=dict.fromkeys(ids, "string"), index_col=False
    )


def _has_points(text: str) -> bool:
    return re.search(r"(?:^|;)\s*[-+]?\d*\.\d", text, flags=re.MULTILINE) is not None


def _numbers(path: Path, table: pd.DataFrame, column: str, expected: str) -> pd.Series:
    numbers = pd.Series(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
    _refuse(path, table, column, numbers.isna() & ~pd.isna(table[column]), expected)
    return numbers


def _refuse(path: str | Path, table: pd.DataFrame, column: str, bad: ArrayLike, expected: str) -> None:
    bad = np.asarray(bad, bool)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    found = table[column].iloc[row]
    shown = "nothing" if pd.isna(found) else repr(found.item() if isinstance(found, np.generic) else found)
    where = "" if column == "image_id" else f" (image_id {table['image_id'].iloc[row]!r})"
    raise InputError(f"{path}: row {row + 1}{where}, column '{column}': expected {expected}, found {shown}")


def group_numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column to be divided into bins, as float64; NaN where a cell is empty.

    Raises:
        InputError: a value is not a number.
    """
    return _numbers(
        Path(table.attrs.get("source", "predictions")),
        table,
        column,
        "a number, to be put into a bin (--groups names other columns)",
    )
