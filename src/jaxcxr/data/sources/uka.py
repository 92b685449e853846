"""UKA-CXR, the cohort of the paper: 193,311 radiographs of University Hospital RWTH Aachen.

Origin: Tayebi Arasteh, Ziller et al., 'Private, fair and accurate' (arXiv 2302.01622); Khader et al.,
Radiology 2023.
Access: not public; inside the hospital, or by agreement with it.
Licence: none; the terms of that agreement.

The master list has one row per image: `image_id`, `split`, `subset` (folder of the image), `subject_id`,
`patient_sex`, an `age` or the dates of birth and examination, and a grade for each finding.
`UkaOptions.grades` says what the grades mean: grades in words are read as the paper reads them; numeric codes
have to be mapped (the paper counts mild and above, and borderline and above for the heart, as positive).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from jaxcxr.config import STRICT
from jaxcxr.data.ages import age_years, years_between
from jaxcxr.data.findings import PAPER_GRADES, UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    graded,
    read_csv,
    translated,
)
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "UKA-CXR",
    "University Hospital RWTH Aachen; Tayebi Arasteh, Ziller et al., arXiv 2302.01622",
    "not public, by agreement with the hospital",
    "terms of that agreement",
)
_SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
_SEXES = {
    "M": "M", "m": "M", "male": "M", "Male": "M", "F": "F", "f": "F", "female": "F", "Female": "F", "W": "F",
    "O": "unknown", "U": "unknown", "": "unknown",
}  # fmt: skip


def _paper_grades() -> dict[str, Literal[0, 1] | None]:
    return {grade: 1 if label else 0 for grade, label in PAPER_GRADES.items()}


@dataclasses.dataclass(frozen=True)
class UkaOptions(Options):
    """Options for the master list.

    Attributes:
        table: its file name.
        grades: label of each grade or code: 1, 0 or null.
        suffix: ending of the image files.
        age: column of ages in years, or null to compute them.
        birth, examination: columns of the dates, used where `age` is null or empty.
        valid_fraction: 0 keeps the list's own validation patients; above 0 is for lists that name none.
    """

    __pydantic_config__ = STRICT
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    table: str = "master_list.csv"
    grades: dict[str, Literal[0, 1] | None] = dataclasses.field(default_factory=_paper_grades)
    suffix: str = ".jpg"
    age: str | None = "age"
    birth: str = "birth_date"
    examination: str = "examination_date"


def read(folder: Path, images: Path, options: UkaOptions) -> Cohort:  # noqa: ARG001  adapters share one signature
    """The cohort in the master list: the paper's eight findings; `comorbidities` counts the positive ones.

    Raises:
        InputError: a column is missing, a cell holds an unmapped value, or `valid_fraction` is above 0
            although the list names validation patients.
    """
    table, name = read_csv(
        folder,
        [options.table, "final_UKA_master_list.csv", "original_UKA_master_list.csv"],
        ["image_id", "split", "subset", "subject_id", "patient_sex", *UKA_FINDINGS],
    )
    grades: Mapping[str, float] = {"": np.nan} | {
        key: np.nan if label is None else float(label) for key, label in options.grades.items()
    }
    labels = {finding: graded(table, finding, grades, name) for finding in UKA_FINDINGS}
    image_ids = text_of(table, "image_id")
    known = np.stack([~np.isnan(values) for values in labels.values()]).all(axis=0)
    positives = np.stack([values == 1 for values in labels.values()]).sum(axis=0)
    frame = table[[]].assign(
        image_id=image_ids,
        patient_id=text_of(table, "subject_id"),
        path=[
            f"{subset}/{image}{options.suffix}"
            for subset, image in zip(text_of(table, "subset"), image_ids, strict=True)
        ],
        split=translated(table, "split", _SPLITS, name),
        age=ages_or_unknown(_ages(table, options), options),
        sex=translated(table, "patient_sex", _SEXES, name),
        view="unknown",
        comorbidities=np.where(known, positives, np.nan),
        **labels,
    )
    # The rows must not decide: one patient in `valid` would otherwise keep all others in `train`.
    if options.split == "official" and options.valid_fraction > 0 and "valid" in set(frame["split"]):
        raise InputError(
            f"{name}: valid_fraction: found {options.valid_fraction}, but the list names validation "
            "patients; expected 0, which keeps them, or 'split: drawn'"
        )
    return cohort(frame, UKA_FINDINGS, options, PROVENANCE, name, {}, publishes_valid=False)


def _ages(table: pd.DataFrame, options: UkaOptions) -> list[float]:
    size = len(table)
    stated = (
        text_of(table, options.age)
        if options.age is not None and options.age in table.columns
        else [""] * size
    )
    dated = options.birth in table.columns and options.examination in table.columns
    births = text_of(table, options.birth) if dated else [""] * size
    days = text_of(table, options.examination) if dated else [""] * size
    return [
        _age(text) if text else years_between(birth, day)
        for text, birth, day in zip(stated, births, days, strict=True)
    ]


def _age(text: str) -> float:
    try:
        return age_years(text)
    except ValueError:
        return float("nan")
