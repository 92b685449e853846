import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.accounting import Spending, epsilon_pld
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy.clipping import Method
from jaxcxr.records.binding import bound_secret
from jaxcxr.records.ledger import Entry, read_ledger
from jaxcxr.run_folder import SECRET
from jaxcxr.training import build, loop, objective, parameters
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.log import Log
from jaxcxr.training.loop import train
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.step import Step, make_step
from tests.conftest import changed, declared
from tests.training.parts import clipped_sum
from tests.training.tiny import MAKE_NETWORK, many_weights


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def run(plan: RunPlan, out: Path, **kwargs: Any) -> loop.Outcome:
    return train(plan, out, progress=False, **kwargs)


def steps_of(out: Path) -> list[Entry]:
    """The ledger's entries, where all of them are of steps."""
    entries = read_ledger(out / "ledger.jsonl")[1]
    steps = [entry for entry in entries if isinstance(entry, Entry)]
    assert len(steps) == len(entries)
    return steps


class CutError(Exception):
    """Ends a run as a crash would, in the middle of a step."""


def at_step(plan: RunPlan, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Have `act(step)` called in each step, after its line in the ledger and before its update."""
    assert plan.mechanism is not None
    original = type(plan.mechanism).noise_key

    def noise_key(self: Any, secret: bytes, step: int) -> Any:
        act(step)
        return original(self, secret, step)

    monkeypatch.setattr(type(plan.mechanism), "noise_key", noise_key)


def cut_at(plan: RunPlan, out: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(step: int) -> None:
        if step == stop:
            raise CutError

    with monkeypatch.context() as patch:
        at_step(plan, patch, act)
        with pytest.raises(CutError):
            run(plan, out)
    assert len(read_ledger(out / "ledger.jsonl")[1]) == stop + 1


@pytest.fixture(scope="module", autouse=True)
def _quick_network() -> Iterator[None]:
    """The loop is the same for any network; the scripts' tests run it with the paper's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, many_weights)
        yield


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Runs of one plan in this process share its compiled functions, which are pure; the tests with scripts do not."""
    made: dict[object, Step] = {}
    original = build.step_of

    def step_of(plan: RunPlan) -> Step:
        assert plan.weights is not None
        key = (plan.config, plan.mechanism, plan.weights.tobytes())
        if key not in made:
            made[key] = original(plan)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "step_of", step_of)
        yield


@pytest.fixture(scope="module")
def plan(tiny_plan: RunPlan) -> RunPlan:
    return tiny_plan


@pytest.fixture(scope="module")
def whole(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, loop.Outcome]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(plan, out)


def test_a_run_leaves_its_records(whole: tuple[Path, loop.Outcome], plan: RunPlan) -> None:
    out, outcome = whole
    assert outcome.finished
    assert outcome.stopped_by == "steps"
    terms, _ = read_ledger(out / "ledger.jsonl")
    assert terms.seeded
    assert terms.data_fingerprint == plan.fingerprint
    assert plan.mechanism is not None
    assert [(e.step, e.noise_multiplier, e.sample_rate) for e in steps_of(out)] == [
        (step, plan.mechanism.noise_multiplier, 6 / 50) for step in range(6)
    ]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["epsilon"] <= 8.0
    assert sum(row["images"] for row in rows) == sum(
        len(
            plan.mechanism.draw(
                bound_secret((out / "checkpoints" / SECRET).read_bytes(), terms.binding), step, 50
            )
        )
        for step in range(6)
    )
    assert (out / "checkpoints" / SECRET).stat().st_mode & 0o777 == 0o600
    assert json.loads((out / "run.json").read_text())["release"] is False
    assert list(out.glob("events.out.tfevents*"))


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_ends_in_the_same_bits(
    whole: tuple[Path, loop.Outcome],
    plan: RunPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """The run is cut after the ledger line of step `stop`, before its update: the newest checkpoint is behind the ledger."""
    cut_at(plan, tmp_path / "cut", stop, monkeypatch)
    resumed = run(plan, tmp_path / "cut", resume=True)
    assert bits(resumed.params) == bits(whole[1].params)
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()
    rows = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1] == 6
    assert len(rows) == len(set(rows))


def test_optimizer_state_is_restored_bit_for_bit(whole: tuple[Path, loop.Outcome], plan: RunPlan) -> None:
    checkpoints = Checkpoints(whole[0] / "checkpoints")
    like = build.initial_params(plan, bytes(32))
    state = checkpoints.restore(6, {"params": like, "optimizer": build.optimizer_of(plan).init(like)})
    checkpoints.close()
    assert bits(state["params"]) == bits(whole[1].params)
    assert int(state["optimizer"].steps) == 6
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state["optimizer"].first))


AS_A_SCRIPT = """
import runpy, sys
from jaxcxr.models import network
from tests.training.tiny import many_weights

network.make_network = many_weights
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_process_resumes_to_the_same_bits(
    whole: tuple[Path, loop.Outcome], tiny_config: Experiment, plan: RunPlan, tmp_path: Path
) -> None:
    dump(tiny_config, tmp_path / "config.yaml")
    out = tmp_path / "killed"
    root = Path(__file__).parents[2]
    arguments = [
        str(root / "scripts" / "train.py"),
        "--config",
        str(tmp_path / "config.yaml"),
        "--out",
        str(out),
    ]
    command, env = (
        [sys.executable, "-c", AS_A_SCRIPT, *arguments],
        os.environ | {"PYTHONPATH": str(root / "src")},
    )
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env, text=True
    ) as process:
        ledger = out / "ledger.jsonl"
        while process.poll() is None and (not ledger.exists() or ledger.read_text().count("\n") < 5):
            time.sleep(0.01)  # waits for the step to kill in, not for time to pass
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        complaint = process.stderr.read()
    assert process.returncode == -signal.SIGKILL, complaint
    resumed = run(plan, out, resume=True)
    assert bits(resumed.params) == bits(whole[1].params)
    assert ledger.read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


def test_a_finished_run_resumes_to_itself_without_another_step(
    whole: tuple[Path, loop.Outcome], plan: RunPlan
) -> None:
    before = (whole[0] / "ledger.jsonl").read_bytes()
    again = run(plan, whole[0], resume=True)
    assert again.finished
    assert bits(again.params) == bits(whole[1].params)
    assert (whole[0] / "ledger.jsonl").read_bytes() == before


def test_a_run_is_not_begun_over_and_not_continued_as_another(
    whole: tuple[Path, loop.Outcome], plan: RunPlan, tiny_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--resume"):
        run(plan, whole[0])
    other = make_plan(changed(plan.config, "training", learning_rate=2e-3), tiny_store)
    with pytest.raises(InputError, match=r"training\.learning_rate: 0.001 there, 0.002 now"):
        run(other, whole[0], resume=True)
    (tmp_path / "stranger.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files but no run"):
        run(plan, tmp_path)


def test_unseeded_runs_differ_and_say_whether_they_may_be_released(
    plan: RunPlan, tiny_store: Store, tmp_path: Path
) -> None:
    # with the noise and class weights of the seeded plan, so that the compiled step is the same one
    config = changed(plan.config, "training", seed=None, steps=1, checkpoint_every=1, **declared(plan))
    config = changed(config, "privacy", noise_multiplier=plan.mechanism.noise_multiplier)  # type: ignore[union-attr]
    unseeded = make_plan(config, tiny_store)
    a, b = (run(unseeded, tmp_path / name) for name in "ab")
    assert bits(a.params) != bits(b.params)
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (facts["release"], facts["against_release"]) == (
        False,
        ["dataset_size_counted", "positive_rates_counted"],
    )
    sound = changed(
        changed(config, "training", class_weights="none", positive_rates=None), "privacy", dataset_size=50
    )
    assert make_plan(sound, tiny_store).describe().get("release") is True
    uncovered = make_plan(changed(config, "training", class_weights="paper", positive_rates=None), tiny_store)
    assert uncovered.describe().get("release") is False


def test_training_stops_before_the_step_that_would_exceed(
    plan: RunPlan, tiny_store: Store, tmp_path: Path
) -> None:
    assert plan.mechanism is not None
    sigma = plan.mechanism.noise_multiplier
    short = make_plan(changed(plan.config, "privacy", noise_multiplier=sigma, epsilon=6.5), tiny_store)
    outcome = run(short, tmp_path / "short")
    assert outcome.stopped_by == "budget"
    assert outcome.finished
    assert 0 < outcome.steps_done < 6
    assert len(read_ledger(tmp_path / "short" / "ledger.jsonl")[1]) == outcome.steps_done
    spent = [[Spending(6 / 50, sigma, outcome.steps_done + more)] for more in (0, 1)]
    assert epsilon_pld(spent[0], 1e-4) <= 6.5 < epsilon_pld(spent[1], 1e-4)


def seven_images() -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 pixels a side and labels of three findings."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (7, 8, 8)).astype(np.uint8)
    return images, rng.integers(0, 2, (7, 3)).astype(np.float32)


def microbatches(images: Any, labels: Any, size: int) -> list[dict[str, Any]]:
    """A batch of single films, cut into padded microbatches."""
    pieces = []
    for first in range(0, len(images), size):
        real = np.arange(first, first + size) < len(images)
        rows = np.where(real, np.arange(first, first + size), 0)
        piece = {"image": images[rows][:, None], "label": labels[rows][:, None].astype(np.float32)}
        pieces.append(piece | {"is_image": real[:, None], "is_real": real})
    return pieces


def test_a_thousand_batches_compile_once_and_an_empty_one_is_a_step(plan: RunPlan) -> None:
    functions = build.step_of(plan)
    params = functions.replicate(build.initial_params(plan, bytes(32)))
    state = functions.replicate(build.optimizer_of(plan).init(params))
    assert plan.mechanism is not None
    rng = np.random.default_rng(0)
    for step, drawn in enumerate([3, 0, 11, 4, 1, 0, 7]):
        gradient, logged = functions.start(params)
        images = rng.integers(0, 256, (drawn, 32, 32)).astype(np.uint8)
        for piece in microbatches(
            images, rng.integers(0, 2, (drawn, 3)).astype(np.float32), functions.microbatch_size
        ):
            total = (gradient, logged)
            gradient, logged = functions.accumulate(params, total, functions.place(piece), plan.clipping())
        gradient, logged = functions.collect((gradient, logged))
        assert int(logged["count"]) == drawn
        before = bits(params)
        params, state, finite, _ = functions.finish(
            params, state, gradient, plan.mechanism.noise_key(bytes(32), step), plan.clipping()
        )
        assert bool(finite)
        assert bits(params) != before  # an empty batch moves the weights too: by noise
    assert functions.accumulate._cache_size() == 1  # type: ignore[attr-defined]
    assert functions.finish._cache_size() == 1  # type: ignore[attr-defined]
    assert functions.start._cache_size() == 1  # type: ignore[attr-defined]


def linear_loss(params: Any, unit: Any) -> Any:
    """Of a linear classifier: quick to compile."""
    image, label = unit[0][0], unit[1][0]
    logits = (image.astype(jnp.float32) / 255).reshape(-1) @ params["kernel"]
    return jnp.sum(jax.nn.softplus(logits) - label * logits)


def test_two_devices_do_what_one_does(plan: RunPlan) -> None:
    images, labels = seven_images()
    rng = np.random.default_rng(2)
    start = {"kernel": jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)}
    sums = []
    assert jax.local_device_count() == 2
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        functions = make_step(
            objective.Gradients(linear_loss, plan.mechanism), build.optimizer_of(plan), 6, 2, devices
        )
        params = functions.replicate(jax.tree.map(jnp.copy, start))
        total = functions.start(params)
        for piece in microbatches(images, labels, functions.microbatch_size):
            total = functions.accumulate(params, total, functions.place(piece))
        total = functions.collect(total)
        assert int(total[1]["count"]) == 7
        state = functions.replicate(build.optimizer_of(plan).init(params))
        assert plan.mechanism is not None
        summed = jax.tree.map(np.asarray, total)
        moved, *_ = functions.finish(params, state, total[0], plan.mechanism.noise_key(bytes(32), 0))
        assert bits(moved) != bits(start)
        sums.append((summed, moved))
    (one, moved_one), (two, moved_two) = sums
    for u, v in zip(jax.tree.leaves(one[0]), jax.tree.leaves(two[0]), strict=True):
        np.testing.assert_array_equal(
            u, v
        )  # sums of the same microbatches are exact, wherever they were added
    for u, v in zip(jax.tree.leaves(moved_one), jax.tree.leaves(moved_two), strict=True):
        np.testing.assert_allclose(u, v, atol=1e-5)


def test_a_full_disk_loses_nothing(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, loop.Outcome]
) -> None:
    """Writes beyond a file-size limit fail as on a full disk; the first checkpoint must survive and the run go on from it."""
    out = tmp_path / "full"
    save, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Checkpoints, done: int, state: Any) -> None:
        if done == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        save(self, done, state)

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", limited)
            with pytest.raises(
                InputError,
                match=r"checkpoint of step 6 could not be written \(File too large\).* of step 3: free",
            ):
                run(plan, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert settled(out, ahead=3) == 3
    assert bits(run(plan, out, resume=True).params) == bits(whole[1].params)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from jaxcxr.cli import console

def main():
    import numpy as np
    from jaxcxr.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(Path(sys.argv[1]))
    state = {str(i): np.arange(40_000, dtype=np.float32) * 1.1 for i in range(20)}
    checkpoints.save(3, state)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
    try:
        checkpoints.save(6, state)
    finally:
        checkpoints.close()

console.run(main)
"""


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """Threads of orbax and tensorstore report all that comes after the first failed write: none of it reaches the user."""
    uncovered = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_PROCESS")}
    for name in ("first", "second"):  # what the threads come to report differs from time to time
        command = [sys.executable, "-c", FULL_DISK, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=uncovered)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(
            f"error: {tmp_path}/{name}: checkpoint of step 6 could not be written (File too large)"
        )
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def settled(out: Path, ahead: int = 0) -> int:
    """Steps behind the newest checkpoint of a run that stopped; its ledger must have just those, and `ahead` more."""
    checkpoints = Checkpoints(out / "checkpoints")
    saved = checkpoints.latest()
    checkpoints.close()
    assert saved is not None
    assert [entry.step for entry in steps_of(out)] == list(range(saved + ahead))
    return saved


@pytest.mark.parametrize("place", [1, 4, 7, 10])
def test_a_disk_that_refuses_once_at_any_place_loses_nothing(
    plan: RunPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: tuple[Path, loop.Outcome],
    place: int,
) -> None:
    """Configuration, facts, ledger, digests, log: whatever was to be forced to the disk."""
    calls, fsync = [0], os.fsync

    def refusing(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == place:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing)
        with pytest.raises(
            InputError, match=r"cannot be written \(Disk quota exceeded\).*have the quota raised"
        ):
            run(plan, tmp_path / "run")
    assert bits(run(plan, tmp_path / "run", resume=True).params) == bits(whole[1].params)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    plan: RunPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: tuple[Path, loop.Outcome],
    signum: signal.Signals,
) -> None:
    with monkeypatch.context() as patch:
        at_step(plan, patch, lambda step: os.kill(os.getpid(), signum) if step == 1 else None)
        outcome = run(plan, tmp_path / "stopped")
    assert (outcome.steps_done, outcome.stopped_by, outcome.finished) == (2, "interrupt", False)
    assert outcome.signum == signum
    assert settled(tmp_path / "stopped") == 2
    assert bits(run(plan, tmp_path / "stopped", resume=True).params) == bits(whole[1].params)


def test_ctrl_c_while_a_row_is_logged_belongs_to_the_next_step(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, loop.Outcome]
) -> None:
    """Rows are logged after steps 2, 4, 6 and checkpoints saved after 3 and 6: a stop right after the row of step 2 would lose it."""
    write = Log.write

    def press(self: Any, step: int, *rest: Any) -> None:
        write(self, step, *rest)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", press)
        outcome = run(plan, tmp_path / "stopped")
    assert (outcome.steps_done, outcome.stopped_by, outcome.finished) == (3, "interrupt", False)
    assert settled(tmp_path / "stopped") == 3
    assert bits(run(plan, tmp_path / "stopped", resume=True).params) == bits(whole[1].params)


def test_two_trainers_in_one_folder_are_refused(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, loop.Outcome]
) -> None:
    out = tmp_path / "shared"
    refused = []

    def second(step: int) -> None:
        if step == 4 and not refused:
            refused.append(step)
            before = (out / "ledger.jsonl").read_bytes()
            with pytest.raises(InputError, match=f"^{out}: another process is training in this folder$"):
                run(plan, out, resume=True)
            assert (out / "ledger.jsonl").read_bytes() == before

    with monkeypatch.context() as patch:
        at_step(plan, patch, second)
        first = run(plan, out)
    assert refused
    assert bits(first.params) == bits(whole[1].params)
    assert run(plan, out, resume=True).finished  # the folder is free again


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_without_its_secret_is_not_continued(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Another secret would draw other noise for steps that are paid already. At step 1 only the ledger tells that there are any."""
    out = tmp_path / "run"
    cut_at(plan, out, stop, monkeypatch)
    (out / "checkpoints" / SECRET).unlink()
    before = (out / "ledger.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"{SECRET}: the run has begun but its secret is gone"):
        run(plan, out, resume=True)
    assert (out / "ledger.jsonl").read_bytes() == before
    assert not (out / "checkpoints" / SECRET).exists()


def test_the_ledger_is_on_the_disk_before_a_step_and_forced_there_before_a_checkpoint(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    fsync, save = os.fsync, Checkpoints.save
    forced, saved, written_ahead = [0], [], []

    def steps_written() -> int:
        return ledger.read_text().count('"step"')

    def forcing(descriptor: int) -> None:
        fsync(descriptor)
        if ledger.exists() and os.path.samestat(os.fstat(descriptor), ledger.stat()):
            forced.append(steps_written())

    def saving(self: Checkpoints, done: int, state: Any) -> None:
        saved.append((done, forced[-1]))
        save(self, done, state)

    monkeypatch.setattr(os, "fsync", forcing)
    monkeypatch.setattr(Checkpoints, "save", saving)
    at_step(plan, monkeypatch, lambda step: written_ahead.append(steps_written() - step))
    run(plan, tmp_path / "run")
    assert saved == [(3, 3), (6, 6)]
    assert written_ahead == [1] * 6


def test_the_reference_way_of_clipping_gives_the_same_kind_of_sum(plan: RunPlan) -> None:
    """That both ways give equal sums is tested with the clipping itself; here that a run can take either."""
    films = {"image": np.zeros((2, 1, 32, 32), np.uint8), "label": np.zeros((2, 1, 3), np.float32)}
    batch = films | {"is_image": np.ones((2, 1), bool), "is_real": np.ones(2, bool)}
    params = parameters.random_params(plan.config, bytes(32))
    kinds = [
        jax.eval_shape(
            clipped_sum(parameters.network_of(plan.config), plan.weights, 1.0, method), params, batch
        )
        for method in get_args(Method)
    ]
    assert kinds[0] == kinds[1]
    assert jax.tree.structure(kinds[0][0]) == jax.tree.structure(params)


def test_divergence_is_said_and_not_saved(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = parameters.random_params

    def wild(config: Experiment, secret: bytes) -> Any:
        return jax.tree.map(lambda leaf: leaf * np.float32(1e30), original(config, secret))

    monkeypatch.setattr(parameters, "random_params", wild)
    with pytest.raises(
        InputError,
        match=r"diverged at or before step 2: weights are not finite; lower training\.learning_rate",
    ):
        run(plan, tmp_path / "wild")
    checkpoints = Checkpoints(tmp_path / "wild" / "checkpoints")
    assert checkpoints.latest() is None
    checkpoints.close()


def test_the_non_private_loop_learns_and_keeps_no_ledger(
    tiny_nonprivate_config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    config = changed(
        tiny_nonprivate_config, "training", learning_rate=1e-2
    )  # a rate at which the quick network learns
    outcome = run(make_plan(config, tiny_store), tmp_path / "plain")
    rows = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert outcome.finished
    assert "epsilon" not in rows[0]
    assert not (tmp_path / "plain" / "ledger.jsonl").exists()
    assert rows[-1]["loss"] < rows[0]["loss"]
