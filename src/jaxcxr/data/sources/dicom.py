"""A folder of DICOM files, such as an export from an archive, with a table of labels.

The folder is walked, a fixed list of tags is read by name (no name, address or free text), and the files are
joined with the rows of a table by one tag. The joined table is then read by a column map like any other
(`jaxcxr.data.sources.table`); these columns come from the files:

    path, patient_id (PatientID), image_id (SOPInstanceUID), study_id (StudyInstanceUID), age (PatientAge,
    else from the dates of birth and study), sex (F, M or empty), view (AP, PA, lateral, other or empty),
    laterality (L, R, B or empty), modality

Files that are not DICOM, not a radiograph by their modality, or a second copy of an instance are quarantined,
and so are links to folders, which are not followed, and folders that cannot be listed. Hidden files and
folders are skipped.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from jaxcxr.config import STRICT
from jaxcxr.data.ages import age_years, plausible_age, years_between
from jaxcxr.data.dicom import RADIOGRAPHY_MODALITIES, read_tags
from jaxcxr.data.manifest import missing_column, read_table, text_of
from jaxcxr.data.sources.cohort import Cohort
from jaxcxr.data.sources.identities import remarks
from jaxcxr.data.sources.published import is_utf8
from jaxcxr.data.sources.table import TableSource, keyed, split_of, to_manifest
from jaxcxr.errors import InputError

_TAGS = (
    "Modality", "PatientID", "SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientAge",
    "PatientBirthDate", "PatientSex", "StudyDate", "AcquisitionDate", "ViewPosition", "ViewCodeSequence",
    "ImageLaterality", "Laterality",
)  # fmt: skip
_COLUMNS = (
    "path", "patient_id", "image_id", "study_id", "accession_number", "age", "sex", "view", "laterality",
    "modality"
)  # fmt: skip
JOINS = {
    "path": "path",
    "SOPInstanceUID": "image_id",
    "StudyInstanceUID": "study_id",
    "AccessionNumber": "accession_number",
    "PatientID": "patient_id",
}
"""Tags on which a table can be joined -> column of `scan`."""


_SPELT = {
    r"(?:postero|posterior|posterioro) ?anterior": "pa", r"posterioranterior": "pa", "p a": "pa",
    r"(?:antero|anterior|anterioro) ?posterior": "ap", r"anteriorposterior": "ap", "a p": "ap",
}  # fmt: skip
_LATERAL = frozenset(("ll", "rl", "lat", "lateral", "lateralis", "laterolateral", "sagittal"))
_NEUTRAL = frozenset(
    (
        "chest", "thorax", "view", "projection", "position", "radiograph", "xray", "x", "ray", "cxr",
        "frontal",
        "erect", "upright", "standing", "supine", "sitting", "seated", "semi", "semierect", "recumbent",
        "portable", "mobile", "bedside", "bed", "inspiration", "the", "in", "of", "1", "2",
    )
)  # fmt: skip
"""Words beside AP or PA that leave the image a frontal one."""


@dataclasses.dataclass(frozen=True)
class Join:
    """The join key: a DICOM tag (or `path`, the file's path), and the table's column with its values."""

    __pydantic_config__ = STRICT
    tag: str
    column: str


@dataclasses.dataclass(frozen=True)
class DicomSource:
    """Options for reading a folder and its table.

    Attributes:
        join: tag and column. One row of the table may match several files (such as all of a study), never the
            reverse.
        source: column map of the joined table.
    """

    __pydantic_config__ = STRICT
    join: Join
    source: TableSource


def read(
    images: Path,
    table: Path,
    config: DicomSource,
    processes: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> Cohort:
    """The cohort of the DICOM files below `images`, joined with the table and read by the column map.

    Args:
        images: folder to walk.
        table: CSV or parquet table of labels.
        config: what joins the two, and the column map.
        processes: number of processes that read headers.
        progress: called with the number of headers read since the last call.

    Raises:
        InputError: there are no DICOM files, the tag is not one of `JOINS`, a key occurs twice in the table,
            the table has a `patient_id` of its own, or the column map refuses a value.
    """
    source = keyed(config.source)
    if config.join.tag not in JOINS:
        raise InputError(f"join.tag: found {config.join.tag!r}, expected one of {', '.join(JOINS)}")
    rows = read_table(table)
    if config.join.column not in rows.columns:
        raise InputError(
            f"{table}: {missing_column(config.join.column, rows.columns)} (it joins the table with the files)"
        )
    keys = text_of(rows, config.join.column)
    repeated = pd.Index(keys).duplicated()
    if repeated.any():
        row = int(repeated.argmax())
        raise InputError(
            f"{table}: row {row + 1}, column {config.join.column!r}: the key {keys[row]!r} occurs twice, "
            "expected once"
        )
    if "patient_id" in rows.columns and config.join.column != "patient_id":
        raise InputError(
            f"{table}: column 'patient_id' comes from the files; expected another name for the table's, "
            "which the column map can then name"
        )
    files, refused = scan(images, processes, progress)
    taken = [column for column in rows.columns if column not in files.columns]
    if config.join.column not in taken:
        taken.append(config.join.column)
    joined = files.assign(_key=text_of(files, JOINS[config.join.tag])).merge(
        rows[taken].assign(_key=keys), on="_key", how="left", indicator=True, suffixes=("", "_table")
    )
    # A file without the tag does not match a row without a key.
    found = ((joined["_merge"] == "both") & (joined["_key"] != "")).to_numpy()
    refused += [(path, "no row of the table belongs to it") for path in joined.loc[~found, "path"]]
    absent = len(set(keys) - set(joined["_key"]))
    if not found.any():
        raise InputError(
            f"{table}: no row belongs to any of the {len(files)} radiographs in {images} by {config.join.tag}"
        )
    kept = joined.loc[found].drop(columns=["_key", "_merge"]).reset_index(drop=True)
    manifest = to_manifest(kept, source, str(table))
    excluded = {
        "rows left out by the column map": len(kept) - len(manifest),
        "rows of the table without a file": absent,
    }
    return Cohort(
        manifest, source.findings, source.provenance, excluded, tuple(refused), split_of(source),
        remarks(text_of(kept, source.columns.patient_id), source.same_patient),
    )  # fmt: skip


def scan(
    images: Path, processes: int = 1, progress: Callable[[int], object] = lambda _: None
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Tags of all radiographs below a folder.

    Returns:
        One row per radiograph (columns as above), sorted by path; and the rejected files, with reasons.

    Raises:
        InputError: no file below the folder is a radiograph, or two patients share an instance.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    paths, refused = _files(images)
    rows: list[dict[str, str]] = []
    first: dict[str, dict[str, str]] = {}
    shared: list[tuple[str, str]] = []
    for path, found in zip(paths, _headers(images, paths, processes), strict=True):
        progress(1)
        if isinstance(found, str):
            refused.append((path, found))
        elif (earlier := first.get(found["image_id"])) is None:
            first[found["image_id"]] = found
            rows.append(found)
        elif earlier["patient_id"] == found["patient_id"]:
            refused.append((path, f"second copy of an instance, the first is {earlier['path']}"))
        else:
            shared.append((earlier["path"], path))
    if shared:  # keeping the first of two would make one patient's data depend on another patient
        raise InputError(
            f"{images}: {shared[0][0]} and {shared[0][1]} are of two patients and have one SOPInstanceUID "
            f"({len(shared)} such pairs in all); expected an instance of one patient: correct the export, "
            "or take one file of each pair away"
        )
    if not rows:
        raise InputError(f"{images}: none of the {len(paths)} files below it is a DICOM radiograph")
    return pd.DataFrame(rows, columns=list(_COLUMNS)), refused


def _files(images: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the files below a folder, sorted; and what cannot be read, with reasons."""
    paths: list[str] = []
    refused: list[tuple[str, str]] = []

    def refuse(path: str, reason: str) -> None:
        refused.append((os.fsencode(path).decode(errors="replace"), reason))

    def unreadable(error: OSError) -> None:
        refuse(os.path.relpath(error.filename, images), f"folder that cannot be listed ({error.strerror})")

    for folder, folders, names in os.walk(images, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(folder) / name).is_symlink():
                refuse(
                    os.path.relpath(Path(folder) / name, images), "link to a folder, which is not followed"
                )
        for name in names:
            path = os.path.relpath(Path(folder) / name, images)
            if name == "DICOMDIR" or name.startswith("."):
                continue
            if is_utf8(path):
                paths.append(path)
            else:
                refuse(path, "its name is not UTF-8, which no table can hold")
    return sorted(paths), refused


def _headers(images: Path, paths: list[str], processes: int) -> Iterator[dict[str, str] | str]:
    read_one = functools.partial(header, images)
    if processes == 1 or len(paths) < 1000:
        yield from map(read_one, paths)
        return
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        yield from pool.map(read_one, paths, chunksize=128)


def header(images: Path, path: str) -> dict[str, str] | str:
    """Tags of one file as a row of `scan`, or the reason why the file is not used."""
    try:
        tags = read_tags(images / path, _TAGS)
    except InputError as error:
        return str(error).removeprefix(f"{images / path}: ")
    if tags["Modality"] and tags["Modality"] not in RADIOGRAPHY_MODALITIES:
        return f"not a radiograph by its DICOM modality, expected one of {', '.join(RADIOGRAPHY_MODALITIES)}"
    if not tags["PatientID"]:
        return "DICOM without a PatientID, so that its patient could stand on two sides of a split"
    return {
        "path": path,
        "patient_id": tags["PatientID"],
        "image_id": tags["SOPInstanceUID"] or path,
        "study_id": tags["StudyInstanceUID"],
        "accession_number": tags["AccessionNumber"],
        "age": _age(tags),
        "sex": tags["PatientSex"].upper() if tags["PatientSex"].upper() in ("F", "M") else "",
        "view": view_of(tags["ViewPosition"] or tags["ViewCodeSequence"]),
        "laterality": (tags["ImageLaterality"] or tags["Laterality"]).upper()[:1],
        "modality": tags["Modality"],
    }


def view_of(text: str) -> str:
    """The view (AP, PA, lateral, other or empty) from a view position or the meaning of a view code.

    Only whole words count, and words that this list does not have make the view `other`: a decubitus or
    apical image is no frontal one because it was taken from the front.
    """
    words = re.findall(r"[^\W_]+", text.casefold())
    if not words:
        return ""
    joined = " ".join(words)
    for spelt, short in _SPELT.items():
        joined = re.sub(rf"\b{spelt}\b", short, joined)
    found = set(joined.split())
    if found & _LATERAL:
        return "lateral"
    views = found & {"pa", "ap"}
    return views.pop().upper() if len(views) == 1 and found <= {"pa", "ap", *_NEUTRAL} else "other"


def _age(tags: dict[str, str]) -> str:
    try:
        age = plausible_age(age_years(tags["PatientAge"]))
    except ValueError:
        age = float("nan")
    if age != age:
        age = plausible_age(
            years_between(tags["PatientBirthDate"], tags["AcquisitionDate"] or tags["StudyDate"])
        )
    return "" if age != age else f"{age:g}"
