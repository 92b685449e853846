"""May a run begin here, or go on? Every answer is given here.

A folder takes one process at a time (`alone_in`) and one run (`claim_run_folder`). A run that has begun needs
its secret (`load_or_make_secret`) and its ledger (`open_ledger`), goes on only as what it was begun as
(`begin_or_continue`: `run.json` says what that is), and only as far as the budget lasts (`affordable_steps`).
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
from jaxtyping import PyTree

from jaxcxr import __version__
from jaxcxr.accounting import banded
from jaxcxr.atomic import exclusive_lock, writing
from jaxcxr.config import Experiment
from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError
from jaxcxr.models.network import NETWORKS, definition_digest
from jaxcxr.privacy.class_counts import class_counts_entry
from jaxcxr.privacy.correlated import Correlation
from jaxcxr.records.binding import FACT, Binding, differences
from jaxcxr.records.ledger import Ledger, Terms, run_name
from jaxcxr.records.provenance import training_code_fingerprint
from jaxcxr.run_folder import (
    CONFIG,
    FACTS,
    LOCK,
    PATHS,
    SECRET,
    Facts,
    has_facts,
    read_config,
    read_facts,
    write_config,
    write_facts,
)
from jaxcxr.training import parameters
from jaxcxr.training.build import with_microbatch_size
from jaxcxr.training.plan import RunPlan, made_with
from jaxcxr.training.secret import make_secret, read_secret, was_deleted
from jaxcxr.training.weights import weights_digest

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
_SAID_ELSEWHERE = ("jaxcxr", "store_fingerprint", "initial_weights_sha256", "microbatch_size")
"""Facts of `run.json` that stand in another part of the binding."""
_NOT_ARITHMETIC = ("--xla_force_host_platform_device_count", "--xla_dump")
"""Flags of XLA that change nothing that is computed."""


def claim_run_folder(out: Path, config: Experiment, resume: bool) -> None:
    """Make a run folder, or take up the one that is there if it is the same run.

    Raises:
        InputError: the folder holds a run and `resume` is off, or a run of another configuration (the fields
        are named), or is no run folder.
    """
    path = out / CONFIG
    if not path.exists():
        if out.exists() and any(
            file.name not in (f"{CONFIG}.part", DIGESTS, f"{DIGESTS}.part", LOCK) for file in out.iterdir()
        ):
            raise InputError(f"{out}: the folder holds files but no run; expected a new or empty folder")
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_config(out, config)
        return
    old, new = read_config(out).digest_fields(), config.digest_fields()
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
        raise InputError(f"{out}: holds a run of another configuration ({changes})")
    if not resume:
        raise InputError(f"{out}: holds this run already; --resume goes on with it")


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the run folder: two processes in one would spend one ledger twice."""
    with ExitStack() as held:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            busy = f"{out}: another process is training in this folder"
            held.enter_context(exclusive_lock(out / LOCK, busy))
        yield


def load_or_make_secret(folder: Path, seed: int | None, begun: bool = False) -> bytes:
    """The run's 256-bit secret: read from `folder`, or created there (from `seed` if given).

    Raises:
        InputError: the secret is damaged, or it is missing although the run has `begun` (has steps in its
            ledger, or a checkpoint).
    """
    secret, path = read_secret(folder), folder / SECRET
    if secret is not None:
        return secret
    if was_deleted(folder):
        raise InputError(
            f"{path}: the secret was deleted when the run was finished (--delete-secret); the run cannot go "
            "on"
        )
    if begun:
        raise InputError(
            f"{path}: the run has begun but its secret is gone; with another one it would spend its steps a "
            "second time"
        )
    return make_secret(folder, seed)


def begin_or_continue(plan: RunPlan, params: PyTree, run: Path, write: bool = True) -> RunPlan:
    """Write `run.json`, or check that the one there says the same: a resumed run must not change under way.

    The noise multiplier of a begun run is the one in `run.json`: another version of the accountant might
    calibrate another. So is the size of its microbatches, if it was chosen by the device's memory.

    Args:
        plan: of the run.
        params: weights before the first step.
        run: its folder.
        write: whether this process writes `run.json`.

    Returns:
        The plan, with noise multiplier, microbatch size and binding of the run.

    Raises:
        InputError: the run was begun as another one, or by a version that did not bind its noise; says what
            differs.
    """
    facts, start, path = plan.describe(), weights_digest(params), run / FACTS
    if plan.config.model.weights is not None:
        facts["initial_weights_sha256"] = start
    if not has_facts(run):
        plan = with_microbatch_size(plan)
        if plan.config.training.microbatch_size is None and plan.microbatch_size is not None:  # chosen here
            facts["microbatch_size"] = plan.microbatch_size
        binding = binding_of(plan, facts, start)
        if write:
            write_facts(run, facts | Facts(made_with=made_with(), binding=binding.as_json()))
        return dataclasses.replace(plan, binding=binding.digest)
    before = read_facts(run)
    before.pop("made_with", None)
    _resumed_as_chosen(before, facts)
    bound_to = before.pop("binding", None)
    if not isinstance(bound_to, dict):
        raise InputError(
            f"{path}: the run was begun by an earlier version (jaxcxr {before.get('jaxcxr', 'unknown')}), "
            "which did not bind "
            "its noise to what is trained; finish it with that version, or begin a new run in another folder"
        )
    plan = _as_begun(plan, before, facts)
    now = binding_of(plan, facts, start).as_json()
    if found := differences(bound_to, now):
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
    return dataclasses.replace(plan, binding=now["digest"])


def _resumed_as_chosen(before: Facts, facts: Facts) -> None:
    """What a recipe chose stands in the configuration; why, in the folder alone if the run goes on so."""
    facts.pop("chosen", None)
    if "chosen" in before:
        facts["chosen"] = before["chosen"]


def _as_begun(plan: RunPlan, before: Facts, facts: Facts) -> RunPlan:
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
    if plan.mechanism is not None and "noise_column" in before and "noise_column" in facts:
        column = tuple(map(float, before["noise_column"]))
        mechanism = dataclasses.replace(plan.mechanism, correlation=Correlation(column))
        plan = dataclasses.replace(plan, mechanism=mechanism)
        facts |= Facts(noise_column=list(column), sample_rate=mechanism.sample_rate)
    if (
        plan.class_counts is not None
        and privacy is not None
        and privacy.class_counts_noise_multiplier is None
    ):
        sigma = float(before.get("class_counts_noise_multiplier", plan.class_counts.noise_multiplier))
        plan = dataclasses.replace(plan, class_counts=class_counts_entry(len(config.data.findings), sigma))
        facts["class_counts_noise_multiplier"] = sigma
    return plan


def open_ledger(plan: RunPlan, secret: bytes, path: Path) -> Ledger:
    """The ledger of a private run, new or taken up.

    Raises:
        InputError: the one that is there is damaged, or belongs to another run or release.
    """
    assert plan.config.privacy is not None
    assert plan.mechanism is not None
    seeded = plan.config.training.seed is not None
    unit, n_units = plan.config.privacy.unit, plan.mechanism.n_units
    terms = Terms(unit, "add_remove", n_units, plan.fingerprint, seeded, run_name(secret), plan.binding)
    return Ledger(path, terms)


def affordable_steps(plan: RunPlan, ledger: Ledger | None, done: int) -> int:
    """Number of steps at which the run ends: as planned, or fewer if the ledger says that the budget does not
    last.

    Steps that were recorded but not checkpointed will be repeated as the same releases, so they are not
    counted twice.

    Raises:
        InputError: steps behind the newest checkpoint have no line in the ledger.
    """
    if plan.mechanism is None or ledger is None:
        return plan.steps
    if not ledger.covers(done):
        raise InputError(
            f"the ledger lacks lines for some of the {done} steps behind the newest checkpoint; it was "
            "changed or lost"
        )
    m = plan.mechanism
    spent = ledger.spendings(before_step=done)
    return banded.affordable(spent, m.spending(1), (m.epsilon, m.delta), (done, plan.steps), m.bands)


def binding_of(plan: RunPlan, facts: Facts, starting_weights: str) -> Binding:
    """Everything that decides what a run releases.

    Args:
        plan: with the microbatch size of the run.
        facts: what the plan says besides the configuration (`RunPlan.describe`), such as calibrated noise.
        starting_weights: digest of the weights before the first step.
    """
    fields = {
        name: value
        for name, value in plan.config.digest_fields().items()
        if not name.startswith("evaluation.") and name not in PATHS
    }
    fields["training.microbatch_size"] = plan.microbatch_size
    settled = {f"{FACT}{name}": value for name, value in facts.items() if name not in _SAID_ELSEWHERE}
    # Some settings have no attribute, and only attributes know of a `with` around the run.
    arithmetic = {name: str(getattr(jax.config, name, jax.config.values.get(name))) for name in ARITHMETIC}
    backend = jax.default_backend()
    code = {"jaxcxr": __version__, "sources": training_code_fingerprint()}
    if plan.config.model.network not in NETWORKS:  # whose sources are not the package's
        network = parameters.network_of(plan.config)
        code["network"] = definition_digest(network, plan.config.data.size)
    platform = {"device": backend, "kind": jax.devices()[0].device_kind, "xla_flags": _flags(backend)}
    return Binding(
        configuration=fields | settled,
        starting_weights=starting_weights,
        data=plan.fingerprint,
        code=code,
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        platform=platform | arithmetic,
    )


def _flags(backend: str) -> str:
    """Flags of XLA that may change what a step computes, such as instruction sets."""
    passed_over = (*_NOT_ARITHMETIC, *(() if backend == "gpu" else ("--xla_gpu",)))
    return " ".join(
        sorted(flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(passed_over))
    )
