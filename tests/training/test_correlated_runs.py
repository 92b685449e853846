"""Runs whose noise is correlated: what they spend, how they resume, and what does not go with them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr import run_folder
from jaxcxr.accounting import Spending, banded, epsilon_pld
from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy.correlated import Correlation, Stream
from jaxcxr.records import spent
from jaxcxr.records.ledger import BandedEntry, read_ledger
from jaxcxr.records.spent import spent_of
from jaxcxr.run_folder import promise_of
from jaxcxr.training import batches, build, objective
from jaxcxr.training.loop import Outcome, train
from jaxcxr.training.plan import RunPlan, make_plan, unit_ids
from jaxcxr.training.step import make_step
from tests.conftest import changed
from tests.training.test_loop import bits, cut_at, linear_loss, microbatches, seven_images

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_network")
BANDS = 3


@pytest.fixture(scope="module")
def config(tiny_config: Experiment) -> Experiment:
    config = changed(tiny_config, "training", log_every=1, class_weights="none", steps=8)
    return changed(config, "privacy", noise_bands=BANDS)


@pytest.fixture(scope="module")
def plan(config: Experiment, tiny_store: Store) -> RunPlan:
    return make_plan(config, tiny_store)


@pytest.fixture(scope="module")
def whole(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(plan, out, progress=False)


def test_a_run_spends_the_rounds_of_one_group(whole: tuple[Path, Outcome], plan: RunPlan) -> None:
    m = plan.mechanism
    assert m is not None
    rate = 6 * BANDS / 50  # of the 50 training films
    assert (plan.sample_rate, m.sample_rate, m.bands) == (6 / 50, rate, BANDS)
    assert list(read_ledger(whole[0] / "ledger.jsonl")[1]) == [
        BandedEntry(step, rate, m.noise_multiplier, 1.0, BANDS, step % BANDS) for step in range(8)
    ]
    found = spent_of(whole[0])
    assert found is not None
    assert found.spendings == [
        Spending(rate, m.noise_multiplier, 3)
    ]  # of eight steps a unit is in three at most
    assert found.bounds().upper == epsilon_pld(found.spendings, 1e-4)
    assert 0.999 * 8.0 <= found.bounds().upper <= 8.0
    last = json.loads((whole[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epsilon"] == found.bounds().upper
    facts = json.loads((whole[0] / "run.json").read_text())
    assert facts["noise_column"] == list(banded.coefficients(BANDS, 8))
    assert facts["sample_rate"] == rate


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_has_the_same_bits(
    whole: tuple[Path, Outcome], plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    cut_at(plan, tmp_path / "cut", stop, monkeypatch)
    resumed = train(plan, tmp_path / "cut", resume=True, progress=False)
    assert bits(resumed.params) == bits(whole[1].params)
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


def test_a_resumed_run_keeps_its_column(
    whole: tuple[Path, Outcome], plan: RunPlan, config: Experiment, tiny_store: Store, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another version of scipy may find another one, in its last digit."""
    cut_at(plan, tmp_path / "cut", 5, monkeypatch)
    monkeypatch.setattr(banded, "coefficients", lambda bands, _: (1.0, *(0.3,) * (bands - 1)))
    other = make_plan(config, tiny_store)
    assert other.mechanism != plan.mechanism
    assert bits(train(other, tmp_path / "cut", resume=True, progress=False).params) == bits(whole[1].params)


def test_the_steps_noise_is_the_streams_of_the_bound_secret(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the steps add is what the mechanism says, from step 0, in the order of the steps."""
    seen: list[tuple[int, Any]] = []
    original = Stream.at

    def at(self: Stream, step: int, like: Any) -> Any:
        seen.append((step, original(self, step, like)))
        return seen[-1][1]

    monkeypatch.setattr(Stream, "at", at)
    added: list[Any] = []

    def finish(step: Any) -> Any:
        def watched(params: Any, state: Any, total: Any, randomness: Any, clipping: Any = None) -> Any:
            added.append(jax.tree.map(np.asarray, randomness))
            return step.finish(params, state, total, randomness, clipping)

        return dataclasses.replace(step, finish=watched)

    train(plan, tmp_path / "run", progress=False, observe=finish)
    assert [step for step, _ in seen] == list(range(8))
    assert bits([noise for _, noise in seen]) == bits(added)


def test_batches_are_of_one_group_in_turn(plan: RunPlan) -> None:
    secret = bytes(32)
    groups = batches.groups_of(plan, secret)
    assert groups is not None
    seen = [batches.sampled_images(plan, secret, step)[:, 0] for step in range(60)]
    for step, images in enumerate(seen):
        assert set(groups[images]) <= {step % BANDS}
    drawn = np.bincount(np.concatenate(seen), minlength=50)
    assert drawn.sum() == pytest.approx(60 * 6, rel=0.15)
    assert drawn.max() <= 20


def test_the_films_of_a_patient_share_a_group(plan: RunPlan, config: Experiment, tiny_store: Store) -> None:
    """Whatever the unit: so a patient with several films is in the steps of one group alone."""
    groups = batches.groups_of(plan, bytes(32))
    assert groups is not None
    patients = plan.split.frame["patient_id"].to_numpy()
    for patient in set(patients):
        assert len(set(groups[patients == patient])) == 1
    by_patient = make_plan(
        changed(config, "privacy", unit="patient", images_per_patient=2, noise_bands=2), tiny_store
    )
    assert len(by_patient.unit_ids) == len(by_patient.units) == 25
    first = [patients[int(of_unit[0])] for of_unit in by_patient.units]
    assert by_patient.unit_ids == tuple(f"patient {patient}" for patient in first)


def test_somebody_less_moves_nobody_to_another_group(plan: RunPlan) -> None:
    groups = batches.groups_of(plan, bytes(32))
    assert groups is not None
    without = dataclasses.replace(plan, units=plan.units[10:], unit_ids=plan.unit_ids[10:])
    found = batches.groups_of(without, bytes(32))
    assert found is not None
    assert found.tolist() == groups[10:].tolist()


def test_films_without_a_patient_go_by_themselves(plan: RunPlan) -> None:
    frame = plan.split.frame.copy()
    frame.loc[frame.index[:2], "patient_id"] = [None, " "]
    split = dataclasses.replace(plan.split, frame=frame)
    ids = unit_ids(split, plan.units)
    assert ids[:3] == ("image film000", "image film001", f"patient {frame['patient_id'].iloc[2]}")


def test_two_devices_do_what_one_does(plan: RunPlan) -> None:
    assert plan.mechanism is not None
    images, labels = seven_images()
    release, found = objective.Gradients(linear_loss, plan.mechanism), []
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        functions = make_step(release, build.optimizer_of(plan), 6, 2, devices)
        params = functions.replicate({"kernel": jnp.ones((64, 3))})
        state = functions.replicate(build.optimizer_of(plan).init(params))
        stream = plan.mechanism.stream(bytes(32))
        for step in range(4):
            total = functions.start(params)
            for piece in microbatches(images, labels, functions.microbatch_size):
                total = functions.accumulate(params, total, functions.place(piece))
            total, _ = functions.collect(total)
            params, state, *_ = functions.finish(params, state, total, stream.at(step, total.high))
        found.append(bits(params))
    assert found[0] == found[1]


def test_training_ends_with_the_last_round_that_the_budget_pays(
    config: Experiment, tiny_store: Store, tmp_path: Path
) -> None:
    m = make_plan(config, tiny_store).mechanism
    assert m is not None
    two = epsilon_pld([m.spending(2 * BANDS)], 1e-4)
    short = make_plan(
        changed(config, "privacy", epsilon=two * 1.001, noise_multiplier=m.noise_multiplier), tiny_store
    )
    outcome = train(short, tmp_path / "run", progress=False)
    assert (outcome.steps_done, outcome.stopped_by) == (2 * BANDS, "budget")


def test_auto_takes_what_the_accountant_says(config: Experiment, tiny_store: Store) -> None:
    m = make_plan(changed(config, "privacy", noise_bands="auto"), tiny_store).mechanism
    assert m is not None
    assert m.bands == banded.chosen_bands((8.0, 1e-4), (6, 50), 8) > 1
    assert m.correlation == Correlation(banded.coefficients(m.bands, 8))


def test_files_that_disagree_are_found(whole: tuple[Path, Outcome]) -> None:
    promise, entries = promise_of(whole[0]), [*read_ledger(whole[0] / "ledger.jsonl")[1]]
    assert promise is not None
    entries[4] = dataclasses.replace(entries[4], group=0)
    with pytest.raises(InputError, match=r"step 4 is of group 0 of 3 in ledger\.jsonl, of group 1 of 3"):
        spent._require_steps(whole[0], promise, entries, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"noise_bands is 3 in config\.yaml, 2 in run\.json"):
        run_folder._bands(whole[0], {"noise_column": [1.0, 0.5]}, 3)
    with pytest.raises(InputError, match="noise_column: expected a list of numbers"):
        run_folder._bands(whole[0], {"noise_column": 2}, 3)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("privacy", {"noise": "discrete"}, "privacy.noise: 'discrete' noise is whole numbers"),
        ("training", {"optimizer": "adam_bc"}, "training.optimizer: 'adam_bc' supposes that the noise"),
        (
            "training",
            {"optimizer": "least_squares", "scope": "head"},
            "training.optimizer: 'least_squares' supposes that the noise",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    config: Experiment, section: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        changed(config, section, **fields).check()


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (9, "expected at most 8 bands, or a smaller batch"),
        (8, None),
        (64, "expected at most the 8 steps of the run"),
    ],
)
def test_bands_that_the_run_cannot_have_are_refused(
    config: Experiment, tiny_store: Store, bands: int, message: str | None
) -> None:
    if message is None:
        make_plan(changed(config, "privacy", noise_bands=bands, noise_multiplier=1.0), tiny_store)
        return
    config = changed(config, "training", steps=9 if bands == 9 else 8)
    with pytest.raises(InputError, match=f"privacy.noise_bands: .*{message}"):
        make_plan(changed(config, "privacy", noise_bands=bands), tiny_store)
