"""PadChest: 160,861 radiographs of 67,625 patients of Hospital San Juan, Alicante.

Labels are by physicians, or read from reports by a neural network.

Origin: Bustos et al., 'PadChest: a large chest x-ray image dataset with multi-label annotated reports',
Medical Image Analysis 2020.
Access: after registration at bimcv.cipf.es.
Licence: PadChest Dataset Research Use Agreement: research, no redistribution.

The table has one row per image. The age is the year of the examination less the year of birth (a few are
above 100). Images are 16-bit PNGs of which fewer bits are used. Labels are lists in Python's notation;
`LabelsLocalizationsBySentence` says on which side, so that the paper's sided findings can be had: a side is
positive if a sentence names the finding and that side, negative if only the other side is named, and both are
unknown if no side is named. An image whose only labels are `unchanged`, or none, is unknown throughout; one
labelled `exclude` is left out. Some labels begin with a blank, `' exclude'` of 56 images too.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.published import (
    Cohort,
    Options,
    Provenance,
    ages_or_unknown,
    cohort,
    keep_views,
    located,
    read_csv,
    translated,
)  # fmt: skip
from jaxcxr.errors import InputError

PROVENANCE = Provenance(
    "PadChest",
    "Hospital San Juan, Alicante; Bustos et al., Medical Image Analysis 2020",
    "registration at BIMCV",
    "PadChest Dataset Research Use Agreement",
)
TERMS: Mapping[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiomegaly",),
    "congestion": (
        "hilar congestion", "heart insufficiency", "pulmonary edema", "kerley lines",
        "vascular redistribution",
    ),
    "pleural_effusion": (
        "pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax"
    ),
    "pneumonia": ("pneumonia", "atypical pneumonia"),
    "infiltrates": ("infiltrates", "alveolar pattern", "consolidation", "air bronchogram"),
    "interstitial_pattern": (
        "interstitial pattern", "reticular interstitial pattern", "reticulonodular interstitial pattern",
        "miliary opacities", "ground glass pattern",
    ),
    "atelectasis": (
        "atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis",
        "segmental atelectasis", "total atelectasis", "round atelectasis",
    ),
    "pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "emphysema": ("emphysema", "bullas"),
    "copd": ("COPD signs",),
    "fibrosis": ("pulmonary fibrosis", "post radiotherapy changes"),
    "nodule": ("nodule", "multiple nodules"),
    "mass": ("mass", "pulmonary mass"),
    "pleural_thickening": ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
    "hernia": ("hiatal hernia",),
    "scoliosis": ("scoliosis",),
}  # fmt: skip
"""Findings of this adapter -> PadChest labels that make each positive."""

_PAPER: Mapping[str, tuple[str, ...]] = {
    "pleural_effusion": ("pleural_effusion",),
    "pneumonic_infiltrates": ("pneumonia", "infiltrates"),
    "atelectasis": ("atelectasis",),
}
_SEXES = {"M": "M", "F": "F", "O": "unknown", "nan": "unknown", "None": "unknown", "": "unknown"}
_VIEWS = {
    "PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "lateral", "COSTAL": "costal", "EXCLUDE": "excluded",
    "UNK": "unknown", "": "unknown", "nan": "unknown",
}  # fmt: skip
_NOTHING_SAID = {"unchanged", ""}
_BARE_NAN = re.compile(r"(?<=[\[,\s])nan(?=\s*[,\]])")


def read(folder: Path, images: Path, options: Options) -> Cohort:
    """The cohort in the table of PadChest.

    Args:
        folder: holds `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (or `.gz`).
        images: folder with the numbered folders of the images (or with the images).
        options: PadChest has no official split, and no uncertain labels.

    Raises:
        InputError: the table or a column is missing, or a cell holds a value that PadChest does not have.
    """
    table, name = read_csv(
        folder, ["PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"],
        ["ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM",
         "Projection", "Labels", "LabelsLocalizationsBySentence"],
    )  # fmt: skip
    labels = [_listed(text, name, row, "Labels") for row, text in enumerate(text_of(table, "Labels"), 1)]
    said = np.array([bool(set(found) - _NOTHING_SAID) for found in labels])
    native = {
        finding: np.where(said, [float(not set(terms).isdisjoint(found)) for found in labels], np.nan)
        for finding, terms in TERMS.items()
    }
    if options.labels == "native":
        columns = native
    else:
        sentences = [
            _sentences(text, name, row)
            for row, text in enumerate(text_of(table, "LabelsLocalizationsBySentence"), 1)
        ]
        columns = _paper(native, sentences)
    files = text_of(table, "ImageID")
    frame = table[[]].assign(
        image_id=files,
        patient_id=text_of(table, "PatientID"),
        path=located(
            images, [f"{place}/{file}" for place, file in zip(text_of(table, "ImageDir"), files, strict=True)]
        ),
        age=ages_or_unknown(
            _ages(text_of(table, "StudyDate_DICOM"), text_of(table, "PatientBirth")), options
        ),
        sex=translated(table, "PatientSex_DICOM", _SEXES, name),
        view=translated(table, "Projection", _VIEWS, name),
        **columns,
    )
    usable = np.array(["exclude" not in found for found in labels])
    excluded = {"labelled 'exclude'": int((~usable).sum())}
    frame = keep_views(frame.loc[usable], options, excluded)
    findings = tuple(TERMS) if options.labels == "native" else UKA_FINDINGS
    return cohort(frame, findings, options, PROVENANCE, name, excluded, publishes_valid=False)


def _paper(native: Mapping[str, np.ndarray], sentences: list[list[list[str]]]) -> dict[str, np.ndarray]:
    columns = {"cardiomegaly": native["cardiomegaly"], "congestion": native["congestion"]}
    for stem, sources in _PAPER.items():
        terms = {term for source in sources for term in TERMS[source]}
        terms |= {f"{term} both sides" for term in terms}
        present = np.nanmax(np.stack([np.nan_to_num(native[source], nan=-1) for source in sources]), axis=0)
        right, left = (np.where(present < 0, np.nan, 0.0) for _ in range(2))
        for place in np.flatnonzero(present == 1):
            sides = _sides(sentences[place], terms)
            right[place], left[place] = (
                (float("right" in sides), float("left" in sides)) if sides else (np.nan, np.nan)
            )
        columns |= {f"{stem}_right": right, f"{stem}_left": left}
    return {finding: columns[finding] for finding in UKA_FINDINGS}


def _sides(sentences: list[list[str]], terms: set[str]) -> set[str]:
    sides: set[str] = set()
    for sentence in sentences:
        named = terms.intersection(sentence)
        if not named:
            continue
        # `loc right`, `loc right lower lobe`, `loc left costophrenic angle`, `loc basal bilateral`
        words = {word for part in sentence if part.startswith("loc ") for word in part.split()}
        if "bilateral" in words or any(term.endswith("both sides") for term in named):
            sides |= {"right", "left"}
        sides |= words & {"right", "left"}
    return sides


def _ages(dates: np.ndarray, births: np.ndarray) -> list[float]:
    ages = []
    for date, birth in zip(dates, births, strict=True):
        year = birth.removesuffix(".0")
        known = date[:4].isdigit() and year.isdigit() and len(year) == 4
        ages.append(float(int(date[:4]) - int(year)) if known else float("nan"))
    return ages


def _listed(text: str, name: str, row: int, column: str) -> list[str]:
    if text in ("", "nan"):
        return []
    found = _literal(text, name, row, column)
    if not isinstance(found, list) or not all(part is None or isinstance(part, str) for part in found):
        raise InputError(
            f"{name}: row {row}, column {column!r}: expected a list of labels such as ['normal']"
        )
    return [part.strip() for part in found if part is not None]


def _sentences(text: str, name: str, row: int) -> list[list[str]]:
    if text in ("", "nan"):
        return []
    column = "LabelsLocalizationsBySentence"
    found = _literal(text, name, row, column)
    if not isinstance(found, list):
        raise InputError(f"{name}: row {row}, column {column!r}: expected a list of lists of labels")
    sentences = [[str(part).strip() for part in sentence] for sentence in found if isinstance(sentence, list)]
    return sentences + _groups([part.strip() for part in found if isinstance(part, str)])


def _groups(flat: list[str]) -> list[list[str]]:
    """The flat list of a report labelled by the neural network, split after each label's locations."""
    groups: list[list[str]] = []
    in_places = True
    for part in flat:
        is_place = part.startswith("loc ")
        if in_places and not is_place:
            groups.append([])
        if groups:
            groups[-1].append(part)
        in_places = is_place
    return groups


def _literal(text: str, name: str, row: int, column: str) -> object:
    try:
        # A sentence without labels is written as a bare nan, which is no Python literal.
        return ast.literal_eval(_BARE_NAN.sub("None", text))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise InputError(
            f"{name}: row {row}, column {column!r}: expected a list of labels such as ['normal']"
        ) from error
