"""Turn a data set and its image files into a store that training reads.

Examples:
  jaxcxr prepare csv --source my_map.yaml --table metadata.csv --images FOLDER --out stores/mine
  jaxcxr prepare dicom --source my_map.yaml --table metadata.csv --images FOLDER --out stores/mine
  jaxcxr prepare nih --folder FOLDER --out stores/nih
  jaxcxr prepare verify stores/nih

`jaxcxr init` proposes the column map of a table. A run that was interrupted goes on if the same command is
given again. docs/data.md describes every source.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.config_files import load
from jaxcxr.errors import InputError

if TYPE_CHECKING:  # pandas and the readers take seconds, and `--help` needs none of them
    from jaxcxr.data.sources.cohort import Cohort
    from jaxcxr.data.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every source has.

    Attributes:
        out: folder of the store to make.
        size: side of the images, in pixels (the paper: 512).
        fit: how an image becomes square: squeezed (the paper), or padded so that it keeps its aspect.
        normalisation: grey values: the paper's equalised histogram, percentiles, or as they are.
        dtype: of the stored pixels; training reads uint8.
        processes: how many decode images; by default one per usable core.
        shards: number of files of records; by default as many as keep each below 128 MiB.
        strict: stop at the first file that cannot be used, instead of leaving it out and naming it in
            quarantine.csv.
        refuse_flagged: leave out odd images (secondary captures, burnt-in annotation, constant ones and
            others), instead of naming them in flagged.csv.
        verify: read every record again when done and compare it with its checksum.
        duplicates: look for nearly equal images of different patients.
    """

    out: Path
    size: int = 512
    fit: Literal["squeeze", "pad"] = "squeeze"
    normalisation: Literal["paper", "percentile", "none"] = "paper"
    dtype: Literal["uint8", "uint16"] = "uint8"
    processes: int | None = None
    shards: int | None = None
    strict: bool = False
    refuse_flagged: bool = False
    verify: bool = False
    duplicates: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csv(Common):
    """Any table with one row per image, read by a column map.

    Attributes:
        source: YAML column map of the table (configs/prepare_example.yaml).
        table: CSV or parquet file, one row per image.
        images: folder that the table's paths start from.
    """

    source: Path
    table: Path
    images: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dicom(Csv):
    """A folder of DICOM files and a table that is joined with them by a tag (configs/prepare_dicom.yaml)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published(Common):
    """A published data set in its own files.

    Attributes:
        folder: holds the set's tables.
        images: folder of its images; by default the same.
        config: YAML choices, such as what uncertain labels mean (configs/prepare_<name>.yaml); the defaults
            are written there.
    """

    folder: Path
    images: Path | None = None
    config: Path | None = None


class Uka(Published):
    """UKA-CXR, the paper's cohort."""


class Mimic(Published):
    """MIMIC-CXR-JPG."""


class Chexpert(Published):
    """CheXpert."""


class Nih(Published):
    """NIH ChestX-ray14."""


class Padchest(Published):
    """PadChest."""


class Vindr(Published):
    """VinDr-CXR."""


class Rsna(Published):
    """RSNA Pneumonia Detection Challenge."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Read every record of a store and compare it with its checksum."""

    store: tyro.conf.Positional[Path]


Command = (
    Annotated[Csv, tyro.conf.subcommand("csv")]
    | Annotated[Dicom, tyro.conf.subcommand("dicom")]
    | Annotated[Uka, tyro.conf.subcommand("uka")]
    | Annotated[Mimic, tyro.conf.subcommand("mimic")]
    | Annotated[Chexpert, tyro.conf.subcommand("chexpert")]
    | Annotated[Nih, tyro.conf.subcommand("nih")]
    | Annotated[Padchest, tyro.conf.subcommand("padchest")]
    | Annotated[Vindr, tyro.conf.subcommand("vindr")]
    | Annotated[Rsna, tyro.conf.subcommand("rsna")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    command: Any = tyro.cli(Command, description=__doc__, args=argv)  # type: ignore[arg-type]
    if isinstance(command, Verify):
        from jaxcxr.data.store import open_store

        _verify(open_store(command.store))
        return
    _refuse_impossible(command)
    say(f"{command.out}: reading the tables of its images")
    from jaxcxr.data.build import build_store
    from jaxcxr.data.images import Preprocessing
    from jaxcxr.data.sources.published import require_images

    how = Preprocessing(command.fit, command.normalisation, command.dtype)
    processes = command.processes or len(os.sched_getaffinity(0))
    cohort, images, groups = _cohort(command, processes)
    described = {**dataclasses.asdict(cohort.provenance), "excluded": dict(cohort.excluded)}
    for reason, count in cohort.excluded.items():
        if count:
            print(f"left out by choice: {count:,} ({reason})")
    for remark in cohort.remarks:
        print(f"warning: {remark}")
    require_images(images, cohort.manifest["path"].tolist())

    started = time.monotonic()
    with (
        progress_bar(len(cohort.manifest), "images") as bar,
        _late_bar("%", "near-duplicates") as compared,
    ):
        store = build_store(
            command.out, cohort.manifest, images, size=command.size, findings=cohort.findings, how=how,
            groups=groups, refused=cohort.refused, sources=described, split=cohort.split, processes=processes,
            shards=command.shards, strict=command.strict, refuse_flagged=command.refuse_flagged,
            duplicates=command.duplicates, progress=bar.update, compared=compared,
        )  # fmt: skip
    _tell(store, cohort, time.monotonic() - started)
    _tell_duplicates(store)
    if command.verify:
        _verify(store)


@contextmanager
def _late_bar(unit: str, desc: str) -> Iterator[Callable[[float], None]]:
    """A bar that is drawn when the first share of its work is done."""
    bars: list[Any] = []

    def update(share: float) -> None:
        if not bars:
            bars.append(progress_bar(100, unit, desc))
        bars[0].update(round(100 * share, 6))

    try:
        yield update
    finally:
        for bar in bars:
            bar.close()


def _refuse_impossible(command: Common) -> None:
    for name in ("processes", "shards"):
        if getattr(command, name) is not None and getattr(command, name) < 1:
            raise InputError(f"--{name}: found {getattr(command, name)}, expected at least 1")
    if command.size < 16:
        raise InputError(f"--size: found {command.size}, expected at least 16 pixels")
    if command.out.exists():
        raise InputError(f"{command.out}: exists already, expected a new folder for the store")


def _cohort(command: Any, processes: int) -> "tuple[Cohort, Path, tuple[str, ...]]":
    """The cohort, the folder of its images, and the further columns to keep.

    A preparation that is gone on with draws its splits with the key that it was begun with.
    """
    from jaxcxr.data.build import begun_split_key
    from jaxcxr.data.manifest import require_positives
    from jaxcxr.data.sources import dicom, table

    begun = begun_split_key(command.out)
    if isinstance(command, Published):
        images = _folder(command.images or command.folder)
        return _published(command, images, begun), images, ()
    images = _folder(command.images)
    if isinstance(command, Dicom):
        config = load(dicom.DicomSource, command.source)
        config = dataclasses.replace(config, source=table.keyed(config.source, begun))
        with progress_bar(None, "files", "headers") as bar:
            cohort = dicom.read(images, command.table, config, processes, bar.update)
        return cohort, images, tuple(config.source.groups)
    source = table.keyed(load(table.TableSource, command.source), begun)
    cohort = table.read(command.table, source)
    require_positives(cohort.manifest, cohort.findings, str(command.table))
    return cohort, images, tuple(source.groups)


def _published(command: Published, images: Path, begun: str | None) -> "Cohort":
    """The cohort of a published data set."""
    from jaxcxr.data.sources import chexpert, mimic, nih, padchest, rsna, uka, vindr
    from jaxcxr.data.sources.published import Options

    adapters: dict[type[Published], tuple[Any, type[Options]]] = {
        Uka: (uka.read, uka.UkaOptions),
        Mimic: (mimic.read, mimic.MimicOptions),
        Chexpert: (chexpert.read, Options),
        Nih: (nih.read, Options),
        Padchest: (padchest.read, Options),
        Vindr: (vindr.read, vindr.VindrOptions),
        Rsna: (rsna.read, Options),
    }
    read, kind = adapters[type(command)]
    if not command.folder.is_dir():
        raise InputError(f"{command.folder}: no such folder")
    options = load(kind, command.config) if command.config else kind()
    return read(command.folder, images, dataclasses.replace(options, draw=options.draw.keyed(begun)))


def _folder(images: Path) -> Path:
    if not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    return images


def _tell(store: "Store", cohort: "Cohort", seconds: float) -> None:
    from jaxcxr.data.build import FLAGGED_FILE, QUARANTINE_FILE, read_listing
    from jaxcxr.data.manifest import SPLITS, require_positives

    splits = store.manifest["split"].tolist()
    counts = ", ".join(f"{split} {splits.count(split):,}" for split in SPLITS)
    print(f"{store.path}: {len(store.manifest):,} images of {store.size} x {store.size} ({counts})")
    patients = store.manifest.groupby("split")["patient_id"].nunique()
    print(f"patients: {', '.join(f'{split} {patients.get(split, 0):,}' for split in SPLITS)}")
    print(f"fingerprint {store.fingerprint}; {seconds:.1f} s")
    total = len(cohort.manifest) + len(cohort.refused)
    for name, said in (
        (QUARANTINE_FILE, "images could not be used and were left out"),
        (FLAGGED_FILE, "images are odd but used"),
    ):
        count = len(set(read_listing(store.path / name)["path"]))
        if count:
            print(f"{count:,} of {total:,} {said}; see {store.path / name}")
    for finding in store.findings:
        try:
            require_positives(store.manifest, [finding], "warning")
        except InputError as error:
            print(f"{error}; no run can use it")


def _tell_duplicates(store: "Store") -> None:
    from jaxcxr.data.build import read_listing
    from jaxcxr.data.duplicates import DUPLICATES_FILE, across_splits

    pairs = read_listing(store.path / DUPLICATES_FILE)
    if len(pairs):
        print(
            f"{len(pairs):,} pairs of nearly equal images of different patients, "
            f"{len(across_splits(pairs)):,} of them across "
            f"splits; see {store.path / DUPLICATES_FILE}"
        )


def _verify(store: "Store") -> None:
    from jaxcxr.data.verify import verify

    with progress_bar(len(store.manifest), "images") as bar:
        count = verify(store, bar.update)
    print(f"{store.path}: all {count:,} records are what was written")
