"""MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients of Beth Israel Deaconess Medical Center.

Labels come from reports.

Origin: Johnson et al., 'MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs',
arXiv 1901.07042; v2.0.0 or v2.1.0 of physionet.org/content/mimic-cxr-jpg.
Access: credentialed PhysioNet account and training in research with human subjects.
Licence: PhysioNet Credentialed Health Data License 1.5.0: research, no sharing, no attempt to identify
anybody.

`metadata` has one row per image (view, study date), `split` the official split, `chexpert` or `negbio` the
labels of each study. Sex and age come from `patients.csv` of MIMIC-IV if it is in the folder too: the age at
the examination is `anchor_age` plus the years since `anchor_year`; 91 stands for everybody above 89. MIMIC
shifts all dates of a patient by the same amount. Only frontal views (AP and PA) are kept; in studies without
labels all findings are unknown.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from jaxcxr.config import STRICT
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.chexpert import LABELS, from_labeller
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    keep_views,
    optional_csv,
    read_csv,
    require_known,
    snake,
    translated,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "MIMIC-CXR-JPG",
    "Beth Israel Deaconess Medical Center; Johnson et al., arXiv 1901.07042",
    "credentialed PhysioNet account",
    "PhysioNet Credentialed Health Data License 1.5.0",
)
_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
_SEXES = {"M": "M", "F": "F", "": "unknown"}
_VIEWS = {
    "AP": "AP",
    "PA": "PA",
    "": "unknown",
    "LL": "lateral",
    "LATERAL": "lateral",
    "XTABLE LATERAL": "lateral",
}


@dataclasses.dataclass(frozen=True)
class MimicOptions(Options):
    """Options for MIMIC; `labeller` chooses whose labels are read."""

    __pydantic_config__ = STRICT
    labeller: Literal["chexpert", "negbio"] = "chexpert"


def read(folder: Path, images: Path, options: MimicOptions) -> Cohort:
    """The cohort in the tables of MIMIC-CXR-JPG.

    Args:
        folder: holds `mimic-cxr-2.x.0-{metadata,split,chexpert}.csv` (or `.gz`) and, if sex and age are
            wanted, `patients.csv`.
        images: folder that `files/` lies in (or `files` itself).
        options: `uncertain` names findings as CheXpert does.

    Raises:
        InputError: a table or column is missing, an image has no split, or a cell holds a value that MIMIC
            does not have.
    """
    require_known(options, LABELS, str(folder))
    metadata, name = _versioned(
        folder, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"]
    )
    sides, split_name = _versioned(folder, "split", ["dicom_id", "split"])
    studies, labels_name = _versioned(folder, options.labeller, ["subject_id", "study_id", *LABELS])
    side = dict(zip(text_of(sides, "dicom_id"), translated(sides, "split", _SPLITS, split_name), strict=True))
    labels = pd.DataFrame(from_labeller(studies, labels_name, options))
    position = {study: place for place, study in enumerate(text_of(studies, "study_id"))}
    places = np.array([position.get(study, -1) for study in text_of(metadata, "study_id")])
    ids, patients, of_study = (text_of(metadata, column) for column in ("dicom_id", "subject_id", "study_id"))
    for row, image_id in zip(metadata.index + 1, ids, strict=True):
        if image_id not in side:
            raise InputError(
                f"{name}: row {row}: image {image_id!r} has no split in {split_name}, expected one"
            )
    prefix = "" if images.name == "files" else "files/"
    sex, ages = _people(folder, patients, text_of(metadata, "StudyDate"))
    frame = metadata[[]].assign(
        image_id=ids,
        patient_id=patients,
        path=[
            f"{prefix}p{p[:2]}/p{p}/s{s}/{image_id}.jpg"
            for p, s, image_id in zip(patients, of_study, ids, strict=True)
        ],
        split=[side[image_id] for image_id in ids],
        age=ages_or_unknown(ages, options),
        sex=sex,
        view=[_view(text) for text in text_of(metadata, "ViewPosition")],
        **{column: np.where(places >= 0, labels[column].to_numpy()[places], np.nan) for column in labels},
    )
    excluded: dict[str, int] = {}
    frame = keep_views(frame, options, excluded)
    findings = tuple(map(snake, LABELS)) if options.labels == "native" else UKA_FINDINGS
    return cohort(frame, findings, options, PROVENANCE, name, excluded, publishes_valid=True)


def _versioned(folder: Path, kind: str, columns: list[str]) -> tuple[pd.DataFrame, str]:
    return read_csv(folder, [f"mimic-cxr-2.{version}.0-{kind}.csv" for version in (0, 1)], columns)


def _view(text: str) -> str:
    return _VIEWS.get(text.upper(), "other")


def _people(folder: Path, patients: np.ndarray, dates: np.ndarray) -> tuple[list[str], list[float]]:
    table = optional_csv(folder, ["patients.csv"], ["subject_id", "gender", "anchor_age", "anchor_year"])
    if table is None:
        return ["unknown"] * len(patients), [float("nan")] * len(patients)
    name = str(folder / "patients.csv")
    sexes = dict(zip(text_of(table, "subject_id"), translated(table, "gender", _SEXES, name), strict=True))
    numbers = [pd.to_numeric(table[column], errors="coerce") for column in ("anchor_age", "anchor_year")]
    anchors = dict(zip(text_of(table, "subject_id"), zip(*numbers, strict=True), strict=True))
    ages = []
    for patient, date in zip(patients, dates, strict=True):
        age, year = anchors.get(patient, (np.nan, np.nan))
        ages.append(float(age + int(date[:4]) - year) if date[:4].isdigit() else float("nan"))
    return [sexes.get(patient, "unknown") for patient in patients], ages
