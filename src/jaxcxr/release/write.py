"""Write the files of a release (`contents`); each follows from the weights, the configuration and the card.

No path or file name of the hospital is written, and the same run, released on the same day with the same
statement, gives the same bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from safetensors.numpy import save_file

from jaxcxr import __version__
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump
from jaxcxr.models.calibration import write_thresholds
from jaxcxr.release.contents import FROM_CARD, LICENCE, MARKER, ORBAX, README, REGISTRY, WEIGHTS
from jaxcxr.release.public_config import public_config
from jaxcxr.release.readme import licence_text, readme_text
from jaxcxr.release.registry import record_text
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_card
from jaxcxr.report.card.card_schema import NOT_FOR_RELEASE, PrivacyCard, ReleasedFile
from jaxcxr.report.card.page import write_card
from jaxcxr.run_folder import CONFIG
from jaxcxr.training.weights import flat_weights

_DATED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files of orbax with the time and folder of writing, not needed to read the weights."""


def write_release(
    folder: Path,
    params: PyTree,
    config: Experiment,
    card: PrivacyCard | None,
    against: Sequence[str] = (),
    record: bool = False,
) -> None:
    """Write the files of a release into an empty folder.

    Args:
        folder: to write into.
        params: of the network.
        config: of the run.
        card: of the run; None for one without privacy, whose folder has no card.
        against: reasons against releasing the run; if there are any, all files are marked.
        record: whether to write the record for the registry of deployments, too.

    Raises:
        InputError: a record is asked for, and the hospital does not state what the registry requires.
    """
    marked = {"watermark": NOT_FOR_RELEASE} if against else {}
    save_file(flat_weights(params), folder / WEIGHTS, metadata=marked or None)
    _write_orbax(folder / ORBAX / "params", params)
    made = {
        "made_by": f"jaxcxr {__version__ if card is None else card.fingerprints.jaxcxr}",
        "findings": list(config.data.findings),
        "started_from_sha256": None if card is None else card.fingerprints.initial_weights or None,
        **marked,
    }
    (folder / ORBAX / "provenance.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    dump(public_config(config), folder / CONFIG)
    marker = "".join(f"# {line}\n" for line in (NOT_FOR_RELEASE, *against)) if against else ""
    if against:
        (folder / CONFIG).write_text(marker + (folder / CONFIG).read_text(encoding="utf-8"), encoding="utf-8")
        (folder / MARKER).write_text(marker, encoding="utf-8")
    if card is not None:
        card = _write_words(folder, card, marker)
        if record:
            (folder / REGISTRY).write_text(record_text(card), encoding="utf-8")


def _write_words(folder: Path, card: PrivacyCard, marker: str) -> PrivacyCard:
    """Licence, thresholds, then the card with the SHA-256 of everything so far, and the README."""
    stated = card.statement
    (folder / LICENCE).write_text(marker + licence_text(stated), encoding="utf-8")
    if stated.thresholds is not None:
        write_thresholds(
            folder, stated.thresholds.values, stated.thresholds.chosen_on or "", mark=marker.strip()
        )
    card = card_of(dataclasses.replace(facts_of_card(card), files=released_files(folder)))
    write_card(card, folder)
    (folder / README).write_text(marker + readme_text(card), encoding="utf-8")
    return card


def released_files(folder: Path) -> tuple[ReleasedFile, ...]:
    """SHA-256 of every file of a release that does not follow from its card, by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(
        ReleasedFile(name=name, sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name in names
        if name not in FROM_CARD
    )


def _write_orbax(folder: Path, params: PyTree) -> None:
    """Write one folder per array (OCDBT has random file names): every file follows from the weights."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(
            folder.resolve(), jax.tree.map(lambda leaf: np.ascontiguousarray(leaf, np.float32), params)
        )
    for path in folder.rglob("*"):
        if path.name in _DATED:
            path.unlink()
