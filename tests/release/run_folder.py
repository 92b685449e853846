"""A finished private run, made by hand: no training, the files that cards and releases read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.config import DataConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig, dump
from jaxcxr.privacy.ledger import Entry, Ledger, Statistic, Terms, run_name
from jaxcxr.release.check import network_shapes
from jaxcxr.training.checkpoint import Checkpoints, nested_weights

CONFIG = Experiment(
    data=DataConfig(store="/hospital/secret/store", size=32, findings=("cardiomegaly", "congestion")),
    model=ModelConfig(activation="mish", width=32, weights="/hospital/weights"),
    training=TrainingConfig(expected_batch_size=10, microbatch_size=2, learning_rate=1e-3, steps=5),
    privacy=PrivacyConfig(epsilon=3.0, delta=1e-4, l2_clip_norm=1.5, dataset_size=200),
)
PARAMS = {"params": {"conv1": {"kernel": np.linspace(-1, 1, 720, dtype=np.float32).reshape(3, 3, 80)}, "head": {"bias": np.ones(2, np.float32)}}}  # fmt: skip
DATA, CODE, SECRET = "ab12" * 16, "c0de" * 16, bytes(range(32))
FACTS = {
    "jaxcxr": "0.1.0",
    "code_fingerprint": CODE,
    "store_fingerprint": DATA,
    "sample_rate": 0.05,
    "steps": 5,
    "positive_weights": [1.0, 1.0],
    "class_weights_covered": True,
    "release": True,
    "n_units": 200,
    "expected_batch_size": 10,
    "l2_clip_norm": 1.5,
    "noise_multiplier": 1.0,
    "epsilon": 3.0,
    "delta": 1e-4,
}
MANIFEST = pd.DataFrame(
    {
        "image_id": [f"IMG-{i:04d}" for i in range(8)] + ["88241907"],
        "patient_id": [
            "Müller^Anna",
            "p-77",
            "1.2.840.113619.2",
            "483920",
            "x9",
            "0042",
            "Patient A",
            "deadbeefcafe0123",
            "R2D2",
        ],
        "path": [f"films/ward3/scan{i:03d}.dcm" for i in range(9)],
    }
)


def network_params() -> dict:
    """Parameters of the network that CONFIG describes, at random."""
    rng = np.random.default_rng(0)
    flat = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in network_shapes(CONFIG).items()}
    return nested_weights(flat)


def make_run(
    folder: Path,
    *,
    unit: str = "image",
    steps: int = 5,
    seed: int | None = None,
    class_weights: str = "none",
    params: dict | None = None,
    secret: bytes = SECRET,
) -> Path:
    folder.mkdir(parents=True)
    training = dataclasses.replace(CONFIG.training, seed=seed, class_weights=class_weights)
    assert CONFIG.privacy is not None
    privacy = dataclasses.replace(CONFIG.privacy, unit=unit)
    dump(dataclasses.replace(CONFIG, training=training, privacy=privacy), folder / "config.yaml")
    released = seed is None and class_weights != "paper"
    (folder / "run.json").write_text(json.dumps(FACTS | {"release": released}))
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 0.69, "images": 11}\n')
    ledger = Ledger(
        folder / "ledger.jsonl", Terms(unit, "add_remove", 200, DATA, seeded=seed is not None, run=run_name(secret))
    )
    ledger.record(Statistic("class_counts", 20.0, 2**0.5))
    for step in range(steps):
        ledger.record(Entry(step, 0.05, 1.0, 1.5))
    ledger.close()
    checkpoints = Checkpoints(folder / "checkpoints")
    state = {"params": PARAMS if params is None else params, "optimizer": {"moment": np.ones(3, np.float32)}}
    checkpoints.save(steps, state)
    checkpoints.close()
    (folder / "checkpoints" / "secret.key").write_bytes(secret)
    return folder
