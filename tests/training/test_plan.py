import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.training.checkpoint import load_or_make_secret, load_weights, save_weights
from jaxcxr.training.plan import make_plan
from jaxcxr.training.resume import begin_or_continue
from tests.conftest import changed


def test_the_noise_is_calibrated_to_the_budget(tiny_config: Experiment, tiny_store: Store) -> None:
    plan = make_plan(tiny_config, tiny_store)
    assert plan.mechanism is not None
    from jaxcxr.privacy.accounting import Spending, epsilon_pld

    spent = epsilon_pld([Spending(plan.sample_rate, plan.mechanism.noise_multiplier, plan.steps)], 1e-4)
    assert 8.0 * 0.998 <= spent <= 8.0
    train_labels = tiny_store.split("train").labels
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


def test_facts_of_a_run_must_not_change_under_way(tiny_config: Experiment, tiny_store: Store, tmp_path: Path) -> None:
    plan = make_plan(tiny_config, tiny_store)
    begin_or_continue(plan, None, tmp_path / "run.json")
    begin_or_continue(plan, None, tmp_path / "run.json")
    facts = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(facts | {"store_fingerprint": "other"}))
    with pytest.raises(InputError, match="store_fingerprint"):
        begin_or_continue(plan, None, tmp_path / "run.json")


def test_weights_travel_and_misfits_are_listed(tmp_path: Path) -> None:
    params = {
        "params": {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "b": {"bias": np.ones(2, np.float32)}}
    }
    save_weights(tmp_path / "w", params, {"from": "here"})
    again = load_weights(tmp_path / "w", params)
    assert all(np.array_equal(u, v) for u, v in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True))
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
