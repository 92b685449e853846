"""Validate the configuration against the data and freeze the facts of the run before step 0.

A plan holds facts only: what is built from them (optimiser, step, memory) stands in `training.build`.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, PyTree

from jaxcxr import __version__, accounting
from jaxcxr.accounting import Spending, banded
from jaxcxr.config import Experiment, PrivacyConfig
from jaxcxr.data.duplicates import listed_duplicates
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.store import Split, Store
from jaxcxr.errors import InputError
from jaxcxr.models.marks import marks_of
from jaxcxr.privacy.adaptive import Adaptive
from jaxcxr.privacy.clipping import AdaptiveRule, ClipRule, Flat, PerLayer
from jaxcxr.privacy.correlated import Correlation
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.declarations import COUNTED_RATES, COUNTED_SIZE, rates_were_counted, size_remarks
from jaxcxr.records.ledger import Statistic
from jaxcxr.records.provenance import code_fingerprint
from jaxcxr.run_folder import Facts
from jaxcxr.training import head_data, parameters
from jaxcxr.training.class_weights import counts_entry, weights_at_once
from jaxcxr.training.head_data import HeadData
from jaxcxr.training.starting_weights import require_fitting_start
from jaxcxr.training.trained_on import Start, checked_start
from jaxcxr.training.weights import provenance, weights_folder


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run is going to do.

    Attributes:
        config: of the experiment.
        split: the training films.
        fingerprint: of their store.
        units: the films of each unit of the claim (of each film alone without privacy).
        images_per_unit: bound on the films of a unit in one step.
        mechanism: of a private run, else None.
        sample_rate: probability of each film in each step, whatever group the step is of.
        steps: length of the run.
        weights: of positive labels, one a finding; None until noised counts are drawn for them.
        class_counts: what noised class counts cost, else None.
        microbatch_size: films a device handles at once; None where neither the configuration nor
            `begin_or_continue` says.
        store: that the films come from.
        counted: what was declared to be public and was counted in the data (codes of `records.declarations`).
        binding: digest of everything that decides what is released (`records.binding`); empty until
            `begin_or_continue` says.
        n_directions: in how many a head on kept features moves; None for other runs.
        chosen: what a recipe chose and why, in sentences, for `run.json`.
        tuning: the terms of the tuning that the run is one of, for `run.json` (`records.tuning`).
        head: what it reads; None until `with_head_data` has it.
        unit_ids: of each unit, by which groups take turns where noise is correlated (`privacy.sampling`):
            of its patient, or of an image that has none.
    """

    config: Experiment
    split: Split
    fingerprint: str
    units: Sequence[Int[np.ndarray, " of_unit"]]
    images_per_unit: int
    mechanism: Mechanism | None
    sample_rate: float
    steps: int
    weights: Float[np.ndarray, "findings"] | None
    class_counts: Statistic | None = None
    microbatch_size: int | None = None
    store: Store | None = None
    counted: tuple[str, ...] = ()
    binding: str = ""
    n_directions: int | None = None
    chosen: tuple[str, ...] = ()
    tuning: Mapping[str, str] | None = None
    head: HeadData | None = None
    unit_ids: tuple[str, ...] = ()

    @property
    def record(self) -> jax.ShapeDtypeStruct:
        """Shape and type of what a step reads of an image: its grey values, or for a head on kept features
        its features and coordinates.
        """
        if self.head is None:
            return jax.ShapeDtypeStruct((self.split.size, self.split.size), np.uint8)
        return jax.ShapeDtypeStruct(self.head.rows.rows.shape[1:], np.float32)

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

    def clipping(self) -> PyTree | None:
        """The state of the clip rule before the first step; None where it has none."""
        return None if self.mechanism is None else self.mechanism.start()

    def describe(self) -> Facts:
        """What `run.json` says: the facts that are not in the configuration."""
        described = Facts(
            jaxcxr=__version__,
            store_fingerprint=self.fingerprint,
            sample_rate=self.sample_rate if self.mechanism is None else self.mechanism.sample_rate,
            steps=self.steps,
            positive_weights=None if self.weights is None else [float(w) for w in self.weights],
            class_weights_covered=self.config.training.class_weights != "paper",
            release=self.may_be_released(),
            against_release=list(self.counted),
        )
        if self.mechanism is not None:
            of_mechanism: dict[str, Any] = dataclasses.asdict(self.mechanism)
            left_out = ("rule", "method", "correlation")
            described |= Facts(**{k: v for k, v in of_mechanism.items() if k not in left_out})  # type: ignore[typeddict-item]
            if self.mechanism.bands > 1:
                described["noise_column"] = list(self.mechanism.correlation.column)
            described["initial_weights_record"] = None if self.start is None else self.start.known
        if self.store is not None:
            described["split_origin"] = self.store.split_origin()
            described["near_duplicates"] = listed_duplicates(self.store)
            described["sums"] = "exact"
        if self.chosen:
            described["chosen"] = list(self.chosen)
        if self.tuning is not None:
            described["tuning"] = dict(self.tuning)
        if self.head is not None:
            described["head"] = dict(self.head.facts)
        if self.class_counts is not None:
            described["class_counts_noise_multiplier"] = self.class_counts.noise_multiplier
        return described


def make_plan(config: Experiment, store: Store) -> RunPlan:
    """Fix everything that a run needs; the noise is calibrated here unless the configuration gives it.

    Raises:
        InputError: data and configuration do not fit, or the budget cannot be met.
    """
    training, privacy = config.training, config.privacy
    _require_fitting(config, store)
    _require_repeated_roundings(config)
    if config.training.keeps_features and config.head.public is not None:
        head_data.public_store(config, store)  # refuses
    parameters.mask_of(config)  # refuses
    require_fitting_start(config)
    split = store.split("train", config.data.findings)
    units, images_per_unit = units_of(config, split)
    n_units = len(units) if privacy is None or privacy.dataset_size is None else privacy.dataset_size
    if training.expected_batch_size > n_units:
        raise InputError(
            f"training.expected_batch_size: expected at most the {n_units} {_called(privacy)} of the "
            f"training split, found {training.expected_batch_size}"
        )
    steps = training.steps
    if steps is None:
        assert training.epochs is not None  # Experiment.check
        steps = accounting.steps_of_epochs(training.epochs, n_units, training.expected_batch_size)
    class_counts = counts_entry(config)
    n_directions = head_data.directions_wanted(config, n_units)
    return RunPlan(
        config,
        split,
        fingerprint=store.fingerprint,
        units=units,
        images_per_unit=images_per_unit,
        mechanism=mechanism_of(config, (n_units, len(units), n_directions), steps, class_counts),
        n_directions=n_directions,
        sample_rate=accounting.sample_rate_of(training.expected_batch_size, n_units),
        steps=steps,
        weights=weights_at_once(config, split),
        class_counts=class_counts,
        microbatch_size=training.microbatch_size,
        store=store,
        counted=_counted(config, store, split),
        unit_ids=unit_ids(split, units),
    )


def with_head_data(plan: RunPlan, params: PyTree | None) -> RunPlan:
    """The plan of a head on kept features with what it reads in place of images; other plans as they are.

    Args:
        plan: of the run.
        params: weights before the first step; None for a step on blank rows, to be timed.

    Raises:
        InputError: as `head_data.prepared`.
    """
    if plan.n_directions is None:
        return plan
    assert plan.store is not None  # make_plan
    if params is None:
        return dataclasses.replace(plan, head=head_data.blank(plan.config, plan.n_directions))
    head = head_data.prepared(plan.config, plan.store, params, plan.n_directions)
    return dataclasses.replace(plan, head=head)


def _require_fitting(config: Experiment, store: Store) -> None:
    """The store's images are those that the configuration expects, and its findings have sides where images
    are to be flipped.
    """
    data, views = config.data, config.model.test_time_augmentation
    if store.size != data.size:
        raise InputError(
            f"{store.path}: the store's films are {store.size} pixels wide, data.size asks for {data.size}"
        )
    if store.dtype != "uint8":
        raise InputError(
            f"{store.path}: the store's pixels are {store.dtype}, expected uint8 (scripts/prepare.py --dtype "
            "uint8)"
        )
    flips = config.training.augmentation == "flip_rotate"
    if flips or views != "one":
        try:
            mirror_permutation(data.findings)
        except ValueError as error:
            field = (
                "training.augmentation 'flip_rotate'" if flips else f"model.test_time_augmentation {views!r}"
            )
            raise InputError(f"{field}: {error}") from error


def mechanism_of(
    config: Experiment, numbers: tuple[int, int, int | None], steps: int, class_counts: Statistic | None
) -> Mechanism | None:
    """The mechanism of a private run of so many steps; None without privacy. `numbers` are those of the units
    that are declared and that are there, and of the directions of a head.

    Raises:
        InputError: delta is too large for those who are there, or the budget cannot be met.
    """
    privacy, batch = config.privacy, config.training.expected_batch_size
    n_units, present, n_directions = numbers
    if privacy is None:
        return None
    most = max(n_units, present)  # a small declared N must not admit a delta that is large for those there
    if privacy.delta >= 1 / most and not privacy.allow_large_delta:
        raise InputError(
            f"privacy.delta: expected less than 1/N = {1 / most:.3g} for N = {most} {_called(privacy)}"
            f"{'' if most == n_units else ' (those that are there)'}, found {privacy.delta:g}; "
            f"at that delta one of the {_called(privacy)} in N may be published outright "
            "(privacy.allow_large_delta accepts this)"
        )
    sigma, budget = privacy.noise_multiplier, (privacy.epsilon, privacy.delta)
    already = [] if class_counts is None else [class_counts.spending]
    try:
        bands = banded.settled_bands(privacy.noise_bands, budget, (batch, n_units), steps, already)
        if sigma is None:
            sigma = banded.calibrated(budget, (batch, n_units), steps, bands, already)
    except ValueError as error:
        raise InputError(f"privacy.epsilon {privacy.epsilon:g}: {error}") from error
    mechanism = Mechanism(
        n_units,
        batch,
        privacy.l2_clip_norm,
        sigma,
        privacy.epsilon,
        privacy.delta,
        rule=_clip_rule(privacy),
        method=privacy.method,
        correlation=Correlation(banded.coefficients(bands, steps)),
    )
    return _with_discrete_noise(config, mechanism, n_directions) if privacy.noise == "discrete" else mechanism


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


def _require_repeated_roundings(config: Experiment) -> None:
    """Sums of proved sensitivity suppose that a unit has one gradient, wherever it is computed
    (`privacy.hardened_sum`).
    """
    privacy = config.privacy
    counted = privacy is not None and (privacy.noise == "discrete" or config.training.releases_moments)
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


def _with_discrete_noise(config: Experiment, mechanism: Mechanism, n_directions: int | None) -> Mechanism:
    """The mechanism with the number of coordinates that a step releases, on which the grid of discrete noise
    depends.

    Raises:
        InputError: the noise multiplier does not go with discrete noise.
    """
    released = jax.tree.leaves(mechanism.contribution(parameters.released_shapes(config, n_directions)))
    coordinates = sum(math.prod(leaf.shape) for leaf in released)
    mechanism = dataclasses.replace(mechanism, discrete_coordinates=coordinates)
    try:
        _ = mechanism.grid
    except ValueError as error:
        raise InputError(f"privacy.noise: {error}") from error
    return mechanism


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
    return films, privacy.images_per_patient if privacy.unit == "patient" else 1


def unit_ids(split: Split, units: Sequence[Int[np.ndarray, " of_unit"]]) -> tuple[str, ...]:
    """The id of each unit's patient, or of its image where the table names no patient."""
    first = [int(of_unit[0]) for of_unit in units]
    patients, images = (split.frame[name].iloc[first] for name in ("patient_id", "image_id"))
    nameless = patients.isna() | (patients.astype(str).str.strip() == "")
    return tuple(
        f"image {image}" if without else f"patient {patient}"
        for patient, image, without in zip(patients, images, nameless, strict=True)
    )


def made_with() -> dict[str, str]:
    """Versions, code and machine on which the bits of a run depend."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "deterministic_gpu_ops": "yes" if _deterministic_gpu_ops() else "no",
        "code_fingerprint": code_fingerprint(),
    }
