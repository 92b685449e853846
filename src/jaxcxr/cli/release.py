"""Build what may leave the hospital from a finished run, and check it; or check a folder.

Examples:
  jaxcxr release runs/demo                build runs/demo/release and check it
  jaxcxr configs release.yaml --to .      the form for what the hospital states (name, use, contact, licence)
  jaxcxr release runs/demo --statement release.yaml --registry      with it, and a record for a registry
  jaxcxr release --check FOLDER --manifest TABLE --store STORE      check a folder against a cohort

A run that must not be released (without privacy, unfinished, seeded, with class weights that the guarantee
does not cover, or refuted by its audit, for example) is refused; --watermark builds runs/demo/not-for-release
from it, every file marked so. A release is registered in the store of its cohort (releases.jsonl), and counts
on the privacy cards of all later ones.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError
from jaxcxr.run_folder import CHECKPOINTS, SECRET


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to build or check.

    Attributes:
        folder: run folder; with check, the folder to be checked.
        check: only check the folder.
        manifest: table with image_id, patient_id and path (.csv or .parquet); that of the store unless
            given.
        store: of the run's cohort, if it is not where the run's configuration says; with check, its register
            of released models is asked (without it, that of the run folder in which a release lies).
        watermark: build a marked folder of a run that must not be released.
        statement: YAML file with what the hospital states of the model (configs/release.yaml is the form);
            empty fields are printed as 'not stated'.
        registry: write a record for the OpenDP registry of deployments (registry.yaml), too.
    """

    folder: tyro.conf.Positional[Path]
    check: bool = False
    manifest: Path | None = None
    store: Path | None = None
    watermark: bool = False
    statement: Path | None = None
    registry: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(f"{arguments.folder}: {'checking' if arguments.check else 'building and checking its release'}")
    from jaxcxr.data.manifest import read_table
    from jaxcxr.release.build import build_release
    from jaxcxr.release.check import check_registered, check_release, manifest_of
    from jaxcxr.report.card.statement import read_statement

    manifest = None if arguments.manifest is None else read_table(arguments.manifest)
    if arguments.check:
        if manifest is None:
            manifest = manifest_of(arguments.folder, arguments.store)
        by_itself = check_release(arguments.folder, manifest)
        registered = check_registered(arguments.folder, arguments.store)
        if wrong := (*by_itself.wrong, *registered.wrong):
            raise InputError(f"{arguments.folder}: must not leave the hospital: {'; '.join(wrong)}")
        print(f"{arguments.folder}: nothing found")
        unchecked = (*by_itself.unchecked, *registered.unchecked)
    else:
        built = build_release(
            arguments.folder,
            manifest,
            arguments.watermark,
            arguments.store,
            None if arguments.statement is None else read_statement(arguments.statement),
            arguments.registry,
        )
        print(
            f"{built.folder}: "
            + ("built and checked" if built.for_release else "built; NOT FOR RELEASE, and not checked")
        )
        unchecked = built.unchecked
        if arguments.statement is None:
            print(
                "the hospital states nothing (--statement): name, contact, licence and the like read 'not "
                "stated' on the card; `jaxcxr configs release.yaml --to .` copies the form"
            )
        secret = arguments.folder / CHECKPOINTS / SECRET
        if secret.is_file():
            print(
                f"{secret}: with it the noise can be removed; delete it now that the run is finished, or "
                "lock it away"
            )
    for sentence in unchecked:
        print(f"not checked: {sentence}")
