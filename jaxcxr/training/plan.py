"""From a configuration and a data set to everything that is fixed before the first step, with all that can be refused
refused here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
from jaxtyping import Float, Int, PyTree

from jaxcxr import __version__
from jaxcxr.config import Experiment
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.store import Split, Store
from jaxcxr.errors import InputError
from jaxcxr.models.resnet9 import DTYPES, ResNet9
from jaxcxr.privacy import accounting
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.noise import derive_key
from jaxcxr.replacing import replacing
from jaxcxr.training import objective, optimizer
from jaxcxr.training.checkpoint import load_weights, provenance
from jaxcxr.training.step import Step, make_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is going to do.

    Attributes:
        config: of the experiment.
        split: the training films.
        fingerprint: of their store.
        units: the films of each unit of the claim (of each film alone without privacy).
        films_per_unit: bound on the films of a unit in one step.
        mechanism: of a private run, else None.
        sample_rate: probability of each film in each step.
        steps: length of the run.
        weights: of positive labels, one a finding.
    """

    config: Experiment
    split: Split
    fingerprint: str
    units: Sequence[Int[np.ndarray, " of_unit"]]
    films_per_unit: int
    mechanism: Mechanism | None
    sample_rate: float
    steps: int
    weights: Float[np.ndarray, "findings"]

    def may_be_released(self) -> bool:
        """Whether the claim covers the run: private, from unpredictable randomness, with no uncovered statistic."""
        training = self.config.training
        return self.mechanism is not None and training.seed is None and training.class_weights != "paper"

    def model(self) -> ResNet9:
        """The network."""
        return model_of(self.config)

    def initial_params(self, secret: bytes) -> PyTree:
        """Weights to start from: those named by the configuration, or random ones from the run's secret."""
        pretrained = self.pretrained_params()
        return self.random_params(secret) if pretrained is None else pretrained

    def random_params(self, secret: bytes) -> PyTree:
        """Random weights from the run's secret."""
        key = jax.random.wrap_key_data(jax.numpy.asarray(derive_key(secret, "initial weights", 0)[:2]), impl="threefry2x32")
        return self.model().init(key, jax.numpy.zeros((self.split.size, self.split.size), jax.numpy.uint8))

    def pretrained_params(self) -> PyTree | None:
        """Weights that the configuration names, or None.

        Raises:
            InputError: they are missing, do not fit, or were trained on the very films that are to be protected.
        """
        path = self.config.model.weights
        if path is None:
            return None
        made_from = provenance(Path(path)).get("store_fingerprint")
        if self.mechanism is not None and made_from == self.fingerprint:
            raise InputError(
                f"{path}: these weights were trained without privacy on the films of {self.config.data.store}; "
                "a run that starts from them would give those films away"
            )
        return load_weights(Path(path), self.random_params(bytes(32)))

    def optimizer(self) -> optax.GradientTransformation:
        """The paper's NAdam with the configured schedule."""
        t = self.config.training
        return optimizer.nadam(optimizer.schedule(t.learning_rate, t.decay, t.warmup_steps, self.steps))

    def step(self, devices: list[Any] | None = None) -> Step:
        """The compiled functions of the run."""
        training, privacy = self.config.training, self.config.privacy
        shape = (self.split.size, self.split.size)
        if privacy is None:
            gradient_sum = objective.plain_sum(self.model(), self.weights, shape)
        else:
            gradient_sum = objective.clipped_sum(self.model(), self.weights, shape, privacy.method, privacy.l2_clip_norm)
        units = max(1, training.microbatch_size // self.films_per_unit)
        return make_step(gradient_sum, self.optimizer(), self.mechanism, training.expected_batch_size, units, devices)

    def describe(self) -> dict[str, object]:
        """What `run.json` says: the facts that are not in the configuration."""
        described: dict[str, object] = {
            "jaxcxr": __version__,
            "store_fingerprint": self.fingerprint,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "positive_weights": [float(w) for w in self.weights],
            "class_weights_covered": self.config.training.class_weights != "paper",
            "release": self.may_be_released(),
        }
        if self.mechanism is not None:
            described |= dataclasses.asdict(self.mechanism)
        return described


def model_of(config: Experiment) -> ResNet9:
    """The network that a configuration asks for."""
    m = config.model
    return ResNet9(len(config.data.findings), activation=m.activation, width=m.width, dtype=DTYPES[m.dtype])


def make_plan(config: Experiment, store: Store) -> Plan:
    """Fix everything that a run needs; the noise is calibrated here unless the configuration gives it.

    Raises:
        InputError: data and configuration do not fit, or the budget cannot be met.
    """
    data, training, privacy = config.data, config.training, config.privacy
    if store.size != data.size:
        raise InputError(f"{store.path}: the store's films are {store.size} pixels wide, data.size asks for {data.size}")
    split = store.split("train", data.findings)
    if training.augmentation == "flip_rotate":
        try:
            mirror_permutation(data.findings)
        except ValueError as error:
            raise InputError(f"training.augmentation 'flip_rotate': {error}") from error
    units, films_per_unit = _units(config, split)
    n_units = len(units) if privacy is None or privacy.dataset_size is None else privacy.dataset_size
    called = "films" if privacy is None or privacy.unit == "image" else "patients"
    if training.expected_batch_size > n_units:
        raise InputError(
            f"training.expected_batch_size: expected at most the {n_units} {called} of the training split, "
            f"found {training.expected_batch_size}"
        )
    sample_rate = accounting.sample_rate_of(training.expected_batch_size, n_units)
    steps = training.steps
    if steps is None:
        assert training.epochs is not None  # Experiment.check
        steps = accounting.steps_of_epochs(training.epochs, n_units, training.expected_batch_size)
    mechanism = None
    if privacy is not None:
        if privacy.delta >= 1 / n_units and not privacy.allow_large_delta:
            raise InputError(
                f"privacy.delta: expected less than 1/N = {1 / n_units:.3g} for N = {n_units} {called}, "
                f"found {privacy.delta:g}; "
                f"at that delta one of the {called} in N may be published outright (privacy.allow_large_delta accepts this)"
            )
        sigma = privacy.noise_multiplier
        if sigma is None:
            try:
                sigma = accounting.calibrate(privacy.epsilon, privacy.delta, sample_rate, steps).noise_multiplier
            except ValueError as error:
                raise InputError(f"privacy.epsilon {privacy.epsilon:g}: {error}") from error
        mechanism = Mechanism(
            n_units, training.expected_batch_size, privacy.l2_clip_norm, sigma, privacy.epsilon, privacy.delta
        )
    return Plan(config, split, store.fingerprint, units, films_per_unit, mechanism, sample_rate, steps, _weights(config, split))


def _units(config: Experiment, split: Split) -> tuple[Sequence[Int[np.ndarray, " of_unit"]], int]:
    """The films of each unit, and the bound on those used in one step.

    Raises:
        InputError: the claim is about patients and a film has none.
    """
    privacy = config.privacy
    if privacy is None or privacy.unit == "image":
        return list(np.arange(len(split))[:, None]), 1
    patients = split.frame["patient_id"]
    nameless = patients.isna() | (patients.astype(str).str.strip() == "")
    if nameless.any():
        film = split.frame["image_id"].iloc[int(np.flatnonzero(nameless)[0])]
        raise InputError(
            f"privacy.unit {privacy.unit!r}: every training film needs a patient_id; found none for {int(nameless.sum())} "
            f"films, the first is image_id {film!r}"
        )
    films = list(pd.Series(np.arange(len(split))).groupby(patients.to_numpy(), sort=True).apply(np.asarray))
    return films, privacy.films_per_patient if privacy.unit == "patient" else 1


def _weights(config: Experiment, split: Split) -> Float[np.ndarray, "findings"]:
    training, findings = config.training, config.data.findings
    if training.class_weights == "none":
        return np.ones(len(findings), np.float32)
    if training.class_weights == "public":
        return objective.positive_weights(np.asarray(training.positive_rates))
    try:
        return objective.positive_weights(objective.positive_rates(split.labels, findings))
    except ValueError as error:
        raise InputError(f"training.class_weights 'paper', training split: {error}") from error


def begin_or_continue(plan: Plan, pretrained: PyTree | None, path: Path, write: bool = True) -> Plan:
    """Write `run.json`, or check that the one there says the same (a resumed run must not change under way).

    The noise multiplier of a begun run is the one in `run.json`: another version of the accountant might calibrate another.

    Returns:
        The plan, with the noise multiplier of the run.

    Raises:
        InputError: names the facts that differ.
    """
    facts = plan.describe()
    if pretrained is not None:
        facts["initial_weights_sha256"] = weights_digest(pretrained)
    if not path.exists():
        if write:
            with replacing(path) as part:
                part.write_text(json.dumps(facts | {"made_with": made_with()}, indent=2) + "\n", encoding="utf-8")
        return plan
    before = json.loads(path.read_text(encoding="utf-8"))
    before.pop("made_with", None)
    if plan.mechanism is not None and plan.config.privacy is not None and plan.config.privacy.noise_multiplier is None:
        begun_with = float(before.get("noise_multiplier", plan.mechanism.noise_multiplier))
        plan = dataclasses.replace(plan, mechanism=dataclasses.replace(plan.mechanism, noise_multiplier=begun_with))
        facts["noise_multiplier"] = begun_with
    differing = [key for key in before.keys() | facts.keys() if before.get(key) != facts.get(key)]
    if differing:
        raise InputError(f"{path}: the run was begun with other facts; they differ in {', '.join(sorted(differing))}")
    return plan


def weights_digest(params: PyTree) -> str:
    """SHA-256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def made_with() -> dict[str, str]:
    """Versions and machine on which the bits of a run depend."""
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": str(jax.device_count())}
