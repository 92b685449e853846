"""VinDr-CXR: 18,000 PA radiographs of two hospitals in Hanoi, read by radiologists.

Origin: Nguyen et al., 'VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations', Scientific
Data 2022; physionet.org/content/vindr-cxr.
Access: credentialed PhysioNet account (the training part also was the Kaggle challenge VinBigData).
Licence: PhysioNet Credentialed Health Data License 1.5.0.

Three radiologists read each of the 15,000 training images independently (`image_labels_train.csv`, one row
per reader); the 3,000 test images have one consensus (`image_labels_test.csv`). `VindrOptions.agreement` says
how three readings become one label. Kaggle's `train.csv` (one row per box) can be read instead; it has no
test images. Patients are not named: every image counts as a patient of its own, an assumption that
near-duplicates can disprove. Age and sex are read from the DICOM files if they hold them.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from jaxcxr.config import STRICT
from jaxcxr.data.ages import age_years
from jaxcxr.data.dicom import read_tags
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    either,
    graded,
    located,
    optional_csv,
    paper_findings,
    read_csv,
    snake,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "VinDr-CXR",
    "Hospital 108 and Hanoi Medical University Hospital; Nguyen et al., Scientific Data 2022",
    "credentialed PhysioNet account",
    "PhysioNet Credentialed Health Data License 1.5.0",
)
_BINARY = {"0": 0.0, "1": 1.0, "": np.nan}
_READERS = {"majority": 0.5, "any": 0.0}


@dataclasses.dataclass(frozen=True)
class VindrOptions(Options):
    """Options for VinDr-CXR.

    Attributes:
        agreement: an image is positive if more than half of the readers say so (`majority`), if `any` does,
            or if `all` do.
        read_tags: read age and sex from the DICOM files.
    """

    __pydantic_config__ = STRICT
    agreement: Literal["majority", "any", "all"] = "majority"
    read_tags: bool = True


def read(folder: Path, images: Path, options: VindrOptions) -> Cohort:
    """The cohort in the tables of VinDr-CXR.

    Args:
        folder: holds the tables (or `annotations/` with them).
        images: folder that `train/` and `test/` lie in.
        options: see `VindrOptions`.

    Raises:
        InputError: a table or column is missing, or a cell is neither 1 nor 0.
    """
    tables = folder / "annotations" if (folder / "annotations").is_dir() else folder
    train = optional_csv(tables, ["image_labels_train.csv"], ["image_id", "rad_id"])
    if train is not None:
        parts = [
            _voted(train, str(tables / "image_labels_train.csv"), options.agreement).assign(split="train")
        ]
        test = optional_csv(tables, ["image_labels_test.csv"], ["image_id"])
        if test is not None:
            parts.append(
                _voted(test, str(tables / "image_labels_test.csv"), options.agreement).assign(split="test")
            )
        shared = [column for column in parts[0].columns if all(column in part.columns for part in parts)]
        frame = pd.concat([part.loc[:, shared] for part in parts], ignore_index=True)
    else:
        boxes, name = read_csv(
            tables, ["train.csv", "vinbigdata-train.csv"], ["image_id", "class_name", "rad_id"]
        )
        frame = _voted(_readings(boxes), name, options.agreement)
        if options.split == "official":
            raise InputError(f"{name}: the challenge's table has no test images; expected 'split: drawn'")
    native = [column for column in frame.columns if column not in ("image_id", "split")]
    ids = text_of(frame, "image_id")
    sides = frame["split"] if "split" in frame else ["train"] * len(frame)
    paths = located(images, [f"{side}/{image}.dicom" for side, image in zip(sides, ids, strict=True)])
    ages, sexes = (
        _people(images, paths) if options.read_tags else ([float("nan")] * len(ids), ["unknown"] * len(ids))
    )
    labels = {finding: frame[finding].to_numpy() for finding in native}
    if options.labels == "paper":
        unknown = np.full(len(frame), np.nan)
        labels = paper_findings(
            labels["cardiomegaly"],
            labels.get("edema", unknown),
            labels["pleural_effusion"],
            either(labels["infiltration"], labels.get("pneumonia", labels["infiltration"])),
            labels["atelectasis"],
        )
    described = frame.loc[:, [column for column in ("split",) if column in frame]].assign(
        image_id=ids,
        patient_id=ids,
        path=paths,
        age=ages_or_unknown(ages, options),
        sex=sexes,
        view="PA",
        **labels,
    )
    findings = tuple(native) if options.labels == "native" else UKA_FINDINGS
    return cohort(described, findings, options, PROVENANCE, str(tables), {}, publishes_valid=False)


def _voted(table: pd.DataFrame, name: str, agreement: str) -> pd.DataFrame:
    columns = [
        column
        for column in table.columns
        if column not in ("image_id", "rad_id") and not column.startswith("Unnamed")
    ]
    names = {column: snake(column).replace("other_disease_s", "other_diseases") for column in columns}
    if not columns:
        raise InputError(f"{name}: expected one column per finding, found none")
    labels = pd.DataFrame({names[column]: graded(table, column, _BINARY, name) for column in columns})
    ids = text_of(table, "image_id")
    # Images keep the order of their first readings.
    images, first = pd.factorize(ids)[0], pd.unique(ids)
    votes = {"image_id": first}
    for finding in labels.columns:
        values = labels[finding].to_numpy()
        read = ~np.isnan(values)
        readers = np.bincount(images[read], minlength=len(first))
        positive = np.bincount(images[read], weights=values[read], minlength=len(first))
        agreed = positive == readers if agreement == "all" else positive > _READERS[agreement] * readers
        votes[finding] = np.where(readers > 0, agreed, np.nan)
    return pd.DataFrame(votes)


def _readings(boxes: pd.DataFrame) -> pd.DataFrame:
    """One row per image and reader, one column per class, from one row per box."""
    named = pd.crosstab([boxes["image_id"], boxes["rad_id"]], boxes["class_name"]).clip(upper=1).reset_index()
    return named.astype(str)


def _people(images: Path, paths: list[str]) -> tuple[list[float], list[str]]:
    ages, sexes = [], []
    for path in paths:
        age, sex = float("nan"), "unknown"
        if (images / path).is_file() and path.endswith((".dicom", ".dcm")):
            try:
                tags = read_tags(images / path, ("PatientAge", "PatientSex"))
                sex = tags["PatientSex"] if tags["PatientSex"] in ("M", "F") else "unknown"
                age = age_years(tags["PatientAge"])
            except ValueError:  # InputError included: the file itself is checked when its image is decoded
                pass
        ages.append(age)
        sexes.append(sex)
    return ages, sexes
