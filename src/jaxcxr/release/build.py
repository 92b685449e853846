"""Build `release/` from a finished run: only what may leave the hospital, checked before it appears.

Nothing in it is computed from private data outside the mechanism: no loss, prediction, threshold or log.
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
    """A built release.

    Attributes:
        folder: of the release.
        for_release: False if every file is marked as not for release.
        unchecked: sentences about what the check could not search for.
    """

    folder: Path
    for_release: bool
    unchecked: tuple[str, ...]


def build_release(
    run: Path, manifest: pd.DataFrame | None = None, watermark: bool = False, store: Path | None = None
) -> Built:
    """Build, check and register `release/` in a run folder; the folder appears only if the check passes.

    Args:
        run: a finished private run.
        manifest: of its cohort, for the search for identifiers; by default that of the cohort's store.
        watermark: for a run that must not leave, build `not-for-release/` with every file marked.
        store: of its cohort, whose register records the release; by default the one in the run's
            configuration.

    Raises:
        InputError: the run must not be released (`release.gate`), the folder exists already, or the check
            failed.
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
    """The manifest of the cohort's store, which `passage` has compared with the run."""
    return open_store(store or read_config(run).data.store).manifest
