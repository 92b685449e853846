"""RSNA Pneumonia Detection Challenge: 26,684 frontal radiographs of NIH ChestX-ray14, read for opacities.

Origin: Shih et al., 'Augmenting the National Institutes of Health chest radiograph dataset with expert
annotations of possible pneumonia', Radiology: Artificial Intelligence 2019; rsna.org (challenge of 2018).
Access: after registration with Kaggle.
Licence: terms of the challenge: no commercial use; the NIH Clinical Center has to be named.

`stage_2_detailed_class_info.csv` has one row per box with `patientId` and `class` (Lung Opacity, No Lung
Opacity / Not Normal, Normal). Its `patientId` names an image and not a person: who it shows is only in the
mapping to ChestX-ray14 that the RSNA publishes beside it (`pneumonia-challenge-dataset-mappings_2018.json`).
Without that file the several images of one person count as several persons, which is said. Ages, sexes and
views are in the DICOM files.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.data.ages import age_years
from jaxcxr.data.dicom import read_tags
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.dicom import view_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    keep_views,
    located,
    paper_findings,
    read_csv,
    translated,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "RSNA Pneumonia Detection Challenge", "NIH Clinical Center; Shih et al., Radiology: AI 2019",
    "registration with Kaggle", "terms of the challenge: no commercial use, with attribution",
)  # fmt: skip
MAPPINGS = ("pneumonia-challenge-dataset-mappings_2018.json", "mappings.json")
_CLASSES = {"Lung Opacity": "opacity", "No Lung Opacity / Not Normal": "other", "Normal": "normal"}
_UNMAPPED = (
    "RSNA's patientId names an image, not a person: images of one person count as several, in epsilon "
    f"for a patient and in the splits; put {MAPPINGS[0]} beside the tables"
)


def read(folder: Path, images: Path, options: Options) -> Cohort:
    """The cohort in the tables of the challenge's second stage.

    Args:
        folder: holds `stage_2_detailed_class_info.csv` and, to know the patients, the mappings.
        images: folder that `stage_2_train_images/` lies in.
        options: uncertain labels do not occur, and no split is published.

    Raises:
        InputError: a table or column is missing, an image has two classes, or the mappings cannot be read.
    """
    table, name = read_csv(folder, ["stage_2_detailed_class_info.csv"], ["patientId", "class"])
    classes = pd.DataFrame(
        {"image_id": text_of(table, "patientId"), "class": translated(table, "class", _CLASSES, name)}
    ).drop_duplicates()
    ids = classes["image_id"].to_numpy()
    twice = pd.Index(ids).duplicated()
    if twice.any():
        raise InputError(f"{name}: image {ids[int(twice.argmax())]!r} has two classes, expected one")
    opacity = (classes["class"] == "opacity").to_numpy(dtype=np.float64)
    normal = (classes["class"] == "normal").to_numpy()
    patients, remark = _patients(folder, ids)
    paths = located(images, [f"stage_2_train_images/{image}.dcm" for image in ids])
    ages, sexes, views = _people(images, paths)
    labels: dict[str, np.ndarray] = {"lung_opacity": opacity, "abnormal": 1.0 - normal}
    if options.labels == "paper":
        other = np.where(normal, 0.0, np.nan)  # not normal: nobody says which finding it is
        labels = paper_findings(other, other, other, opacity, other)
    frame = pd.DataFrame(
        {
            "image_id": ids, "patient_id": patients, "path": paths, "age": ages_or_unknown(ages, options),
            "sex": sexes, "view": views, **labels,
        }
    )  # fmt: skip
    excluded: dict[str, int] = {}
    frame = keep_views(frame, options, excluded)
    findings = ("lung_opacity", "abnormal") if options.labels == "native" else UKA_FINDINGS
    made = cohort(frame, findings, options, PROVENANCE, name, excluded, publishes_valid=False)
    return made if remark is None else made.with_remark(remark)


def _patients(folder: Path, ids: np.ndarray) -> tuple[list[str], str | None]:
    """The patient of each image by the mapping to ChestX-ray14 (`00005410_000.png` is of 00005410)."""
    file = next((folder / name for name in MAPPINGS if (folder / name).is_file()), None)
    if file is None:
        return ids.tolist(), _UNMAPPED
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        of = {row["subset_img_id"]: row["img_id"].split("_")[0] for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: expected a list of entries with subset_img_id and img_id, as the RSNA publishes it"
        ) from error
    for image in ids:
        if image not in of:
            raise InputError(f"{file}: image {image!r} is not in it, expected all of the table's")
    return [of[image] for image in ids], None


def _people(images: Path, paths: list[str]) -> tuple[list[float], list[str], list[str]]:
    """Ages, sexes and views from the headers; unknown where a file cannot be read (quarantined later)."""
    ages, sexes, views = [], [], []
    for path in paths:
        try:
            tags = read_tags(images / path, ("PatientAge", "PatientSex", "ViewPosition"))
        except InputError:
            tags = {"PatientAge": "", "PatientSex": "", "ViewPosition": ""}
        try:
            ages.append(age_years(tags["PatientAge"]))
        except ValueError:
            ages.append(float("nan"))
        sexes.append(tags["PatientSex"] if tags["PatientSex"] in ("M", "F") else "unknown")
        views.append(view_of(tags["ViewPosition"]) or "unknown")
    return ages, sexes, views
