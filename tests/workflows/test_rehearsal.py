"""A dry run says what a run would be, warns of what is odd, and writes nothing."""

import dataclasses
from pathlib import Path

import jax
import pytest

from jaxcxr.cli import train
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump
from jaxcxr.training import parameters
from jaxcxr.training.plan import make_plan
from jaxcxr.training.step_time import StepTime, measure_step
from jaxcxr.workflows import rehearsal
from tests.conftest import changed

MEASURED = StepTime(10.0, 0.5, 0.25, 3, 16, 2_500_000, 1_200_000_000)


def lines(config: Experiment) -> str:
    return "\n".join(rehearsal.rehearse(config, lambda _: None).lines())


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "measure_step", lambda _: MEASURED)


def test_a_step_is_measured_as_it_is_run(tiny_config: Experiment, tiny_store) -> None:
    """Microbatches of 2 images on each of 2 devices; 6 of 50 images are expected."""
    plan = make_plan(tiny_config, tiny_store)
    time = measure_step(plan)
    assert (time.units, time.microbatches) == (4, 2)
    assert time.microbatch > 0
    assert time.update > 0
    assert time.compiling > time.microbatch
    assert time.step == pytest.approx(2 * time.microbatch + time.update)
    shapes = jax.eval_shape(lambda: parameters.random_params(plan.config, bytes(32)))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 4 * 3 * numbers < time.resident_bytes < 4 * 8 * numbers  # parameters, two moments and sums


def test_it_says_who_what_and_what_it_costs(tiny_config: Experiment, timed: None) -> None:
    said = lines(tiny_config)
    for part in (
        "50 training images of 25 patients",
        "20 validation and 20 test images",
        "6 of 6 images each on average (sample rate 0.12, 0.72 passes",
        "epsilon 8 at delta 0.0001, unit image",
        "epsilon of a patient",
        "2.5 MB for a microbatch of 16 images, 1.2 GB for parameters",
        "about 10 s for 6 steps of 1.8 s (3 microbatches of 0.5 s",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("section", "fields", "warning"),
    [
        (
            "training",
            {},
            "training.expected_batch_size 6: in each step every weight's mean gradient gets noise",
        ),
        ("training", {}, "training.seed is set"),
        ("training", {}, "training.class_weights 'paper' are exact statistics"),
        ("model", {}, "model.weights is null: a private run from random weights learns little"),
        ("privacy", {"dataset_size": 500}, "privacy.dataset_size is 500, but 50 images are there"),
        (
            "privacy",
            {"dataset_size": 50, "unit": "patient"},
            "50 looks like the number of images (50), but the unit is the patient",
        ),
        ("privacy", {}, "privacy.dataset_size is null"),
    ],
)
def test_it_warns(tiny_config: Experiment, timed: None, section: str, fields: dict, warning: str) -> None:
    said = lines(changed(tiny_config, section, **fields))
    assert any(line.startswith("WARNING:") and warning in line for line in said.splitlines())


def test_no_warning_where_nothing_is_odd(tiny_nonprivate_config: Experiment, timed: None) -> None:
    said = lines(tiny_nonprivate_config)
    assert "WARNING" not in said
    assert "training without privacy: 20 steps of 16 expected images" in said


def test_weights_that_would_be_made_first_are_named(tiny_config: Experiment, timed: None) -> None:
    made = changed(tiny_config, "model", weights="nowhere/w", pretraining="configs/pretrain_synthetic.yaml")
    assert (
        "nowhere/w, which is not there and would first be made by configs/pretrain_synthetic.yaml"
        in lines(made)
    )


def test_train_dry_run_writes_no_run(
    tiny_config: Experiment,
    timed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dump(dataclasses.replace(tiny_config), tmp_path / "tiny.yaml")
    train.main(["--config", "tiny.yaml", "--dry-run", "--privacy.epsilon", "4"])
    said = capsys.readouterr()
    assert "epsilon 4 at delta" in said.out
    assert "loading JAX" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
