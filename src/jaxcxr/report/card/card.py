"""The privacy card of a run: its figures, and the sentences that follow from them (`sentences`).

The card is computed from the run folder, the other released models of its cohort and what the hospital
states (`card_facts`), holds no path, and is the same byte for byte whenever it is made from the same inputs.
A card that may be released says what patients with 1, 2, 4, ... images are promised; how many images the
cohort's own patients have is private and goes on the hospital's card only. `recomputed` gives the card that
follows from the facts on a card: an edited card differs from it.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcxr import accounting
from jaxcxr.accounting import group_privacy, guarantee
from jaxcxr.accounting.selection import CHOICE_ACCOUNTANT
from jaxcxr.report.bounds import DIGITS, round_down, round_up
from jaxcxr.report.card.card_facts import (
    HOSPITAL_ONLY,
    NO_NOISE,
    SEEDED,
    CardFacts,
    facts_of_card,
    facts_of_run,
    guarantee_of,
)
from jaxcxr.report.card.card_schema import (
    NOT_FOR_RELEASE,
    SCHEMA_VERSION,
    AttackRow,
    Claim,
    PatientRow,
    PrivacyCard,
    ProfileRow,
    ScaleRow,
    SiblingRow,
    Together,
)
from jaxcxr.report.card.sentences import SECTIONS, said
from jaxcxr.report.card.tried import tried_rows
from jaxcxr.report.verdicts import FALSE_POSITIVE_RATE, strength

PUBLIC_IMAGES = (1, 2, 4, 10, 20)
"""Numbers of images per patient for which every card gives the epsilon."""
PROFILE_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
"""Deltas at which every card gives the epsilon, so that cards can be compared."""
KNOWN_EPSILONS = (0.29, 1.0, 3.0, 8.0)
"""Epsilons that a reader may know, for comparison; 0.29 is the smallest of the paper."""
NOT_LOOKED_UP = "the other released models of the cohort were not looked up"
OVERSPENT = "more was spent than the run was allowed"


def make_card(
    run: Path,
    siblings: Sequence[SiblingRow] | None = None,
    cohort_images: Int[np.ndarray, " patients"] | None = None,
) -> PrivacyCard:
    """The card of a private run.

    Args:
        run: its folder.
        siblings: other released models of the cohort; without them (`release.register`) the card is not for
            release.
        cohort_images: number of images of each patient of the training split, for the hospital's own card;
            such a card is not for release.

    Raises:
        InputError: the folder holds no private run, or its files are damaged or at odds.
    """
    facts = facts_of_run(run, siblings=siblings)
    if cohort_images is not None:
        facts = dataclasses.replace(
            facts, cohort_images=cohort_images, reasons=(*facts.reasons, HOSPITAL_ONLY)
        )
    return card_of(facts)


def recomputed(card: PrivacyCard) -> PrivacyCard:
    """The card that follows from the facts on a card: equal to it (to rounding), unless it was changed."""
    return card_of(facts_of_card(card))


def card_of(facts: CardFacts) -> PrivacyCard:
    """The card that follows from facts: what was recorded, the figures, then the sentences."""
    reasons = _reasons(facts)
    silent: dict[str, Any] = {section: [] for section in SECTIONS}
    card = PrivacyCard(
        schema_version=SCHEMA_VERSION,
        for_release=not reasons,
        watermark=NOT_FOR_RELEASE if reasons else None,
        reasons_against_release=reasons,
        accountant=accounting.ACCOUNTANT if facts.tuning is None else CHOICE_ACCOUNTANT,
        **_recorded(facts),
        **_figures(facts),
        tried=[],
        **silent,
    )
    card = card.model_copy(update={"tried": tried_rows(card)})
    return card.model_copy(update={section: said(card, section) for section in SECTIONS})


def _reasons(facts: CardFacts) -> list[str]:
    reasons = list(facts.reasons)
    upper = facts.guarantee.bounds(facts.delta).upper
    allowed = facts.budget * (1 + 10.0 ** (1 - DIGITS))
    if (round_up(upper) or math.inf) > allowed and not {NO_NOISE, OVERSPENT} & set(reasons):
        reasons.append(OVERSPENT)
    if facts.siblings is None and not reasons:
        reasons.append(NOT_LOOKED_UP)
    return reasons


def _recorded(facts: CardFacts) -> dict[str, Any]:
    """What the card repeats."""
    repeated = (
        "findings", "statement", "released", "files", "siblings", "dataset_size", "expected_batch_size",
        "steps_planned", "class_weights", "class_counts_noise_multiplier", "clipping", "noise", "sums",
        "initial_weights_record", "near_duplicates", "split_origin", "mechanisms", "audit", "fingerprints",
        "tuning",
    )  # fmt: skip
    values = {name: getattr(facts, name) for name in repeated}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _figures(facts: CardFacts) -> dict[str, Any]:
    """What is computed."""
    attacks = facts.guarantee.attacks(facts.delta)
    return {
        "claim": _claim(facts),
        "profile": _profile(facts),
        "scale": [_allowed_by(epsilon, facts.delta) for epsilon in KNOWN_EPSILONS],
        "together": _together(facts),
        "patients": _patients(facts),
        "attacks": [
            AttackRow(false_positive_rate=rate, true_positive_rate=_rate(found))
            for rate, found in attacks.true_positive_rate.items()
        ],
        "reconstruction_advantage": _rate(attacks.advantage),
    }


def _claim(facts: CardFacts) -> Claim:
    promised, delta = facts.guarantee, facts.delta
    bounds = promised.bounds(delta)
    mu = promised.mu(delta)
    return Claim(
        unit=facts.unit,  # type: ignore[arg-type]
        images_per_step=facts.images_per_step,
        adjacency=facts.adjacency,  # type: ignore[arg-type]
        mu=None if mu is None or math.isinf(bounds.upper) else round_up(mu),
        epsilon_upper=round_up(bounds.upper),
        epsilon_lower=round_down(bounds.lower),
        epsilon_rdp=round_up(promised.epsilon_rdp(delta)),
        delta=delta,
        budget=facts.budget,
    )


def _profile(facts: CardFacts) -> list[ProfileRow]:
    deltas = sorted({*PROFILE_DELTAS, facts.delta}, reverse=True)
    found = [facts.guarantee.bounds(delta) for delta in deltas]
    return [
        ProfileRow(delta=delta, epsilon_upper=round_up(bounds.upper), epsilon_lower=round_down(bounds.lower))
        for delta, bounds in zip(deltas, found, strict=True)
    ]


def _allowed_by(epsilon: float, delta: float) -> ScaleRow:
    """What (epsilon, delta) alone allows an attacker, whatever the mechanism (Kairouz et al. 2015)."""
    rate = FALSE_POSITIVE_RATE
    found = _rate(min(math.exp(epsilon) * rate + delta, 1 - math.exp(-epsilon) * (1 - delta - rate)))
    return ScaleRow(epsilon=epsilon, true_positive_rate_at_1_percent=found, strength=strength(found))


def _rate(value: float) -> float:
    """An upper bound on a probability."""
    return min(1.0, round_up(value) or 0.0)


def _patients(facts: CardFacts) -> list[PatientRow]:
    if facts.unit != "image":
        return []
    rows: list[tuple[str | None, int]] = [(None, images) for images in PUBLIC_IMAGES]
    if facts.cohort_images is not None:
        rows += [
            (row.patient, row.images)
            for row in group_privacy.patient_epsilons(facts.guarantee.spent, facts.delta, facts.cohort_images)
        ]
    found = {images: _patient(facts, images) for images in dict.fromkeys(images for _, images in rows)}
    return [found[images].model_copy(update={"patient": patient}) for patient, images in rows]


def _patient(facts: CardFacts, images: int) -> PatientRow:
    bounds = facts.guarantee.bounds(facts.delta, images)
    rate = 1.0
    if not math.isinf(bounds.upper):
        rate = facts.guarantee.attacks(facts.delta, images).true_positive_rate[FALSE_POSITIVE_RATE]
    return PatientRow(
        patient=None,
        images=images,
        epsilon_upper=round_up(bounds.upper),
        epsilon_lower=round_down(bounds.lower),
        true_positive_rate_at_1_percent=_rate(rate),
    )


def _together(facts: CardFacts) -> Together | None:
    """What this model and its siblings cost together; None if there are none, or the noise can be computed.

    The secrets of all are independent (`release.register` refuses others), so that their releases compose.
    Where one model protects images and another patients, the figure is for an image: to a model that protects
    patients, one image less is one patient replaced by another, and replacing bounds adding and removing too,
    since an image may be replaced by one whose gradient is zero. So replace-one adjacency bounds all of them.
    """
    if not facts.siblings or SEEDED in facts.reasons:
        return None
    units = {
        "image" if unit == "image" else "patient"
        for unit in (facts.unit, *(row.unit for row in facts.siblings))
    }
    promised = [facts.guarantee, *(guarantee_of(row) for row in facts.siblings)]
    epsilon = guarantee.together(promised, facts.delta, replaced=len(units) > 1)
    whom = "image" if "image" in units else "patient"
    return Together(models=len(facts.siblings) + 1, unit=whom, epsilon_upper=round_up(epsilon))


def differing(card: PrivacyCard, other: PrivacyCard) -> list[str]:
    """Fields in which two cards differ by more than the rounding of two machines, by their path."""
    return _differing(card.model_dump(mode="json"), other.model_dump(mode="json"), "")


def _differing(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in _differing(a[key], b[key], f"{path}.{key}" if path else key)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            found
            for i, pair in enumerate(zip(a, b, strict=True))
            for found in _differing(*pair, f"{path}.{i}")
        ]
    if isinstance(a, float) and isinstance(b, float):
        a, b = float(a), float(b)
        return [] if math.isclose(a, b, rel_tol=10.0 ** (2 - DIGITS), abs_tol=0.0) else [path]
    return [] if a == b else [path]
