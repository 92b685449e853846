"""CheXpert: 224,316 radiographs of 65,240 patients of Stanford Hospital, labelled from reports.

Origin: Irvin et al., 'CheXpert: a large chest radiograph dataset with uncertainty labels and expert
comparison', AAAI 2019.
Access: after registration with the Stanford AIMI Center (aimi.stanford.edu).
Licence: Stanford University Dataset Research Use Agreement: research, no redistribution.

`train.csv` and `valid.csv` have one row per image; `test.csv` is used if it is there. Ages above 89 are given
as 90. A label is 1, 0, -1 (uncertain) or empty (not mentioned). Without a test table, splits can be drawn at
random from all patients (`split: drawn`).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    graded,
    keep_views,
    optional_csv,
    paper_findings,
    read_csv,
    require_known,
    snake,
    translated,
    uncertain_meanings,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "CheXpert",
    "Stanford Hospital; Irvin et al., AAAI 2019",
    "registration with the Stanford AIMI Center",
    "Stanford University Dataset Research Use Agreement",
)
LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)  # fmt: skip
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
_SEXES = {"Male": "M", "Female": "F", "Unknown": "unknown", "": "unknown"}
_VIEWS = {"AP": "AP", "PA": "PA", "": "unknown", "LL": "lateral", "RL": "lateral"}


def read(folder: Path, images: Path, options: Options) -> Cohort:  # noqa: ARG001  adapters share one signature
    """The cohort in the tables of CheXpert (or CheXpert-small).

    Args:
        folder: holds train.csv and valid.csv.
        images: folder that `train/` and `valid/` lie in.
        options: `uncertain` names findings as CheXpert does.

    Raises:
        InputError: a table or column is missing, or a cell holds a value that CheXpert does not have.
    """
    require_known(options, LABELS, str(folder))
    train, name = read_csv(folder, ["train.csv", "chexpert_train.csv"], _COLUMNS)
    parts = {"train": _rows(train, "train", name, options)}
    for split in ("valid", "test"):
        table = optional_csv(folder, [f"{split}.csv"], _COLUMNS)
        if table is not None:
            parts[split] = _rows(table, split, f"{folder / split}.csv", options)
    frame = pd.concat(parts.values(), ignore_index=True)
    excluded: dict[str, int] = {}
    frame = keep_views(frame, options, excluded)
    findings = tuple(map(snake, LABELS)) if options.labels == "native" else UKA_FINDINGS
    return cohort(
        frame, findings, options, PROVENANCE, str(folder), excluded, publishes_valid="valid" in parts
    )


def from_labeller(table: pd.DataFrame, name: str, options: Options) -> dict[str, np.ndarray]:
    """The findings of a table with one column per label, as CheXpert's labeller (and NegBio) writes it."""
    native = {label: graded(table, label, uncertain_meanings(label, options), name) for label in LABELS}
    if options.no_finding == "others_negative":
        nothing = native["No Finding"] == 1
        for label in set(LABELS) - {"No Finding", "Support Devices"}:
            native[label][nothing & (text_of(table, label) == "")] = 0.0
    if options.labels == "native":
        return {snake(label): values for label, values in native.items()}
    return paper_findings(
        native["Cardiomegaly"],
        native["Edema"],
        native["Pleural Effusion"],
        native["Pneumonia"],
        native["Atelectasis"],
    )


def _rows(table: pd.DataFrame, split: str, name: str, options: Options) -> pd.DataFrame:
    lateral = np.array([text == "Lateral" for text in text_of(table, "Frontal/Lateral")])
    views = np.array(translated(table, "AP/PA", _VIEWS, name), dtype=object)
    views[lateral] = "lateral"
    paths, patients = [], []
    for row, text in zip(table.index + 1, text_of(table, "Path"), strict=True):
        parts = text.split("/")
        patient = next((part for part in parts if part.startswith("patient")), None)
        if patient is None:
            raise InputError(
                f"{name}: row {row}, column 'Path': found no part 'patient<number>', expected one"
            )
        patients.append(patient)
        paths.append("/".join(parts[1:] if parts[0].startswith("CheXpert") else parts))
    # The tables write 0 where the age is not known: nobody in them is a newborn.
    ages = [
        float(text) if text.replace(".", "", 1).isdigit() and float(text) > 0 else np.nan
        for text in text_of(table, "Age")
    ]
    return table[[]].assign(
        image_id=paths,
        patient_id=patients,
        path=paths,
        split=split,
        age=ages_or_unknown(ages, options),
        sex=translated(table, "Sex", _SEXES, name),
        view=views,
        **from_labeller(table, name, options),
    )
