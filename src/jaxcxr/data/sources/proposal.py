"""Propose a column map for somebody's table: which column is what, by names and values.

Every guess comes with its reason, for a person to check.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.cohort import Provenance
from jaxcxr.data.sources.table import Columns, Graded, Label, Listed, TableSource
from jaxcxr.data.splits import SplitDraw
from jaxcxr.errors import InputError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "patient_id": _words(
            "patient_id patientid patient subject_id subjectid subject person_id pat_id patid pid mrn"
        ),
        "path": _words(
            "path image_path file_path filepath file filename file_name image image_file image_index"
        ),
        "image_id": _words(
            "image_id imageid sop_instance_uid sopinstanceuid dicom_id instance_id image_index"
        ),
        "age": _words("age patient_age age_years age_at_examination age_in_years"),
        "sex": _words("sex gender patient_sex patient_gender"),
        "view": _words("view view_position viewposition projection ap_pa"),
        "split": _words("split set subset fold partition dataset"),
    }
)
"""Names of columns, folded (`folded`), in the order of preference."""
FINDINGS = re.compile(
    "cardiomegal|heart|congest|edema|oedema|effusion|infiltrat|pneumoni|atelecta|consolidat|opacit|pneumothora|"
    "nodule|mass|fracture|emphysem|fibros|hernia|thicken|lesion|tubercul|covid"
)
"""What names of findings contain."""
GROUPS = re.compile("ethnic|race|scanner|manufacturer|device|site|hospital|ward|department|insurance")
SEX = {"F": _words("f female woman w weiblich"), "M": _words("m male man")}
VIEW = {"PA": _words("pa"), "AP": _words("ap ap_supine ap_erect supine")}
SPLIT = {
    "train": _words("train training development"),
    "valid": _words("valid validation val validate dev"),
    "test": _words("test testing holdout hold_out"),
}
POSITIVE = _words(
    "1 yes y true t positive pos present ja mild moderate severe borderline enlarged massively_enlarged"
)
NEGATIVE = _words("0 no n false f negative neg absent nein normal none")
UNKNOWN = _words("-1 uncertain unknown possible unsure na n_a nan")
NOT_READ = _words("unlabelled unlabeled unknown not_applicable not_read na n_a unclear")
"""Labels of images that nobody read for these findings."""
LEAST_PATIENTS = 40
"""With a finding, and without it: of fewer a validation split of 15 % has none with a chance above 0.1 %."""
MOST_VALUES, MOST_LABELS = 12, 100
"""Of a column with grades, and of one with labels."""
_SAMPLE = 200


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A column map and what stands behind it.

    Attributes:
        source: the map, as `data.sources.table.read` takes it.
        why: reason of each guess, by the place of its value in the map, such as `columns.age` or
            `graded.cardiomegaly`.
        remarks: what was seen and not put into the map, a sentence each.
    """

    source: TableSource
    why: Mapping[str, str]
    remarks: tuple[str, ...]


def folded(name: object) -> str:
    """A name or value in lower case with underscores for everything else; a number in its shortest form."""
    text = str(name).strip().casefold()
    try:
        return f"{float(text):g}"
    except ValueError:
        return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def propose(
    table: pd.DataFrame, images: Path, name: str, path: str | None = None, patient: str | None = None
) -> Proposal:
    """Propose a column map of a table with one row per image.

    Args:
        table: as `data.manifest.read_table` gives it.
        images: folder that the image files lie in.
        name: of the table, for errors and for its data card.
        path: the column of image files, where it is known.
        patient: the column of patients, where it is known.

    Raises:
        InputError: the table is empty, or no column can be taken for image files, patients or findings.
    """
    if table.empty:
        raise InputError(f"{name}: has no rows; expected one row per image")
    why: dict[str, str] = {}
    columns = _columns(table, images, name, {"path": path, "patient_id": patient}, why)
    remarks: list[str] = []
    split = _split(table, columns, why, remarks)
    columns = dataclasses.replace(columns, split=columns.split if split else None)
    taken = [column for column in dataclasses.astuple(columns) if column is not None]
    patients = text_of(table, columns.patient_id)
    graded = _graded(table, taken, patients, why, remarks)
    listed = None if graded else _listed(table, taken, patients, why)
    if not graded and listed is None:
        raise InputError(
            f"{name}: no column looks like a finding; expected columns of 1, 0 and empty cells (or grades "
            f"such as 'negative', 'mild') of at least {LEAST_PATIENTS} patients with and without it, or "
            "one column of labels separated by '|'"
        )
    taken += [entry.column for entry in graded.values()] + ([listed.column] if listed else [])
    view = _mapped(table, columns.view, VIEW, "view", why)
    keep: Any = {columns.view: (*(v for v, m in view.items() if m != "unknown"), "")} if view else {}
    if view and len(keep[columns.view]) <= len(view):
        why["keep"] = "other views than AP and PA, such as lateral ones, are left out"
    groups = {folded(c): c for c in map(str, table.columns) if c not in taken and GROUPS.search(folded(c))}
    remarks += [f"column {column!r} could be kept for results by group" for column in groups.values()]
    if not split:
        why["draw"] = "splits are drawn by patient, with these fractions in expectation"
    why["provenance"] = "for the data card: say where the images come from"
    source = TableSource(
        columns,
        graded or None,
        listed,
        sex=_mapped(table, columns.sex, SEX, "sex", why) or None,
        view={value: meaning for value, meaning in view.items() if meaning != "unknown"} or None,
        split=split or None,
        age_unit=_age_unit(table, columns.age, why),
        keep=keep,
        draw=None if split else SplitDraw(0.65, 0.15, 0.2),
        provenance=Provenance(name, "our archive", "inside the hospital", "none, not to be shared"),
    )
    return Proposal(source, why, tuple(remarks))


def _columns(
    table: pd.DataFrame, images: Path, name: str, given: Mapping[str, str | None], why: dict[str, str]
) -> Columns:
    found: dict[str, str | None] = {}
    for what, names in NAMES.items():
        asked = given.get(what)
        if asked is not None and asked not in table.columns:
            raise InputError(f"{name}: has no column {asked!r}; it has {', '.join(map(str, table.columns))}")
        found[what] = asked or _by_name(table.columns, names)
        if found[what] is not None:
            why[f"columns.{what}"] = "as asked for" if asked else "by its name"
    if given["path"] is None:
        found["path"] = _of_files(table, images, name, found["path"], why)
    if found["patient_id"] is None:
        raise InputError(
            f"{name}: no column looks like the patient's id; name it with --patient (the guarantee and the "
            f"splits go by patient). Columns: {', '.join(map(str, table.columns))}"
        )
    image = found["image_id"]
    if image is not None and (image == found["path"] or not table[image].is_unique):
        found["image_id"] = None
        why.pop("columns.image_id")
    return Columns(**found)  # type: ignore[arg-type]


def _by_name(columns: Iterable[object], names: Sequence[str]) -> str | None:
    by_fold = {folded(column): str(column) for column in reversed(list(columns))}
    return next((by_fold[name] for name in names if name in by_fold), None)


def _of_files(
    table: pd.DataFrame, images: Path, name: str, preferred: str | None, why: dict[str, str]
) -> str:
    """The column whose cells name files below the images folder."""
    rows = table.iloc[np.unique(np.linspace(0, len(table) - 1, _SAMPLE).astype(int))]
    shares = {}
    for column in map(str, table.columns):
        cells = [cell for cell in text_of(rows, column) if cell]
        shares[column] = np.mean([(images / cell).is_file() for cell in cells]) if cells else 0.0
    best = max(shares, key=lambda column: (shares[column], column == preferred))
    if not shares[best]:
        tried = f"; column {preferred!r} has {text_of(rows, preferred)[0]!r}" if preferred else ""
        raise InputError(
            f"{name}: no column names files below {images}{tried}; expected paths relative to --images, with "
            "their endings"
        )
    why["columns.path"] = f"{shares[best]:.0%} of its cells that were tried are files below {images}"
    return best


def _split(
    table: pd.DataFrame, columns: Columns, why: dict[str, str], remarks: list[str]
) -> dict[str, Any] | None:
    """The table's own split, if its values are known and no patient is on two sides."""
    if columns.split is None:
        return None
    values = _values(table, columns.split)
    meaning: dict[str, Any] = {value: _meaning(value, SPLIT) for value in values}
    sides: Any = (
        pd.Series(text_of(table, columns.split)).groupby(text_of(table, columns.patient_id)).nunique()
    )
    if "unknown" in meaning.values() or not {"train", "test"} <= set(meaning.values()):
        remarks.append(f"column {columns.split!r} is not used: its values are not train, valid and test")
    elif (sides > 1).any():
        remarks.append(f"column {columns.split!r} is not used: it has patients on two sides")
    else:
        return meaning
    why.pop("columns.split", None)
    return None


def _graded(
    table: pd.DataFrame, taken: Sequence[str], patients: np.ndarray, why: dict[str, str], remarks: list[str]
) -> dict[str, Graded]:
    """Findings with a column each: those with a finding's name if there are any, else all that could be."""
    found: dict[str, Graded] = {}
    for column in map(str, table.columns):
        values = _values(table, column, MOST_VALUES + 1)
        grades = {value: _grade(value) for value in values}
        if column in taken or not values or len(values) > MOST_VALUES or "other" in grades.values():
            continue
        labels: dict[str, Label] = {v: g for v, g in grades.items() if g != "other"}  # type: ignore[misc]
        cells = pd.Series([labels.get(_short(text)) for text in text_of(table, column)])
        positives, negatives = (len(set(patients[(cells == label).to_numpy()])) for label in (1, 0))
        named = bool(FINDINGS.search(folded(column)))
        if min(positives, negatives) < LEAST_PATIENTS:
            if named:
                remarks.append(
                    f"column {column!r} is not used: {positives} patients with it and {negatives} without "
                    "are too few, or empty cells mean negative (then write grades {'1': 1, '': 0})"
                )
            continue
        found[_finding(column, found)] = Graded(column, labels)
        why[f"graded.{list(found)[-1]}"] = f"{positives:,} patients with it, {negatives:,} without"
    named = {f: g for f, g in found.items() if FINDINGS.search(f)}
    for finding in found.keys() - named.keys() if named else ():
        remarks.append(f"column {found[finding].column!r} could be a finding as well")
        why.pop(f"graded.{finding}")
    return named or found


def _listed(
    table: pd.DataFrame, taken: Sequence[str], patients: np.ndarray, why: dict[str, str]
) -> Listed | None:
    """Findings in one column of labels."""
    for column in (c for c in map(str, table.columns) if c not in taken):
        texts = text_of(table, column)
        separator = max("|;,", key=lambda mark: sum(mark in text for text in texts))
        labels = pd.Series([{part.strip() for part in text.split(separator)} - {""} for text in texts])
        who = pd.DataFrame({"label": labels, "patient": patients}).explode("label").dropna()
        counts: Any = who.groupby("label")["patient"].nunique()
        counts = counts.sort_values(ascending=False, kind="stable")
        everyone = who["patient"].nunique()
        wanted = [
            str(label)
            for label, count in counts.items()
            if FINDINGS.search(folded(label)) and LEAST_PATIENTS <= count <= everyone - LEAST_PATIENTS
        ]
        if not wanted or len(counts) > MOST_LABELS:
            continue
        why["listed"] = f"labels separated by {separator!r}; those of {LEAST_PATIENTS} patients are findings"
        rest = [str(label) for label in counts.index if label not in wanted]
        unread = tuple(label for label in rest if folded(label) in NOT_READ)
        others = tuple(label for label in rest if label not in unread)
        findings: dict[str, tuple[str, ...]] = {}
        for label in wanted:
            findings[_finding(label, findings)] = (label,)
        return Listed(column, findings, unlabelled=unread, other=others, separator=separator)
    return None


def _finding(name: str, there: Iterable[str]) -> str:
    """A name for a finding; the manifest's own columns and the evaluation's words are not free."""
    finding = folded(name) or "finding"
    reserved = {"image_id", "patient_id", "path", "split", *NAMES, "comorbidities", "average", "any"}
    if finding in reserved or finding in set(there):
        finding += "_finding"
    return finding


def _short(text: str) -> str:
    """A number in its shortest form, as a map may name it; other text as it is."""
    return folded(text) if re.fullmatch(r"-?[\d.]+", text) else text


def _mapped(
    table: pd.DataFrame,
    column: str | None,
    meanings: Mapping[str, Sequence[str]],
    what: str,
    why: dict[str, str],
) -> dict[str, Any]:
    if column is None:
        return {}
    found = {value: _meaning(value, meanings) for value in _values(table, column)}
    odd = [value for value, meaning in found.items() if meaning == "unknown"]
    why[what] = (
        f"values that were not understood: {', '.join(map(repr, odd[:5]))}" if odd else "by its values"
    )
    return found


def _meaning(value: str, meanings: Mapping[str, Sequence[str]]) -> str:
    return next((meaning for meaning, words in meanings.items() if folded(value) in words), "unknown")


def _grade(value: str) -> Label | str:
    words = folded(value)
    if words in POSITIVE:
        return 1
    if words in NEGATIVE:
        return 0
    return None if words in UNKNOWN else "other"


def _values(table: pd.DataFrame, column: str, most: int | None = None) -> list[str]:
    """Distinct cells but the empty one, numbers in their shortest form; `most` of them, if there are more."""
    values: set[str] = set()
    for text in pd.unique(text_of(table, column)):
        if text:
            values.add(_short(text))
        if most is not None and len(values) >= most:
            break
    return sorted(values)


def _age_unit(
    table: pd.DataFrame, column: str | None, why: dict[str, str]
) -> Literal["years", "months", "days"]:
    if column is None:
        return "years"
    ages: Any = pd.to_numeric(pd.Series(text_of(table, column)), errors="coerce")
    typical = float(ages.quantile(0.95)) if ages.notna().any() else 0.0
    unit = "years" if typical <= 130 else "months" if typical <= 1560 else "days"
    why["age_unit"] = f"95 of 100 ages are at most {typical:.0f}" if typical else "written as in DICOM"
    return unit
