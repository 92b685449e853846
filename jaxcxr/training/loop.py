"""The training loop: draw, sum, release, update; write down what was spent, log, checkpoint, stop in time, resume exactly."""

import dataclasses
import fcntl
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxcxr.config import Experiment, dump, load
from jaxcxr.data.augment import flip_rotate
from jaxcxr.errors import InputError
from jaxcxr.privacy import accounting, noise, sampling
from jaxcxr.privacy.ledger import Ledger, Terms
from jaxcxr.training.checkpoint import Checkpoints, load_or_make_secret
from jaxcxr.training.plan import Plan, write_run_json
from jaxcxr.training.step import microbatches

LOCK_FILE = ".lock"
IN_MEMORY_BYTES = 2 << 30
"""Training films up to this size are read once and kept in memory."""
EPSILON_MILESTONES = 40
"""The epsilon of a log row is that of the next of so many milestones of the run: an upper bound that costs few accountant
calls."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        params: weights after `steps_done` steps.
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
        InputError: the folder holds a run and `resume` is off, or a run of another configuration (the fields are named), or
        is no run folder.
    """
    path = out / "config.yaml"
    if not path.exists():
        if out.exists() and any(file.name not in ("config.part", LOCK_FILE) for file in out.iterdir()):
            raise InputError(f"{out}: the folder holds files but no run; expected a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        dump(config, part)
        part.rename(path)
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

    A resumed run ends in the same bits as an uninterrupted one: batches, augmentation and noise depend on (secret, step) only.

    Raises:
        InputError: the folder, the ledger or the checkpoint does not fit, the disk is full, or training diverged.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        return _train_alone(plan, out, resume, progress)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the run folder: two processes in one would spend one ledger twice."""
    with (out / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another process is training in this folder") from error
        yield


def _train_alone(plan: Plan, out: Path, resume: bool, progress: bool) -> Outcome:
    claim_run_folder(out, plan.config, resume)
    write_run_json(plan, out / "run.json")
    checkpoints = Checkpoints(out / "checkpoints")
    ledger = None if plan.mechanism is None else Ledger(out / "ledger.jsonl", _terms(plan))
    try:
        begun = checkpoints.latest() is not None or (ledger is not None and ledger.spendings() != [])
        secret = load_or_make_secret(out / "checkpoints", plan.config.training.seed, begun)
        return _run(plan, out, secret, checkpoints, ledger, progress)
    finally:
        checkpoints.close()
        if ledger is not None:
            ledger.close()


def _terms(plan: Plan) -> Terms:
    assert plan.config.privacy is not None
    assert plan.mechanism is not None
    seeded = plan.config.training.seed is not None
    return Terms(plan.config.privacy.unit, "add_remove", plan.mechanism.n_units, plan.fingerprint, seeded)


def _run(plan: Plan, out: Path, secret: bytes, checkpoints: Checkpoints, ledger: Ledger | None, progress: bool) -> Outcome:
    step_functions = plan.step()
    params = plan.initial_params(secret)
    optimizer_state = plan.optimizer().init(params)
    done = checkpoints.latest() or 0
    if done:
        restored = checkpoints.restore(done, {"params": params, "optimizer": optimizer_state})
        params, optimizer_state = restored["params"], restored["optimizer"]
    params, optimizer_state = step_functions.replicate((params, optimizer_state))
    total_steps = _affordable(plan, ledger, done)
    log = _Log(out, plan, done, total_steps, progress)
    training = plan.config.training
    totals: Any = None
    with _interruptible() as interrupted, ThreadPoolExecutor(max_workers=1) as reader:
        prepare = functools.partial(_prepare, plan, _reader(plan), secret, step_functions.microbatch_size)
        upcoming = reader.submit(prepare, done) if done < total_steps else None
        while upcoming is not None:
            batch = upcoming.result()
            upcoming = reader.submit(prepare, done + 1) if done + 1 < total_steps else None
            key = np.zeros(4, np.uint32)
            if plan.mechanism is not None and ledger is not None:
                ledger.record(plan.mechanism.entry(done))
                key = plan.mechanism.noise_key(secret, done)
            gradient, logged = step_functions.start(params)
            for piece in batch:
                gradient, logged = step_functions.accumulate(params, (gradient, logged), step_functions.place(piece))
            totals = logged if totals is None else jax.tree.map(jnp.add, totals, logged)
            params, optimizer_state, finite = step_functions.finish(params, optimizer_state, gradient, key)
            done += 1
            stop = (
                interrupted()
            )  # asked once: an interrupt after this line belongs to the next step, or nothing would be saved for it
            last = done == total_steps or stop
            if last or done % training.log_every == 0:
                _require_finite(finite, done)
                log.write(done, totals)
                totals = None
            if last or done % training.checkpoint_every == 0:
                _require_finite(finite, done)
                if ledger is not None:
                    ledger.sync()
                checkpoints.save(done, {"params": params, "optimizer": optimizer_state})
            if stop:
                break
    log.close()
    if done < total_steps:
        return Outcome(params, done, finished=False, stopped_by="interrupt")
    return Outcome(params, done, finished=True, stopped_by="steps" if total_steps == plan.steps else "budget")


def _require_finite(finite: Any, step: int) -> None:
    if not bool(finite):
        raise InputError(f"training diverged at or before step {step}: weights are not finite; lower training.learning_rate")


def _affordable(plan: Plan, ledger: Ledger | None, done: int) -> int:
    """Number of steps at which the run ends: as planned, or fewer if the ledger says that the budget does not last.

    Steps that were recorded but not checkpointed will be repeated as the same releases, so they are not counted twice.
    """
    if plan.mechanism is None or ledger is None:
        return plan.steps
    if not ledger.covers(done):
        raise InputError(
            f"the ledger lacks lines for some of the {done} steps behind the newest checkpoint; it was changed or lost"
        )
    m = plan.mechanism
    spent = ledger.spendings(before_step=done)
    return done + accounting.affordable_steps(
        spent, m.sample_rate, m.noise_multiplier, m.epsilon, m.delta, wanted=plan.steps - done
    )


def _reader(plan: Plan) -> Callable[[np.ndarray], np.ndarray]:
    split = plan.split
    if len(split) * split.size**2 <= IN_MEMORY_BYTES:
        images = split.read_all()
        return lambda indices: images[indices]
    return split.read


def _prepare(
    plan: Plan, read: Callable[[np.ndarray], np.ndarray], secret: bytes, size: int, step: int
) -> list[dict[str, np.ndarray]]:
    """Draw, read and augment the batch of one step, cut into microbatches; runs on a thread while the device is busy."""
    if plan.mechanism is not None:
        drawn = plan.mechanism.draw(secret, step, len(plan.split))
    else:
        drawn = sampling.poisson_batch(secret, step, len(plan.split), plan.sample_rate)
    images, labels = read(drawn), plan.split.labels[drawn]
    if plan.config.training.augmentation == "flip_rotate":
        rng = np.random.default_rng([int(word) for word in noise.derive_key(secret, "augmentation", step)])
        images, labels = flip_rotate(images, labels, plan.config.data.findings, rng)
    return microbatches(images, labels, size)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that the step under way is finished and saved; the second one interrupts at
    once.
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


class _Log:
    """metrics.jsonl, TensorBoard and the progress bar: for the operator's eyes, computed from private data, never released."""

    def __init__(self, out: Path, plan: Plan, done: int, total: int, progress: bool) -> None:
        self._plan, self._steps, self._done = plan, total, done
        path = out / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
        kept = [line for line in kept if json.loads(line)["step"] <= done]
        path.write_text("".join(kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(out), purge_step=done or None)
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not progress, dynamic_ncols=True, desc=out.name)
        self._clock, self._last = time.perf_counter(), done

    def write(self, step: int, totals: Any) -> None:
        now = time.perf_counter()
        sums = {key: float(value) for key, value in totals.items()}
        count = sums["count"]
        row: dict[str, Any] = {"step": step, "loss": sums["loss"] / count if count else None, "images": int(count)}
        if self._plan.mechanism is not None:
            row["epsilon"] = self._epsilon(step)
            row["mean_gradient_norm"] = sums["norm"] / count if count else None
            row["clipped_fraction"] = sums["clipped"] / count if count else None
        row["images_per_second"] = count / (now - self._clock)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if value is not None and key != "step":
                self._board.add_scalar(key, value, step)
        self._board.flush()
        shown = {"loss": f"{row['loss']:.4f}" if count else "-", "images/s": f"{row['images_per_second']:.0f}"}
        if "epsilon" in row:
            shown["epsilon"] = f"{row['epsilon']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._last)
        self._clock, self._last = now, step

    def _epsilon(self, step: int) -> float:
        m = self._plan.mechanism
        assert m is not None
        stride = max(1, self._steps // EPSILON_MILESTONES)
        milestone = min(self._steps, -(-step // stride) * stride)
        return accounting.epsilon_pld([accounting.Spending(m.sample_rate, m.noise_multiplier, milestone)], m.delta)

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()
