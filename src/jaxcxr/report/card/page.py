"""A card as one HTML page that needs no network: the first printed page answers four questions, the others
hold the figures and everything that must be true. All sentences are the card's own (`sentences`).
"""

from pathlib import Path
from typing import Any

import markupsafe

from jaxcxr.report.bounds import lower_text, upper_text
from jaxcxr.report.card.card_facts import COUNTS
from jaxcxr.report.card.card_schema import PrivacyCard, card_json
from jaxcxr.report.card.profile_figure import profile_figure
from jaxcxr.report.card.scope import bands_of
from jaxcxr.report.card.statement import NOT_STATED, Figures, Statement, Thresholds
from jaxcxr.report.card.terms import has_promise, of_images, per_thousand, plain
from jaxcxr.report.rendering import render
from jaxcxr.run_folder import CARD

CARD_JSON, CARD_HTML = CARD, "privacy_card.html"
QUESTIONS = (
    ("promised", "What is promised?"),
    ("to_whom", "To whom?"),
    ("how_strong", "How strong is it?"),
    ("not_promised", "What is not promised?"),
)
STATED = (
    ("The model", (
        ("description", "what it is"), ("intended_use", "intended use"), ("intended_users", "intended users"),
        ("not_for", "not to be used for"), ("licence", "licence"),
        ("reference_standard", "reference standard"),
        ("utility", "how good it is"), ("utility_by_group", "how good it is by group"),
        ("thresholds", "thresholds"), ("external_validation", "external validation"),
    )),
    ("The data and the hospital", (
        ("curator", "hospital or data holder"), ("curator_type", "kind"), ("contact", "contact"),
        ("region", "region"), ("sector", "sector"), ("data_domain", "data domain"),
        ("legal_basis", "legal basis"), ("raw_data_access", "access to the raw images"),
        ("raw_data_retention", "retention of the raw images"), ("trust_model", "who must be trusted"),
        ("future_releases", "further releases planned"),
    )),
    ("Risks and choices", (
        ("residual_risks", "residual risks"), ("duties", "duties of whoever deploys it"),
        ("monitoring", "monitoring"), ("attacks_tried", "attacks tried"),
        ("justification", "why this epsilon"),
        ("tuning", "how settings were chosen"), ("sources", "sources"),
    )),
)  # fmt: skip
"""Heading -> (field of the statement, its label)."""


def write_card(card: PrivacyCard, folder: Path) -> None:
    """Write `privacy_card.json` and `privacy_card.html`."""
    (folder / CARD_JSON).write_text(card_json(card), encoding="utf-8")
    (folder / CARD_HTML).write_text(card_html(card), encoding="utf-8")


def card_html(card: PrivacyCard) -> str:
    """The card as one page that needs no network."""
    return render(
        "card.html",
        card=card,
        title=title_of(card),
        epsilon=upper_text(card.claim.epsilon_upper),
        questions=[(asked, getattr(card, section)) for section, asked in QUESTIONS],
        stated=[
            (heading, [(label, stated_text(card.statement, field)) for field, label in fields])
            for heading, fields in STATED
        ],
        not_stated=NOT_STATED,
        things="images" if of_images(card) else "patients",
        promise=has_promise(card),
        figure=markupsafe.Markup(profile_figure(card.profile, card.claim)),
        engineering=_engineering(card),
        top_files=[file for file in card.files if "/" not in file.name],
        folder_files=[file for file in card.files if "/" in file.name],
        up=upper_text,
        down=lower_text,
        per_thousand=per_thousand,
    )


def title_of(card: PrivacyCard) -> str:
    """Name of the model as stated, else the beginning of its ledger's seal."""
    stated = card.statement
    if stated.name:
        return f"Privacy card of {stated.name}{f', version {stated.version}' if stated.version else ''}"
    ledger = card.fingerprints.ledger
    return f"Privacy card of run {ledger[:8]}" if ledger else "Privacy card"


def stated_text(statement: Statement, field: str) -> str:
    """A field of the statement for a reader; empty if it is not stated."""
    value: Any = getattr(statement, field)
    match value:
        case None | ():
            return ""
        case Figures():
            if value.protection == "none":
                return f"{value.text}\n(not covered by the promise)"
            promise = f"epsilon = {plain(value.epsilon or 0)}, delta = {plain(value.delta or 0)}"
            return f"{value.text}\n(noised, with a promise of its own: {promise})"
        case Thresholds():
            marked = {"none": "not covered by the promise", "public": "fixed beforehand", "noised": "noised"}
            each = "; ".join(f"{finding}: {plain(number)}" for finding, number in value.values.items())
            on = f", chosen on {value.chosen_on}" if value.chosen_on else ""
            return f"{each}{on} ({marked[value.protection]})"
        case tuple():
            return "\n".join(value)
        case _:
            return str(value)


def _engineering(card: PrivacyCard) -> list[tuple[str, str]]:
    """Rows of the table for the privacy engineer: label and value."""
    claim = card.claim
    each = f", at most {claim.images_per_step} images of each in a step" if claim.images_per_step else ""
    counts = card.class_counts_noise_multiplier
    noised = "" if counts is None else f"; class counts noised with a noise multiplier of {plain(counts)}"
    bands = bands_of(card)
    made = sum(row.steps for row in card.mechanisms if row.name != COUNTS)
    adjacency = "one added or removed" if claim.adjacency == "add_remove" else "one replaced by another"
    return [
        ("findings", ", ".join(card.findings)),
        ("unit", f"{claim.unit}{each}"),
        ("adjacency", adjacency),
        ("units, N (declared)", str(card.dataset_size)),
        ("expected batch", str(card.expected_batch_size)),
        ("steps", f"{made} made, {card.steps_planned} planned"),
        ("clipping", card.clipping.replace("_", " ")),
        ("class weights", f"{card.class_weights}{noised}"),
        (
            "noise",
            card.noise + (f", correlated over {bands} steps, {bands} groups in turn" if bands > 1 else ""),
        ),
        ("sums", card.sums),
        ("trust model", "central: the hospital holds the raw images and adds the noise"),
        ("accountant", f"{card.accountant}; cross-check: dp-accounting {card.fingerprints.dp_accounting}"),
    ]
