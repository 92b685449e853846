"""What an audit trains: the run's own configuration on fewer images, for fewer steps, with inserted canaries.

Kept of the run: its unit, clip rule and norm, method of the sums, noise kind, delta, sample rate, optimiser
with its schedule, devices, and every line of `training.loop`, `batches` and `step`. Changed, and said so in
the finding: the number of images and steps, their size, the model (a logistic regression, or the run's
network with another width), random starting weights, no augmentation, every parameter trained, and class
weights that are declared or none. A run that releases moments, or trains a head on kept features, is audited
with gradients and plain SGD.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8

from jaxcxr.accounting import banded
from jaxcxr.config import Experiment, HeadConfig, ModelConfig
from jaxcxr.data.store import Split
from jaxcxr.errors import InputError
from jaxcxr.training.class_weights import weights_at_once
from jaxcxr.training.plan import RunPlan, mechanism_of, unit_ids, units_of

LOGISTIC, NETWORK = "logistic regression", "network, narrower"
LEAST_BATCH = 8
"""Units that a step of an audit expects at least; a smaller sample rate than that needs is raised."""
_MICROBATCH = 16
_CANARY = "canary of the audit"


@dataclasses.dataclass(frozen=True)
class Size:
    """How large an audit is.

    Attributes:
        model: what is trained.
        width: of the network.
        side: images are reduced to at most so many pixels a side.
        images: of the cohort, at most.
        canaries: units that are each included with probability one half.
        steps: of a run.
        sample_rate: None for the run's own.
        epsilon: that is claimed of the audited run; None for the run's own.
    """

    model: Literal["logistic", "network"] = "logistic"
    width: int = 32
    side: int = 32
    images: int = 600
    canaries: int = 400
    steps: int = 64
    sample_rate: float | None = None
    epsilon: float | None = None


@dataclasses.dataclass(frozen=True)
class Units:
    """Units with their images: `images` [n, k, h, w], `labels` [n, k, findings], `is_image` [n, k]."""

    images: UInt8[np.ndarray, "n k h w"]
    labels: Float[np.ndarray, "n k findings"]
    is_image: Bool[np.ndarray, "n k"]

    def __len__(self) -> int:
        """Count the units."""
        return len(self.labels)

    def at(self, indices: Any) -> "Units":
        """The units at `indices`, or of a mask."""
        return Units(self.images[indices], self.labels[indices], self.is_image[indices])


@dataclasses.dataclass(frozen=True)
class Subject:
    """An audited training.

    Attributes:
        config: of the audited training.
        cohort: images of units that are always included, those of a unit together.
        canaries: units whose membership is attacked.
        n_units: declared number of units: of the cohort and all canaries.
        model: as the privacy card states it.
    """

    config: Experiment
    cohort: Split
    canaries: Units
    n_units: int
    model: str

    def plan(self, included: Bool[np.ndarray, " canaries"], cohort_units: int | None = None) -> RunPlan:
        """The plan of a run with some of the canaries.

        Args:
            included: which ones.
            cohort_units: so many of the cohort only; all unless given. The declared N stays.
        """
        cohort = self.cohort
        if cohort_units is not None:
            units = units_of(self.config, cohort)[0][:cohort_units]
            cohort = _part(cohort, np.concatenate(units))
        split = _with_canaries(cohort, self.canaries, np.flatnonzero(included))
        units, images_per_unit = units_of(self.config, split)
        privacy, training = self.config.privacy, self.config.training
        assert privacy is not None
        assert training.steps is not None
        mechanism = mechanism_of(self.config, (self.n_units, len(units), None), training.steps, None)
        assert mechanism is not None
        return RunPlan(
            self.config,
            split,
            fingerprint=hashlib.sha256(split.read_all().tobytes()).hexdigest(),
            units=units,
            images_per_unit=images_per_unit,
            mechanism=mechanism,
            sample_rate=mechanism.sample_rate,
            steps=training.steps,
            weights=weights_at_once(self.config, split),
            microbatch_size=training.microbatch_size,
            unit_ids=unit_ids(split, units),
        )


@dataclasses.dataclass(frozen=True)
class _InMemory:
    images: np.ndarray

    def read(self, positions: np.ndarray) -> np.ndarray:
        return self.images[positions]


def subject_of(config: Experiment, split: Split, size: Size, rng: np.random.Generator) -> Subject:
    """The audited training that a run's configuration and training images give.

    Args:
        config: of a private run.
        split: its training images.
        size: of the audit.
        rng: of the canaries' pixels and labels.

    Raises:
        InputError: the network cannot be narrowed, there is no image, or the budget cannot be met.
    """
    _require_network(config, size)
    cohort = _cohort(config, split, size)
    k = min(2, units_of(config, cohort)[1])
    shape = (size.canaries, k, cohort.size, cohort.size)
    images = 255 * rng.integers(0, 2, shape, dtype=np.uint8)
    labels = rng.integers(0, 2, (size.canaries, k, len(cohort.findings))).astype(np.float32)
    canaries = Units(images, labels, np.ones(shape[:2], bool))
    n_units = len(units_of(config, cohort)[0]) + size.canaries
    audited = _audited(config, size, cohort.size, n_units)
    return Subject(audited, cohort, canaries, n_units, LOGISTIC if size.model == "logistic" else NETWORK)


def own_sample_rate(config: Experiment) -> float | None:
    """Sample rate of the run itself; None if it follows from a number of units that is not declared."""
    privacy = config.privacy
    if privacy is None or privacy.dataset_size is None:
        return None
    return min(1.0, config.training.expected_batch_size / privacy.dataset_size)


def _audited(config: Experiment, size: Size, side: int, n_units: int) -> Experiment:
    privacy, training = config.privacy, config.training
    assert privacy is not None
    rate = size.sample_rate if size.sample_rate is not None else own_sample_rate(config) or 0.1
    batch = min(n_units, max(LEAST_BATCH, round(rate * n_units)))
    epsilon = size.epsilon if size.epsilon is not None else privacy.epsilon
    delta = min(privacy.delta, 0.5 / n_units)
    budget, drawn = (epsilon, delta), (batch, n_units)
    try:
        bands = banded.settled_bands(privacy.noise_bands, budget, drawn, size.steps)
        noise = banded.calibrated(budget, drawn, size.steps, bands)
    except ValueError as error:
        raise InputError(f"--epsilon {epsilon:g}: {error}") from error
    model = (
        ModelConfig(network="jaxcxr.models.logistic:LogisticRegression")
        if size.model == "logistic"
        else dataclasses.replace(
            config.model, width=size.width, dtype="float32", weights=None, pretraining=None, lora_rank=0
        )
    )
    plain = training.releases_moments or training.keeps_features
    declared = training.class_weights == "public"
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, size=side, synthetic=None),
        model=model,
        head=HeadConfig(),
        privacy=dataclasses.replace(
            privacy,
            epsilon=epsilon,
            delta=delta,
            dataset_size=n_units,
            noise_multiplier=noise,
            noise_bands=bands,
            class_counts_noise_multiplier=None,
        ),
        training=dataclasses.replace(
            training,
            steps=size.steps,
            epochs=None,
            expected_batch_size=batch,
            microbatch_size=training.microbatch_size or _MICROBATCH,
            optimizer="sgd" if plain else training.optimizer,
            scope="all",
            class_weights="public" if declared else "none",
            augmentation="none",
            augmentation_multiplicity=1,
            log_every=size.steps,
            checkpoint_every=size.steps,
            seed=None,
        ),
    )


def _require_network(config: Experiment, size: Size) -> None:
    if size.model == "logistic":
        return
    if config.privacy is not None and config.privacy.noise_bands != 1:
        raise InputError(
            "privacy.noise_bands: an audit of the network would keep every canary's gradients of several "
            "steps; expected --model logistic, which audits the same mechanism"
        )
    if config.training.keeps_features or config.training.releases_moments:
        field = "scope" if config.training.keeps_features else "optimizer"
        raise InputError(
            f"training.{field}: an audit of the network is of gradients of all of it, which this run does "
            "not release; expected --model logistic"
        )
    if size.width < 1 or size.width % 32:
        raise InputError(f"--width: expected a multiple of 32 (groups of normalisation), found {size.width}")
    if config.model.network != "resnet9":
        raise InputError(
            "model.network: an audit of the network narrows resnet9 to --width, and knows no narrower "
            f"{config.model.network}; expected --model logistic, which audits the same mechanism"
        )


def _cohort(config: Experiment, split: Split, size: Size) -> Split:
    """Whole units of at most so many images together, each image once: equal ones could not be told apart."""
    chosen: list[int] = []
    seen: set[bytes] = set()
    units, most = units_of(config, split)
    for unit in units:
        if len(chosen) + min(len(unit), most) > size.images:
            break
        images = split.read(np.asarray(unit))
        for index, image in zip(unit, shrunk(images, size.side), strict=True):
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                chosen.append(int(index))
    if not chosen:
        raise InputError("the training split has no image that an audit could use")
    return _part(split, np.asarray(chosen), size.side)


def shrunk(images: UInt8[np.ndarray, "n h w"], side: int) -> UInt8[np.ndarray, "n i j"]:
    """The images reduced to at most `side` x `side` pixels: means of square blocks."""
    factor = -(-images.shape[-1] // side)
    if factor == 1:
        return images
    n, height, width = (size // f for size, f in zip(images.shape, (1, factor, factor), strict=True))
    blocks = images[:, : height * factor, : width * factor].reshape(n, height, factor, width, factor)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


def _part(split: Split, indices: Int[np.ndarray, " k"], side: int | None = None) -> Split:
    images = split.read(indices)
    images = images if side is None else shrunk(images, side)
    frame = split.frame.iloc[indices].reset_index(drop=True)
    return Split(frame, split.findings, split.labels[indices], images.shape[-1], _InMemory(images))


def _with_canaries(cohort: Split, canaries: Units, included: Sequence[int] | np.ndarray) -> Split:
    names = [f"{_CANARY} {unit}" for unit in included for _ in range(canaries.is_image.shape[1])]
    own = pd.DataFrame({"image_id": [f"{name} {i}" for i, name in enumerate(names)], "patient_id": names})
    chosen = canaries.at(np.asarray(included, int))
    images = np.concatenate([cohort.read_all(), chosen.images.reshape(-1, cohort.size, cohort.size)])
    labels = np.concatenate([cohort.labels, chosen.labels.reshape(-1, len(cohort.findings))])
    frame = pd.concat([cohort.frame.loc[:, ["image_id", "patient_id"]], own], ignore_index=True)
    return Split(frame, cohort.findings, labels.astype(np.float32), cohort.size, _InMemory(images))


def canary_of(plan: RunPlan, unit: int) -> int:
    """Which canary a unit of a plan is; -1 for one of the cohort."""
    name = str(plan.split.frame["patient_id"].iloc[int(plan.units[unit][0])])
    return int(name.removeprefix(_CANARY)) if name.startswith(_CANARY) else -1


def canary_ids(canaries: int) -> list[str]:
    """The ids of canaries' units, by which groups take turns (`RunPlan.unit_ids`)."""
    return [f"patient {_CANARY} {canary}" for canary in range(canaries)]


def folder_of(base: Path, run: int) -> Path:
    """The folder of one of the audited runs, below a temporary one."""
    return base / f"run-{run}"
