import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.atomic import exclusive_lock
from jaxcxr.data.store import write_store
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import run_name
from jaxcxr.release import register, released_weights
from jaxcxr.release.attributes import normalise
from jaxcxr.release.build import build_release
from jaxcxr.release.check import check_registered, check_release
from jaxcxr.release.gate import passage
from jaxcxr.release.readme import readme_text
from jaxcxr.release.register import REGISTER
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_card
from jaxcxr.report.card.card_schema import PrivacyCard, SiblingRow, read_card
from jaxcxr.report.card.page import card_html, write_card
from jaxcxr.training.weights import flat_weights, weights_digest
from tests.release.run_folder import MANIFEST, PARAMS, cohort, make_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

SECRETS = [bytes([i]) * 32 for i in range(1, 5)]
SPENT = [Spending(0.05, 1.0, 5), Spending(1.0, 20.0, 1)]


@pytest.fixture(autouse=True, scope="module")
def tiny_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            released_weights,
            "network_shapes",
            lambda _: {k: v.shape for k, v in flat_weights(PARAMS).items()},
        )
        yield


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(cohort().path, tmp_path / "store"))


def released(run: Path, store: Path | None = None) -> PrivacyCard:
    """Let a run's weights leave, as a release and an export do."""
    with passage(run, store=store) as found:
        assert found.card is not None
        found.register()
        return found.card


def lines(store: Path) -> list[dict]:
    return [json.loads(line) for line in (store / REGISTER).read_text().splitlines()]


def test_the_first_model_has_no_siblings_and_is_registered(store: Path, tmp_path: Path) -> None:
    card = released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    assert (card.siblings, card.together) == ([], None)
    assert any(
        said.startswith("No other model of this cohort is published: the register")
        for said in card.assumptions
    )
    first, entry = lines(store)
    assert first["store"] == cohort().fingerprint
    assert entry["run"] == run_name(SECRETS[0])
    assert entry["sibling"]["ledger"] == card.fingerprints.ledger
    assert (entry["sibling"]["unit"], entry["delta"]) == ("patient", 1e-4)
    assert [(row["name"], row["steps"]) for row in entry["sibling"]["mechanisms"]] == [
        ("noised class counts", 1),
        ("noised gradient", 5),
    ]


def test_later_cards_say_what_all_released_models_cost_together(store: Path, tmp_path: Path) -> None:
    first = released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    second = released(make_run(tmp_path / "b", store=store, secret=SECRETS[1], unit="patient_one_image"))
    run = make_run(tmp_path / "c", store=store, secret=SECRETS[2], unit="patient", epsilon=1.2)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("epsilon: 3.0", "epsilon: 1.2")
    )
    third = released(run)
    assert second.siblings is not None
    assert third.siblings is not None
    assert [row.ledger for row in third.siblings] == [first.fingerprints.ledger, second.fingerprints.ledger]
    assert [row.unit for row in third.siblings] == ["patient", "patient_one_image"]
    assert third.together is not None
    assert second.together is not None
    assert (second.together.models, third.together.models, third.together.unit) == (2, 3, "patient")
    for card, models in ((second, 2), (third, 3)):
        exact = accounting.epsilon_bounds([part for _ in range(models) for part in SPENT], 1e-4).upper
        assert card.together is not None
        assert card.together.epsilon_upper is not None
        assert exact <= card.together.epsilon_upper <= exact * 1.0001
    assert third.claim.epsilon_upper == first.claim.epsilon_upper
    assert third.together.epsilon_upper is not None
    assert (
        third.together.epsilon_upper > third.claim.budget
    )  # no refusal, but what a reader sees beside the own one
    assert third.for_release
    text = " ".join(card_html(third).split())
    claim = text[text.index('class="questions"') : text.index("What the figures mean")]
    assert "2 other models" in claim
    assert f"epsilon = {upper_text(third.together.epsilon_upper)} at the same delta, for one" in claim
    assert first.fingerprints.ledger in text
    assert any("than those listed here" in said for said in third.assumptions)
    assert not any("No other model of this cohort is published" in said for said in third.assumptions)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda card: card.update(siblings=[], together=None), "assumptions"),
        (lambda card: card["siblings"][0]["mechanisms"][1].update(steps=1), "together.epsilon_upper"),
        (lambda card: card["together"].update(epsilon_upper=card["claim"]["epsilon_upper"]), "together.epsilon_upper"),
        (lambda card: card["together"].update(models=1), "together.models"),
        (lambda card: card.update(together=None), "together"),
        (lambda card: card.update(siblings=None, together=None), "reasons_against_release"),
    ],
    ids=["dropped", "cheaper", "less together", "fewer", "no figure", "not looked up"],
)  # fmt: skip
def test_siblings_on_a_card_cannot_be_made_to_look_better(
    store: Path, tmp_path: Path, change: object, named: str
) -> None:
    released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    folder = build_release(
        make_run(tmp_path / "b", store=store, secret=SECRETS[1], unit="patient"), MANIFEST
    ).folder
    assert check_release(folder, MANIFEST).wrong == ()
    path = folder / "privacy_card.json"
    card = json.loads(path.read_text())
    change(card)  # type: ignore[operator]
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    wrong = check_release(folder, None).wrong
    assert any(
        "does not follow from its own mechanisms" in sentence and named in sentence for sentence in wrong
    ), wrong


def test_a_release_again_counts_once_and_a_run_trained_anew_counts_too(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient")
    released(run)
    before = (store / REGISTER).read_bytes()
    assert released(run).siblings == []
    assert (store / REGISTER).read_bytes() == before
    shutil.rmtree(run)  # the model that was given away is still out there
    anew = released(make_run(tmp_path / "a", store=store, secret=SECRETS[1], unit="patient"))
    assert anew.together is not None
    assert anew.together.models == 2
    assert len(lines(store)) == 3


def test_an_earlier_state_of_a_run_is_no_sibling_of_its_later_one(store: Path, tmp_path: Path) -> None:
    """The longer ledger pays for all of its steps, those of the earlier release among them."""
    early = make_run(tmp_path / "early", store=store, secret=SECRETS[0], unit="patient", steps=3)
    (early / "evaluation.csv").touch()  # stopped by its budget
    released(early)
    late = released(make_run(tmp_path / "late", store=store, secret=SECRETS[0], unit="patient"))
    assert (late.siblings, late.together) == ([], None)
    other = released(make_run(tmp_path / "other", store=store, secret=SECRETS[1], unit="patient"))
    assert other.siblings is not None
    assert [row.ledger for row in other.siblings] == [late.fingerprints.ledger]
    with pytest.raises(InputError, match="comes from the same secret"):
        released(early)


def test_a_copy_of_a_released_run_is_refused(store: Path, tmp_path: Path) -> None:
    released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    copy = make_run(tmp_path / "b", store=store, secret=SECRETS[0], unit="patient_one_image")
    with pytest.raises(
        InputError, match=r"no joint epsilon holds .* comes from the same secret, and its noise would cancel"
    ):
        released(copy)
    assert len(lines(store)) == 2


def test_one_ledger_pays_for_one_model(store: Path, tmp_path: Path) -> None:
    """A copy that is bound to the same, but came to other weights: noise that both share cancels in the difference."""
    released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    params = {
        "params": {
            **PARAMS["params"],
            "head": {"bias": PARAMS["params"]["head"]["bias"] * np.float32(1 + 1e-6)},
        }
    }
    copy = make_run(tmp_path / "b", store=store, secret=SECRETS[0], unit="patient", params=params)
    with pytest.raises(InputError, match="other weights were released with this very ledger"):
        released(copy)
    assert len(lines(store)) == 2


def test_a_run_that_started_from_a_released_model_of_its_cohort_stays(store: Path, tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient")
    released(first)
    start = weights_digest(PARAMS)
    later = make_run(
        tmp_path / "b", store=store, secret=SECRETS[1], unit="patient", initial_weights_sha256=start
    )
    with pytest.raises(
        InputError, match="not for release: it started from a released model of its own cohort"
    ):
        released(later)
    assert released(first).for_release
    elsewhere = make_run(tmp_path / "c", secret=SECRETS[2], unit="patient", initial_weights_sha256=start)
    assert released(elsewhere).for_release


def forged(folder: Path, **facts: object) -> None:
    """The card of a release written anew from other facts, as whoever can read the code can write it."""
    card = read_card(folder / "privacy_card.json")
    card = card_of(dataclasses.replace(facts_of_card(card), **facts))
    write_card(card, folder)
    (folder / "README.md").write_text(readme_text(card), encoding="utf-8")
    normalise(folder)


def test_a_release_is_checked_against_the_register(store: Path, tmp_path: Path) -> None:
    sibling = released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    run = make_run(tmp_path / "b", store=store, secret=SECRETS[1], unit="patient")
    folder = build_release(run, MANIFEST).folder
    assert check_registered(folder, None).wrong == ()  # by the run in whose folder it lies
    away = Path(shutil.copytree(folder, tmp_path / "away"))
    assert check_registered(away, None).unchecked == (
        "no store was given, and its register of released models was not asked (--store)",
    )
    assert check_registered(away, store).wrong == ()
    released(make_run(tmp_path / "later", store=store, secret=SECRETS[2], unit="patient"))
    assert check_registered(away, store).wrong == ()  # it left before

    def refused(**facts: object) -> str:
        path = Path(shutil.copytree(away, tmp_path / "forged"))
        forged(path, **facts)
        assert check_release(path, MANIFEST).wrong == ()  # by itself there is nothing wrong with it
        said = "; ".join(check_registered(path, store).wrong)
        with pytest.raises(InputError, match=r"not for release.*releases\.jsonl"), passage(path, store=store):
            pass
        shutil.rmtree(path)
        return said

    card = read_card(away / "privacy_card.json")
    assert card.siblings == [SiblingRow.model_validate(lines(store)[1]["sibling"])]
    assert f"does not list the model with the ledger {sibling.fingerprints.ledger}" in refused(siblings=())
    cheaper = SiblingRow(ledger=sibling.fingerprints.ledger, unit="patient", mechanisms=[])
    assert "does not list the model" in refused(siblings=(cheaper,))
    row = SiblingRow.model_validate(lines(store)[1]["sibling"])
    invented = row.model_copy(update={"ledger": hashlib.md5(b"no model", usedforsecurity=False).hexdigest()})
    assert f"knows no model with the ledger {invented.ledger}" in refused(siblings=(row, invented))
    ledger = card.fingerprints.model_copy(
        update={"ledger": hashlib.md5(b"another", usedforsecurity=False).hexdigest()}
    )
    assert "knows no release with its ledger" in refused(fingerprints=ledger)
    data = card.fingerprints.model_copy(update={"data": hashlib.sha256(b"other data").hexdigest()})
    assert "is about other data" in refused(fingerprints=data)
    dearer = tuple(
        row.model_copy(update={"noise_multiplier": 2 * row.noise_multiplier}) for row in card.mechanisms
    )
    assert "claims something else than was registered" in refused(
        mechanisms=tuple(
            new if new.name == "noised gradient" else old
            for new, old in zip(dearer, card.mechanisms, strict=True)
        )
    )
    state = load_file(away / "model.safetensors")
    save_file({name: array * 2 for name, array in state.items()}, away / "model.safetensors")
    assert check_registered(away, store).wrong == (
        f"{store / REGISTER}: other weights were registered with its ledger",
    )


def test_images_and_patients_together_are_counted_for_an_image(store: Path, tmp_path: Path) -> None:
    released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    card = released(make_run(tmp_path / "b", store=store, secret=SECRETS[1], unit="image"))
    assert card.together is not None
    assert card.together.unit == "image"
    assert card.together.epsilon_upper is not None
    replaced = accounting.epsilon_bounds([*SPENT, *SPENT], 1e-4, "replace_one").upper
    assert replaced <= card.together.epsilon_upper <= replaced * 1.0001
    text = " ".join(card_html(card).split())
    assert "there is no figure for all of them together" in text
    alone = released(make_run(tmp_path / "c", unit="image"))
    assert "there is no figure for all of them together" not in card_html(alone)


@pytest.mark.parametrize(
    "spent", [SPENT, [Spending(0.3, 2.0, 40)], [Spending(1.0, 9.0, 3), Spending(0.01, 0.8, 100)]]
)
def test_replacing_one_bounds_adding_and_removing_one(spent: list[Spending]) -> None:
    """What the figure of mixed units rests on."""
    assert (
        accounting.epsilon_bounds(spent, 1e-5, "replace_one").lower
        > accounting.epsilon_bounds(spent, 1e-5).upper
    )


def another_cohort(path: Path) -> Path:
    """A store of other images."""
    store, images = cohort(), np.zeros((9, 32, 32), np.uint8)
    return write_store(
        path, store.manifest, iter(images), size=32, findings=store.findings, preprocessing={}
    ).path


def test_without_the_register_nothing_is_released(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", store=store, unit="patient")
    moved = store.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=f"{store}: no such store; .* --store names where it lies now"):
        released(run)
    with pytest.raises(InputError, match="holds another cohort than the one"):
        released(run, another_cohort(tmp_path / "other"))
    (moved / register.LOCK).mkdir()  # the superuser may write to folders that are read-only
    with pytest.raises(
        InputError, match=r"moved: the register of released models cannot be written \(Is a directory\)"
    ):
        released(run, moved)
    (moved / register.LOCK).rmdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", full)
        with pytest.raises(
            InputError, match=r"cannot be written .No space left on device., and nothing is released without"
        ):
            released(run, moved)
    monkeypatch.setattr(register, "_PATIENCE", 0.0)
    with (
        exclusive_lock(moved / register.LOCK, "held"),
        pytest.raises(InputError, match="another model of this cohort is being released"),
    ):
        released(run, moved)
    assert (moved / REGISTER).read_bytes() == b""
    assert released(run, moved).for_release
    assert len(lines(moved)) == 2


def test_a_failed_check_registers_nothing(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", store=store, unit="patient")
    spoilt = MANIFEST.assign(image_id="cardiomegaly")
    with pytest.raises(InputError, match="was not built"):
        build_release(run, spoilt)
    assert not (store / REGISTER).exists()


def test_a_damaged_register_is_named_and_half_a_line_is_dropped(store: Path, tmp_path: Path) -> None:
    released(make_run(tmp_path / "a", store=store, secret=SECRETS[0], unit="patient"))
    whole = (store / REGISTER).read_text()
    run = make_run(tmp_path / "b", store=store, secret=SECRETS[1], unit="patient")
    for damaged, sentence in (
        (whole.replace('"steps": 5', '"steps": 1'), "line 2 was edited"),
        (whole.splitlines(keepends=True)[1], "line 1 is missing"),
        (whole.replace("{", "[", 1), "line 1 is not a register entry"),
    ):
        (store / REGISTER).write_text(damaged)
        with pytest.raises(InputError, match=sentence):
            released(run)
    (store / REGISTER).write_text(whole + '{"line": 3, "ru')
    assert released(run).together is not None
    assert [line["line"] for line in lines(store)] == [1, 2, 3]
    with pytest.raises(InputError, match="is the register of another store"):
        register.Register(store / REGISTER, "00" * 32)


def test_a_run_that_must_stay_needs_no_register(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seed=3, unit="patient")
    shutil.rmtree(tmp_path / "hospital of run")
    card = read_card(build_release(run, watermark=True).folder / "privacy_card.json")
    assert card.siblings is None
    assert any("was not looked up" in said for said in card.assumptions)
