"""Build `release/` from a finished run: what may leave the house, and nothing else, checked before it appears.

Nothing here is computed from private data outside the mechanism: no loss, no prediction, no threshold, no log.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
from jaxtyping import PyTree

from jaxcxr.config import Experiment, load
from jaxcxr.data.manifest import read_table
from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.release.check import check_release
from jaxcxr.release.write import write_release
from jaxcxr.report.card import make_card
from jaxcxr.report.card_facts import COUNTS, newest_checkpoint
from jaxcxr.report.card_schema import NOT_FOR_RELEASE, PrivacyCard
from jaxcxr.training.averaging import weights_to_use

RELEASE = "release"
WATERMARKED = "not-for-release"


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


def build_release(run: Path, manifest: pd.DataFrame, watermark: bool = False) -> Built:
    """Write `release/` in a run folder and check it; the folder appears only if it passes.

    Args:
        run: a finished private run.
        manifest: of its cohort, to look for identifiers.
        watermark: build a folder `not-for-release/` of a run that must not leave, every artefact marked so.

    Raises:
        InputError: the run must not be released, is not finished, its folder exists already, or the check found something.
    """
    card = make_card(run)
    if not card.for_release and not watermark:
        raise InputError(f"{run}: {NOT_FOR_RELEASE}: {'; '.join(card.reasons_against_release)}")
    folder = run / (RELEASE if card.for_release else WATERMARKED)
    if folder.exists():
        raise InputError(f"{folder}: exists already; delete it to build it anew")
    params = _final_params(run, card)
    part = run / f".{folder.name}.partial"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_release(part, params, load(Experiment, run / "config.yaml"), card)
        verdict = check_release(part, manifest) if card.for_release else None
        if verdict is not None and verdict.wrong:
            raise InputError(f"{folder}: was not built: {'; '.join(verdict.wrong)}")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Built(folder, card.for_release, verdict.unchecked if verdict else ())


def _final_params(run: Path, card: PrivacyCard) -> PyTree:
    """Weights of the newest checkpoint; the run must have come to its end.

    Raises:
        InputError: there is no checkpoint, it cannot be read, or steps are left that the budget would pay for.
    """
    folder, done = run / "checkpoints", newest_checkpoint(run)
    if done is None:
        raise InputError(f"{folder}: no checkpoint there; expected a finished run")
    spent = sum(row.steps for row in card.mechanisms if row.name != COUNTS)
    if done != spent:
        raise InputError(f"{run}: the newest checkpoint is of step {done}, the ledger has {spent} steps: finish the run first")
    if not (run / "evaluation.csv").exists() and done < card.steps_planned:
        raise InputError(f"{run}: stopped after step {done} of {card.steps_planned}: finish the run first")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored: Any = checkpointer.restore((folder / str(done) / "default").resolve())
        return jax.tree.map(np.asarray, weights_to_use(restored))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / str(done)}: damaged checkpoint ({' '.join(str(error).split())[:200]})") from error


def manifest_of(run: Path, manifest: Path | None = None) -> pd.DataFrame:
    """The manifest to check a run's release against: the one named, or that of the store in its configuration.

    Raises:
        InputError: there is none, or it is another cohort's.
    """
    if manifest is not None:
        return read_table(manifest)
    if not (run / "run.json").is_file():
        raise InputError(f"{run}: no run there (run.json is missing)")
    store = open_store(load(Experiment, run / "config.yaml").data.store)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if store.fingerprint != facts.get("store_fingerprint"):
        raise InputError(f"{store.path}: holds another cohort than the one that {run} was trained on; name its --manifest")
    return store.manifest
