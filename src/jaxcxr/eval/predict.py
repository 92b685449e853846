"""Predict the held-out images: one row per image. The only part of `eval` that runs the network."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, PyTree

from jaxcxr.config import Experiment
from jaxcxr.data.manifest import declared_groups
from jaxcxr.data.store import Split, Store
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError
from jaxcxr.eval.predictions import SCHEMA_VERSION
from jaxcxr.inference import Model
from jaxcxr.models import network as networks

GROUP_COLUMNS = ("age", "sex", "view", "comorbidities")
PIECE = 1024
"""Number of images read at once."""


def predict_table(
    config: Experiment, params: PyTree, store: Store, by_split: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Predictions for the validation and test images: image_id, patient_id, split, groups, y_* and p_*.

    Args:
        config: of the experiment.
        params: of the network.
        store: of the images.
        by_split: probabilities [n, findings] that are known already, in the order of the store; None runs the
            network.

    Raises:
        InputError: the store has no test images.
    """
    if not len(store.split("test")):
        raise InputError(f"{store.path}: there are no test images to predict")
    network = networks.make_network(config.data, config.model)
    model = Model(config.data.findings, store.size, network, params, config.model.test_time_augmentation)
    further = declared_groups(store.manifest, store.findings)
    frames = []
    for name in ("valid", "test"):
        split = store.split(name, config.data.findings)
        if not len(split):
            continue
        groups = [column for column in GROUP_COLUMNS if column in split.frame.columns]
        groups += [column for column in further if column in split.frame.columns]
        frame = split.frame[["image_id", "patient_id", "split", *groups]].copy()
        predicted = _probabilities(model, split) if by_split is None else by_split[name]
        for index, finding in enumerate(config.data.findings):
            frame[f"y_{finding}"] = split.labels[:, index]
            frame[f"p_{finding}"] = predicted[:, index]
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table.attrs["schema_version"] = (
        SCHEMA_VERSION  # a parquet file keeps it, and `read_predictions` asks for it
    )
    return table


def _probabilities(model: Model, split: Split) -> Float[np.ndarray, "n findings"]:
    pieces = [np.arange(first, min(first + PIECE, len(split))) for first in range(0, len(split), PIECE)]
    return np.concatenate([model.predict_prepared(split.read(piece)) for piece in pieces])


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a parquet file that appears complete or not at all."""
    with sealed(path) as part:
        table.to_parquet(part, index=False)
