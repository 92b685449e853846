"""The training loop: draw, sum, release, update; write down what was spent, log, checkpoint, stop in time,
resume exactly.
"""

import dataclasses
import fcntl
import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcxr import accounting
from jaxcxr.atomic import replacing, write_json
from jaxcxr.config import Experiment, dump, load
from jaxcxr.errors import InputError
from jaxcxr.records.binding import bound_secret
from jaxcxr.records.ledger import Entry, Ledger, Terms, has_entries, run_name
from jaxcxr.training import objective
from jaxcxr.training.averaging import weights_to_use
from jaxcxr.training.batches import Waiting, batches
from jaxcxr.training.checkpoint import Checkpoints, load_or_make_secret
from jaxcxr.training.class_weights import draw_counts
from jaxcxr.training.distributed import (
    any_process,
    broadcast_from_process_0,
    is_process_0,
    process_0_first,
    run_on_all_processes,
    run_on_process_0,
)
from jaxcxr.training.log import Log
from jaxcxr.training.plan import Plan
from jaxcxr.training.resume import begin_or_continue

LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        params: weights after `steps_done` steps, or their average where the run averages.
        steps_done: updates made since the beginning of the run.
        finished: whether that is all: the planned steps, or as many as the budget affords.
        stopped_by: `steps`, `budget` or `interrupt`.
    """

    params: PyTree
    steps_done: int
    finished: bool
    stopped_by: str


def claim_run_folder(out: Path, config: Experiment, resume: bool) -> None:
    """Make a run folder, or take up the one that is there if it is the same run.

    Raises:
        InputError: the folder holds a run and `resume` is off, or a run of another configuration (the fields
        are named), or is no run folder.
    """
    path = out / "config.yaml"
    if not path.exists():
        if out.exists() and any(file.name not in ("config.yaml.part", LOCK_FILE) for file in out.iterdir()):
            raise InputError(f"{out}: the folder holds files but no run; expected a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            dump(config, part)
        return
    old, new = load(Experiment, path).digest_fields(), config.digest_fields()
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        changes = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
        raise InputError(f"{out}: holds a run of another configuration ({changes})")
    if not resume:
        raise InputError(f"{out}: holds this run already; --resume goes on with it")


def train(plan: Plan, out: Path, resume: bool = False, progress: bool = True) -> Outcome:
    """Run a plan in the folder `out` to its end, or on from its newest checkpoint.

    A resumed run ends in the same bits as an uninterrupted one: batches, augmentation and noise depend on
    (secret, step) only, and the secret is bound to what is trained: a run that would go on as another one is
    refused, or would draw anew. With several processes (`jax.distributed`) all call this with the same
    folder, on a file system that they share; the first one writes it, but for the checkpoints, which they
    write together. What one of them refuses ends all, with its sentence.

    Raises:
        InputError: the folder, the ledger or the checkpoint does not fit, the disk is full, or training
            diverged.
    """
    with ExitStack() as held:
        run_on_process_0(lambda: held.enter_context(_alone_in(out)))
        return _train_alone(plan, out, resume, progress)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the run folder: two processes in one would spend one ledger twice."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another process is training in this folder") from error
        yield


def _train_alone(plan: Plan, out: Path, resume: bool, progress: bool) -> Outcome:
    pretrained = run_on_all_processes(plan.pretrained_params)  # refused, if so, before a folder is claimed
    run_on_process_0(lambda: claim_run_folder(out, plan.config, resume))
    checkpoints = Checkpoints(out / "checkpoints")
    ledger = None
    try:
        path = out / "ledger.jsonl"
        begun = run_on_all_processes(
            lambda: not is_process_0() or checkpoints.latest() is not None or has_entries(path)
        )
        secret = process_0_first(
            lambda: load_or_make_secret(out / "checkpoints", plan.config.training.seed, begun)
        )
        params = plan.random_params(secret) if pretrained is None else pretrained
        plan = process_0_first(
            lambda: begin_or_continue(plan, params, out / "run.json", write=is_process_0())
        )
        if plan.mechanism is not None:
            ledger = run_on_process_0(lambda: Ledger(path, _terms(plan, secret)))
        bound = bound_secret(secret, plan.binding)  # all randomness of the run from here on
        plan = process_0_first(lambda: _with_class_weights(plan, bound, ledger, out / "class_counts.json"))
        return _run(plan, params, out, bound, checkpoints, ledger, progress)
    finally:
        checkpoints.close()
        if ledger is not None:
            ledger.close()


def _terms(plan: Plan, secret: bytes) -> Terms:
    assert plan.config.privacy is not None
    assert plan.mechanism is not None
    seeded = plan.config.training.seed is not None
    unit, n_units = plan.config.privacy.unit, plan.mechanism.n_units
    return Terms(unit, "add_remove", n_units, plan.fingerprint, seeded, run_name(secret), plan.binding)


def _with_class_weights(plan: Plan, secret: bytes, ledger: Ledger | None, path: Path) -> Plan:
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
    weights = objective.positive_weights(counts.rates())
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
    plan: Plan,
    params: PyTree,
    out: Path,
    secret: bytes,
    checkpoints: Checkpoints,
    ledger: Ledger | None,
    progress: bool,
) -> Outcome:
    optimizer_state = plan.optimizer().init(plan.trained(params))
    clipping = plan.clipping()
    step_functions = plan.step()
    done = broadcast_from_process_0(checkpoints.latest() or 0)
    if done:
        restored = checkpoints.restore(done, _state(params, optimizer_state, clipping))
        params, optimizer_state = restored["params"], restored["optimizer"]
        clipping = restored.get("clipping")
    params, optimizer_state, clipping = step_functions.replicate((params, optimizer_state, clipping))
    total_steps = broadcast_from_process_0(run_on_all_processes(lambda: _affordable(plan, ledger, done)))
    log = Log(out, plan, done, total_steps, progress) if is_process_0() else None
    training, waiting = plan.config.training, Waiting()
    totals: Any = None
    newest: Any = jax.tree.leaves(params)[0]
    with _interruptible() as interrupted:
        feed = batches(
            plan, secret, step_functions, done, total_steps, waiting, busy=lambda: not newest.is_ready()
        )
        for batch in feed:
            randomness: Any = np.zeros(4, np.uint32)
            if plan.mechanism is not None:
                run_on_all_processes(functools.partial(_write_down, ledger, plan.mechanism.entry(done)))
                randomness = plan.mechanism.noise_key(secret, done)
            gradient, logged = step_functions.start(params)
            for piece in batch:
                gradient, logged = step_functions.accumulate(params, (gradient, logged), piece, clipping)
            gradient, logged = step_functions.collect((gradient, logged))
            totals = logged if totals is None else jax.tree.map(jnp.add, totals, logged)
            if (
                plan.mechanism is not None
            ):  # discrete noise is drawn here, on the processor, while the devices are at work
                randomness = plan.mechanism.randomness(randomness, gradient.high)
            params, optimizer_state, newest, clipping = step_functions.finish(
                params, optimizer_state, gradient, randomness, clipping
            )
            done += 1
            # Asked once: an interrupt after this line belongs to the next step, or nothing would be saved for
            # it.
            stop = any_process(interrupted())
            last = done == total_steps or stop
            if last or done % training.log_every == 0:
                _require_finite(newest, done)
                if log is not None:
                    log.write(done, totals, waiting.take(), clipping)
                totals = None
            if last or done % training.checkpoint_every == 0:
                _require_finite(newest, done)
                if ledger is not None:
                    ledger.sync()
                state = _state(params, optimizer_state, clipping)
                run_on_all_processes(functools.partial(checkpoints.save, done, state))
            if stop:
                break
        feed.close()
    if log is not None:
        log.close()
    params = weights_to_use({"params": params, "optimizer": optimizer_state})
    if jax.process_count() > 1:  # for use without the other processes
        params = jax.tree.map(np.asarray, params)
    if done < total_steps:
        return Outcome(params, done, finished=False, stopped_by="interrupt")
    return Outcome(params, done, finished=True, stopped_by="steps" if total_steps == plan.steps else "budget")


def _state(params: PyTree, optimizer_state: PyTree, clipping: PyTree | None) -> dict[str, PyTree]:
    """What a checkpoint holds; the state of the clip rule only where the rule has one."""
    adapts = {} if clipping is None else {"clipping": clipping}
    return {"params": params, "optimizer": optimizer_state} | adapts


def _write_down(ledger: Ledger | None, entry: Entry) -> None:
    if ledger is not None:
        ledger.record(entry)


def _require_finite(finite: Any, step: int) -> None:
    if not bool(finite):
        raise InputError(
            f"training diverged at or before step {step}: weights are not finite; lower "
            "training.learning_rate"
        )


def _affordable(plan: Plan, ledger: Ledger | None, done: int) -> int:
    """Number of steps at which the run ends: as planned, or fewer if the ledger says that the budget does not
    last.

    Steps that were recorded but not checkpointed will be repeated as the same releases, so they are not
    counted twice.
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
    return done + accounting.affordable_steps(
        spent, m.sample_rate, m.noise_multiplier, m.epsilon, m.delta, wanted=plan.steps - done
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that the step under way is finished and saved; the second one
    interrupts at once.
    """
    state = {"interrupted": False}

    def handler(signum: int, frame: Any) -> None:
        del signum, frame
        state["interrupted"] = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: nobody can press Ctrl-C at us
        yield lambda: False
        return
    try:
        yield lambda: state["interrupted"]
    finally:
        signal.signal(signal.SIGINT, before)
