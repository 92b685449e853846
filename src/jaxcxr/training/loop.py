"""The training loop: draw, sum, release, update; write down what was spent, log, checkpoint, stop in time,
resume exactly.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcxr.digests import record, write_json
from jaxcxr.errors import InputError
from jaxcxr.records.binding import bound_secret
from jaxcxr.records.ledger import Entry, Ledger, Saved, has_entries
from jaxcxr.run_folder import CHECKPOINTS, CLASS_COUNTS, LEDGER
from jaxcxr.signals import deferred
from jaxcxr.training import build, objective, parameters
from jaxcxr.training.averaging import weights_to_use
from jaxcxr.training.batches import Waiting, batches
from jaxcxr.training.checkpoint import Checkpoints, no_sound_one, state_digest, tell
from jaxcxr.training.class_weights import draw_counts, noised_rates
from jaxcxr.training.distributed import (
    all_alive,
    broadcast_from_process_0,
    is_process_0,
    largest_of_processes,
    process_0_first,
    run_on_all_processes,
    run_on_process_0,
)
from jaxcxr.training.log import Log
from jaxcxr.training.plan import RunPlan, with_head_data
from jaxcxr.training.resume import (
    affordable_steps,
    alone_in,
    begin_or_continue,
    claim_run_folder,
    load_or_make_secret,
    open_ledger,
)
from jaxcxr.training.step import Step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        params: weights after `steps_done` steps, or their average where the run averages.
        steps_done: updates made since the beginning of the run.
        finished: whether that is all: the planned steps, or as many as the budget affords.
        stopped_by: `steps`, `budget` or `interrupt`.
        signum: of an interrupt, the signal (`jaxcxr.signals`).
    """

    params: PyTree
    steps_done: int
    finished: bool
    stopped_by: str
    signum: int = 0


Observe = Callable[[Step], Step]
"""From a run's compiled functions to those that the loop calls in their place."""


def as_it_is(step_functions: Step) -> Step:
    """The functions themselves: nobody watches."""
    return step_functions


def train(
    plan: RunPlan, out: Path, resume: bool = False, progress: bool = True, observe: Observe = as_it_is
) -> Outcome:
    """Run a plan in the folder `out` to its end, or on from its newest checkpoint.

    A resumed run ends in the same bits as an uninterrupted one: batches, augmentation and noise depend on
    (secret, step) only, and the secret is bound to what is trained: a run that would go on as another one is
    refused, or would draw anew. With several processes (`jax.distributed`) all call this with the same
    folder, on a file system that they share; the first one writes it, but for the checkpoints, which they
    write together. What one of them refuses ends all, with its sentence.

    Args:
        plan: of the run.
        out: its folder.
        resume: go on with a run that is there.
        progress: show it.
        observe: for audits: functions that call the run's own and keep what passes through them.

    Raises:
        InputError: the folder, the ledger or the checkpoint does not fit, the disk is full, or training
            diverged.
    """
    with all_alive(), ExitStack() as held:
        run_on_process_0(lambda: held.enter_context(alone_in(out)))
        return _train_alone(plan, out, resume, progress, observe)


@dataclasses.dataclass(frozen=True)
class _Files:
    """Where a run keeps what it has done; the ledger is that of a private run, in the first process."""

    folder: Path
    checkpoints: Checkpoints
    ledger: Ledger | None


def _train_alone(plan: RunPlan, out: Path, resume: bool, progress: bool, observe: Observe) -> Outcome:
    # refused, if so, before a folder is claimed
    pretrained = run_on_all_processes(lambda: build.pretrained_params(plan))
    run_on_process_0(lambda: claim_run_folder(out, plan.config, resume))
    checkpoints = Checkpoints(out / CHECKPOINTS)
    ledger = None
    try:
        path, seed = out / LEDGER, plan.config.training.seed
        begun = run_on_all_processes(
            lambda: not is_process_0() or checkpoints.latest() is not None or has_entries(path)
        )
        secret = process_0_first(lambda: load_or_make_secret(out / CHECKPOINTS, seed, begun))
        params = parameters.random_params(plan.config, secret) if pretrained is None else pretrained
        plan = process_0_first(lambda: with_head_data(plan, params))
        plan = process_0_first(lambda: begin_or_continue(plan, params, out, write=is_process_0()))
        if plan.mechanism is not None:
            ledger = run_on_process_0(lambda: open_ledger(plan, secret, path))
        bound = bound_secret(secret, plan.binding)  # all randomness of the run from here on
        plan = process_0_first(lambda: _with_class_weights(plan, bound, ledger, out / CLASS_COUNTS))
        return _run(plan, params, bound, _Files(out, checkpoints, ledger), progress, observe)
    finally:
        checkpoints.close()
        if ledger is not None:
            ledger.close()


def _with_class_weights(plan: RunPlan, secret: bytes, ledger: Ledger | None, path: Path) -> RunPlan:
    """The plan with its class weights; noised counts are drawn here, after their line is on the disk, and
    written to `path`.

    A resumed run draws the same counts again and finds their line.
    """
    if plan.class_counts is None:
        return plan
    if ledger is not None:
        ledger.record(plan.class_counts)
        ledger.sync()
    counts = draw_counts(plan.config, plan.split, plan.class_counts, secret)
    weights = objective.positive_weights(noised_rates(counts))
    if is_process_0():
        described = {
            **dataclasses.asdict(plan.class_counts),
            "positives": counts.positives.tolist(),
            "negatives": counts.negatives.tolist(),
            "positive_weights": weights.tolist(),
            "noise": "discrete: counts and noise are whole numbers of steps",
            "step": counts.step,
        }
        write_json(path, described)
    return dataclasses.replace(plan, weights=weights)


def _run(
    plan: RunPlan, params: PyTree, secret: bytes, files: _Files, progress: bool, observe: Observe
) -> Outcome:
    step_functions, mechanism, training = observe(build.step_of(plan)), plan.mechanism, plan.config.training
    state, begun = _state(plan, params, step_functions, files)
    params, optimizer_state, clipping = state
    done = begun
    total_steps = broadcast_from_process_0(
        run_on_all_processes(lambda: affordable_steps(plan, files.ledger, done))
    )
    log = Log(files.folder, plan, done, total_steps, progress) if is_process_0() else None
    waiting = Waiting()
    totals: Any = None
    newest: Any = jax.tree.leaves(params)[0]
    stream = None if mechanism is None else mechanism.stream(secret)
    signum = 0
    with nullcontext() if log is None else closing(log), deferred() as told_to_stop:
        feed = batches(
            plan, secret, step_functions, done, total_steps, waiting, busy=lambda: not newest.is_ready()
        )
        for batch in feed:
            randomness: Any = np.zeros(4, np.uint32)
            if mechanism is not None:
                run_on_all_processes(functools.partial(_write_down, files.ledger, mechanism.entry(done)))
            gradient, logged = _summed(step_functions, params, batch, clipping)
            totals = logged if totals is None else jax.tree.map(jnp.add, totals, logged)
            if stream is not None:
                # discrete noise is drawn here, on the processor, while the devices are at work
                randomness = stream.at(done, gradient.high)
                if jax.process_count() > 1:  # no process has the others' devices
                    randomness = jax.tree.map(np.asarray, randomness)
            params, optimizer_state, newest, clipping = step_functions.finish(
                params, optimizer_state, gradient, randomness, clipping
            )
            done += 1
            if log is not None and done == begun + 1:
                jax.block_until_ready(newest)
                log.compiled(done)
            # Asked once: a signal after this line belongs to the next step, or nothing would be saved for it.
            signum = largest_of_processes(told_to_stop())
            last = done == total_steps or signum != 0
            if last or done % training.log_every == 0:
                _require_finite(newest, done)
                if log is not None:
                    log.write(done, totals, waiting.take(), clipping)
                totals = None
            if last or done % training.checkpoint_every == 0:
                _require_finite(newest, done)
                _save(files, done, _saved(params, optimizer_state, clipping))
            if signum:
                break
        feed.close()
    params = weights_to_use({"params": params, "optimizer": optimizer_state})
    if jax.process_count() > 1:  # for use without the other processes
        params = jax.tree.map(np.asarray, params)
    if done < total_steps:
        return Outcome(params, done, finished=False, stopped_by="interrupt", signum=signum)
    return Outcome(params, done, finished=True, stopped_by="steps" if total_steps == plan.steps else "budget")


def _saved(params: PyTree, optimizer_state: PyTree, clipping: PyTree | None) -> dict[str, PyTree]:
    """What a checkpoint holds; the state of the clip rule only where the rule has one."""
    adapts = {} if clipping is None else {"clipping": clipping}
    return {"params": params, "optimizer": optimizer_state} | adapts


def _state(
    plan: RunPlan, params: PyTree, step_functions: Step, files: _Files
) -> tuple[tuple[PyTree, PyTree, PyTree | None], int]:
    """Parameters, optimiser state and state of the clip rule on every device, and the number of steps behind
    them: those of the newest checkpoint, or of the beginning.
    """
    optimizer_state = build.optimizer_of(plan).init(parameters.trained(plan.config, params))
    clipping = plan.clipping()
    done, restored = _newest_sound(files, _saved(params, optimizer_state, clipping))
    if done:
        params, optimizer_state = restored["params"], restored["optimizer"]
        clipping = restored.get("clipping")
    return step_functions.replicate((params, optimizer_state, clipping)), done


def _newest_sound(files: _Files, like: PyTree) -> tuple[int, PyTree]:
    """The newest checkpoint that is what was saved, and its step; 0 if there is none. Damaged ones are put
    aside, with a sentence: their steps are repeated, as the same releases.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    checkpoints, ledger, damage = files.checkpoints, files.ledger, list[str]()
    newest_first = checkpoints.steps()
    for place in range(broadcast_from_process_0(len(newest_first))):
        done = broadcast_from_process_0(newest_first[place] if is_process_0() else 0)
        known = frozenset[str]() if ledger is None else ledger.saved(done)
        try:
            restored = run_on_all_processes(functools.partial(checkpoints.restore, done, like, known))
        except InputError as error:
            damage.append(str(error))
            continue
        if damage:
            run_on_process_0(functools.partial(_put_aside, checkpoints, newest_first[:place]))
            tell(f"{'; '.join(damage)}: it was put aside, and the run goes on from step {done}")
            run_on_all_processes(checkpoints.reload)
        return done, restored
    if damage:
        raise no_sound_one(files.folder / CHECKPOINTS, damage)
    return 0, like


def _put_aside(checkpoints: Checkpoints, damaged: Iterable[int]) -> None:
    for steps_done in damaged:
        checkpoints.put_aside(steps_done)


def _summed(
    step_functions: Step, params: PyTree, batch: Iterable[Any], clipping: PyTree | None
) -> tuple[Any, Any]:
    """The sum over a batch on all devices, and the sums for the log."""
    total = step_functions.start(params)
    for piece in batch:
        total = step_functions.accumulate(params, total, piece, clipping)
    return step_functions.collect(total)


def _save(files: _Files, done: int, state: PyTree) -> None:
    """Write a checkpoint, after the ledger's lines of its steps and of itself are on the disk."""
    run_on_all_processes(functools.partial(_write_checkpoint_line, files, done, state))
    run_on_all_processes(functools.partial(files.checkpoints.save, done, state))


def _write_checkpoint_line(files: _Files, done: int, state: PyTree) -> None:
    if files.ledger is not None:
        files.ledger.saving(Saved(done, state_digest(state)))
        files.ledger.sync()
        record(files.folder, {LEDGER: files.ledger.mark()})


def _write_down(ledger: Ledger | None, entry: Entry) -> None:
    if ledger is not None:
        ledger.record(entry)


def _require_finite(finite: Any, step: int) -> None:
    if not bool(finite):
        raise InputError(
            f"training diverged at or before step {step}: weights are not finite; lower "
            "training.learning_rate"
        )
