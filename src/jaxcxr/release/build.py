"""Build `release/` from a finished run: only what may leave the hospital, checked before it appears.

Nothing in it is computed from private data outside the mechanism: no loss, prediction, threshold or log.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.release.attributes import normalise
from jaxcxr.release.check import check_release
from jaxcxr.release.gate import MARK, Passage, final_params, passage
from jaxcxr.release.write import write_release
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_card
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.statement import Statement
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
    run: Path,
    manifest: pd.DataFrame | None = None,
    watermark: bool = False,
    store: Path | None = None,
    statement: Statement | None = None,
    record: bool = False,
) -> Built:
    """Build, check and register `release/` in a run folder; the folder appears only if the check passes.

    Args:
        run: a finished private run.
        manifest: of its cohort, for the search for identifiers; by default that of the cohort's store.
        watermark: for a run that must not leave, build `not-for-release/` with every file marked.
        store: of its cohort, whose register records the release; by default the one in the run's
            configuration.
        statement: what the hospital states of the model; nothing unless given.
        record: write `registry.yaml`, a record for the OpenDP registry of deployments, too.

    Raises:
        InputError: the statement has thresholds for other findings than the model's, or lacks what a record
            needs; the run must not be released (`release.gate`), the folder exists already, or the check
            failed.
    """
    with passage(run, watermark, store) as found:
        if found.kind != "run":
            raise InputError(
                f"{run}: no run, but a {found.kind}; a release is built from a run (scripts/export.py "
                "converts)"
            )
        folder = _new(run / (WATERMARKED if found.against else RELEASE))
        card = found.card if statement is None else _with_statement(found.card, statement)
        params = final_params(run)
        part = run / f".{folder.name}.partial"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            write_release(part, params, read_config(run), card, found.against, record)
            normalise(part)
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


def _new(folder: Path) -> Path:
    if folder.exists():
        raise InputError(f"{folder}: exists already; delete it to build it anew")
    return folder


def _with_statement(card: PrivacyCard | None, statement: Statement) -> PrivacyCard | None:
    """The card with what the hospital states; a run without privacy has none."""
    if card is None:
        return None
    stated = None if statement.thresholds is None else set(statement.thresholds.values)
    if stated is not None and stated != set(card.findings):
        raise InputError(
            f"thresholds: expected one for each finding of the model ({', '.join(card.findings)}), found "
            f"{', '.join(sorted(stated)) or 'none'}"
        )
    return card_of(dataclasses.replace(facts_of_card(card), statement=statement))


def require_checked(found: Passage, store: Path | None = None) -> None:
    """Refuse the weights of a run for whatever a release of it would be refused for.

    Sources of other kinds were checked by `passage`, and weights that are marked may hold anything.

    Args:
        found: the gate's answer.
        store: of the run's cohort, if it is not where the run's configuration says.

    Raises:
        InputError: the release of the run would not be built; the message says why.
    """
    if found.kind != "run" or found.against:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / RELEASE
        folder.mkdir()
        write_release(folder, final_params(found.source), read_config(found.source), found.card)
        normalise(folder)
        verdict = check_release(folder, _manifest_of(found.source, store))
    if verdict.wrong:
        raise InputError(f"{found.source}: must not leave the hospital: {'; '.join(verdict.wrong)}")


def _manifest_of(run: Path, store: Path | None) -> pd.DataFrame:
    """The manifest of the cohort's store, which `passage` has compared with the run."""
    return open_store(store or read_config(run).data.store).manifest
