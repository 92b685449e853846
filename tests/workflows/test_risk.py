"""A risk assessment from finished runs to its page; what it refuses, keeps and says."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig, Experiment
from jaxcxr.data.store import Store, write_store
from jaxcxr.digests import seal
from jaxcxr.errors import InputError
from jaxcxr.report.page.risk_page import OTHER_MODELS, risk_sections, write_risk_page
from jaxcxr.report.risk_files import RISK, STAYS, read_risk
from jaxcxr.run_folder import CHECKPOINTS, EVALUATION, PREDICTIONS, UNTOUCHED
from jaxcxr.training.loop import train
from jaxcxr.training.plan import make_plan
from jaxcxr.workflows import risk as risk_workflow
from jaxcxr.workflows import risk_report
from jaxcxr.workflows.changed_images import most_changed, write_changed
from jaxcxr.workflows.experiment import predict_and_evaluate
from jaxcxr.workflows.risk import Asked, Risk, assess
from jaxcxr.workflows.risk_inputs import targets_of
from jaxcxr.workflows.risk_price import price
from tests.conftest import changed, load_script

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_network")

EVALUATION_OF_FEW = EvaluationConfig(redraws=20, min_group_images=5, min_group_positives=2, groups=("sex",))
ASKED = Asked(models=8)


@pytest.fixture(scope="module")
def trained(tiny_config: Experiment, tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one budget and the model without privacy."""
    sweep = tmp_path_factory.mktemp("sweep")
    private = changed(dataclasses.replace(tiny_config, evaluation=EVALUATION_OF_FEW), "training", steps=2)
    for name, config in (
        ("epsilon_8", private),
        ("non_private", dataclasses.replace(private, privacy=None)),
    ):
        outcome = train(make_plan(config, tiny_store), sweep / name)
        predict_and_evaluate(config, outcome.params, tiny_store, sweep / name)
    return sweep


@pytest.fixture(scope="module")
def assessed(trained: Path) -> tuple[Path, Risk]:
    risk = assess(trained, ASKED, say=lambda _: None)
    price(trained, risk, EVALUATION_OF_FEW, ("cardiomegaly", "atelectasis_right", "atelectasis_left"))
    return trained, risk


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "sweep", ignore=shutil.ignore_patterns(RISK))
    return tmp_path / "sweep"


def test_every_file_says_first_that_it_stays_and_is_the_owners_alone(assessed: tuple[Path, Risk]) -> None:
    folder = assessed[0] / RISK
    tables = sorted(folder.glob("*.csv"))
    assert {t.name for t in tables} == {
        "attacks.csv", "exposure.csv", "limits.csv", "price.csv", "joined.csv", "patients.csv", "test_patients.csv",
    }  # fmt: skip
    for table in tables:
        assert table.read_text().splitlines()[0] == f"# {STAYS}"
        assert table.stat().st_mode & 0o077 == 0
    facts = json.loads((folder / "risk.json").read_text())
    assert next(iter(facts.items())) == ("stays", STAYS)
    assert folder.stat().st_mode & 0o077 == 0


def test_each_training_patient_has_a_risk_and_the_budget_a_limit(
    assessed: tuple[Path, Risk], tiny_store: Store
) -> None:
    folder, risk = assessed
    patients = pd.read_csv(folder / RISK / "patients.csv", skiprows=1)
    train_ids = set(tiny_store.split("train").frame["patient_id"])
    assert set(patients["patient_id"]) == train_ids
    assert set(patients["images"]) == {2}
    for column in ("lira_found_non_private", "rmia_found_epsilon_8", "p_holm_epsilon_8"):
        assert patients[column].between(0, 1).all()
    attacks = risk.attacks
    assert set(attacks["model"]) == {"without privacy", "epsilon 8"}
    assert np.all(attacks["true_positive_rate"].isna())  # 20 held-out patients have no rate of 1 %
    assert np.all(attacks["note"] != "")
    limits = pd.read_csv(folder / RISK / "limits.csv", skiprows=1).set_index("unit")
    # a patient of two images is protected less than an image
    assert limits.loc["maximum", "images"] == 2
    assert limits.loc["maximum", "limit_0.01"] > limits.loc["image", "limit_0.01"]
    assert limits.loc["maximum", "epsilon_upper"] > limits.loc["image", "epsilon_upper"] > 1


def test_a_second_call_reads_what_the_first_one_kept(
    assessed: tuple[Path, Risk], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = assessed
    monkeypatch.setattr(risk_workflow, "said_by_heads", None)  # nothing is trained
    again = assess(folder, ASKED, say=lambda _: None)
    pd.testing.assert_frame_equal(again.exposed.table, first.exposed.table)
    pd.testing.assert_frame_equal(again.attacks, first.attacks)
    with pytest.raises(TypeError):  # another seed has other halves
        assess(folder, Asked(models=8, seed=1), say=lambda _: None)


def test_damaged_kept_files_are_refused(sweep: Path) -> None:
    assess(sweep, ASKED, say=lambda _: None)
    for kept in (sweep / RISK / "kept").glob("heads-*.npz"):
        kept.write_bytes(b"not an archive")
    with pytest.raises(InputError, match="is damaged"):
        assess(sweep, ASKED, say=lambda _: None)


def test_the_page_shows_what_was_measured_and_not_other_models(
    assessed: tuple[Path, Risk], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(assessed[0], folder)
    page, sentences = write_risk_page(folder)
    text = page.read_text()
    assert "Privacy and fairness in one picture" in text
    assert "stays where the data stay" in text
    assert all(sentence.endswith((".", "?")) for sentence in sentences)
    assert any("cannot be judged" in sentence for sentence in sentences)
    sections, told = risk_sections(folder)
    assert len(sections) == 2
    assert told == sentences
    table = pd.read_parquet(folder / "epsilon_8" / PREDICTIONS)
    table.assign(p_cardiomegaly=0.5).to_parquet(folder / "epsilon_8" / PREDICTIONS)
    assert risk_sections(folder) == ((), (OTHER_MODELS,))


def test_groups_of_test_and_training_patients_are_the_same(assessed: tuple[Path, Risk]) -> None:
    found = read_risk(assessed[0])
    assert found is not None
    assert found.price is not None
    exposed, paid = set(found.exposure["group"]), set(found.price["group"])
    assert exposed == paid  # two models leave nobody to judge difficulty by
    assert {"all", "sex_F", "sex_M", "images_2_5", "cardiomegaly_present", "cardiomegaly_absent"} <= exposed
    small = found.exposure.loc[found.exposure["patients"] < 5]
    assert (small.loc[small["group"] != "all", "note"] == "suppressed: fewer than 5 patients").all()


def test_a_run_by_itself_has_exposure_and_no_price(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sweep / "epsilon_8"
    monkeypatch.setattr(risk_report, "write_sweep", None)
    sentences, written = risk_report.assess_and_report(run, models=8, seed=0, say=lambda _: None)
    assert not (run / RISK / "price.csv").exists()
    assert [path.name for path in written] == ["report.html", RISK]
    assert not any("pay" in sentence for sentence in sentences)


def broken(sweep: Path, what: str) -> Path:
    match what:
        case "nothing there":
            (sweep / "empty").mkdir()
            return sweep / "empty"
        case "unfinished run":
            (sweep / "epsilon_8" / EVALUATION).unlink()
            return sweep / "epsilon_8"
        case "unfinished run in the sweep":
            (sweep / "epsilon_8" / EVALUATION).unlink()
        case "no checkpoint":
            for step in (sweep / "epsilon_8" / CHECKPOINTS).glob("[0-9]*"):
                shutil.rmtree(step)
        case "no model without privacy":
            shutil.rmtree(sweep / "non_private")
        case "no private model":
            shutil.rmtree(sweep / "epsilon_8")
    return sweep


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing there", "expected the folder of a finished run or sweep"),
        ("unfinished run", "is not finished"),
        ("unfinished run in the sweep", "is not finished"),
        ("no checkpoint", "has no checkpoint"),
        ("no model without privacy", "has no model without privacy"),
        ("no private model", "has no private model"),
    ],
)
def test_folders_that_cannot_be_assessed_are_refused(sweep: Path, what: str, said: str) -> None:
    folder = broken(sweep, what)
    with pytest.raises(InputError, match=said):
        assess(folder, ASKED, say=lambda _: None)
    assert not (folder / RISK).exists()


def store_of(tmp_path: Path, tiny_store: Store, patients: int, splits: tuple[int, int]) -> Store:
    n = 2 * patients
    frame = tiny_store.manifest.iloc[:n].assign(split=np.repeat(["train", "test"], [2 * s for s in splits]))
    images = iter(np.zeros((n, 32, 32), np.uint8))
    return write_store(
        tmp_path / "other",
        frame,
        images,
        size=32,
        findings=tiny_store.findings,
        preprocessing={"made": "here"},
    )


def as_if_trained_on(sweep: Path, store: Store) -> None:
    """Say in every run that it was trained on a store."""
    for run in sweep.glob("*/run.json"):
        run.write_text(json.dumps(json.loads(run.read_text()) | {"store_fingerprint": store.fingerprint}))
        seal(run)


@pytest.mark.parametrize(
    ("patients", "splits", "same", "said"),
    [
        (45, (25, 20), False, "is another cohort than"),
        (39, (25, 14), True, "has 39 patients; halves for reference models need at least 40"),
        (45, (45, 0), True, "has no held-out"),
        (45, (0, 45), True, "has no training patients"),
    ],
)
def test_stores_that_cannot_be_assessed_are_refused(
    sweep: Path,
    tmp_path: Path,
    tiny_store: Store,
    patients: int,
    splits: tuple[int, int],
    same: bool,
    said: str,
) -> None:
    store = store_of(tmp_path, tiny_store, patients, splits)
    if same:
        as_if_trained_on(sweep, store)
    run = sweep / "non_private"
    with pytest.raises(InputError, match=said):
        assess(run, ASKED, store.path, say=lambda _: None)


@pytest.mark.parametrize("started", ["epsilon_8", "non_private", None])
def test_the_untouched_weights_are_attacked_if_any_model_started_from_them(
    sweep: Path, started: str | None
) -> None:
    """Runs of one sweep may start from different ones: a head that is trained alone is calibrated first."""
    (sweep / UNTOUCHED).mkdir()
    for file in ("run.json", PREDICTIONS):
        shutil.copy(sweep / "epsilon_8" / file, sweep / UNTOUCHED / file)
    for name in ("epsilon_8", "non_private", UNTOUCHED):
        facts = json.loads((sweep / name / "run.json").read_text())
        facts |= {"initial_weights_sha256": name, "weights_sha256": started or "others"}
        (sweep / name / "run.json").write_text(json.dumps(facts))
        seal(sweep / name / "run.json")
    names = [target.name for target in targets_of(sweep)]
    assert ("before training" in names) == (started is not None)


def test_too_few_models_are_refused(sweep: Path) -> None:
    with pytest.raises(InputError, match="--models: expected at least 8"):
        assess(sweep, Asked(models=7), say=lambda _: None)


def test_the_images_on_which_two_models_disagree_most_are_drawn(sweep: Path, tmp_path: Path) -> None:
    private, plain = sweep / "epsilon_8", sweep / "non_private"
    table = pd.read_parquet(private / PREDICTIONS)
    table["p_atelectasis_right"] = pd.read_parquet(plain / PREDICTIONS)["p_atelectasis_right"]
    moved = table.index[np.flatnonzero(table["split"] == "test")[3]]
    table.loc[moved, "p_atelectasis_right"] = 0.999
    table.to_parquet(private / PREDICTIONS)
    seal(private / PREDICTIONS)
    shown = most_changed(plain, private, 2)
    assert shown[0][:2] == (table.loc[moved, "image_id"], "atelectasis_right")
    explain, out = load_script("explain.py"), tmp_path / "sheet.svg"
    explain.main([str(private), "--changed", str(plain), "--most", "2", "--out", str(out)])
    text = out.read_text()
    assert len(text) > 10_000
    assert max(map(len, re.findall("<!-- (.*?) -->", text))) <= 90  # headings fit the sheet
    with pytest.raises(InputError, match="both or neither"):
        explain.main([str(private), "--out", str(out)])
    with pytest.raises(InputError, match="--most"):
        write_changed(plain, private, out, 0)


def test_parts_that_are_run_elsewhere_leave_nothing_to_be_asked(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four processes, say; the assessment reads what they kept."""
    named = risk_workflow.parts(sweep)
    assert named == [
        "model-non_private", "model-epsilon_8", "references-non_private", "references-epsilon_8",
    ]  # fmt: skip
    for name in named:
        risk_workflow.run_part(sweep, name, ASKED, say=lambda _: None)
    told: list[str] = []
    monkeypatch.setattr(risk_workflow, "said_by_heads", lambda *_: pytest.fail("trained again"))
    assess(sweep, ASKED, say=told.append)
    assert told == ["epsilon 8: limits that the budget sets to any attack"]
    with pytest.raises(
        InputError, match="--part model-x: expected one of model-non_private, model-epsilon_8, "
    ):
        risk_workflow.run_part(sweep, "model-x", ASKED)
