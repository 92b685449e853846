"""Write the files of a release; each follows from the weights, the configuration and the privacy card.

        model.safetensors           the weights
    orbax/                      the same weights, for `ocp.StandardCheckpointer().restore(".../orbax/params")`
    config.yaml                 how they were trained, without private paths
    privacy_card.html, .json    the guarantee

No date, path or file name of the hospital is written, and the same run gives the same bytes.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from safetensors.numpy import save_file

from jaxcxr import __version__
from jaxcxr.config import EvaluationConfig, Experiment, dump
from jaxcxr.report.card.card import write_card
from jaxcxr.report.card.card_schema import NOT_FOR_RELEASE, PrivacyCard
from jaxcxr.run_folder import CONFIG
from jaxcxr.training.weights import PACKAGED, flat_weights, weights_folder

WEIGHTS, CARD_JSON, CARD_HTML, ORBAX = (
    "model.safetensors",
    "privacy_card.json",
    "privacy_card.html",
    "orbax",
)
SOURCES = (WEIGHTS, CONFIG, CARD_JSON)
"""The files that the others follow from."""
MARKER = "NOT-FOR-RELEASE.txt"
BLANK = "not released"
"""Replacement for a private path in a released configuration."""
_DATED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files of orbax with the time and folder of writing, not needed to read the weights."""


def write_release(
    folder: Path, params: PyTree, config: Experiment, card: PrivacyCard | None, against: Sequence[str] = ()
) -> None:
    """Write the files of a release into an empty folder.

    Args:
        folder: to write into.
        params: of the network.
        config: of the run.
        card: of the run; None for one without privacy, whose folder has no card.
        against: reasons against releasing the run; if there are any, all files are marked.
    """
    marked = {"watermark": NOT_FOR_RELEASE} if against else {}
    save_file(flat_weights(params), folder / WEIGHTS, metadata=marked or None)
    _write_orbax(folder / ORBAX / "params", params)
    record = {
        "made_by": f"jaxcxr {__version__ if card is None else card.fingerprints.jaxcxr}",
        "findings": list(config.data.findings),
        "started_from_sha256": None if card is None else card.fingerprints.initial_weights or None,
        **marked,
    }
    (folder / ORBAX / "provenance.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    dump(public_config(config), folder / CONFIG)
    if card is not None:
        write_card(card, folder)
    if against:
        marker = "".join(f"# {line}\n" for line in (NOT_FOR_RELEASE, *against))
        (folder / CONFIG).write_text(marker + (folder / CONFIG).read_text(encoding="utf-8"), encoding="utf-8")
        (folder / MARKER).write_text(marker, encoding="utf-8")


def _write_orbax(folder: Path, params: PyTree) -> None:
    """Write one folder per array (OCDBT has random file names): every file follows from the weights."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(
            folder.resolve(), jax.tree.map(lambda leaf: np.ascontiguousarray(leaf, np.float32), params)
        )
    for path in folder.rglob("*"):
        if path.name in _DATED:
            path.unlink()


def public_config(config: Experiment) -> Experiment:
    """The configuration without private paths and without evaluation settings.

    Weights that come with the package keep their name: everybody has them.
    """
    weights = config.model.weights
    if weights is not None and not is_packaged(weights):
        weights = BLANK
    head = config.head
    if head.public is not None:
        head = dataclasses.replace(head, public=BLANK)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, store=BLANK),
        model=dataclasses.replace(config.model, weights=weights, pretraining=None),
        head=head,
        evaluation=EvaluationConfig(),
    )


def is_packaged(weights: str) -> bool:
    """Whether a configuration's weights are the package's own."""
    parts = Path(weights).parts
    return (
        len(parts) == len(PACKAGED) + 1
        and parts[: len(PACKAGED)] == PACKAGED
        and weights_folder(weights).is_dir()
    )
