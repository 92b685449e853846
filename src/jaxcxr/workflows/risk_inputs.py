"""What a risk assessment reads: the finished models of a run or sweep folder, their store, its patients."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int

from jaxcxr.config import Experiment
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store, open_store
from jaxcxr.errors import InputError
from jaxcxr.run_folder import (
    PREDICTIONS,
    UNTOUCHED,
    evaluated_budgets,
    has_facts,
    is_evaluated,
    is_private,
    is_run,
    is_trained,
    newest_checkpoint,
    promise_of,
    read_config,
    read_facts,
    runs_in,
)

LEAST_PATIENTS = 40
"""Fewer would leave reference models whose halves hold a handful of patients."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A model that is attacked.

    Attributes:
        name: for the reader.
        epsilon: of its budget; infinity without privacy, NaN for the weights before training.
        folder: of the run.
    """

    name: str
    epsilon: float
    folder: Path

    @property
    def evaluated(self) -> str:
        """SHA-256 of its predictions, by which a page tells whether a risk assessment is about this model."""
        return hashlib.sha256((self.folder / PREDICTIONS).read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """The patients from which halves are drawn: all of the store, whether trained on or held out.

    Attributes:
        ids: of the patients, in the order of their numbers.
        patients: number of each image's patient, images in the order of the splits train, valid, test.
        labels: of each image.
        member: which patients the attacked models were trained on.
        frame: manifest rows of the images.
    """

    ids: tuple[str, ...]
    patients: Int[np.ndarray, " images"]
    labels: Float32[np.ndarray, "images findings"]
    member: Bool[np.ndarray, " patients"]
    frame: pd.DataFrame


def targets_of(folder: Path) -> tuple[Target, ...]:
    """The models in a run or sweep folder, without privacy first, then by falling budget; with the untouched
    weights, if they were evaluated, last.

    Raises:
        InputError: there is no run or sweep, a run is unfinished or without checkpoint, or a sweep has no
            non-private model or no private one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run or a sweep")
    if is_run(folder):
        return (_target(folder), *_untouched(folder.resolve().parent, [folder]))
    begun = [run for run in runs_in(folder) if is_run(run) and is_trained(run)]
    if not begun:
        raise InputError(
            f"{folder}: holds no run (run.json) and no runs of a sweep; expected the folder of a finished "
            "run or sweep"
        )
    for run in begun:
        _require_finished(run)
    found = sorted((_target(run) for run in evaluated_budgets(folder)), key=lambda target: -target.epsilon)
    if not any(math.isinf(target.epsilon) for target in found):
        raise InputError(
            f"{folder}: has no model without privacy, against which exposure and price are measured; train "
            f"it (jaxcxr sweep --eps inf --out {folder}, with the sweep's configurations), or name the "
            "folder of one run"
        )
    if len(found) == 1:
        raise InputError(f"{folder}: has no private model; name the run's own folder, {found[0].folder}")
    return (*found, *_untouched(folder, [target.folder for target in found]))


def _target(run: Path) -> Target:
    _require_finished(run)
    promise = promise_of(run) if is_private(run) else None
    if promise is None:
        return Target("without privacy", math.inf, run)
    return Target(f"epsilon {promise.epsilon:g}", promise.epsilon, run)


def _require_finished(run: Path) -> None:
    if not is_evaluated(run) or not (run / PREDICTIONS).is_file():
        raise InputError(f"{run}: is not finished (no evaluation there); let it run to its end first")
    if newest_checkpoint(run) is None:
        raise InputError(f"{run}: has no checkpoint, so that its model cannot be attacked; expected one")


def _untouched(beside: Path, runs: Sequence[Path]) -> tuple[Target, ...]:
    """The weights before training, if one of the runs started from them: in a sweep some calibrate the head
    first.
    """
    folder = beside / UNTOUCHED
    if not has_facts(folder) or not (folder / PREDICTIONS).is_file():
        return ()
    theirs = read_facts(folder).get("weights_sha256")
    if all(read_facts(run).get("initial_weights_sha256") != theirs for run in runs):
        return ()
    return (Target("before training", math.nan, folder),)


def store_of_targets(targets: Sequence[Target], named: Path | None) -> tuple[Experiment, Store]:
    """The configuration of the first model, and the store that all were trained on.

    Args:
        targets: the models.
        named: the store's folder, if it is not where the configuration says.

    Raises:
        InputError: there is no store, or it is another than the runs were trained on.
    """
    config = read_config(targets[0].folder)
    store = open_store(named or Path(config.data.store))
    for target in targets:
        if read_facts(target.folder).get("store_fingerprint") != store.fingerprint:
            raise InputError(
                f"{store.path}: is another cohort than {target.folder} was trained on (their fingerprints "
                "differ); name its own store by --store"
            )
    return config, store


def pool_of(config: Experiment, store: Store) -> Pool:
    """All patients of a store.

    Raises:
        InputError: there are fewer than `LEAST_PATIENTS`, or none is held out.
    """
    splits = [store.split(name, config.data.findings) for name in SPLITS]
    splits = [split for split in splits if len(split)]
    frame = pd.concat([split.frame for split in splits], ignore_index=True)
    numbers, ids = pd.factorize(frame["patient_id"].astype(str))
    member = np.zeros(len(ids), bool)
    member[numbers[(frame["split"] == "train").to_numpy()]] = True
    if len(ids) < LEAST_PATIENTS:
        raise InputError(
            f"{store.path}: has {len(ids)} patients; halves for reference models need at least "
            f"{LEAST_PATIENTS}"
        )
    if member.all() or not member.any():
        missing = "held-out (validation or test)" if member.all() else "training"
        raise InputError(f"{store.path}: has no {missing} patients; attacks are judged on both kinds")
    labels = np.concatenate([split.labels for split in splits])
    return Pool(tuple(map(str, ids)), numbers, labels, member, frame)
