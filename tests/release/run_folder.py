"""A finished private run, made by hand: no training, the files that cards and releases read."""

import atexit
import dataclasses
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.data.store import Store, write_store
from jaxcxr.records.ledger import Entry, Statistic, Terms, run_name
from jaxcxr.release.released_weights import network_shapes
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.weights import nested_weights
from tests.run_files import CONFIG, write_run

PARAMS = {"params": {"conv1": {"kernel": np.linspace(-1, 1, 720, dtype=np.float32).reshape(3, 3, 80)}, "head": {"bias": np.ones(2, np.float32)}}}  # fmt: skip
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
        "path": [f"images/ward3/scan{i:03d}.dcm" for i in range(9)],
    }
)


@functools.cache
def cohort() -> Store:
    """A store of the manifest's images; copy its folder to release from it."""
    folder = Path(tempfile.mkdtemp(prefix="jaxcxr-cohort-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    frame = MANIFEST.assign(
        split="train", age=50.0, sex="F", view="AP", cardiomegaly=1.0, congestion=[0.0, 1.0, 0.0] * 3
    )
    images = np.arange(9 * 32 * 32, dtype=np.uint8).reshape(9, 32, 32)
    findings = ("cardiomegaly", "congestion")
    return write_store(
        folder / "store", frame, iter(images), size=32, findings=findings, preprocessing={"made": "by hand"}
    )


DATA, SECRET = cohort().fingerprint, bytes(range(32))
CODE = hashlib.sha256(b"code").hexdigest()


def network_params() -> dict:
    """Parameters of the network that CONFIG describes, at random."""
    rng = np.random.default_rng(0)
    flat = {
        name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in network_shapes(CONFIG).items()
    }
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
    store: Path | None = None,
    **facts: object,
) -> Path:
    """A finished run in a new folder, trained on `store`, or on a store of its own."""
    store = store or Path(
        shutil.copytree(cohort().path, folder.parent / f"hospital of {folder.name}" / "store")
    )
    training = dataclasses.replace(CONFIG.training, seed=seed, class_weights=class_weights)
    entries = [
        Statistic("class_counts", 20.0, 2**0.5),
        *(Entry(step, 0.05, 1.0, 1.5) for step in range(steps)),
    ]
    write_run(
        folder,
        Terms(unit, "add_remove", 200, DATA, seeded=seed is not None, run=run_name(secret)),
        entries,
        dataclasses.replace(
            CONFIG, training=training, data=dataclasses.replace(CONFIG.data, store=str(store))
        ),
        code_fingerprint=CODE,
        **{"release": seed is None and class_weights != "paper"} | facts,
    )
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 0.69, "images": 11}\n')
    checkpoints = Checkpoints(folder / "checkpoints")
    state = {"params": PARAMS if params is None else params, "optimizer": {"moment": np.ones(3, np.float32)}}
    checkpoints.save(steps, state)
    checkpoints.close()
    (folder / "checkpoints" / "secret.key").write_bytes(secret)
    return folder
