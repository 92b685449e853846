"""The files from which the cost of a run is read, written by hand: configuration, facts, ledger."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxcxr.config import DataConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.config_files import dump
from jaxcxr.records.ledger import AnyEntry, Entry, Ledger, Terms

CONFIG = Experiment(
    data=DataConfig(store="/hospital/secret/store", size=32, findings=("cardiomegaly", "congestion")),
    model=ModelConfig(activation="mish", width=32, weights="/hospital/weights"),
    training=TrainingConfig(expected_batch_size=10, microbatch_size=2, learning_rate=1e-3, steps=5),
    privacy=PrivacyConfig(epsilon=3.0, delta=1e-4, l2_clip_norm=1.5, dataset_size=200),
)
FACTS = {"jaxcxr": "0.1.0", "positive_weights": [1.0, 1.0], "class_weights_covered": True, "release": True}


def write_run(
    folder: Path, terms: Terms, entries: Sequence[AnyEntry], config: Experiment = CONFIG, **facts: object
) -> Path:
    """A private run in a new folder; `facts` are written over what follows from the others."""
    folder.mkdir(parents=True)
    privacy, steps = config.privacy, [entry for entry in entries if isinstance(entry, Entry)]
    assert privacy is not None
    clip, first = privacy.l2_clip_norm, steps[0] if steps else Entry(0, 0.05, 1.0, privacy.l2_clip_norm)
    privacy = dataclasses.replace(privacy, unit=terms.unit)  # type: ignore[arg-type]
    dump(dataclasses.replace(config, privacy=privacy), folder / "config.yaml")
    described = {
        "store_fingerprint": terms.data_fingerprint,
        "sample_rate": first.sample_rate,
        "steps": config.training.steps,
        "n_units": terms.dataset_size,
        "expected_batch_size": config.training.expected_batch_size,
        "l2_clip_norm": clip,
        "noise_multiplier": first.noise_multiplier,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
    }
    (folder / "run.json").write_text(json.dumps(FACTS | described | facts))
    ledger = Ledger(folder / "ledger.jsonl", terms)
    for entry in entries:
        ledger.record(entry)
    ledger.close()
    return folder


def write_plain_run(folder: Path, config: Experiment = CONFIG, **facts: object) -> Path:
    """A run without privacy in a new folder."""
    folder.mkdir(parents=True)
    dump(dataclasses.replace(config, privacy=None), folder / "config.yaml")
    (folder / "run.json").write_text(
        json.dumps({"store_fingerprint": "ab12", "steps": config.training.steps} | facts)
    )
    return folder
