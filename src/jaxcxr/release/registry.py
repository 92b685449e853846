"""A record of a release for the OpenDP registry of deployments, from its privacy card.

What the card knows is filled in; what only the hospital knows comes from its statement, and is left out where
it is not stated. The registry's board reviews records: this one says that it is a draft.
"""

import re
from typing import Any

import yaml

from jaxcxr.errors import InputError
from jaxcxr.release.contents import REGISTRY
from jaxcxr.release.registry_fields import (
    Administrative,
    Basic,
    Deployment,
    DeploymentModel,
    Evidence,
    Implementation,
    Loss,
    Record,
    Variant,
    faults,
)
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card import first_page, scope
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.page import stated_text
from jaxcxr.report.card.terms import change, joined, of_images, plain

REQUIRED = ("name", "curator", "curator_type", "intended_use", "region", "registry_authors")
"""Fields of the statement without which there is no record."""
_TIER_3 = ("data_domain", "trust_model", "tuning", "justification")
"""Fields of the statement that the registry's third tier asks for; the card fills in the others."""
_UNPROTECTED = (
    scope.uncovered_weights, scope.unnoised_figures, scope.thresholds, scope.origin_of_split,
    scope.looked_up, scope.finding_of_audit,
)  # fmt: skip
"""Sentences of the card on quantities that are released without noise."""


def record_text(card: PrivacyCard) -> str:
    """The record as YAML, in the registry's own style (no folded texts).

    Raises:
        InputError: the hospital does not state what the registry requires, or the record does not have the
            registry's fields.
    """
    record = registry_record(card)
    if wrong := faults(record):
        raise InputError(f"{REGISTRY}: the record does not have the registry's fields: {'; '.join(wrong)}")
    return yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def registry_record(card: PrivacyCard) -> Record:
    """The record of a card.

    Raises:
        InputError: the hospital does not state what the registry requires, or the model is not for release.
    """
    stated = card.statement
    if missing := lacking(card):
        raise InputError(
            f"{REGISTRY}: the record needs {', '.join(missing)}, and the card has none; give what the "
            "hospital states with --statement FILE, or leave out --registry"
        )
    day = _day(card)
    slug = "-".join(_slug(text) for text in (stated.name, stated.curator, day[:4]))
    return Record(
        url_slug=slug,
        deployment=Deployment(
            basic=_basic(card, day),
            dp_variant=_variant(card),
            privacy_loss=_loss(card),
            deployment_model=_model(card),
            implementation=_implementation(card),
            administrative=_administrative(card),
        ),
    )


def lacking(card: PrivacyCard) -> list[str]:
    """What the registry requires and a card does not have; a record can be made if there is nothing."""
    stated = card.statement
    missing = [name for name in REQUIRED if not getattr(stated, name)]
    if stated.publication_date is None and card.released is None:
        missing.append("publication_date")
    if not card.for_release:
        missing.append("a model that is for release")
    return missing


def _day(card: PrivacyCard) -> str:
    day = card.statement.publication_date or card.released
    assert day is not None  # registry_record
    return day.isoformat()


def _slug(text: str | None) -> str:
    return re.sub(r"[^a-z0-9]+", "-", (text or "").lower()).strip("-")


def _present(fields: dict[str, Any]) -> Any:
    """The fields that are stated: the registry has no null."""
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _basic(card: PrivacyCard, day: str) -> Basic:
    stated = card.statement
    computed = f"A network that reads chest radiographs for {joined(card.findings)}."
    return _present(
        {
            "name": stated.name,
            "data_curators": [
                {"data_curator_name": stated.curator, "data_curator_type": stated.curator_type}
            ],
            "description": stated.description or computed,
            "intended_use": stated.intended_use,
            "data_product_type": "Machine learning model",
            "data_product_region": stated.region,
            "data_product_sector": stated.sector,
            "publication_date": day,
        }
    )


def _variant(card: PrivacyCard) -> Variant:
    public = scope.public_settings(card)
    found = [public, *(f"Not covered: {line}." for said in _UNPROTECTED if (line := said(card)) is not None)]
    unprotected = [line for line in found if line is not None]
    return _present(
        {
            "variant_name": "Approximate DP",
            "data_domain": card.statement.data_domain,
            "unprotected_quantities": _list(unprotected),
        }
    )


def _loss(card: PrivacyCard) -> Loss:
    claim = card.claim
    assert claim.epsilon_upper is not None  # registry_record
    profile = [
        f"epsilon {upper_text(row.epsilon_upper)} at delta {plain(row.delta)}"
        for row in card.profile
        if row.epsilon_upper is not None
    ]
    return Loss(
        privacy_unit="Image-level" if of_images(card) else "Patient-level",
        privacy_unit_details=(
            f"Two data sets are adjacent if they differ by {change(card)}"
            + ("." if of_images(card) else ", with all images of that patient.")
        ),
        number_of_privacy_units=card.dataset_size,
        privacy_parameters={"epsilon": claim.epsilon_upper, "delta": claim.delta},
        privacy_parameters_details=_list(
            [
                *card.how_strong,
                f"Profile: {'; '.join(profile)}.",
                "The number of units is a declared one; sample rate, steps and noise follow from it.",
            ]
        ),
    )


def _model(card: PrivacyCard) -> DeploymentModel:
    known = (first_page.with_others(card), card.statement.future_releases)
    releases = [line for line in known if line is not None]
    return _present(
        {
            "model_name": "Central",
            "model_name_details": "The hospital holds the images, trains, and adds the noise.",
            "trust_assumptions": card.statement.trust_model,
            "actors": _list(
                [
                    "The hospital: holds the raw images and the secret behind the noise.",
                    "Whoever receives the model: taken for an attacker with any knowledge.",
                ]
            ),
            "release_type": "Many releases" if card.siblings else "One release",
            "release_type_details": _list(releases),
            "data_source_type": "Static",
            "access_type": "Non-interactive",
        }
    )


def _implementation(card: PrivacyCard) -> Implementation:
    steps = [
        f"{row.name}, {row.steps} times: noise multiplier {plain(row.noise_multiplier)}, sample rate "
        f"{plain(row.sample_rate)}, L2 bound {plain(row.l2_clip_norm)}"
        + (
            f", noise correlated over {row.bands} steps, {row.bands} groups in turn."
            if row.bands > 1
            else "."
        )
        for row in card.mechanisms
    ]
    stated, code, correlated = card.statement, card.fingerprints, scope.bands_of(card) > 1
    mechanisms = [
        "Poisson-subsampled Gaussian mechanism on clipped sums (DP-SGD).",
        *(["Banded matrix factorisation, cyclic Poisson sampling (DP-BandMF)."] if correlated else []),
        *steps,
        f"Clipping {card.clipping.replace('_', ' ')}; noise {card.noise}.",
        scope.rounded(card) or "",
        f"Access to the raw images: {stated.raw_data_access or 'not stated'}",
        f"Code: jaxcxr {code.jaxcxr}.",
    ]
    weights = [f"{file.name}, SHA-256 {file.sha256}" for file in card.files if "/" not in file.name]
    return _present(
        {
            "preprocessing_and_hyperparameter_tuning": stated.tuning,
            "mechanisms": _list(mechanisms),
            "composition": f"All releases are composed into one figure: {card.accountant}.",
            "post_processing": "The optimiser, averages of weights, and whatever is done with the released "
            "weights.",
            "justification": stated.justification,
            "utility": stated_text(stated, "utility"),
            "additional_information": _list(weights),
        }
    )


def _administrative(card: PrivacyCard) -> Administrative:
    stated = card.statement
    complete = all(getattr(stated, name) for name in _TIER_3)
    sources = {
        f"source_{place}": Evidence(evidence_source_type="Other public source", misc={"howpublished": source})
        for place, source in enumerate(stated.sources, start=1)
    }
    found: Any = {"evidence_sources": sources} if sources else {}
    return Administrative(
        **found, status="Draft", registry_authors=list(stated.registry_authors), tier=3 if complete else 2
    )


def _list(lines: list[str]) -> str:
    """Markdown, which the registry shows."""
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, without folding."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
