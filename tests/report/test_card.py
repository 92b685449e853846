import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxcxr.errors import InputError
from jaxcxr.privacy import accounting
from jaxcxr.privacy.accounting import Spending
from jaxcxr.report.card import PrivacyCard, card_html, card_json, card_schema, make_card, read_card, write_card
from tests.release.run_folder import make_run

METHOD = "one run; white-box gradient alignment and black-box loss; every step checked"
SPENT = [Spending(0.05, 1.0, 5), Spending(1.0, 20.0, 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("card") / "run")


@pytest.fixture(scope="module")
def card(run: Path) -> PrivacyCard:
    return make_card(run)


def test_the_claim_is_what_the_ledger_spent_and_rounding_keeps_it_a_bound(card: PrivacyCard) -> None:
    bounds = accounting.epsilon_bounds(SPENT, 1e-4)
    assert card.claim.epsilon_upper is not None
    assert card.claim.epsilon_lower is not None
    assert bounds.upper <= card.claim.epsilon_upper <= bounds.upper * 1.0001
    assert bounds.lower * 0.9999 <= card.claim.epsilon_lower <= bounds.lower
    assert card.claim.epsilon_upper > accounting.epsilon_pld(SPENT[:1], 1e-4)  # the counts are in it
    assert {(row.name, row.steps) for row in card.mechanisms} == {("noised gradient", 5), ("noised class counts", 1)}
    assert card.for_release
    assert card.watermark is None


def test_patients_with_more_films_are_told_more(card: PrivacyCard) -> None:
    assert [row.films for row in card.patients] == [1, 2, 4, 10, 20]
    epsilons = [row.epsilon_upper for row in card.patients]
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(epsilons))
    assert card.patients[0].epsilon_upper == card.claim.epsilon_upper
    assert all(row.patient is None for row in card.patients)


def test_attack_bounds_follow_from_the_claim(card: PrivacyCard) -> None:
    assert [row.false_positive_rate for row in card.attacks] == [0.001, 0.01, 0.1]
    assert card.claim.epsilon_upper is not None
    for row in card.attacks:
        simple = np.exp(card.claim.epsilon_upper) * row.false_positive_rate + card.claim.delta
        assert row.false_positive_rate < row.true_positive_rate <= simple * 1.02
        assert row.true_positive_rate - row.false_positive_rate <= card.reconstruction_advantage


def test_same_run_same_bytes(run: Path, card: PrivacyCard, tmp_path: Path) -> None:
    again = make_card(run)
    assert card_json(again) == card_json(card)
    assert card_html(again) == card_html(card)
    write_card(card, tmp_path)
    assert read_card(tmp_path / "privacy_card.json") == card
    assert card.fingerprints.code == "c0de"  # the code that trained, not the code that writes the card
    assert str(run) not in card_json(card) + card_html(card)


def test_json_follows_its_documented_schema(card: PrivacyCard, tmp_path: Path) -> None:
    values = json.loads(card_json(card))
    schema = card_schema()
    assert set(schema["required"]) == set(values)
    assert schema["additionalProperties"] is False
    for change, named in (({"surplus": 1}, "surplus"), ({"schema_version": 2}, "schema_version"), ({"attacks": 3}, "attacks")):
        (tmp_path / "card.json").write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=named):
            read_card(tmp_path / "card.json")
    del values["claim"]
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="claim"):
        read_card(tmp_path / "card.json")


def test_the_page_needs_no_network_and_says_the_main_things(card: PrivacyCard) -> None:
    page = card_html(card)
    assert not re.search(r"(src|href)=|https?://|<script", page)
    for text in (
        "one film",
        f"epsilon = {card.claim.epsilon_upper:.4g}",
        "delta = 0.0001",
        "No audit was made",
        card.assumptions[0][:30],
    ):
        assert text in page
    assert "NOT FOR RELEASE" not in page


@pytest.mark.parametrize(
    ("changes", "reason"), [({"seed": 3}, "training.seed"), ({"class_weights": "paper"}, "class weights not covered")]
)
def test_a_run_that_must_stay_is_watermarked(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    card = make_card(make_run(tmp_path / "run", **changes))  # type: ignore[arg-type]
    assert not card.for_release
    assert reason in card.reasons_against_release[0]
    assert "NOT FOR RELEASE" in card_html(card)
    assert '"watermark": "not for release"' in card_json(card)


def test_the_house_card_shows_the_cohort_and_stays_in_the_house(run: Path) -> None:
    card = make_card(run, cohort_films=np.array([1] * 18 + [3, 9]))
    assert [(row.patient, row.films) for row in card.patients[-3:]] == [("median", 1), ("95th percentile", 3), ("maximum", 9)]
    assert not card.for_release


def test_a_patient_run_needs_no_table_of_films(tmp_path: Path) -> None:
    card = make_card(make_run(tmp_path / "run", unit="patient"))
    assert card.patients == []
    assert "one patient with all of their films" in card_html(card)


def test_an_audit_is_shown_and_a_wrong_one_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finding = {
        "method": METHOD,
        "canaries": 200,
        "confidence": 0.95,
        "epsilon_lower": 0.4,
        "epsilon_claimed": 2.0,
        "accused": False,
    }
    (run / "audit.json").write_text(json.dumps({"card": finding}))
    page = " ".join(card_html(make_card(run)).split())
    assert "200 marked films" in page
    assert "epsilon is at least 0.4, which does not contradict" in page
    (run / "audit.json").write_text(json.dumps({"card": {**finding, "accused": "perhaps"}}))
    with pytest.raises(InputError, match="not an audit's finding"):
        make_card(run)


def test_what_is_no_private_run_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.json is missing"):
        make_card(tmp_path)
    run = make_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"n_units": 20}))
    with pytest.raises(InputError, match="different data"):
        make_card(run)
    (run / "run.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(InputError, match="without privacy"):
        make_card(run)
