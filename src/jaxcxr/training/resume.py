"""May a run begin here, or go on? It goes on only as what it was begun as: `run.json` says what that is."""

import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcxr import __version__
from jaxcxr.atomic import write_json
from jaxcxr.errors import InputError
from jaxcxr.privacy.class_counts import class_counts_entry
from jaxcxr.records.binding import FACT, Binding, differences
from jaxcxr.records.provenance import training_code_fingerprint
from jaxcxr.training.plan import Plan, made_with, weights_digest

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
ARITHMETIC = (
    "jax_allow_f16_reductions",
    "jax_compiler_enable_remat_pass",
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_optimization_level",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
    "jax_use_direct_linearize",
)
"""Settings of JAX that change what a step computes or draws, be it by rounding alone: how gradients are
traced, and what the compiler fuses and reorders. Not every version of JAX has all.
"""
_PATHS = ("data.store", "model.weights", "model.pretraining")
_SAID_ELSEWHERE = ("jaxcxr", "store_fingerprint", "initial_weights_sha256", "microbatch_size")
"""Facts of `run.json` that stand in another part of the binding."""
_NOT_ARITHMETIC = ("--xla_force_host_platform_device_count", "--xla_dump")
"""Flags of XLA that change nothing that is computed."""


def begin_or_continue(plan: Plan, params: PyTree, path: Path, write: bool = True) -> Plan:
    """Write `run.json`, or check that the one there says the same: a resumed run must not change under way.

    The noise multiplier of a begun run is the one in `run.json`: another version of the accountant might
    calibrate another. So is the size of its microbatches, if it was chosen by the device's memory.

    Args:
        plan: of the run.
        params: weights before the first step.
        path: of `run.json`.
        write: whether this process writes it.

    Returns:
        The plan, with noise multiplier, microbatch size and binding of the run.

    Raises:
        InputError: the run was begun as another one, or by a version that did not bind its noise; says what
            differs.
    """
    facts, start = plan.describe(), weights_digest(params)
    if plan.config.model.weights is not None:
        facts["initial_weights_sha256"] = start
    chosen_here = plan.config.training.microbatch_size is None
    if not path.exists():
        plan = plan.with_microbatch_size()
        if chosen_here:
            facts["microbatch_size"] = plan.microbatch_size
        binding = binding_of(plan, facts, start)
        if write:
            write_json(path, facts | {"made_with": made_with(), "binding": binding.as_json()})
        return dataclasses.replace(plan, binding=binding.digest)
    before = json.loads(path.read_text(encoding="utf-8"))
    before.pop("made_with", None)
    bound_to = before.pop("binding", None)
    if not isinstance(bound_to, dict):
        raise InputError(
            f"{path}: the run was begun by an earlier version (jaxcxr {before.get('jaxcxr', 'unknown')}), "
            "which did not bind "
            "its noise to what is trained; finish it with that version, or begin a new run in another folder"
        )
    plan = _as_begun(plan, before, facts)
    binding = binding_of(plan, facts, start).as_json()
    found = differences(bound_to, binding)
    if found:
        raise InputError(
            f"{path}: the run was begun as another one; it differs in {', '.join(found)}. Its batches and "
            "noise must not be "
            "used for anything else: go on with what it was begun with, or begin a new run in another folder"
        )
    differing = [key for key in before.keys() | facts.keys() if before.get(key) != facts.get(key)]
    if differing:
        raise InputError(
            f"{path}: the run was begun with other facts; they differ in {', '.join(sorted(differing))}"
        )
    return dataclasses.replace(plan, binding=binding["digest"])


def _as_begun(plan: Plan, before: dict[str, Any], facts: dict[str, object]) -> Plan:
    """The plan with the numbers that were chosen or calibrated when the run was begun; `facts` are brought up
    to date.
    """
    config, privacy = plan.config, plan.config.privacy
    if config.training.microbatch_size is None and "microbatch_size" in before:
        plan = dataclasses.replace(plan, microbatch_size=int(before["microbatch_size"]))
        facts["microbatch_size"] = before["microbatch_size"]
    if plan.mechanism is not None and privacy is not None and privacy.noise_multiplier is None:
        begun_with = float(before.get("noise_multiplier", plan.mechanism.noise_multiplier))
        plan = dataclasses.replace(
            plan, mechanism=dataclasses.replace(plan.mechanism, noise_multiplier=begun_with)
        )
        facts["noise_multiplier"] = begun_with
    if (
        plan.class_counts is not None
        and privacy is not None
        and privacy.class_counts_noise_multiplier is None
    ):
        sigma = float(before.get("class_counts_noise_multiplier", plan.class_counts.noise_multiplier))
        plan = dataclasses.replace(plan, class_counts=class_counts_entry(len(config.data.findings), sigma))
        facts["class_counts_noise_multiplier"] = sigma
    return plan


def binding_of(plan: Plan, facts: dict[str, object], starting_weights: str) -> Binding:
    """Everything that decides what a run releases.

    Args:
        plan: with the microbatch size of the run.
        facts: what the plan says besides the configuration (`Plan.describe`), such as calibrated noise.
        starting_weights: digest of the weights before the first step.
    """
    fields = {
        name: value
        for name, value in plan.config.digest_fields().items()
        if not name.startswith("evaluation.") and name not in _PATHS
    }
    fields["training.microbatch_size"] = plan.microbatch_size
    settled = {f"{FACT}{name}": value for name, value in facts.items() if name not in _SAID_ELSEWHERE}
    arithmetic = {name: str(getattr(jax.config, name, None)) for name in ARITHMETIC}
    backend = jax.default_backend()
    platform = {"device": backend, "kind": jax.devices()[0].device_kind, "xla_flags": _flags(backend)}
    return Binding(
        configuration=fields | settled,
        starting_weights=starting_weights,
        data=plan.fingerprint,
        code={"jaxcxr": __version__, "sources": training_code_fingerprint()},
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        platform=platform | arithmetic,
    )


def _flags(backend: str) -> str:
    """Flags of XLA that may change what a step computes, such as instruction sets."""
    passed_over = (*_NOT_ARITHMETIC, *(() if backend == "gpu" else ("--xla_gpu",)))
    return " ".join(
        sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(passed_over))
    )
