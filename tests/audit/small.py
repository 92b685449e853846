"""An audit that takes seconds: a tiny network on sixty random images, one compilation for all."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.audit.audit import Audit, audit
from jaxcxr.audit.recording import Recorder
from jaxcxr.audit.subject import Size, Subject, subject_of
from jaxcxr.config import DataConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.data.store import Split

FINDINGS = ("cardiomegaly", "atelectasis_right", "atelectasis_left")
SIZE = Size(model="network", side=16, images=120, canaries=80, steps=64, sample_rate=0.1, epsilon=4.0)
CONFIG = Experiment(
    data=DataConfig(store="none", size=16, findings=FINDINGS),
    model=ModelConfig(),
    training=TrainingConfig(
        expected_batch_size=20, microbatch_size=8, steps=64, learning_rate=1e-3, log_every=64
    ),
    privacy=PrivacyConfig(epsilon=4.0, delta=1e-4, l2_clip_norm=0.05, dataset_size=200, method="vmap"),
)


@dataclasses.dataclass(frozen=True)
class Images:
    """Images in memory."""

    images: np.ndarray

    def read(self, positions: np.ndarray) -> np.ndarray:
        return self.images[positions]


@functools.cache
def split(n: int = 120, per_patient: int = 2, side: int = 16) -> Split:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (n, len(FINDINGS))).astype(np.float32)
    images = np.clip(rng.normal(100 + 40 * labels[:, :1, None], 30, (n, side, side)), 0, 255).astype(np.uint8)
    frame = pd.DataFrame(
        {
            "image_id": [f"image {i}" for i in range(n)],
            "patient_id": [f"patient {i // per_patient:03d}" for i in range(n)],
        }
    )
    return Split(frame, FINDINGS, labels, side, Images(images))


@functools.cache
def subject(config: Experiment = CONFIG, size: Size = SIZE) -> Subject:
    return subject_of(config, split(), size, np.random.default_rng(0))


def audited(
    seed: int = 0,
    of: Subject | None = None,
    recorder: Recorder | None = None,
) -> Audit:
    """An audit with coins of `seed`; its secrets are new."""
    with tempfile.TemporaryDirectory() as base:
        return audit(of or subject(), Path(base), np.random.default_rng(seed), recorder=recorder)
