"""Build `release/`: what may leave the house, and nothing else.

    model.safetensors            the weights
    orbax/                       the same weights, for Flax
    config.yaml                  how they were trained; paths of the house blanked
    privacy_card.html, .json     what is promised

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
from safetensors.numpy import save_file

from jaxcxr import __version__
from jaxcxr.config import Experiment, dump, load
from jaxcxr.errors import InputError
from jaxcxr.release.check import BLANK, CONFIG, ORBAX, WEIGHTS, check_release
from jaxcxr.report.card import NOT_FOR_RELEASE, PrivacyCard, make_card, write_card
from jaxcxr.training.checkpoint import save_weights

RELEASE = "release"
WATERMARKED = "not-for-release"


def build_release(run: Path, manifest: pd.DataFrame | None, watermark: bool = False) -> Path:
    """Write `release/` in a run folder and check it; the folder appears only if it passes.

    Args:
        run: a finished private run.
        manifest: of its cohort, to look for identifiers.
        watermark: build a folder `not-for-release/` of a run that must not leave, every artefact marked so.

    Returns:
        The folder.

    Raises:
        InputError: the run must not be released, is not finished, its folder exists already, or the check found something.
    """
    card = make_card(run)
    if not card.for_release and not watermark:
        raise InputError(f"{run}: {NOT_FOR_RELEASE}: {'; '.join(card.reasons_against_release)}")
    params = _final_params(run, card)
    folder = run / (RELEASE if card.for_release else WATERMARKED)
    if folder.exists():
        raise InputError(f"{folder}: exists already; delete it to build it anew")
    part = run / f".{folder.name}.partial"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _write(part, params, load(Experiment, run / "config.yaml"), card)
        wrong = check_release(part, manifest) if card.for_release else []
        if wrong:
            raise InputError(f"{folder}: was not built: {'; '.join(wrong)}")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(folder: Path, params: PyTree, config: Experiment, card: PrivacyCard) -> None:
    metadata = {"watermark": NOT_FOR_RELEASE} if card.watermark else None
    save_file(flat_weights(params), folder / WEIGHTS, metadata=metadata)
    provenance: dict[str, object] = {"made_by": f"jaxcxr {__version__}", "findings": list(config.data.findings)}
    save_weights(folder / ORBAX, params, provenance | (metadata or {}))
    for marker in (folder / ORBAX).rglob("commit_success.txt"):  # it names the folder in the house
        marker.unlink()
    dump(public_config(config), folder / CONFIG)
    write_card(card, folder)
    if card.watermark:
        (folder / "NOT-FOR-RELEASE.txt").write_text("\n".join(card.reasons_against_release) + "\n", encoding="utf-8")


def flat_weights(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by their path, such as `params/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(key.key) for key in path): np.ascontiguousarray(leaf, np.float32) for path, leaf in leaves}


def public_config(config: Experiment) -> Experiment:
    """The configuration with the paths of the house blanked."""
    data = dataclasses.replace(config.data, store=BLANK)
    weights = None if config.model.weights is None else BLANK
    model = dataclasses.replace(config.model, weights=weights, pretraining=None)
    return dataclasses.replace(config, data=data, model=model)


def _final_params(run: Path, card: PrivacyCard) -> Any:
    """Weights of the newest checkpoint; the run must have come to its end.

    Raises:
        InputError: there is no checkpoint, or steps are left that the budget would pay for.
    """
    folder = run / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise InputError(f"{folder}: no checkpoint there; expected a finished run")
    done = max(steps)
    spent = sum(row.steps for row in card.mechanisms if row.name == "noised gradient")
    if done != spent:
        raise InputError(f"{run}: the newest checkpoint is of step {done}, the ledger has {spent} steps: finish the run first")
    if not (run / "evaluation.csv").exists() and done < card.steps_planned:
        raise InputError(f"{run}: stopped after step {done} of {card.steps_planned}: finish the run first")
    with ocp.StandardCheckpointer() as checkpointer:
        restored: Any = checkpointer.restore((folder / str(done) / "default").resolve())
    return jax.tree.map(np.asarray, restored["params"])


def manifest_of(run: Path, manifest: Path | None = None) -> pd.DataFrame:
    """The manifest to check a run's release against: the one named, or that of the store in its configuration.

    Raises:
        InputError: there is none, or it is another cohort's.
    """
    config = load(Experiment, run / "config.yaml")
    if manifest is None:
        from jaxcxr.data.store import open_store

        store = open_store(config.data.store)
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if store.fingerprint != facts.get("store_fingerprint"):
            raise InputError(f"{store.path}: holds another cohort than the one that {run} was trained on; name its --manifest")
        return store.manifest
    from jaxcxr.data.manifest import read_table

    return read_table(manifest)
