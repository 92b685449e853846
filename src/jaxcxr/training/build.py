"""Build what a run needs from its facts: starting weights, optimiser, compiled step, and how many images a
device holds and handles at once.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxcxr.config import Experiment, TrainingConfig
from jaxcxr.errors import InputError
from jaxcxr.models.backbone import with_rows
from jaxcxr.models.network import HEAD
from jaxcxr.privacy import exact_sum, moments
from jaxcxr.privacy.clipping import Flat
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training import averaging, head_data, memory, objective, optimizer, parameters
from jaxcxr.training.head import HeadGradients
from jaxcxr.training.least_squares import LeastSquares
from jaxcxr.training.objective import Gradients
from jaxcxr.training.plan import RunPlan
from jaxcxr.training.step import Release, Step, make_step
from jaxcxr.training.weights import described, describes_itself, load_weights, weights_folder, without_head

UNITS_PER_PLACE = 64
"""Expected units of a batch for each place of a microbatch, at least, where units have places of their own.
"""
HEAD_ROWS = 4096
"""Rows in a microbatch of a head on kept features, at most: some tens of megabytes."""


def pretrained_params(plan: RunPlan) -> PyTree | None:
    """Weights that the configuration names, or None.

    Raises:
        InputError: they are missing, do not fit, or were trained on images or patients that the run must
            protect; or the public images of a head to start from do not serve.
    """
    weights = plan.config.model.weights
    if weights is None:
        return None
    _ = plan.start  # refuses
    config = plan.config
    params = _loaded(config, weights_folder(weights))
    start = config.head.start if config.training.keeps_features else "weights"
    if start in ("public", "calibrated"):
        assert plan.store is not None  # make_plan
        made = head_data.with_public_head if start == "public" else head_data.with_calibrated_head
        return made(config, plan.store, params)
    return without_head(params) if start == "zero" else params


def _loaded(config: Experiment, folder: Path) -> PyTree:
    """The weights of a folder; a head that sees features alone gets zeros for what the run's sees more."""
    model = config.model
    own = described(folder)[1] if describes_itself(folder) else None
    sees_more = own is not None and (own.thumbnail or own.stage_statistics)
    if sees_more or not (model.thumbnail or model.stage_statistics):
        return load_weights(folder, parameters.random_params(config, bytes(32)))
    alone = dataclasses.replace(model, thumbnail=0, stage_statistics=False)
    without = dataclasses.replace(config, model=alone)
    rows = parameters.shapes_of(config)["params"][HEAD]["kernel"].shape[0]
    return with_rows(load_weights(folder, parameters.random_params(without, bytes(32))), HEAD, rows)


def initial_params(plan: RunPlan, secret: bytes) -> PyTree:
    """Weights to start from: those named by the configuration, or random ones from the run's secret."""
    pretrained = pretrained_params(plan)
    return parameters.random_params(plan.config, secret) if pretrained is None else pretrained


def optimizer_of(plan: RunPlan) -> optax.GradientTransformation:
    """The configured optimiser with its schedule, and the average of its weights."""
    t = plan.config.training
    rate = optimizer.schedule(t.learning_rate, t.decay, t.warmup_steps, plan.steps)
    chosen = _chosen(t, rate, plan.mechanism)
    match t.averaging:
        case "none":
            return chosen
        case "ema":
            return averaging.with_ema(chosen, t.ema_decay)
        case "tail":
            return averaging.with_tail(chosen, t.tail_share, plan.steps)


def _chosen(t: TrainingConfig, rate: optax.Schedule, m: Mechanism | None) -> optax.GradientTransformation:
    if t.releases_moments:
        return optax.sgd(rate)  # of a direction that is the step itself (`least_squares`)
    match t.optimizer:
        case "sgd":
            return optax.sgd(rate, momentum=t.momentum or None)
        case "adam_bc":
            assert m is not None  # Experiment.check
            return optimizer.adam_bc(rate, m.noise_multiplier * m.l2_clip_norm / m.expected_batch_size)
        case _:  # the paper's
            return optimizer.nadam(rate)


def step_of(plan: RunPlan, devices: list[Any] | None = None) -> Step:
    """The compiled functions of the run, on `devices` or on those of all processes."""
    t, at_once = plan.config.training, units_at_once(plan)
    return make_step(_release_of(plan), optimizer_of(plan), t.expected_batch_size, at_once, devices)


def _release_of(plan: RunPlan) -> Release:
    """What a step sums and releases."""
    config, mechanism = plan.config, plan.mechanism
    if plan.weights is None:
        raise ValueError("weights: noised class counts must be drawn before a step is made")
    network, mask = parameters.network_of(config), parameters.mask_of(config)
    directions = None if plan.head is None else plan.head.directions
    if directions is not None and not config.training.releases_moments:
        return HeadGradients(directions, plan.weights, mechanism, mask)
    if not config.training.releases_moments:
        return Gradients(objective.unit_loss(network, plan.weights), mechanism, mask)
    rule = mechanism and mechanism.rule
    stability = rule.stability if isinstance(rule, Flat) else None
    shape = (config.data.size, config.data.size)
    return LeastSquares(network, plan.weights, shape, mechanism, mask, stability, directions)


def films_on_device(plan: RunPlan) -> bool:
    """Whether the devices keep all training images."""
    asked = plan.config.data.on_device
    if asked == "never" or plan.head is not None or plan.config.training.augmentation != "none":
        return False
    available = memory.device_bytes(jax.local_devices()[0])
    fits = available is not None and len(plan.split) * plan.split.size**2 <= memory.IMAGES_SHARE * available
    return asked == "always" or fits


def with_microbatch_size(plan: RunPlan) -> RunPlan:
    """The plan with a microbatch chosen by the device's memory (`training.memory`), unless it has one."""
    if plan.microbatch_size is not None:
        return plan
    device, t = jax.local_devices()[0], plan.config.training
    shapes = parameters.shapes_of(plan.config)
    copies = 5 if plan.mechanism is None else 4 + plan.mechanism.bands  # past noise is kept
    resident = copies * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if films_on_device(plan):
        resident += len(plan.split) * plan.split.size**2
    available = memory.device_bytes(device)
    if available is not None:
        available = int(memory.STEP_SHARE * available) - resident
    films, findings = plan.images_per_unit * t.augmentation_multiplicity, len(plan.config.data.findings)
    ones = np.ones(findings, np.float32)

    def bytes_of(units: int) -> int:
        step = step_of(dataclasses.replace(plan, microbatch_size=units * films, weights=ones), [device])
        return _bytes_of(step, (shapes, plan.clipping()), (units, films), plan.record, findings)

    needed = -(-t.expected_batch_size // jax.device_count())
    if plan.head is not None:
        return dataclasses.replace(plan, microbatch_size=min(needed, HEAD_ROWS // films) * films)
    units = memory.choose_microbatch(bytes_of, available, needed, films * plan.split.size**2)
    return dataclasses.replace(plan, microbatch_size=units * films)


def _bytes_of(
    step: Step, state: tuple[PyTree, PyTree | None], units: tuple[int, int], record: Any, findings: int
) -> int:
    """Device memory that the compiled gradient sum of one microbatch needs, besides the parameters.

    `state` is the parameters and the state of the clip rule.
    """
    params, clipping = state
    batch = {
        "image": jax.ShapeDtypeStruct((*units, *record.shape), record.dtype),
        "label": jax.ShapeDtypeStruct((*units, findings), np.float32),
        "is_image": jax.ShapeDtypeStruct(units, np.bool_),
        "is_real": jax.ShapeDtypeStruct(units[:1], np.bool_),
    }
    total = jax.eval_shape(step.start, params)
    lower: Any = step.accumulate
    used = lower.lower(params, total, batch, clipping).compile().memory_analysis()
    return (
        used.temp_size_in_bytes
        + used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
    )


def in_places(plan: RunPlan) -> bool:
    """Whether each unit has a place of its own in a microbatch (`privacy.hardened_sum`): moments, and
    gradients with discrete noise.
    """
    m = plan.mechanism
    return m is not None and (m.discrete_coordinates is not None or plan.config.training.releases_moments)


def units_at_once(plan: RunPlan) -> int:
    """Units in a microbatch of one device.

    Where each has a place of its own, places fill unevenly, the less so the fewer there are: with a 64th
    of the expected batch about a sixth of them stays empty.

    Raises:
        InputError: a batch would have more microbatches than exact sums have room for.
    """
    images, t, m = with_microbatch_size(plan).microbatch_size, plan.config.training, plan.mechanism
    assert images is not None
    units = max(1, images // (plan.images_per_unit * t.augmentation_multiplicity))
    if m is None:
        return units
    if in_places(plan):
        units = min(units, max(2, m.expected_batch_size // UNITS_PER_PLACE))
    if t.releases_moments:
        units = min(units, moments.MOST_UNITS)
    # the finest grid of all whose steps are counted unit by unit
    room = exact_sum.most_units(2 << moments.MOST_BITS)
    if in_places(plan) and m.most_units > room:
        raise InputError(
            f"training.expected_batch_size: a batch may have {m.most_units:,} units, and sums have room for "
            f"{room:,}; expected a smaller one"
        )
    if m.most_units > units * exact_sum.MOST_PARTS:
        raise InputError(
            f"training.microbatch_size: with {units} units at a time a batch may have more than the "
            f"{exact_sum.MOST_PARTS} parts that are summed exactly; expected a larger one"
        )
    return units
