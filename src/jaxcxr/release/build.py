"""Build `release/` from a finished run: what may leave the hospital, and nothing else, checked before it
appears.

Nothing here is computed from private data outside the mechanism: no loss, no prediction, no threshold, no
log.
"""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd

from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.release.check import check_release
from jaxcxr.release.gate import MARK, final_params, passage
from jaxcxr.release.write import write_release
from jaxcxr.run_folder import read_config

RELEASE = "release"
WATERMARKED = MARK


@dataclasses.dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        folder: of the release.
        for_release: False if every file is marked as not for release.
        unchecked: what the check could not look for, a sentence each.
    """

    folder: Path
    for_release: bool
    unchecked: tuple[str, ...]


def build_release(
    run: Path, manifest: pd.DataFrame | None = None, watermark: bool = False, store: Path | None = None
) -> Built:
    """Write `release/` in a run folder, check it and register it; the folder appears only if it passes.

    Args:
        run: a finished private run.
        manifest: of its cohort, to look for identifiers; that of the cohort's store unless given.
        watermark: build a folder `not-for-release/` of a run that must not leave, every artefact marked so.
        store: of its cohort, whose register must know of the release; the one in the run's configuration
            unless given.

    Raises:
        InputError: the run must not be released (`release.gate`), its folder exists already, or the check
            found something.
    """
    with passage(run, watermark, store) as found:
        if found.kind != "run":
            raise InputError(
                f"{run}: no run, but a {found.kind}; a release is built from a run (scripts/export.py "
                "converts)"
            )
        folder = run / (WATERMARKED if found.against else RELEASE)
        if folder.exists():
            raise InputError(f"{folder}: exists already; delete it to build it anew")
        params = final_params(run)
        part = run / f".{folder.name}.partial"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            write_release(part, params, read_config(run), found.card, found.against)
            verdict = (
                None
                if found.against
                else check_release(part, _manifest_of(run, store) if manifest is None else manifest)
            )
            if verdict is not None and verdict.wrong:
                raise InputError(f"{folder}: was not built: {'; '.join(verdict.wrong)}")
            found.register()
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Built(folder, not found.against, verdict.unchecked if verdict else ())


def _manifest_of(run: Path, store: Path | None) -> pd.DataFrame:
    """That of the cohort's store, which `passage` has compared with the run."""
    return open_store(store or read_config(run).data.store).manifest
