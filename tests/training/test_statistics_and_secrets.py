"""What the loop does about noised class counts, the ledger's owner and the secret; nothing here compiles a step."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcxr.accounting import Spending, epsilon_pld
from jaxcxr.config import Experiment
from jaxcxr.config_files import validate
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy.class_counts import NoisedCounts
from jaxcxr.records.ledger import Ledger, Statistic, read_ledger, run_name
from jaxcxr.report import evaluated_runs
from jaxcxr.run_folder import SECRET
from jaxcxr.training import loop, objective, parameters
from jaxcxr.training.class_weights import counts_entry, draw_counts, noised_rates
from jaxcxr.training.loop import train
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.secret import DELETED_FILE, delete_secret, make_secret
from jaxcxr.workflows import experiment
from tests.conftest import changed


class StopError(Exception):
    """Ends a run before its first step."""


def noised(config: Experiment, **privacy: object) -> Experiment:
    config = changed(config, "training", class_weights="noised", seed=None)
    return changed(
        config,
        "privacy",
        **{"dataset_size": 50, "noise_multiplier": 1.5, "class_counts_noise_multiplier": 20.0, **privacy},
    )


@pytest.fixture(scope="module")
def plan(tiny_config: Experiment, tiny_store: Store) -> RunPlan:
    return make_plan(noised(tiny_config), tiny_store)


def begin(plan: RunPlan, out: Path, monkeypatch: pytest.MonkeyPatch, resume: bool = False) -> RunPlan:
    """Run up to the first step; gives the plan that the steps would follow."""
    met: list[RunPlan] = []

    def stop(plan: RunPlan, *_: Any) -> Any:
        met.append(plan)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_run", stop)
        with pytest.raises(StopError):
            train(plan, out, resume=resume, progress=False)
    return met[0]


def test_training_noise_pays_for_the_counts(tiny_config: Experiment, tiny_store: Store) -> None:
    plain = changed(tiny_config, "training", class_weights="none")
    paying = changed(tiny_config, "training", class_weights="noised")
    free, paid = (make_plan(config, tiny_store) for config in (plain, paying))
    assert free.mechanism is not None
    assert paid.mechanism is not None
    assert paid.class_counts is not None
    assert paid.mechanism.noise_multiplier > free.mechanism.noise_multiplier
    steps = Spending(paid.sample_rate, paid.mechanism.noise_multiplier, paid.steps)
    assert 8.0 * 0.998 <= epsilon_pld([*paid.already(), steps], 1e-4) <= 8.0
    assert epsilon_pld(paid.already(), 1e-4) == pytest.approx(0.8, rel=0.01)
    assert (paid.weights, free.already()) == (None, [])


def test_counts_that_cost_more_than_the_budget_are_refused(
    tiny_config: Experiment, tiny_store: Store
) -> None:
    for sigma in (None, 1.5):
        dear = noised(tiny_config, epsilon=0.5, class_counts_noise_multiplier=2.0, noise_multiplier=sigma)
        with pytest.raises(
            InputError,
            match=r"privacy\.epsilon 0\.5: the noised class counts alone cost 1\.69\d at .* of 2: nothing",
        ):
            make_plan(dear, tiny_store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: dataclasses.replace(c, privacy=None),
            "training.class_weights 'noised' is paid from a privacy budget",
        ),
        (
            lambda c: changed(c, "training", class_weights="none"),
            "class_counts_noise_multiplier: only training.class_weights",
        ),
        (lambda c: changed(c, "privacy", class_counts_noise_multiplier=0.0), "greater than 0"),
    ],
)
def test_configurations_at_odds_are_refused(
    tiny_config: Experiment, change: Callable[[Experiment], Experiment], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        validate(Experiment, dataclasses.asdict(change(noised(tiny_config))), "file")


def test_counts_are_written_down_before_they_are_drawn_and_once(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "run", []

    def watched(*arguments: Any) -> Any:
        seen.append(read_ledger(out / "ledger.jsonl")[1])
        return draw_counts(*arguments)

    monkeypatch.setattr(loop, "draw_counts", watched)
    first = begin(plan, out, monkeypatch)
    ledger, written = (out / "ledger.jsonl").read_bytes(), (out / "class_counts.json").read_bytes()
    again = begin(plan, out, monkeypatch, resume=True)
    line = Statistic("class_counts", 20.0, 3**0.5)
    assert seen == [[line], [line]]
    assert (out / "ledger.jsonl").read_bytes() == ledger
    assert (out / "class_counts.json").read_bytes() == written
    np.testing.assert_array_equal(first.weights, again.weights)
    described = json.loads(written)
    assert described["positive_weights"] == first.weights.tolist()  # type: ignore[union-attr]
    assert described["noise"].startswith("discrete")
    positives, negatives = np.array(described["positives"]), np.array(described["negatives"])
    counts = NoisedCounts(positives, negatives, described["step"], line)
    np.testing.assert_array_equal(counts.positives % described["step"], 0)
    np.testing.assert_array_equal(first.weights, objective.positive_weights(noised_rates(counts)))
    facts = json.loads((out / "run.json").read_text())
    assert (facts["release"], facts["class_weights_covered"], facts["positive_weights"]) == (True, True, None)
    assert facts["class_counts_noise_multiplier"] == 20.0


def test_a_run_that_lost_its_secret_does_not_draw_its_counts_again(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(plan, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "checkpoints" / SECRET).unlink()
    with pytest.raises(InputError, match="the run has begun but its secret is gone"):
        train(plan, tmp_path / "run", resume=True, progress=False)


def test_a_begun_run_keeps_the_noise_of_its_counts(
    tiny_config: Experiment, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another version of the accountant had calibrated it."""
    calibrated = make_plan(noised(tiny_config, class_counts_noise_multiplier=None), tiny_store)
    assert calibrated.class_counts is not None
    other = dataclasses.replace(
        calibrated, class_counts=dataclasses.replace(calibrated.class_counts, noise_multiplier=33.0)
    )
    begin(other, tmp_path / "run", monkeypatch)
    resumed = begin(calibrated, tmp_path / "run", monkeypatch, resume=True)
    assert resumed.class_counts == other.class_counts


def test_a_patient_counts_once(tiny_config: Experiment, tiny_store: Store) -> None:
    labels = tiny_store.split("train").labels
    found = {}
    for unit in ("image", "patient"):
        config = noised(tiny_config, unit=unit, epsilon=100.0, class_counts_noise_multiplier=0.1)
        entry = counts_entry(config)
        assert entry is not None
        found[unit] = draw_counts(config, tiny_store.split("train", config.data.findings), entry, bytes(32))
    of_images, of_patients = (np.r_[counts.positives, counts.negatives] for counts in found.values())
    np.testing.assert_allclose(of_images, np.r_[(labels == 1).sum(0), (labels == 0).sum(0)], atol=1.0)
    np.testing.assert_allclose(of_patients, of_images / 2, atol=1.0)  # two images per patient


@pytest.mark.parametrize("sigma", [1e-4, 1e12])
def test_noise_of_counts_that_does_not_fit_the_grid_is_refused(
    tiny_config: Experiment, tiny_store: Store, sigma: float
) -> None:
    config = noised(tiny_config, class_counts_noise_multiplier=sigma)
    with pytest.raises(
        InputError, match=r"privacy\.class_counts_noise_multiplier: .* does not fit .*expected one between"
    ):
        make_plan(config, tiny_store)


def test_an_epsilon_in_the_log_includes_the_counts(plan: RunPlan, tmp_path: Path) -> None:
    log = loop.Log(tmp_path, plan, 0, 6, progress=False)
    log.close()
    steps = Spending(plan.sample_rate, 1.5, 6)
    assert log._epsilon(6) == epsilon_pld([*plan.already(), steps], 1e-4) > epsilon_pld([steps], 1e-4)


def test_the_ledger_of_another_run_is_refused(
    tiny_plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same terms, same lines: only the name of the run tells them apart."""
    out = tmp_path / "run"
    begin(tiny_plan, out, monkeypatch)
    terms = read_ledger(out / "ledger.jsonl")[0]
    assert terms.run == run_name((out / "checkpoints" / SECRET).read_bytes())
    (out / "ledger.jsonl").unlink()
    Ledger(out / "ledger.jsonl", dataclasses.replace(terms, run=run_name(b"another secret"))).close()
    with pytest.raises(InputError, match="the ledger belongs to another run"):
        train(tiny_plan, out, resume=True, progress=False)


def test_a_deleted_secret_is_gone_and_said_to_be(
    tiny_plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    begin(tiny_plan, out, monkeypatch)
    folder = out / "checkpoints"
    secret = (folder / SECRET).read_bytes()
    delete_secret(folder)
    delete_secret(folder)  # a second time is nothing
    assert [path.name for path in folder.iterdir() if path.is_file()] == [DELETED_FILE]
    assert secret not in (folder / DELETED_FILE).read_bytes()
    with pytest.raises(
        InputError, match=r"secret\.key: the secret was deleted when the run was finished .* cannot go on"
    ):
        train(tiny_plan, out, resume=True, progress=False)
    assert not (folder / SECRET).exists()


def test_a_deletion_that_was_cut_short_never_leaves_an_overwritten_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secret(tmp_path, None)
    monkeypatch.setattr("jaxcxr.training.secret.os.fsync", lambda _: (_ for _ in ()).throw(StopError()))
    with pytest.raises(StopError):
        delete_secret(tmp_path)
    assert not (tmp_path / SECRET).exists()
    monkeypatch.undo()
    delete_secret(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [DELETED_FILE]


def test_discrete_noise_counts_the_trained_parameters(tiny_config: Experiment, tiny_store: Store) -> None:
    config = changed(tiny_config, "privacy", noise="discrete", noise_multiplier=1.5)
    plan = make_plan(config, tiny_store)
    head = make_plan(changed(config, "training", scope="head"), tiny_store)
    assert plan.mechanism is not None
    assert head.mechanism is not None
    shapes = jax.eval_shape(lambda: parameters.random_params(plan.config, bytes(32)))
    assert plan.mechanism.discrete_coordinates == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert head.mechanism.discrete_coordinates == 3 * 4 + 3  # four features
    assert plan.describe().get("discrete_coordinates") == plan.mechanism.discrete_coordinates
    with pytest.raises(
        InputError, match=r"privacy\.noise: discrete noise: a noise multiplier of 1e-06 does not fit"
    ):
        make_plan(changed(config, "privacy", noise_multiplier=1e-6), tiny_store)


def test_patients_of_an_image_level_run_are_told_to_the_operator(
    plan: RunPlan, tiny_plan: RunPlan, tmp_path: Path
) -> None:
    said: list[str] = []
    rows = experiment.of_patients(tiny_plan, said.append)
    assert [(row["patient"], row["films"]) for row in rows] == [
        ("median", 2),
        ("95th percentile", 2),
        ("maximum", 2),
    ]
    assert 8.0 < rows[0]["epsilon_lower"] < rows[0]["epsilon_upper"]  # type: ignore[operator]
    assert "for the operator only" in said[0]
    assert "maximum (2 films) at most" in said[0]
    experiment._write_patients(rows, tmp_path / "patients.json")
    assert json.loads((tmp_path / "patients.json").read_text())["for"].startswith(
        "the operator; not for release"
    )
    by_patient = dataclasses.replace(tiny_plan, config=changed(tiny_plan.config, "privacy", unit="patient"))
    assert experiment.of_patients(by_patient, said.append) == []
    assert len(said) == 1


@pytest.mark.parametrize(
    ("patients", "told"),
    [(["one"] * 10_000, r"maximum \(10000 films\) not protected"), (["a", " ", "c"], r"no epsilon for patients: .*row 2, column 'patient_id'")],
)  # fmt: skip
def test_patients_with_very_many_films_or_no_id(tiny_plan: RunPlan, patients: list[str], told: str) -> None:
    said: list[str] = []
    split = dataclasses.replace(tiny_plan.split, frame=pd.DataFrame({"patient_id": patients}))
    experiment.of_patients(dataclasses.replace(tiny_plan, split=split), said.append)
    assert len(said) == 1
    assert pd.Series(said).str.contains(told, regex=True).all(), said


def test_a_stopped_run_reports_the_steps_of_its_ledger(
    tiny_plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tiny_plan, tmp_path / "run", monkeypatch)
    terms, _ = read_ledger(tmp_path / "run" / "ledger.jsonl")
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl", terms)
    ledger.record(Statistic("class_counts", 20.0, 1.7))
    assert tiny_plan.mechanism is not None
    for step in range(4):
        ledger.record(tiny_plan.mechanism.entry(step))
    ledger.close()
    monkeypatch.setattr(evaluated_runs, "read_evaluation", lambda _: pd.DataFrame())
    assert evaluated_runs.read_run(tmp_path / "run").steps == 4
