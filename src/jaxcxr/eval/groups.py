"""Groups of patients for evaluation: one text per grouping, such as `sex`, `age:0,30,60` or `sex*age`.

A column name alone makes one group per value. A column of numbers takes bin edges after a colon, lower edges
included, upper ones not. Columns joined by `*` make one group per combination; a column that has bins
elsewhere in the list keeps them there. Source of the default: the paper's Table 3 (age, sex) and Figures
S2-S4 (number of comorbidities).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from jaxcxr.errors import InputError
from jaxcxr.eval.predictions import group_numbers

PAPER_GROUPS: tuple[str, ...] = ("age:0,30,60,70,80,100", "sex", "comorbidities:0,1,2,3,inf", "sex*age")
"""The paper's groups and their intersection; groups whose columns a file lacks are left out."""

PUBLIC_GROUPS: tuple[str, ...] = (PAPER_GROUPS[0], "sex")
"""Groups of an evaluation with noise, which more groups would make noisier."""
PUBLIC_VALUES: Mapping[str, tuple[str, ...]] = {"sex": ("F", "M"), "view": ("AP", "PA")}
"""Columns without bins whose values are known without looking (`data.manifest`)."""

MAX_VALUES = 50
"""Largest number of groups from one column; more suggest an identifier, or numbers that need bins."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Some rows of the predictions.

    Attributes:
        name: identifier, such as `age_0_30`.
        label: for readers, such as 'age [0, 30)'.
        attribute: the grouping, such as `age` or `sex*age`.
        rows: mask over the rows of the predictions.
    """

    name: str
    label: str
    attribute: str
    rows: Bool[np.ndarray, " rows"]


def make_groups(predictions: pd.DataFrame, specs: Sequence[str] | None) -> tuple[Group, ...]:
    """The groups of a predictions table, in the order of the texts and of their values or bins.

    Args:
        predictions: table with the columns named in `specs`; `attrs["source"]` is named in errors.
        specs: texts as described above; None takes those of `PAPER_GROUPS` whose columns exist and hold
            values.

    Raises:
        InputError: a text cannot be read, names a column that is missing, empty, not numeric where it has
            bins, or with more than `MAX_VALUES` values where it has none; or a column is listed twice.
    """
    source = str(predictions.attrs.get("source", "predictions"))
    if specs is None:
        specs = [s for s in PAPER_GROUPS if all(_holds_anything(predictions, c) for c in _columns(s))]
    edges = _edges_by_column(specs)
    groups: list[Group] = []
    for spec in specs:
        parts = [_column_groups(predictions, column, edges[column], source) for column in _columns(spec)]
        groups += (
            parts[0] if len(parts) == 1 else [_intersection(several) for several in itertools.product(*parts)]
        )
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1 or name == "all":
            raise InputError(
                f"evaluation.groups: expected groups with names of their own, found {name!r} twice"
            )
    return tuple(groups)


def public_groups(predictions: pd.DataFrame, specs: Sequence[str] | None) -> tuple[Group, ...]:
    """Groups whose number and names follow from `specs` and the names of the columns alone.

    `make_groups` reads the values of a column without bins, and whether it has any, from the rows: which
    groups there are would then tell of a patient.

    Args:
        predictions: table with the columns named in `specs`.
        specs: as in `make_groups`; None takes those of `PUBLIC_GROUPS` whose columns exist.

    Raises:
        InputError: as in `make_groups`, or a column has neither bins nor `PUBLIC_VALUES`.
    """
    if specs is None:
        specs = [s for s in PUBLIC_GROUPS if all(c in predictions.columns for c in _columns(s))]
    edges = _edges_by_column(specs)
    rows, stub = len(max(PUBLIC_VALUES.values(), key=len)), {}
    known = predictions.copy()
    for column, bins in edges.items():
        if bins is not None:
            stub[column] = [0.5] * rows  # no whole number: names do not depend on the rows
        elif column not in PUBLIC_VALUES:
            raise InputError(
                f"evaluation.groups: expected bin edges for {column!r}, such as '{column}:0,10,20', since "
                f"its values would be read from private rows; without are {', '.join(PUBLIC_VALUES)}"
            )
        elif column in known:
            values = PUBLIC_VALUES[column]
            stub[column] = [values[i % len(values)] for i in range(rows)]
            known[column] = known[column].where(known[column].isin(values))
    for column in edges:
        if column not in known:
            make_groups(predictions, specs)  # raises: the column is missing
    real = pd.DataFrame(known.loc[:, list(stub)]).astype(object)
    used = pd.DataFrame(pd.concat([pd.DataFrame(stub), real], ignore_index=True))
    used.attrs = dict(predictions.attrs)
    if not specs:
        return ()
    groups = make_groups(used, specs)
    return tuple(dataclasses.replace(group, rows=group.rows[rows:]) for group in groups)


def _holds_anything(predictions: pd.DataFrame, column: str) -> bool:
    return column in predictions.columns and bool(predictions[column].notna().to_numpy().any())


def _columns(spec: str) -> list[str]:
    return [part.partition(":")[0].strip() for part in spec.split("*")]


def _edges_by_column(specs: Sequence[str]) -> Mapping[str, tuple[float, ...] | None]:
    edges: dict[str, tuple[float, ...] | None] = {}
    for spec in sorted(specs, key=lambda text: "*" in text):
        for part in spec.split("*"):
            column, colon, text = part.partition(":")
            column = column.strip()
            if not column:
                raise InputError(f"evaluation.groups: expected a column in each part of {spec!r}, found none")
            if colon or column not in edges:
                edges[column] = _edges(text, spec) if colon else None
    return edges


def _edges(text: str, spec: str) -> tuple[float, ...]:
    try:
        edges = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        edges = ()
    if len(edges) < 2 or np.isnan(edges).any() or (np.diff(edges) <= 0).any():
        raise InputError(
            f"evaluation.groups: expected at least two rising bin edges such as 'age:0,30,60', found {spec!r}"
        )
    return edges


def _column_groups(
    predictions: pd.DataFrame, column: str, edges: tuple[float, ...] | None, source: str
) -> list[Group]:
    if column not in predictions:
        raise InputError(f"{source}: column {column!r} is missing; evaluation.groups names it")
    values = pd.Series(predictions[column])
    if not values.notna().to_numpy().any():
        raise InputError(f"{source}: column {column!r}: expected values to make groups of, found none")
    if edges is not None:
        numbers = group_numbers(predictions, column).to_numpy()
        whole = bool((numbers[~np.isnan(numbers)] % 1 == 0).all())
        return [_bin(column, numbers, low, high, whole) for low, high in itertools.pairwise(edges)]
    try:
        distinct = list(pd.unique(values.dropna()))
        distinct.sort(key=lambda value: (isinstance(value, str), value))
    except (TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in values.dropna().head(1000)})
        raise InputError(
            f"{source}: column {column!r}: found cells that cannot be told apart or ordered "
            f"({', '.join(kinds)}), expected one number or text per cell; --groups names other columns"
        ) from error
    if len(distinct) > MAX_VALUES:
        raise InputError(
            f"{source}: column {column!r}: expected at most {MAX_VALUES} values to make groups of, found "
            f"{len(distinct)}; give bin edges if it holds numbers, such as '{column}:0,10,20'"
        )
    return [
        Group(
            f"{column}_{_text(value)}",
            f"{column} {_text(value)}",
            column,
            (values == value).to_numpy(bool, na_value=False),
        )
        for value in distinct
    ]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _bin(column: str, numbers: np.ndarray, low: float, high: float, whole: bool) -> Group:
    rows = (numbers >= low) & (numbers < high)
    if np.isinf(high):
        return Group(f"{column}_{low:g}_or_more", f"{column} ≥ {low:g}", column, rows)
    if whole and high == low + 1:
        return Group(f"{column}_{low:g}", f"{column} {low:g}", column, rows)
    return Group(f"{column}_{low:g}_{high:g}", f"{column} [{low:g}, {high:g})", column, rows)


def _intersection(groups: Sequence[Group]) -> Group:
    return Group(
        name="*".join(group.name for group in groups),
        label=", ".join(group.label for group in groups),
        attribute="*".join(group.attribute for group in groups),
        rows=np.logical_and.reduce([group.rows for group in groups]),
    )
