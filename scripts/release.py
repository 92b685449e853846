"""Build what may leave the house from a finished run, and check it; or check a folder.

python scripts/release.py runs/demo                       build runs/demo/release and check it
python scripts/release.py --check FOLDER --manifest TABLE check a folder against a cohort's manifest

A run that must not be released (seeded, or with class weights that the guarantee does not cover) is refused;
--watermark builds runs/demo/not-for-release from it, every file marked so.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to build or check.

    Attributes:
        folder: run folder; with check, the folder to be checked.
        check: only check the folder.
        manifest: table with image_id, patient_id and path; that of the run's store unless given.
        watermark: build a marked folder of a run that must not be released.
    """

    folder: tyro.conf.Positional[Path]
    check: bool = False
    manifest: Path | None = None
    watermark: bool = False


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    from jaxcxr.release.build import build_release, manifest_of
    from jaxcxr.release.check import check_release

    if arguments.check:
        from jaxcxr.data.manifest import read_table

        manifest = None if arguments.manifest is None else read_table(arguments.manifest)
        wrong = check_release(arguments.folder, manifest)
        if wrong:
            raise InputError(f"{arguments.folder}: must not leave the house: {'; '.join(wrong)}")
        against = "" if manifest is not None else " (without --manifest no identifier was looked for)"
        print(f"{arguments.folder}: nothing found{against}")
        return
    built = build_release(arguments.folder, manifest_of(arguments.folder, arguments.manifest), arguments.watermark)
    print(f"{built}: built and checked" if built.name == "release" else f"{built}: built; NOT FOR RELEASE")


if __name__ == "__main__":
    run(main)
