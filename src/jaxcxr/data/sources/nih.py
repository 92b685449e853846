"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, labelled from reports.

Origin: Wang et al., 'ChestX-ray8', CVPR 2017; nihcc.app.box.com/v/ChestXray-NIHCC.
Access: public.
Licence: no restriction on use; the NIH Clinical Center has to be named as the source and the paper cited.

`Data_Entry_2017.csv` came in two versions. In both, the header `OriginalImage[Width,Height]` holds a comma
without quotes, so that it counts as two columns; the older one ends each row with a further comma and writes
ages as 058Y, 018M or 013D; a few are above 400 years. `train_val_list.txt` and `test_list.txt` are the
official split.
"""

from pathlib import Path

import numpy as np

from jaxcxr.data.ages import age_years
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    either,
    keep_views,
    located,
    paper_findings,
    read_csv,
    snake,
    translated,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "NIH ChestX-ray14", "NIH Clinical Center; Wang et al., CVPR 2017", "public", "free use, with attribution"
)
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_NONE = "No Finding"


def read(folder: Path, images: Path, options: Options) -> Cohort:
    """The cohort in the tables of ChestX-ray14.

    Args:
        folder: holds `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`, and the two lists for the official
            split.
        images: folder that holds the PNG files, at any depth.
        options: uncertain labels do not occur.

    Raises:
        InputError: a table or column is missing, an image is in neither list, or a cell holds a value that
            the set does not have.
    """
    table, name = read_csv(
        folder,
        ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"],
        ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position"],
    )
    files = text_of(table, "Image Index")
    native = {label: np.zeros(len(table)) for label in LABELS}
    for place, text in enumerate(text_of(table, "Finding Labels")):
        for label in text.split("|"):
            if label in native:
                native[label][place] = 1
            elif label != _NONE:
                expected = ", ".join((*LABELS, _NONE))
                raise InputError(
                    f"{name}: row {place + 1}, column 'Finding Labels': found {label!r}, expected one of "
                    f"{expected}"
                )
    if options.labels == "native":
        labels = {snake(label): values for label, values in native.items()}
    else:
        labels = paper_findings(
            native["Cardiomegaly"],
            native["Edema"],
            native["Effusion"],
            either(native["Infiltration"], native["Pneumonia"]),
            native["Atelectasis"],
        )
    frame = table[[]].assign(
        image_id=files,
        patient_id=text_of(table, "Patient ID"),
        path=located(images, [f"images/{file}" for file in files]),
        age=ages_or_unknown([_age(text) for text in text_of(table, "Patient Age")], options),
        sex=translated(table, "Patient Gender", {"M": "M", "F": "F", "": "unknown"}, name),
        view=translated(table, "View Position", {"PA": "PA", "AP": "AP", "": "unknown"}, name),
        **labels,
    )
    if options.split == "official":
        frame = frame.assign(split=_official(folder, files, name))
    excluded: dict[str, int] = {}
    frame = keep_views(frame, options, excluded)
    findings = tuple(map(snake, LABELS)) if options.labels == "native" else UKA_FINDINGS
    return cohort(frame, findings, options, PROVENANCE, name, excluded, publishes_valid=False)


def _official(folder: Path, files: np.ndarray, name: str) -> list[str]:
    side: dict[str, str] = {}
    for split, file in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
        if not (folder / file).is_file():
            raise InputError(
                f"{folder / file}: no such list; the official split needs it, 'split: drawn' does not"
            )
        try:
            side |= dict.fromkeys((folder / file).read_text(encoding="utf-8").split(), split)
        except UnicodeDecodeError as error:
            raise InputError(f"{folder / file}: expected a list of file names, found no text") from error
    for row, file in enumerate(files, 1):
        if file not in side:
            raise InputError(
                f"{name}: row {row}, column 'Image Index': {file!r} is in neither official list, expected "
                "it in one"
            )
    return [side[file] for file in files]


def _age(text: str) -> float:
    try:
        return age_years(text)
    except ValueError:
        return float("nan")
