"""From a configuration and a data set to everything that is fixed before the first step, with all that can be
refused refused here.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
from jaxtyping import Float, Int, PyTree

from jaxcxr import __version__, accounting
from jaxcxr.accounting import Spending
from jaxcxr.config import Experiment, PrivacyConfig
from jaxcxr.data.duplicates import listed_duplicates
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.store import Split, Store
from jaxcxr.errors import InputError
from jaxcxr.models.marks import marks_of
from jaxcxr.models.resnet9 import DTYPES, ResNet9
from jaxcxr.models.trainable import split as split_params
from jaxcxr.models.trainable import trained_mask
from jaxcxr.privacy import exact_sum, moments
from jaxcxr.privacy.adaptive import Adaptive
from jaxcxr.privacy.clipping import AdaptiveRule, ClipRule, Flat, PerLayer
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.noise import derive_key
from jaxcxr.records.declarations import COUNTED_RATES, COUNTED_SIZE, rates_were_counted, size_remarks
from jaxcxr.records.ledger import Statistic
from jaxcxr.records.provenance import code_fingerprint
from jaxcxr.training import averaging, memory, objective, optimizer
from jaxcxr.training.checkpoint import load_weights, provenance, weights_folder
from jaxcxr.training.class_weights import counts_entry, weights_at_once
from jaxcxr.training.least_squares import LeastSquares, empty_moments
from jaxcxr.training.objective import Gradients
from jaxcxr.training.step import Step, make_step
from jaxcxr.training.trained_on import Start, checked_start

UNITS_PER_PLACE = 64
"""Expected units of a batch for each place of a microbatch, at least, where units have places of their own.
"""


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
        weights: of positive labels, one a finding; None until noised counts are drawn for them.
        class_counts: what noised class counts cost, else None.
        microbatch_size: films a device handles at once; None where neither the configuration nor
            `begin_or_continue` says.
        store: that the films come from.
        counted: what was declared to be public and was counted in the data (codes of `records.declarations`).
        binding: digest of everything that decides what is released (`records.binding`); empty until
            `begin_or_continue` says.
    """

    config: Experiment
    split: Split
    fingerprint: str
    units: Sequence[Int[np.ndarray, " of_unit"]]
    films_per_unit: int
    mechanism: Mechanism | None
    sample_rate: float
    steps: int
    weights: Float[np.ndarray, "findings"] | None
    class_counts: Statistic | None = None
    microbatch_size: int | None = None
    store: Store | None = None
    counted: tuple[str, ...] = ()
    binding: str = ""

    def may_be_released(self) -> bool:
        """Whether the claim covers the run: private, from unpredictable randomness, with no uncovered
        statistic.
        """
        training = self.config.training
        covered = training.seed is None and training.class_weights != "paper" and not self.counted
        return self.mechanism is not None and covered

    def remarks(self) -> list[str]:
        """What the operator should know of the declared N beside what is there; for the screen alone
        (`size_remarks`).
        """
        privacy = self.config.privacy
        if privacy is None:
            return []
        units, images, batch = len(self.units), len(self.split), self.config.training.expected_batch_size
        return size_remarks(privacy.dataset_size, units, images, _called(privacy), batch)

    def already(self) -> list[Spending]:
        """What the budget pays for besides the steps."""
        return [] if self.class_counts is None else [self.class_counts.spending]

    def model(self) -> ResNet9:
        """The network."""
        return model_of(self.config)

    def initial_params(self, secret: bytes) -> PyTree:
        """Weights to start from: those named by the configuration, or random ones from the run's secret."""
        pretrained = self.pretrained_params()
        return self.random_params(secret) if pretrained is None else pretrained

    def random_params(self, secret: bytes) -> PyTree:
        """Random weights from the run's secret."""
        key = jax.random.wrap_key_data(
            jax.numpy.asarray(derive_key(secret, "initial weights", 0)[:2]), impl="threefry2x32"
        )
        return self.model().init(key, jax.numpy.zeros((self.split.size, self.split.size), jax.numpy.uint8))

    def pretrained_params(self) -> PyTree | None:
        """Weights that the configuration names, or None.

        Raises:
            InputError: they are missing, do not fit, or were trained on films or patients that are to be
                protected.
        """
        if self.config.model.weights is None:
            return None
        _ = self.start  # refuses
        return load_weights(weights_folder(self.config.model.weights), self.random_params(bytes(32)))

    @functools.cached_property
    def start(self) -> Start | None:
        """What is known of the weights that a private run starts from; None if it starts at random.

        Raises:
            InputError: they were trained on films or patients that are to be protected, or are marked as not
                for release.
        """
        model = self.config.model
        if self.mechanism is None or model.weights is None:
            return None
        if self.store is None:
            raise ValueError(
                "a private plan without its store: nobody could tell whether its weights know its films"
            )
        path = weights_folder(model.weights)
        if marks := marks_of(path):
            raise InputError(
                f"{path}: these weights are marked not for release ({'; '.join(marks)}); a run that starts "
                "from them would "
                "give them away"
            )
        return checked_start(path, provenance(path), self.store, model.weights_ids_unrelated)

    def trained(self, params: PyTree) -> PyTree:
        """The parameters that the run trains, which are those that the optimiser sees."""
        return split_params(params, self.mask())[0]

    def released(self, params: PyTree) -> PyTree:
        """A tree with the shapes of what a step releases: the gradient of the trained parameters, or moments."""
        if self.config.training.optimizer != "least_squares":
            return self.trained(params)
        return jax.eval_shape(lambda: empty_moments(params))

    def mask(self) -> PyTree | None:
        """Which parameters are trained (`models.trainable`); None for all.

        Raises:
            InputError: the scope names none.
        """
        scope = self.config.training.scope
        if scope == "all":
            return None
        shapes = jax.eval_shape(
            self.model().init, jax.random.key(0), jax.numpy.zeros((self.split.size,) * 2, jax.numpy.uint8)
        )
        return trained_mask(scope, shapes)

    def optimizer(self) -> optax.GradientTransformation:
        """The configured optimiser (the paper's is NAdam) with its schedule, and the average of its weights."""
        t, m = self.config.training, self.mechanism
        rate = optimizer.schedule(t.learning_rate, t.decay, t.warmup_steps, self.steps)
        match t.optimizer:
            case "nadam":
                chosen = optimizer.nadam(rate)
            case "sgd":
                chosen = optax.sgd(rate, momentum=t.momentum or None)
            case "least_squares":
                chosen = optax.sgd(rate)  # of a direction that is the step itself (`step`)
            case "adam_bc":
                assert m is not None  # Experiment.check
                chosen = optimizer.adam_bc(rate, m.noise_multiplier * m.l2_clip_norm / m.expected_batch_size)
        match t.averaging:
            case "none":
                return chosen
            case "ema":
                return averaging.with_ema(chosen, t.ema_decay)
            case "tail":
                return averaging.with_tail(chosen, t.tail_share, self.steps)

    def films_on_device(self) -> bool:
        """Whether the devices keep all training films."""
        asked = self.config.data.on_device
        if asked == "never" or self.config.training.augmentation != "none":
            return False
        available = memory.device_bytes(jax.local_devices()[0])
        fits = (
            available is not None and len(self.split) * self.split.size**2 <= memory.IMAGES_SHARE * available
        )
        return asked == "always" or fits

    def with_microbatch_size(self) -> "Plan":
        """The plan with a microbatch chosen by the device's memory (`training.memory`), unless it has one."""
        if self.microbatch_size is not None:
            return self
        device, t = jax.local_devices()[0], self.config.training
        shapes = jax.eval_shape(lambda: self.random_params(bytes(32)))
        resident = 5 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        if self.films_on_device():
            resident += len(self.split) * self.split.size**2
        available = memory.device_bytes(device)
        if available is not None:
            available = int(memory.STEP_SHARE * available) - resident
        films, ones = self.films_per_unit * t.views, np.ones(len(self.config.data.findings), np.float32)

        def bytes_of(units: int) -> int:
            functions = dataclasses.replace(self, microbatch_size=units * films, weights=ones).step([device])
            findings = len(self.config.data.findings)
            return _bytes_of(functions, shapes, self.clipping(), (units, films), self.split.size, findings)

        needed = -(-t.expected_batch_size // jax.device_count())
        units = memory.choose_microbatch(bytes_of, available, needed, films * self.split.size**2)
        return dataclasses.replace(self, microbatch_size=units * films)

    def clipping(self) -> PyTree | None:
        """The state of the clip rule before the first step; None where it has none."""
        return None if self.mechanism is None else self.mechanism.start()

    def step(self, devices: list[Any] | None = None) -> Step:
        """The compiled functions of the run."""
        training = self.config.training
        if self.weights is None:
            raise ValueError("weights: noised class counts must be drawn before a step is made")
        if training.optimizer == "least_squares":
            shape, rule = (self.split.size, self.split.size), self.mechanism and self.mechanism.rule
            stability = rule.stability if isinstance(rule, Flat) else None
            release: Any = LeastSquares(
                self.model(), self.weights, shape, self.mechanism, self.mask(), stability
            )
        else:
            release = Gradients(objective.unit_loss(self.model(), self.weights), self.mechanism, self.mask())
        return make_step(
            release, self.optimizer(), training.expected_batch_size, self.units_at_once(), devices
        )

    def in_places(self) -> bool:
        """Whether each unit has a place of its own in a microbatch (`privacy.hardened_sum`): moments, and
        gradients with discrete noise.
        """
        if self.mechanism is None:
            return False
        return (
            self.mechanism.discrete_coordinates is not None
            or self.config.training.optimizer == "least_squares"
        )

    def units_at_once(self) -> int:
        """Units in a microbatch of one device.

        Where each has a place of its own, places fill unevenly, the less so the fewer there are: with a 64th
        of the expected batch about a sixth of them stays empty.

        Raises:
            InputError: a batch would have more microbatches than exact sums have room for.
        """
        images = self.with_microbatch_size().microbatch_size
        assert images is not None
        units = max(1, images // (self.films_per_unit * self.config.training.views))
        if self.mechanism is None:
            return units
        if self.in_places():
            units = min(units, max(2, self.mechanism.expected_batch_size // UNITS_PER_PLACE))
        if self.config.training.optimizer == "least_squares":
            units = min(units, moments.MOST_UNITS)
        room = exact_sum.most_units(
            2 << moments.MOST_BITS
        )  # the finest grid of all whose steps are counted unit by unit
        if self.in_places() and self.mechanism.most_units > room:
            raise InputError(
                f"training.expected_batch_size: a batch may have {self.mechanism.most_units:,} units, and "
                "sums have room for "
                f"{room:,}; expected a smaller one"
            )
        if self.mechanism.most_units > units * exact_sum.MOST_PARTS:
            raise InputError(
                f"training.microbatch_size: with {units} units at a time a batch may have more than the "
                f"{exact_sum.MOST_PARTS} "
                "parts that are summed exactly; expected a larger one"
            )
        return units

    def describe(self) -> dict[str, object]:
        """What `run.json` says: the facts that are not in the configuration."""
        described: dict[str, object] = {
            "jaxcxr": __version__,
            "store_fingerprint": self.fingerprint,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "positive_weights": None if self.weights is None else [float(w) for w in self.weights],
            "class_weights_covered": self.config.training.class_weights != "paper",
            "release": self.may_be_released(),
            "against_release": list(self.counted),
        }
        if self.mechanism is not None:
            described |= {
                name: v
                for name, v in dataclasses.asdict(self.mechanism).items()
                if name not in ("rule", "method")
            }
            described["initial_weights_record"] = None if self.start is None else self.start.known
        if self.store is not None:
            described["split_origin"] = self.store.split_origin()
            described["near_duplicates"] = listed_duplicates(self.store)
            described["sums"] = "exact"
        if self.class_counts is not None:
            described["class_counts_noise_multiplier"] = self.class_counts.noise_multiplier
        return described


def _bytes_of(
    functions: Step, params: PyTree, clipping: PyTree | None, units: tuple[int, int], side: int, findings: int
) -> int:
    """Device memory that the compiled gradient sum of one microbatch needs, besides the parameters."""
    batch = {
        "image": jax.ShapeDtypeStruct((*units, side, side), np.uint8),
        "label": jax.ShapeDtypeStruct((*units, findings), np.float32),
        "is_film": jax.ShapeDtypeStruct(units, np.bool_),
        "is_real": jax.ShapeDtypeStruct(units[:1], np.bool_),
    }
    total = jax.eval_shape(functions.start, params)
    lower: Any = functions.accumulate
    used = lower.lower(params, total, batch, clipping).compile().memory_analysis()
    return (
        used.temp_size_in_bytes
        + used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
    )


def model_of(config: Experiment) -> ResNet9:
    """The network that a configuration asks for."""
    m = config.model
    return ResNet9(
        len(config.data.findings),
        activation=m.activation,
        width=m.width,
        dtype=DTYPES[m.dtype],
        scale_norm=m.scale_norm,
        remat=m.remat,
    )


def make_plan(config: Experiment, store: Store) -> Plan:
    """Fix everything that a run needs; the noise is calibrated here unless the configuration gives it.

    Raises:
        InputError: data and configuration do not fit, or the budget cannot be met.
    """
    data, training, privacy = config.data, config.training, config.privacy
    if store.size != data.size:
        raise InputError(
            f"{store.path}: the store's films are {store.size} pixels wide, data.size asks for {data.size}"
        )
    if store.dtype != "uint8":
        raise InputError(
            f"{store.path}: the store's pixels are {store.dtype}, expected uint8 (scripts/prepare.py --dtype "
            "uint8)"
        )
    split = store.split("train", data.findings)
    views = config.model.prediction_views
    if training.augmentation == "flip_rotate" or views != "one":
        try:
            mirror_permutation(data.findings)
        except ValueError as error:
            flips = training.augmentation == "flip_rotate"
            field = "training.augmentation 'flip_rotate'" if flips else f"model.prediction_views {views!r}"
            raise InputError(f"{field}: {error}") from error
    units, films_per_unit = units_of(config, split)
    n_units = len(units) if privacy is None or privacy.dataset_size is None else privacy.dataset_size
    called = _called(privacy)
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
    mechanism = class_counts = None
    if privacy is not None:
        most = max(
            n_units, len(units)
        )  # a small declared N must not admit a delta that is large for those who are there
        if privacy.delta >= 1 / most and not privacy.allow_large_delta:
            raise InputError(
                f"privacy.delta: expected less than 1/N = {1 / most:.3g} for N = {most} {called}"
                f"{'' if most == n_units else ' (those that are there)'}, found {privacy.delta:g}; "
                f"at that delta one of the {called} in N may be published outright "
                "(privacy.allow_large_delta accepts this)"
            )
        sigma, class_counts = privacy.noise_multiplier, counts_entry(config)
        if sigma is None:
            already = [] if class_counts is None else [class_counts.spending]
            try:
                sigma = accounting.calibrated_noise(
                    privacy.epsilon, privacy.delta, sample_rate, steps, already
                )
            except ValueError as error:
                raise InputError(f"privacy.epsilon {privacy.epsilon:g}: {error}") from error
        mechanism = Mechanism(
            n_units,
            training.expected_batch_size,
            privacy.l2_clip_norm,
            sigma,
            privacy.epsilon,
            privacy.delta,
            rule=_clip_rule(privacy),
            method=privacy.method,
        )
    weights = weights_at_once(config, split)
    facts = (store.fingerprint, units, films_per_unit, mechanism, sample_rate, steps, weights, class_counts)
    counted = _counted(config, store, split)
    plan = Plan(config, split, *facts, microbatch_size=training.microbatch_size, store=store, counted=counted)
    plan.mask()
    _require_repeated_roundings(plan)
    return plan if privacy is None or privacy.noise == "gaussian" else _with_discrete_noise(plan)


def _clip_rule(privacy: PrivacyConfig) -> ClipRule | AdaptiveRule:
    match privacy.clipping:
        case "flat":
            return Flat()
        case "automatic":
            return Flat(privacy.stability)
        case "per_layer":
            return PerLayer()
        case "adaptive":
            return Adaptive(privacy.clip_quantile, privacy.clip_learning_rate, privacy.clip_share)


def _require_repeated_roundings(plan: Plan) -> None:
    """Sums of proved sensitivity suppose that a unit has one gradient, wherever it is computed
    (`privacy.hardened_sum`).
    """
    privacy = plan.config.privacy
    counted = privacy is not None and (
        privacy.noise == "discrete" or plan.config.training.optimizer == "least_squares"
    )
    if counted and jax.default_backend() == "gpu" and not _deterministic_gpu_ops():
        raise InputError(
            "privacy.noise 'discrete' and training.optimizer 'least_squares' need kernels that add in a "
            "fixed order; set "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true (beside other flags)"
        )


def _deterministic_gpu_ops() -> bool:
    return "xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", "")


def _called(privacy: PrivacyConfig | None) -> str:
    """The units of the claim, in the plural."""
    return "images" if privacy is None or privacy.unit == "image" else "patients"


def _counted(config: Experiment, store: Store, split: Split) -> tuple[str, ...]:
    """What a private run declares to be public though it was plainly counted in the data (codes of
    `records.declarations`).

    Rates are compared with those of the training images, of the training patients (each the mean of their
    images) and of all images of the store.
    """
    if config.privacy is None:
        return ()
    found = [COUNTED_SIZE] if config.privacy.dataset_size is None else []
    rates = config.training.positive_rates
    if rates is not None:
        of_patients: Any = pd.DataFrame(split.labels).groupby(split.frame["patient_id"].to_numpy()).mean()
        everything: Any = store.manifest[list(config.data.findings)]
        for labels in (split.labels, np.asarray(of_patients, float), np.asarray(everything, float)):
            if COUNTED_RATES not in found and rates_were_counted(rates, np.asarray(labels, float)):
                found.append(COUNTED_RATES)
    return tuple(found)


def _with_discrete_noise(plan: Plan) -> Plan:
    """The plan with the number of coordinates that a step releases, on which the grid of discrete noise
    depends.

    Raises:
        InputError: the noise multiplier does not go with discrete noise.
    """
    assert plan.mechanism is not None
    released = plan.released(jax.eval_shape(lambda: plan.random_params(bytes(32))))
    released = plan.mechanism.contribution(released)
    coordinates = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(released))
    mechanism = dataclasses.replace(plan.mechanism, discrete_coordinates=coordinates)
    try:
        mechanism.grid  # noqa: B018
    except ValueError as error:
        raise InputError(f"privacy.noise: {error}") from error
    return dataclasses.replace(plan, mechanism=mechanism)


def units_of(config: Experiment, split: Split) -> tuple[Sequence[Int[np.ndarray, " of_unit"]], int]:
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
            f"privacy.unit {privacy.unit!r}: every training film needs a patient_id; found none for "
            f"{int(nameless.sum())} "
            f"films, the first is image_id {film!r}"
        )
    films = list(pd.Series(np.arange(len(split))).groupby(patients.to_numpy(), sort=True).apply(np.asarray))
    return films, privacy.films_per_patient if privacy.unit == "patient" else 1


def weights_digest(params: PyTree) -> str:
    """SHA-256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def made_with() -> dict[str, str]:
    """Versions, code and machine on which the bits of a run depend."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "deterministic_gpu_ops": "yes" if _deterministic_gpu_ops() else "no",
        "code_fingerprint": code_fingerprint(),
    }
