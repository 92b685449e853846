"""The record for the OpenDP registry of deployments: its fields are the published ones."""

import copy
import datetime
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from jaxcxr.errors import InputError
from jaxcxr.release.registry import REQUIRED, lacking, record_text
from jaxcxr.release.registry_fields import faults
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.statement import Statement
from tests.report.card.test_sentences import FULL

STATED = Statement(
    name="Chest: model\nof Example Hospital".replace("\n", " "), curator="Example Hospital", curator_type="Nonprofit",
    intended_use="Research: 'second' readings.\nNot for care.", region="Germany", sector="Healthcare",
    registry_authors=("A. Author",), data_domain="Bedside radiographs.", trust_model="The hospital.", tuning="Public data.",
    justification="Chosen before.", sources=("https://example.org/model",),
)  # fmt: skip


def card(**changes: Any) -> PrivacyCard:
    import dataclasses

    return card_of(dataclasses.replace(FULL, **{"statement": STATED} | changes))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return yaml.safe_load(record_text(card()))


def test_the_record_has_the_published_fields_and_the_cards_figures(record: dict[str, Any]) -> None:
    assert faults(record) == []
    deployment, whole = record["deployment"], card()
    assert record["url_slug"] == "chest-model-of-example-hospital-example-hospital-2026"
    assert deployment["basic"]["publication_date"] == "2026-11-30"
    assert deployment["basic"]["data_product_type"] == "Machine learning model"
    assert deployment["privacy_loss"]["privacy_parameters"] == {
        "epsilon": whole.claim.epsilon_upper,
        "delta": 1e-4,
    }
    assert deployment["privacy_loss"]["number_of_privacy_units"] == 200
    assert "mu = " in deployment["privacy_loss"]["privacy_parameters_details"]
    assert deployment["deployment_model"]["release_type"] == "Many releases"  # it has a sibling
    assert deployment["administrative"]["tier"] == 3
    assert "5a" * 32 in deployment["implementation"]["additional_information"]


def test_what_is_not_stated_is_left_out_and_lowers_the_tier() -> None:
    plain = STATED.model_copy(update={"data_domain": None, "tuning": None, "sector": None, "sources": ()})
    found = yaml.safe_load(record_text(card(statement=plain, siblings=())))
    assert faults(found) == []
    deployment = found["deployment"]
    assert deployment["administrative"] == {"status": "Draft", "registry_authors": ["A. Author"], "tier": 2}
    assert "data_product_sector" not in deployment["basic"]
    assert "data_domain" not in deployment["dp_variant"]
    assert deployment["deployment_model"]["release_type"] == "One release"
    assert None not in [value for part in deployment.values() for value in part.values()]


def test_the_records_style_is_the_registrys() -> None:
    """The registry refuses folded texts, and reads the day as a text."""
    styles = {token.style for token in yaml.scan(record_text(card())) if isinstance(token, yaml.ScalarToken)}
    assert styles <= {None, "|", "'", '"'}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_record_without_what_the_registry_requires_is_refused(name: str) -> None:
    less = card(statement=STATED.model_copy(update={name: () if name == "registry_authors" else None}))
    assert lacking(less) == [name]
    with pytest.raises(InputError, match=f"registry.yaml: the record needs {name}, and the card has none"):
        record_text(less)


def test_the_day_is_the_hospitals_or_that_of_the_release() -> None:
    stated = card(statement=STATED.model_copy(update={"publication_date": datetime.date(2027, 1, 2)}))
    assert "publication_date: '2027-01-02'" in record_text(stated)
    assert lacking(card(released=None)) == ["publication_date"]


def basic(field: str, value: object) -> Callable[[dict], None]:
    return lambda record: record["deployment"]["basic"].update({field: value})


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda r: r.update(status="Draft"), "status"),
        (lambda r: r.pop("url_slug"), "url_slug"),
        (lambda r: r["deployment"].pop("basic"), "deployment.basic"),
        (basic("data_product_type", "Model"), "data_product_type"),
        (basic("data_product_region", None), "data_product_region"),
        (basic("data_product_sector", None), "data_product_sector"),
        (basic("publication_date", "2026-13-01"), "publication_date"),
        (basic("publication_date", datetime.date(2026, 11, 30)), "publication_date"),
        (basic("data_curators", []), "data_curators"),
        (basic("data_curator", "x"), "data_curator"),
        (lambda r: r["deployment"]["dp_variant"].update(variant_name="GDP"), "variant_name"),
        (lambda r: r["deployment"]["privacy_loss"].update(number_of_privacy_units=1.5), "number_of_privacy_units"),
        (lambda r: r["deployment"]["privacy_loss"]["privacy_parameters"].update(mu=1.0), "mu"),
        (lambda r: r["deployment"]["deployment_model"].update(model_name="Trusted"), "model_name"),
        (lambda r: r["deployment"]["implementation"].update(accountant="x"), "accountant"),
        (lambda r: r["deployment"]["administrative"].update(tier=4), "tier"),
        (lambda r: r["deployment"]["administrative"].update(registry_authors=[]), "registry_authors"),
        (lambda r: r["deployment"]["administrative"]["evidence_sources"].update(a={"evidence_source_type": "Other public source"}), "evidence_sources.a"),
        (lambda r: r["deployment"]["administrative"]["evidence_sources"]["source_1"].update(article={}), "evidence_sources.source_1"),
        (lambda r: r["deployment"]["administrative"]["evidence_sources"]["source_1"]["misc"].update(link="x"), "link"),
    ],
)  # fmt: skip
def test_another_field_or_value_is_a_fault(
    record: dict[str, Any], spoil: Callable[[dict], object], named: str
) -> None:
    spoilt = copy.deepcopy(record)
    spoil(spoilt)
    (first, *_) = faults(spoilt)
    assert named in first
