"""Read a table of radiographs and propose the files to begin with: a column map and an experiment.

Examples:
  jaxcxr init metadata.csv --images FOLDER
  jaxcxr init metadata.csv --images FOLDER --patient MRN --size 256 --out mine

Writes NAME_map.yaml (how `jaxcxr prepare` reads the table), NAME.yaml (a private experiment with safe
defaults: the patient is the unit, class counts are noised, thresholds are chosen on validation images, N is
declared and rounded) and NAME_nonprivate.yaml. Every guess is marked GUESS, with its reason: check them.
Nothing is overwritten.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which table and images.

    Attributes:
        table: .csv or .parquet, one row per image.
        images: folder that the table's paths start from.
        out: folder for the files.
        name: of files and store; the table's unless given.
        size: side of the images in the store, in pixels (the paper: 512; less is faster).
        path: column of image files; found by looking for the files unless given.
        patient: column of the patient's id; guessed by its name unless given.
    """

    table: tyro.conf.Positional[Path]
    images: Path
    out: Path = Path()
    name: str | None = None
    size: int = 512
    path: str | None = None
    patient: str | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.size < 16:
        raise InputError(f"--size: found {arguments.size}, expected at least 16 pixels")
    if not arguments.images.is_dir():
        raise InputError(f"{arguments.images}: no such folder of images")
    say(f"reading {arguments.table}")
    from jaxcxr.data.manifest import read_table
    from jaxcxr.data.sources.proposal import folded, propose
    from jaxcxr.workflows.proposal import write_proposal

    table = read_table(arguments.table)
    name = arguments.name or folded(arguments.table.stem) or "cohort"
    proposal = propose(table, arguments.images, str(arguments.table), arguments.path, arguments.patient)
    written = write_proposal(proposal, table, name, arguments.out, arguments.size)
    print(
        f"{arguments.table}: {len(table):,} rows; findings {', '.join(proposal.source.findings)}\n"
        f"{written.source}, {written.private}, {written.nonprivate}: written, "
        f"with {written.guesses} guesses to check"
    )
    for remark in proposal.remarks:
        print(f"seen: {remark}")
    if written.unread:
        print(f"the map does not read the table yet: {written.unread}; mend the map or the table")
    print(
        "\nnext, when the guesses are checked:\n"
        f"  jaxcxr prepare csv --source {written.source} --table {arguments.table} "
        f"--images {arguments.images} --out stores/{name} --size {arguments.size}\n"
        f"  jaxcxr train --config {written.private} --dry-run\n"
        f"  jaxcxr train --config {written.private}"
    )
