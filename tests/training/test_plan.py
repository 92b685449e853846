import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.run_folder import write_facts
from jaxcxr.training import build
from jaxcxr.training.plan import make_plan
from jaxcxr.training.resume import begin_or_continue, load_or_make_secret
from jaxcxr.training.weights import load_weights, save_weights
from tests.conftest import changed


def test_the_noise_is_calibrated_to_the_budget(tiny_config: Experiment, tiny_store: Store) -> None:
    plan = make_plan(tiny_config, tiny_store)
    assert plan.mechanism is not None
    from jaxcxr.accounting import Spending, epsilon_pld

    spent = epsilon_pld([Spending(plan.sample_rate, plan.mechanism.noise_multiplier, plan.steps)], 1e-4)
    assert 8.0 * 0.998 <= spent <= 8.0
    train_labels = tiny_store.split("train").labels
    assert plan.weights is not None
    np.testing.assert_allclose(plan.weights, (1 - train_labels.mean(0)) / train_labels.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("privacy", {"delta": 0.02}, "privacy.delta: expected less than 1/N = 0.02 for N = 50 images"),
        ("privacy", {"epsilon": 1e-9, "delta": 1e-12}, "no noise multiplier"),
        ("training", {"expected_batch_size": 51}, "expected_batch_size: expected at most the 50 images"),
        ("data", {"size": 64}, "the store's films are 32 pixels wide"),
        ("data", {"findings": ("cardiomegaly", "rib_fracture")}, "rib_fracture"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_config: Experiment, tiny_store: Store, section: str, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(changed(tiny_config, section, **fields), tiny_store)


def test_pixels_that_are_no_bytes_are_refused(tiny_config: Experiment, tiny_store: Store) -> None:
    with pytest.raises(InputError, match="pixels are uint16, expected uint8"):
        make_plan(tiny_config, dataclasses.replace(tiny_store, dtype="uint16"))


def test_a_large_delta_can_be_insisted_on(tiny_config: Experiment, tiny_store: Store) -> None:
    plan = make_plan(changed(tiny_config, "privacy", delta=0.02, allow_large_delta=True), tiny_store)
    assert plan.mechanism is not None
    assert plan.mechanism.delta == 0.02


def test_declared_size_sets_rate_and_steps(tiny_config: Experiment, tiny_store: Store) -> None:
    config = changed(changed(tiny_config, "privacy", dataset_size=60), "training", steps=None, epochs=2.0)
    plan = make_plan(config, tiny_store)
    assert plan.sample_rate == 0.1
    assert plan.steps == 20


def test_facts_of_a_run_must_not_change_under_way(
    tiny_config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    plan = make_plan(tiny_config, tiny_store)
    begin_or_continue(plan, None, tmp_path)
    begin_or_continue(plan, None, tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    write_facts(tmp_path, facts | {"store_fingerprint": "other"})
    with pytest.raises(InputError, match="store_fingerprint"):
        begin_or_continue(plan, None, tmp_path)


def test_weights_travel_and_misfits_are_listed(tmp_path: Path) -> None:
    params = {
        "params": {
            "a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
            "b": {"bias": np.ones(2, np.float32)},
        }
    }
    save_weights(tmp_path / "w", params, {"from": "here"})
    again = load_weights(tmp_path / "w", params)
    assert all(
        np.array_equal(u, v) for u, v in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True)
    )
    other = {"params": {"a": {"kernel": np.zeros((3, 3), np.float32)}, "c": {"bias": np.ones(2, np.float32)}}}
    with pytest.raises(InputError, match=r"\['b'\].*surplus.*\['c'\].*missing") as error:
        load_weights(tmp_path / "w", other)
    assert "has shape (2, 3), expected (3, 3)" in str(error.value)
    with pytest.raises(InputError, match="no weights there"):
        load_weights(tmp_path / "nowhere", params)


def test_the_secret_is_made_once_and_is_the_owners(tmp_path: Path) -> None:
    first = load_or_make_secret(tmp_path, None)
    assert len(first) == 32
    assert load_or_make_secret(tmp_path, None) == first
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="its secret is gone"):
        load_or_make_secret(tmp_path / "elsewhere", None, begun=True)
    (tmp_path / "secret.key").write_bytes(b"short")
    with pytest.raises(InputError, match="expected 32 bytes"):
        load_or_make_secret(tmp_path, None)


@pytest.fixture
def declared_config(tiny_config: Experiment) -> Experiment:
    """A run that declares everything, with no statistic of the labels."""
    config = changed(
        tiny_config,
        "training",
        seed=None,
        class_weights="none",
        steps=None,
        epochs=3.0,
        expected_batch_size=2,
    )
    return changed(config, "privacy", dataset_size=50)


@pytest.mark.parametrize("called", ["image", "patient"])
def test_everything_public_follows_from_declared_numbers(
    declared_config: Experiment, tiny_store: Store, called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cohort without one patient gives the same sample rate, divisor, steps, noise and facts."""
    config = changed(declared_config, "privacy", unit=called)
    whole = make_plan(config, tiny_store)
    split = Store.split

    def fewer(self: Store, *arguments: Any) -> Any:
        found = split(self, *arguments)
        kept = (found.frame["patient_id"] != found.frame["patient_id"].iloc[0]).to_numpy()
        assert 0 < (~kept).sum() < 4
        return dataclasses.replace(
            found, frame=found.frame[kept].reset_index(drop=True), labels=found.labels[kept]
        )

    monkeypatch.setattr(Store, "split", fewer)
    without = make_plan(config, tiny_store)
    assert len(without.units) < len(whole.units)
    assert without.describe() == whole.describe()
    assert whole.may_be_released()


@pytest.mark.parametrize(("declared", "words"), [(5, "5, but 50 images are there"), (500, "500, but 50 images are there"), (50, None), (70, None), (None, "not for release")])  # fmt: skip
def test_a_declared_size_far_from_the_truth_is_told_to_the_operator_alone(
    declared_config: Experiment, tiny_store: Store, declared: int | None, words: str | None
) -> None:
    plan = make_plan(changed(declared_config, "privacy", dataset_size=declared), tiny_store)
    assert plan.mechanism is not None
    assert plan.mechanism.n_units == (declared or 50)
    assert plan.sample_rate == 2 / (declared or 50)
    assert plan.steps == round(3 * (declared or 50) / 2)
    assert [words in remark for remark in plan.remarks()] == ([True] if words else [])  # type: ignore[operator]
    described = plan.describe()
    assert described.get("against_release") == (["dataset_size_counted"] if declared is None else [])
    assert described.get("release") is (declared is not None)
    assert not any(remark in json.dumps(described) for remark in plan.remarks())


def test_a_number_of_images_where_the_unit_is_the_patient_is_remarked_on(
    declared_config: Experiment, tiny_store: Store
) -> None:
    plan = make_plan(changed(declared_config, "privacy", unit="patient"), tiny_store)
    (told,) = plan.remarks()
    assert (
        "50 looks like the number of images (50), but the unit is the patient, and 25 patients are there"
        in told
    )


def test_a_small_declared_size_does_not_admit_a_large_delta(
    declared_config: Experiment, tiny_store: Store
) -> None:
    """0.03 is below 1 / 20 and above 1 / 50: with 50 images there, one of them may be published."""
    config = changed(declared_config, "privacy", dataset_size=20, delta=0.03)
    with pytest.raises(
        InputError, match=r"less than 1/N = 0\.02 for N = 50 images \(those that are there\), found 0\.03"
    ):
        make_plan(config, tiny_store)
    with pytest.raises(InputError, match=r"less than 1/N = 0\.01 for N = 100 images, found 0\.015"):
        make_plan(changed(config, "privacy", dataset_size=100, delta=0.015), tiny_store)
    make_plan(changed(config, "privacy", allow_large_delta=True), tiny_store)


@pytest.mark.parametrize("of", ["training images", "training patients", "all images"])
def test_the_cohorts_own_rates_are_not_public(
    declared_config: Experiment, tiny_store: Store, of: str
) -> None:
    findings = list(declared_config.data.findings)
    training = tiny_store.split("train").frame
    tables = {
        "training images": training[findings],
        "training patients": training.groupby("patient_id")[findings].mean(),
        "all images": tiny_store.manifest[findings],
    }
    rates = tuple(float(rate) for rate in tables[of].mean())
    plan = make_plan(
        changed(declared_config, "training", class_weights="public", positive_rates=rates), tiny_store
    )
    assert plan.describe().get("against_release") == ["positive_rates_counted"]
    assert not plan.may_be_released()
    guessed = changed(declared_config, "training", class_weights="public", positive_rates=(0.3, 0.4, 0.65))
    assert make_plan(guessed, tiny_store).may_be_released()


@pytest.mark.parametrize(("section", "fields"), [("privacy", {"noise": "discrete"}), ("training", {"optimizer": "least_squares", "scope": "head"})])  # fmt: skip
def test_proved_sums_need_kernels_that_repeat_their_roundings(
    declared_config: Experiment,
    tiny_store: Store,
    section: str,
    fields: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = changed(declared_config, section, **fields)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    with pytest.raises(InputError, match="XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        make_plan(config, tiny_store)
    make_plan(declared_config, tiny_store)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    make_plan(config, tiny_store)


def test_a_batch_for_which_sums_have_no_room_is_refused(
    declared_config: Experiment, tiny_store: Store
) -> None:
    plan = make_plan(changed(declared_config, "privacy", noise="discrete"), tiny_store)
    assert plan.mechanism is not None
    for batch, refused in ((2_090_000, False), (2_100_000, True)):
        huge = dataclasses.replace(plan.mechanism, n_units=10**8, expected_batch_size=batch)
        large = dataclasses.replace(plan, mechanism=huge, microbatch_size=512)
        if refused:
            with pytest.raises(InputError, match="sums have room for 8,388,608"):
                build.units_at_once(large)
        else:
            assert build.units_at_once(large) == 512
