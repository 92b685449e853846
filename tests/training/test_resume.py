"""A run goes on as what it was begun as, or not at all: noise that hid one gradient never hides another."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxcxr.config import Experiment
from jaxcxr.config_files import load, validate
from jaxcxr.data.store import Store
from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError
from jaxcxr.privacy import noise, sampling
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records import binding
from jaxcxr.records.ledger import Ledger, read_ledger
from jaxcxr.run_folder import SECRET
from jaxcxr.training import loop, parameters, resume
from jaxcxr.training.loop import train
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.resume import binding_of
from jaxcxr.training.weights import save_weights
from tests.conftest import changed
from tests.training.tiny import MAKE_NETWORK, tiny_network


class StopError(Exception):
    """Ends a run before its first step."""


@pytest.fixture(autouse=True)
def _tiny_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)


@pytest.fixture(scope="module")
def config(tiny_config: Experiment) -> Experiment:
    config = changed(tiny_config, "training", seed=None, class_weights="none")
    return changed(config, "privacy", dataset_size=50, noise_multiplier=1.0, epsilon=20.0)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """Step and noise key of every step that is run."""
    drawn: list[tuple[int, bytes]] = []
    original = Mechanism.noise_key

    def noise_key(self: Mechanism, secret: bytes, step: int) -> Any:
        key = original(self, secret, step)
        drawn.append((step, key.tobytes()))
        return key

    monkeypatch.setattr(Mechanism, "noise_key", noise_key)
    return drawn


def edit_yaml(path: Path, **fields: object) -> Experiment:
    """`config.yaml` with fields of `privacy` replaced, as an editor would."""
    text = path.read_text()
    for name, value in fields.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{name}:"))
        text = text.replace(line, f"  {name}: {value}")
    path.write_text(text)
    unsealed(path.parent)
    return load(Experiment, path)


def unsealed(folder: Path) -> None:
    """Delete the digests, as whoever edits a folder on purpose would; an edit without that is refused at once."""
    (folder / DIGESTS).unlink(missing_ok=True)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    unsealed(path.parent)


def chained_anew(path: Path, digest: str) -> None:
    """The ledger written anew for another binding; its chain has no key, so that anybody can."""
    terms, entries = read_ledger(path)
    path.unlink()
    unsealed(path.parent)
    ledger = Ledger(path, dataclasses.replace(terms, binding=digest))
    for entry in entries:
        ledger.record(entry)
    ledger.close()


def test_a_copied_run_cannot_use_its_noise_on_another_gradient(
    config: Experiment, tiny_store: Store, tmp_path: Path, keys: list[tuple[int, bytes]]
) -> None:
    """Copy a finished run, delete its newest checkpoint, edit the clipping, resume: with keys of (secret, step) alone, the same
    noise hides another sum, and the difference of the two models is the difference of the sums.
    """
    train(make_plan(config, tiny_store), tmp_path / "run", progress=False)
    original = dict(keys)
    assert sorted(original) == list(range(6))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    shutil.rmtree(copy / "checkpoints" / "6")

    edited = edit_yaml(copy / "config.yaml", clipping="automatic")
    assert edited == changed(config, "privacy", clipping="automatic")
    plan = make_plan(edited, tiny_store)
    with pytest.raises(InputError, match=r"privacy\.clipping: 'flat' there, 'automatic' now"):
        train(plan, tmp_path / "run", resume=True, progress=False)
    with pytest.raises(
        InputError,
        match=r"begun as another one; it differs in the configuration \(privacy\.clipping: flat there",
    ):
        train(plan, copy, resume=True, progress=False)

    def as_if_begun_so(facts: dict[str, Any]) -> None:
        facts["binding"]["configuration"]["privacy.clipping"] = "automatic"

    edit_json(copy / "run.json", as_if_begun_so)
    with pytest.raises(InputError, match="the digest of its own record, which was edited"):
        train(plan, copy, resume=True, progress=False)

    def with_its_digest(facts: dict[str, Any]) -> None:
        parts = {name: value for name, value in facts["binding"].items() if name != "digest"}
        facts["binding"]["digest"] = binding.Binding(**parts).digest

    edit_json(copy / "run.json", with_its_digest)
    with pytest.raises(InputError, match=r"ledger\.jsonl: the ledger says what another release has cost"):
        train(plan, copy, resume=True, progress=False)
    assert len(keys) == 6  # nothing was drawn so far

    chained_anew(copy / "ledger.jsonl", json.loads((copy / "run.json").read_text())["binding"]["digest"])
    train(
        plan, copy, resume=True, progress=False
    )  # every record forged: what is left is that the noise is another
    again = dict(keys[6:])
    assert sorted(again) == [3, 4, 5]
    assert all(again[step] != original[step] for step in again)


def test_the_noise_differs_even_if_nothing_is_checked(
    config: Experiment,
    tiny_store: Store,
    tmp_path: Path,
    keys: list[tuple[int, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The secret of a run put into another folder, for another clip norm: sum and batches are masked anew."""
    batches: list[bytes] = []
    drawn = sampling.poisson_batch
    monkeypatch.setattr(
        sampling,
        "poisson_batch",
        lambda secret, *rest: batches.append(hashlib.sha256(secret).digest()) or drawn(secret, *rest),
    )
    train(make_plan(config, tiny_store), tmp_path / "a", progress=False)
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "a" / "checkpoints" / SECRET, tmp_path / "b" / "checkpoints" / SECRET)
    other = make_plan(changed(config, "privacy", l2_clip_norm=2.0), tiny_store)
    shutil.copy(tmp_path / "a" / "config.yaml", tmp_path / "b" / "config.yaml")
    edit_yaml(tmp_path / "b" / "config.yaml", l2_clip_norm=2.0)
    train(other, tmp_path / "b", resume=True, progress=False)
    assert len(keys) == len(set(keys)) == 12
    assert len(set(batches)) == 2
    terms = [read_ledger(tmp_path / name / "ledger.jsonl")[0] for name in "ab"]
    assert terms[0].run == terms[1].run  # siblings are still recognised
    assert terms[0].binding != terms[1].binding


def test_all_randomness_but_the_starting_weights_is_bound(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, batches, a patient's images, augmented views, class counts: no key comes from the bare secret."""
    seen: list[tuple[bytes, str]] = []
    derive, draw = noise.derive_key, sampling.poisson_batch

    def watched_key(secret: bytes, purpose: str, step: int) -> Any:
        seen.append((secret, purpose))
        return derive(secret, purpose, step)

    def watched_batch(secret: bytes, *rest: Any) -> Any:
        seen.append((secret, "batch"))
        return draw(secret, *rest)

    monkeypatch.setattr(noise, "derive_key", watched_key)
    monkeypatch.setattr(parameters, "derive_key", watched_key)
    monkeypatch.setattr(sampling, "poisson_batch", watched_batch)
    training = {
        "steps": 1,
        "class_weights": "noised",
        "augmentation": "flip_rotate",
        "augmentation_multiplicity": 2,
    }
    noised = changed(changed(config, "training", **training), "privacy", unit="patient", dataset_size=25)
    noised = changed(noised, "data", findings=("atelectasis_right", "atelectasis_left"))
    train(make_plan(noised, tiny_store), tmp_path / "run", progress=False)
    secret = (tmp_path / "run" / "checkpoints" / SECRET).read_bytes()
    bound = binding.bound_secret(secret, read_ledger(tmp_path / "run" / "ledger.jsonl")[0].binding)
    by = {whose: {purpose for used, purpose in seen if used == whose} for whose in (secret, bound)}
    assert by[secret] == {"initial weights"}
    assert by[bound] == {"noise", "batch", "films of a unit", "views of a film", "class_counts"}
    assert {used for used, _ in seen} <= {
        secret,
        bound,
        bytes(32),
    }  # zeros stand for a secret where only shapes are asked for


@pytest.fixture
def begun(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[RunPlan], None]:
    """A run in `run`, stopped before its first step; called with a plan it goes on with that, up to there."""

    def stop(*_: Any) -> Any:
        raise StopError

    monkeypatch.setattr(loop, "_run", stop)

    def go_on(plan: RunPlan) -> None:
        with pytest.raises(StopError):
            train(plan, tmp_path / "run", resume=True, progress=False)

    go_on(make_plan(config, tiny_store))
    return go_on


def test_what_the_run_was_begun_with_goes_on(
    begun: Callable[[RunPlan], None], config: Experiment, tiny_store: Store
) -> None:
    begun(make_plan(config, tiny_store))


@pytest.mark.parametrize(
    ("target", "name", "value", "told"),
    [
        (resume, "training_code_fingerprint", lambda: "other", r"the code \(other sources\)"),
        (resume, "__version__", "9.9", r"the code \(jaxcxr: 0\..* there, 9\.9 now\)"),
        (
            resume.importlib.metadata,
            "version",
            lambda _: "99",
            r"library versions \(flax: .* there, 99 now; jax: ",
        ),
        (jax, "default_backend", lambda: "tpu", r"the platform \(device: cpu there, tpu now\)"),
    ],
)
def test_another_version_or_platform_does_not_go_on(
    begun: Callable[[RunPlan], None],
    config: Experiment,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    name: str,
    value: Any,
    told: str,
) -> None:
    monkeypatch.setattr(target, name, value)
    with pytest.raises(
        InputError,
        match=rf"run\.json: the run was begun as another one; it differs in {told}.*or begin a new run",
    ):
        begun(make_plan(config, tiny_store))


def test_other_data_and_other_starting_weights_do_not_go_on(
    begun: Callable[[RunPlan], None], config: Experiment, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(config, tiny_store)
    with pytest.raises(InputError, match="it differs in the data"):
        begun(dataclasses.replace(plan, fingerprint="00" * 32))
    initial = parameters.random_params
    with monkeypatch.context() as patch:
        patch.setattr(
            parameters,
            "random_params",
            lambda config, secret: jax.tree.map(lambda leaf: leaf + 1, initial(config, secret)),
        )
        with pytest.raises(InputError, match="it differs in the starting weights"):
            begun(plan)


def test_weights_that_were_exchanged_do_not_go_on(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(changed(config, "model", weights=str(tmp_path / "weights")), tiny_store)
    monkeypatch.setattr(loop, "_run", lambda *_: (_ for _ in ()).throw(StopError()))
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "weights", ignore_errors=True)
        save_weights(
            tmp_path / "weights",
            parameters.random_params(plan.config, bytes([seed]) * 32),
            {"from": "elsewhere"},
        )
        refused = (
            pytest.raises(StopError)
            if seed == 1
            else pytest.raises(InputError, match="differs in the starting weights")
        )
        with refused:
            train(plan, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("without_facts", [False, True])
def test_a_run_of_an_earlier_version_is_not_changed_under_way(
    begun: Callable[[RunPlan], None],
    config: Experiment,
    tiny_store: Store,
    tmp_path: Path,
    without_facts: bool,
) -> None:
    """Its noise was not bound: `run.json` and the ledger have no digest. A deleted `run.json` does not help."""
    run = tmp_path / "run"
    chained_anew(run / "ledger.jsonl", "")
    edit_json(run / "run.json", lambda facts: facts.pop("binding"))
    told = r"run\.json: the run was begun by an earlier version \(jaxcxr 0\.1\.0\), .*finish it with that version, or begin a new"
    if without_facts:
        (run / "run.json").unlink()
        told = "the ledger says what another release has cost"
    with pytest.raises(InputError, match=told):
        begun(make_plan(config, tiny_store))


def test_everything_configured_is_bound_but_evaluation_and_paths(
    config: Experiment, tiny_store: Store
) -> None:
    plan = make_plan(config, tiny_store)
    bound = binding_of(plan, plan.describe(), "aa")
    fields = config.digest_fields()
    missing = {name for name in fields if name not in bound.configuration}
    assert missing == {name for name in fields if name.startswith("evaluation.")} | {
        *("data.store", "model.weights", "model.pretraining", "head.public")
    }
    for name in (
        "noise_multiplier",
        "n_units",
        "sample_rate",
        "steps",
        "positive_weights",
        "release",
        "against_release",
    ):
        assert f"run.{name}" in bound.configuration
    assert validate(Experiment, dataclasses.asdict(config), "again").digest_fields() == fields


def test_another_calibration_of_the_same_budget_is_another_release(
    config: Experiment, tiny_store: Store
) -> None:
    """The same unit noise at another scale hides another sum, though the configuration says null for both."""
    plan = make_plan(config, tiny_store)
    assert plan.mechanism is not None
    louder = dataclasses.replace(plan, mechanism=dataclasses.replace(plan.mechanism, noise_multiplier=1.0001))
    assert (
        binding_of(plan, plan.describe(), "aa").digest != binding_of(louder, louder.describe(), "aa").digest
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_disable_most_optimizations", True),
        ("jax_disable_jit", True),
        ("jax_optimization_level", "O1"),
        ("jax_exec_time_optimization_effort", -0.5),
        ("jax_default_matmul_precision", "float32"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_another_way_of_compiling_is_another_platform(
    config: Experiment, tiny_store: Store, name: str, value: Any
) -> None:
    """Unoptimised, the same step rounds otherwise, and the difference of two such runs has no noise in it."""
    if name not in jax.config.values:
        pytest.skip(f"JAX {jax.__version__} has no {name}")
    plan, before = make_plan(config, tiny_store), jax.config.values[name]
    assert before != value
    platform = binding_of(plan, plan.describe(), "aa").platform
    jax.config.update(name, value)
    try:
        changed_platform = binding_of(plan, plan.describe(), "aa").platform
    finally:
        jax.config.update(name, before)
    assert {key for key in platform if changed_platform[key] != platform[key]} == {name}


def test_other_flags_of_xla_are_another_platform(
    config: Experiment, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without some instructions the same program rounds otherwise, and the difference of two such runs has no noise in it."""
    plan = make_plan(config, tiny_store)
    platform = binding_of(plan, plan.describe(), "aa").platform
    assert platform["kind"] == jax.devices()[0].device_kind
    for flags, changes in (
        ("--xla_cpu_max_isa=SSE4_2", True),
        (
            "--xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x",
            False,
        ),  # the same sums on any number of devices
        ("--xla_gpu_deterministic_ops=true", False),  # of another platform
    ):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert (binding_of(plan, plan.describe(), "aa").platform != platform) is changes
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert binding_of(plan, plan.describe(), "aa").platform["xla_flags"] == "--xla_gpu_deterministic_ops=true"
