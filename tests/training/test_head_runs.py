"""Whole runs of a head on kept features, on a network with a trunk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcxr.accounting import Spending, epsilon_pld
from jaxcxr.config import Experiment, HeadConfig
from jaxcxr.data.store import Store, write_store
from jaxcxr.errors import InputError
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.ledger import Entry, read_ledger
from jaxcxr.training import build, head_data, loop, parameters
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.weights import save_weights, weights_digest
from tests.conftest import FINDINGS as FINDINGS_OF_STORES
from tests.conftest import changed, declared
from tests.training.parts import Tiny, moved_and_kept, noised_draws
from tests.training.test_directions import other_store
from tests.training.tiny import MAKE_NETWORK

pytestmark = pytest.mark.usefixtures("quick_compilation")

K, FINDINGS = 5, 3


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, lambda data, model: Tiny(len(data.findings), thumbnail=model.thumbnail))


@pytest.fixture(scope="module")
def config(
    tiny_config: Experiment, tiny_plan: RunPlan, tmp_path_factory: pytest.TempPathFactory
) -> Experiment:
    """Four steps of everybody, in five directions by twenty public images."""
    public = other_store(tmp_path_factory.mktemp("public") / "store")
    fields = {
        "optimizer": "sgd",
        "scope": "head_on_features",
        "expected_batch_size": 50,
        "learning_rate": 0.5,
    }
    config = changed(
        tiny_config,
        "training",
        steps=4,
        checkpoint_every=2,
        microbatch_size=None,
        **fields,
        **declared(tiny_plan),
    )
    config = dataclasses.replace(config, head=HeadConfig("zero", str(public.path), K))
    config.check()
    return config


def run(plan: RunPlan, out: Path, **how: Any) -> Any:
    return loop.train(plan, out, progress=False, **how)


def test_every_step_is_in_the_ledger_and_noised_in_every_coordinate(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(config, tiny_store)
    noised = noised_draws(monkeypatch)
    outcome = run(plan, tmp_path / "run")
    assert outcome.finished
    m = plan.mechanism
    assert m is not None
    assert read_ledger(tmp_path / "run" / "ledger.jsonl")[1] == [
        Entry(step, 1.0, m.noise_multiplier, 1.0) for step in range(4)
    ]
    assert 8.0 * 0.998 <= epsilon_pld([Spending(1.0, m.noise_multiplier, 4)], 1e-4) <= 8.0
    assert noised == [((K + 1) * FINDINGS, m.noise_multiplier * 1.0)]  # one compilation of the step
    secret = (tmp_path / "run" / "checkpoints" / "secret.key").read_bytes()
    start = build.initial_params(plan, secret)
    assert moved_and_kept(outcome.params, start) == ({"head"}, set(start["params"]) - {"head"})
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["head"]
    assert (facts["public"], facts["public_images"], facts["directions"]) == ("store", 20, K)
    assert facts["directions_sha256"] != facts["features_sha256"]


def test_a_resumed_run_ends_in_the_same_bits(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(config, tiny_store)
    whole = run(plan, tmp_path / "whole")
    original = Mechanism.noise_key

    def noise_key(self: Any, secret: bytes, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return original(self, secret, step)

    with monkeypatch.context() as patch:
        patch.setattr(Mechanism, "noise_key", noise_key)
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "cut")
    resumed = run(plan, tmp_path / "cut", resume=True)
    for u, v in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        assert np.asarray(u).tobytes() == np.asarray(v).tobytes()


def test_noise_of_a_run_is_never_used_in_other_directions(
    config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_plan(config, tiny_store), tmp_path / "run")
    original = head_data.directions_of

    def otherwise(public: Any, *how: Any) -> Any:
        return original(public[1:], *how)

    monkeypatch.setattr(head_data, "directions_of", otherwise)
    with pytest.raises(InputError, match="begun as another one; it differs in the configuration"):
        run(make_plan(config, tiny_store), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("section", "training"),
    [
        ({"unit": "patient", "images_per_patient": 2}, {"expected_batch_size": 25}),
        ({"clipping": "automatic", "noise": "discrete"}, {}),
        ({"noise": "discrete"}, {"optimizer": "least_squares", "steps": 1, "averaging": "none"}),
        ({"clipping": "adaptive"}, {"averaging": "tail"}),
        (None, {}),
    ],
)
def test_other_units_clippings_noise_and_no_privacy_run(
    config: Experiment, tiny_store: Store, tmp_path: Path, section: dict[str, Any] | None, training: Any
) -> None:
    config = changed(config, "training", **training)
    config = (
        dataclasses.replace(config, privacy=None)
        if section is None
        else changed(config, "privacy", **section)
    )
    config.check()
    plan = make_plan(config, tiny_store)
    assert run(plan, tmp_path / "run").finished
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["images"] == 50 * (1 if training.get("steps") == 1 else 2)
    if section is not None and section.get("noise") == "discrete":
        moments = (K + 1) * (K + 2) // 2 if "optimizer" in training else 0
        assert plan.mechanism is not None
        assert plan.mechanism.discrete_coordinates == moments + (K + 1) * FINDINGS


def test_public_images_may_be_drawn_and_may_not_be_private(
    config: Experiment, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(head_data.DRAWN, n_train=30)
    monkeypatch.setattr(head_data, "DRAWN", few)
    plan = make_plan(changed(config, "head", public=None), tiny_store)
    params = build.initial_params(plan, bytes(32))
    found = head_data.prepared(plan.config, tiny_store, params, K, say=lambda _: None)
    assert (found.facts["public"], found.facts["public_images"]) == ("drawn", 30)
    private = changed(config, "head", public=str(tiny_store.path))
    with pytest.raises(InputError, match="is the private store itself"):
        make_plan(private, tiny_store)
    with pytest.raises(InputError, match="is the private store itself"):
        head_data.prepared(private, tiny_store, params, K, say=lambda _: None)


def labelled_public(folder: Path, size: int = 32, **labels: Any) -> str:
    """Forty images, the first finding of which is on those that are bright above."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (40, size, size)).astype(np.uint8)
    images[:20, : size // 2] //= 4
    frame = pd.DataFrame(
        {
            "image_id": [f"open{i}" for i in range(40)],
            "patient_id": [f"else{i}" for i in range(40)],
            "path": [f"{i}.png" for i in range(40)],
            "split": ["train", "test"] * 20, "age": 50.0, "sex": "F", "view": "PA",
            FINDINGS_OF_STORES[0]: [0.0] * 20 + [1.0] * 20,
        }
    ).assign(**labels)  # fmt: skip
    known = [name for name in FINDINGS_OF_STORES if name in frame]
    return str(write_store(folder, frame, iter(images), size=size, findings=known, preprocessing={}).path)


def test_a_run_may_start_from_a_head_of_labelled_public_images(
    config: Experiment, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    tiny = parameters.random_params(config, bytes(32))
    save_weights(weights, tiny, {})
    config = changed(changed(config, "model", weights=str(weights), thumbnail=4), "head", start="public")
    config = changed(config, "head", public=labelled_public(tmp_path / "public"))
    config.check()
    plan = make_plan(config, tiny_store)
    start = build.pretrained_params(plan)
    assert start is not None
    said = capsys.readouterr().out
    assert f"on other public patients (0 to 1): {FINDINGS_OF_STORES[0]} " in said
    kernel = np.asarray(start["params"]["head"]["kernel"])
    assert kernel.shape == (32 + 16, FINDINGS)
    assert np.abs(kernel[32:36, 0]).min() > 0  # the upper row of the thumbnail tells the finding
    assert not kernel[:, 1:].any()  # without labels: zero
    np.testing.assert_array_equal(  # the network below is that of the weights
        start["params"]["conv1"]["kernel"], tiny["params"]["conv1"]["kernel"]
    )
    assert run(plan, tmp_path / "run").finished
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["initial_weights_sha256"] == weights_digest(start)
    (tmp_path / "public").rename(tmp_path / "before")
    turned: dict[str, Any] = {FINDINGS_OF_STORES[0]: [1.0] * 20 + [0.0] * 20}
    labelled_public(tmp_path / "public", **turned)
    with pytest.raises(InputError, match="begun as another one"):  # its noise is of another start
        run(make_plan(config, tiny_store), tmp_path / "run", resume=True)


def test_the_head_of_the_weights_is_calibrated_on_public_labels(
    config: Experiment, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = labelled_public(tmp_path / "public")
    start = build.initial_params(make_plan(config, tiny_store), bytes(32))
    head = {"kernel": start["params"]["head"]["kernel"] + 0.1, "bias": np.full(FINDINGS, 3.0, np.float32)}
    given: Any = {"params": {**start["params"], "head": head}}
    save_weights(tmp_path / "weights", given, {"config": dataclasses.asdict(config)})
    calibrated = changed(config, "head", start="calibrated", public=public)
    with pytest.raises(InputError, match=r"'calibrated' needs model\.weights"):
        calibrated.check()
    calibrated = changed(calibrated, "model", weights=str(tmp_path / "weights"))
    found = build.initial_params(make_plan(calibrated, tiny_store), bytes(32))
    assert "its logits calibrated on public images by" in capsys.readouterr().out
    kernel, bias = (np.asarray(found["params"]["head"][name]) for name in ("kernel", "bias"))
    assert bias[0] < 2.5  # half of the public images have the finding, and it was predicted of nearly all
    np.testing.assert_array_equal(kernel[:, 1:], head["kernel"][:, 1:])  # without labels: as they were
    assert bias[1:].tolist() == [3.0, 3.0]
    ratio = kernel[:, 0] / np.asarray(head["kernel"])[:, 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert 0 < ratio[0] <= 1
    np.testing.assert_array_equal(found["params"]["conv1"]["kernel"], given["params"]["conv1"]["kernel"])


@pytest.mark.parametrize(("findings", "sides"), [(("a_left", "a_right"), 1), (("a", "b"), 2)])
def test_images_to_train_on_have_the_features_that_training_reads(
    findings: tuple[str, ...],
    sides: int,
    config: Experiment,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def record(network: Any, params: Any, store: Any, views: Any, *_: Any) -> Any:
        asked.update(views)
        return {}

    monkeypatch.setattr(head_data, "features_of_store", record)
    sided = changed(changed(config, "data", findings=findings), "model", test_time_augmentation="mirrored")
    head_data.private_features(sided, tiny_store, {})
    assert asked == {"train": {1: "one", 2: "mirrored"}[sides], "valid": "mirrored", "test": "mirrored"}


def test_public_images_must_be_of_the_same_size_and_have_a_label(
    config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    large = labelled_public(tmp_path / "large", size=48)
    with pytest.raises(InputError, match=r"images are 48 pixels wide .*, those of .* 32"):
        make_plan(changed(config, "head", public=large), tiny_store)
    with pytest.raises(InputError, match="'public' needs a store with labels"):
        changed(config, "head", start="public").check()  # no weights
    public = labelled_public(tmp_path / "public")
    plan = make_plan(changed(config, "head", public=public), tiny_store)
    other = dataclasses.replace(plan.config, data=dataclasses.replace(plan.config.data, findings=("mass",)))
    params = build.initial_params(plan, bytes(32))
    with pytest.raises(InputError, match=r"'public' needs labels of mass, and .* alone"):
        head_data.with_public_head(other, tiny_store, params, say=lambda _: None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer", "nadam"), ("optimizer", "adam_bc"), ("augmentation", "flip_rotate")],
)
def test_what_does_not_go_with_it_is_refused(config: Experiment, field: str, value: str) -> None:
    changes: dict[str, Any] = {field: value} | (
        {"augmentation_multiplicity": 2} if field == "augmentation" else {}
    )
    with pytest.raises(InputError, match=f"training.{field}: a head on kept features"):
        changed(config, "training", **changes).check()
