"""How long a step of a plan takes on this machine and how much memory it needs, measured on blank images."""

import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from jaxcxr.training import build, parameters
from jaxcxr.training.plan import RunPlan, with_head_data

ROUNDS = 3
"""Microbatches that are timed, after one that compiles."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What was measured.

    Attributes:
        compiling: seconds until the first microbatch and update were done; a next run of the same shapes
            loads what was compiled.
        microbatch: seconds of one, without reading its images.
        update: seconds of noise and update.
        microbatches: expected number in a step.
        units: units in a microbatch, over all devices.
        microbatch_bytes: device memory of the sum over a microbatch, as the compiler states it; None where it
            does not.
        resident_bytes: parameters, optimiser state and the sum of a step.
    """

    compiling: float
    microbatch: float
    update: float
    microbatches: int
    units: int
    microbatch_bytes: int | None
    resident_bytes: int

    @property
    def step(self) -> float:
        """Seconds of an expected step."""
        return self.microbatches * self.microbatch + self.update


def measure_step(plan: RunPlan) -> StepTime:
    """Compile the plan's step and run it on blank images from random weights; nothing of it is kept, and no
    image of the cohort is read.
    """
    if plan.weights is None:  # noised counts, which are drawn when a run begins
        plan = dataclasses.replace(plan, weights=np.ones(plan.split.labels.shape[1], np.float32))
    plan = with_head_data(plan, None)
    functions = build.step_of(build.with_microbatch_size(plan))
    params = parameters.random_params(plan.config, bytes(32))
    state = build.optimizer_of(plan).init(parameters.trained(plan.config, params))
    params, state, clipping = functions.replicate((params, state, plan.clipping()))
    batch = functions.place(_blank(plan, functions.microbatch_size))
    randomness: Any = np.zeros(4, np.uint32)
    began = time.perf_counter()
    total = functions.start(params)
    lowered: Any = functions.accumulate
    accumulate = lowered.lower(params, total, batch, clipping).compile()
    total = accumulate(params, total, batch, clipping)
    summed, _ = functions.collect(total)
    randomness = randomness if plan.mechanism is None else plan.mechanism.randomness(randomness, summed.high)
    params, state, _, clipping = jax.block_until_ready(
        functions.finish(params, state, summed, randomness, clipping)
    )
    compiling, began = time.perf_counter() - began, time.perf_counter()
    total = functions.start(params)
    for _ in range(ROUNDS):
        total = accumulate(params, total, batch, clipping)
    jax.block_until_ready(total)
    microbatch, began = (time.perf_counter() - began) / ROUNDS, time.perf_counter()
    summed, _ = functions.collect(total)
    if plan.mechanism is not None:
        randomness = plan.mechanism.stream(bytes(32)).at(0, summed.high)
    resident = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state, summed))
    )
    jax.block_until_ready(functions.finish(params, state, summed, randomness, clipping))
    update = time.perf_counter() - began
    expected = plan.sample_rate * len(plan.units)
    microbatches = max(1, math.ceil(expected / functions.microbatch_size))
    used = accumulate.memory_analysis()
    needed = None if used is None else int(used.temp_size_in_bytes)
    return StepTime(compiling, microbatch, update, microbatches, functions.microbatch_size, needed, resident)


def _blank(plan: RunPlan, units: int) -> dict[str, np.ndarray]:
    """A microbatch of black images, as this process would feed it."""
    units = units // jax.process_count()
    images = (units, plan.images_per_unit * plan.config.training.augmentation_multiplicity)
    return {
        "image": np.zeros((*images, *plan.record.shape), plan.record.dtype),
        "label": np.zeros((*images, plan.split.labels.shape[1]), np.float32),
        "is_image": np.ones(images, np.bool_),
        "is_real": np.ones(units, np.bool_),
    }
