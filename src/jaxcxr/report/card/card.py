"""The privacy card of a run: what is promised to whom, what is not, and what follows from it, as JSON and as
a page.

The card is computed from the run folder and the other released models of its cohort alone (`card_facts`),
holds no date and no path, and is the same byte for byte whenever it is made from the same inputs. A card that
may be released says what patients with 1, 2, 4, ... images are promised; how many images the cohort's own
patients have is private and goes on the hospital's card only. `recomputed` gives the card that follows from
the facts on a card: an edited card differs from it.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcxr import accounting
from jaxcxr.accounting import group_privacy
from jaxcxr.accounting.attack_bounds import attack_bounds
from jaxcxr.privacy import rounding
from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_RATES, COUNTED_SIZE
from jaxcxr.report.bounds import DIGITS, lower_text, round_down, round_up, upper_text
from jaxcxr.report.card.card_facts import (
    ADAPTIVE,
    COUNTS,
    HOUSE_ONLY,
    MOMENTS,
    NO_NOISE,
    SEEDED,
    UNCOVERED_WEIGHTS,
    CardFacts,
    facts_of_card,
    facts_of_run,
    spendings_of_rows,
)
from jaxcxr.report.card.card_schema import (
    NOT_FOR_RELEASE,
    SCHEMA_VERSION,
    AttackRow,
    Claim,
    PatientRow,
    PrivacyCard,
    SiblingRow,
    Together,
    card_json,
)
from jaxcxr.report.rendering import render
from jaxcxr.report.verdicts import FALSE_POSITIVE_RATE, strength_sentence

PUBLIC_FILMS = (1, 2, 4, 10, 20)
"""Numbers of images per patient for which every card gives the epsilon."""
NOT_LOOKED_UP = "the other released models of the cohort were not looked up"


def make_card(
    run: Path,
    siblings: Sequence[SiblingRow] | None = None,
    cohort_films: Int[np.ndarray, " patients"] | None = None,
) -> PrivacyCard:
    """The card of a private run.

    Args:
        run: its folder.
        siblings: other released models of the cohort; without them (`release.register`) the card is not for
            release.
        cohort_films: number of images of each patient of the training split, for the hospital's own card;
            such a card is not for release.

    Raises:
        InputError: the folder holds no private run, or its files are damaged or at odds.
    """
    facts = facts_of_run(run, siblings=siblings)
    if cohort_films is not None:
        facts = dataclasses.replace(facts, cohort_films=cohort_films, reasons=(*facts.reasons, HOUSE_ONLY))
    return card_of(facts)


def recomputed(card: PrivacyCard) -> PrivacyCard:
    """The card that follows from the facts on a card: equal to it (to rounding), unless it was changed."""
    return card_of(facts_of_card(card))


def card_of(facts: CardFacts) -> PrivacyCard:
    """The card that follows from facts."""
    spent, delta = facts.spent, facts.delta
    bounds = accounting.epsilon_bounds(spent, delta)
    attacks = attack_bounds(spent, delta)
    reasons = list(facts.reasons)
    if (round_up(bounds.upper) or math.inf) > facts.budget * (
        1 + 10.0 ** (1 - DIGITS)
    ) and NO_NOISE not in reasons:
        reasons.append("more was spent than the run was allowed")
    if facts.siblings is None and not reasons:
        reasons.append(NOT_LOOKED_UP)
    return PrivacyCard(
        schema_version=SCHEMA_VERSION,
        for_release=not reasons,
        watermark=NOT_FOR_RELEASE if reasons else None,
        reasons_against_release=reasons,
        claim=Claim(
            unit=facts.unit,  # type: ignore[arg-type]
            films_a_step=facts.films_a_step,
            adjacency=facts.adjacency,  # type: ignore[arg-type]
            epsilon_upper=round_up(bounds.upper),
            epsilon_lower=round_down(bounds.lower),
            epsilon_rdp=round_up(accounting.epsilon_rdp(spent, delta)),
            delta=delta,
            budget=facts.budget,
        ),
        siblings=None if facts.siblings is None else list(facts.siblings),
        together=_together(facts),
        dataset_size=facts.dataset_size,
        expected_batch_size=facts.expected_batch_size,
        steps_planned=facts.steps_planned,
        class_weights=facts.class_weights,  # type: ignore[arg-type]
        class_counts_noise_multiplier=facts.class_counts_noise_multiplier,
        noise=facts.noise,  # type: ignore[arg-type]
        initial_weights_record=facts.initial_weights_record,
        near_duplicates=facts.near_duplicates,
        split_origin=facts.split_origin,
        sums=facts.sums,
        patients=_patients(facts),
        mechanisms=list(facts.mechanisms),
        accountant=accounting.ACCOUNTANT,
        covered=_covered(facts),
        not_covered=_not_covered(facts),
        attacks=[
            AttackRow(false_positive_rate=rate, true_positive_rate=_rate(found))
            for rate, found in attacks.true_positive_rate.items()
        ],
        reconstruction_advantage=_rate(attacks.advantage),
        audit=facts.audit,
        fingerprints=facts.fingerprints,
        assumptions=_assumptions(facts),
    )


def _rate(value: float) -> float:
    """An upper bound on a probability."""
    return min(1.0, round_up(value) or 0.0)


def _patients(facts: CardFacts) -> list[PatientRow]:
    if facts.unit != "image":
        return []
    spent, delta = facts.spent, facts.delta
    rows: list[tuple[str | None, int]] = [(None, films) for films in PUBLIC_FILMS]
    if facts.cohort_films is not None:
        rows += [
            (row.patient, row.images)
            for row in group_privacy.patient_epsilons(spent, delta, facts.cohort_films)
        ]
    found: dict[int, PatientRow] = {}
    for _, films in rows:
        if films not in found:
            bounds = group_privacy.patient_bounds(spent, delta, films)
            certain = math.isinf(bounds.upper)
            rate = 1.0 if certain else attack_bounds(spent, delta, films).true_positive_rate[0.01]
            found[films] = PatientRow(
                patient=None,
                films=films,
                epsilon_upper=round_up(bounds.upper),
                epsilon_lower=round_down(bounds.lower),
                true_positive_rate_at_1_percent=_rate(rate),
            )
    return [found[films].model_copy(update={"patient": patient}) for patient, films in rows]


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
    spent = [*facts.spent, *(part for row in facts.siblings for part in spendings_of_rows(row.mechanisms))]
    bounds = accounting.epsilon_bounds(spent, facts.delta, "add_remove" if len(units) == 1 else "replace_one")
    whom = "image" if "image" in units else "patient"
    return Together(models=len(facts.siblings) + 1, unit=whom, epsilon_upper=round_up(bounds.upper))


def _covered(facts: CardFacts) -> list[str]:
    image = facts.unit == "image"
    whom = (
        "one image of the training cohort"
        if image
        else "all images of one patient of the training cohort together"
    )
    covered = [f"the published weights, against anybody, whatever else they know, for {whom}"]
    if COUNTS in {row.name for row in facts.mechanisms}:
        covered.append(f"the {COUNTS} that training used: their cost is in the figures above")
    if ADAPTIVE in {row.name for row in facts.mechanisms}:
        covered.append(
            "the clip norm that training adjusted from step to step: it was computed from what the steps "
            "released, and its cost is in the figures above"
        )
    return covered


def _not_covered(facts: CardFacts) -> list[str]:
    missing = [
        "training loss, predictions, checkpoints and logs of the training: they stay in the hospital",
        "the images on which the finished model was tested: whatever is published of the tests needs a "
        "promise of its own, or has none",
        "whether the model is right, and as good for one group of patients as for another",
    ]
    if facts.unit == "image":
        missing.insert(
            0, "a patient with several images is protected less than one image is: see the table of patients"
        )
    if facts.delta >= 1 / facts.dataset_size:
        missing.insert(
            0,
            "delta is not below 1 in the number of units: publishing somebody's record outright would not "
            "break the promise",
        )
    if facts.split_origin == "unknown":
        missing.append(
            "which patients were trained on: whether a patient's images were used for training or for "
            "testing may have depended on which other patients were there, and the promise does not count "
            "that"
        )
    if facts.near_duplicates in ("across", "within_and_across"):
        missing.append(
            "how well the model does on new images: nearly equal images stand in the training and in the "
            "test part under different patients, so that results on the test images may be too good"
        )
    if UNCOVERED_WEIGHTS in facts.reasons:
        missing.insert(0, UNCOVERED_WEIGHTS)
    looked_up = [
        *(["images that are nearly equal"] if facts.near_duplicates != "not_looked_for" else []),
        *(
            ["images that the starting weights were trained on"]
            if facts.initial_weights_record not in (None, "none")
            else []
        ),
    ]
    if looked_up:
        missing.append(
            f"what this card says of {' and of '.join(looked_up)}: it was looked up in the images, without "
            "noise"
        )
    if facts.audit is not None:
        missing.append(
            "the audit's finding: a figure and a verdict from a training on the cohort that was made for the "
            "audit"
        )
    return missing


def _rounding(facts: CardFacts, who: str) -> str:
    """What rounding leaves of the guarantee, which is one of exact arithmetic."""
    drawn = (
        "the noise was sampled exactly"
        if facts.noise == "discrete"
        else "the noise was sampled in 32-bit arithmetic"
    )
    if facts.sums == "float32":
        return (
            f"Computers round: {drawn}, and the sums that it was added to were formed in 32-bit arithmetic."
        )
    if facts.noise == "discrete" or MOMENTS in {row.name for row in facts.mechanisms}:
        return (
            f"Computers round: {drawn}. What each {who} adds was rounded by itself and added in whole "
            f"numbers, so that no {who} changes a sum by more than the noise is for; this is proved for "
            "programs that repeat their own roundings."
        )
    percent = round_down(100 * rounding.rounding_allowance(facts.expected_batch_size), 2)
    return (
        f"Computers round: {drawn}. Microbatches were added up exactly, but each was summed in 32-bit "
        f"arithmetic, and how one {who} more changes that rounding is not proved. {percent:g} % of the clip "
        f"norm was left free for it: {rounding.FACTOR / rounding.FOUND:.0f} times the most that a search "
        "over images made for the purpose found."
    )


def _assumptions(facts: CardFacts) -> list[str]:
    who = "image" if facts.unit == "image" else "patient"
    declared = AGAINST_RELEASE[COUNTED_SIZE] not in facts.reasons
    public = f"declared number of {who}s (N), the settings" if declared else "settings"
    assumed = [
        f"The {public} and the findings' names are public.",
        _one_person_one_unit(facts),
        f"In each step every {who} is included at random, independently of all others, as the sampler's "
        "code does.",
        "The noise comes from 256 random bits of the operating system, which stayed secret and are deleted "
        "or locked away.",
        _rounding(facts, who),
        _others_published(facts),
        "Settings were not tuned by looking at private results, or that cost is stated elsewhere.",
    ]
    if facts.split_origin == "given":
        assumed.append(
            "The division into training and test images came with the data: it is assumed that no patient's "
            "place in it depended on the other patients."
        )
    if facts.class_weights == "public" and AGAINST_RELEASE[COUNTED_RATES] not in facts.reasons:
        assumed.append(
            "How frequent each finding is was known from elsewhere, and not counted in the training images."
        )
    if facts.initial_weights_record is not None:
        assumed.append(_STARTING_WEIGHTS[facts.initial_weights_record])
    return assumed


_STARTING_WEIGHTS = {
    "recorded": "None of the training images or patients of the weights that training started from is among "
    "the private ones: checked by salted hashes of pixels and patient ids. The fingerprint of those weights "
    "is below.",
    "ids_declared_unrelated": "None of the training images of the weights that training started from is "
    "among the private ones: checked by salted hashes of pixels. Patient ids that occur in both were "
    "declared to belong to different people. The fingerprint of those weights is below.",
    "none": "ASSUMED, not checked: the weights that training started from carry no record of their training "
    "images, and were made without the images of these patients. Their fingerprint is below.",
}


def _one_person_one_unit(facts: CardFacts) -> str:
    """What must hold for the protected unit to be all that one person has in the data."""
    image = facts.unit == "image"
    if facts.near_duplicates in ("within", "within_and_across"):
        pair = upper_text(group_privacy.patient_bounds(facts.spent, facts.delta, 2).upper)
        return (
            "Nearly equal images stand in the training data under different patients: they may be one "
            "image, or one person's images, under two names. The promise to whoever is in the data twice is "
            f"that of a group of two {'images' if image else 'patients'}: epsilon = {pair}. Nobody is in "
            "the data more often than that."
        )
    right = (
        "No image is in the data twice, under any name"
        if image
        else "All images of one person carry the same patient id, and no image is there under two"
    )
    if facts.near_duplicates == "not_looked_for":
        return f"{right}: ASSUMED, nearly equal images were not looked for."
    found = (
        "nearly equal images of different patients were looked for in the training data, and none were found"
    )
    return (
        f"{right}: {found}. Among the images of one patient they were not looked for."
        if image
        else f"{right}: {found}."
    )


def _others_published(facts: CardFacts) -> str:
    """Which other models of the cohort there are, as far as its register knows."""
    anew = (
        "Models of the same images from a store that was prepared anew or copied are not in it, and their "
        "costs add up."
    )
    if facts.siblings is None:
        return (
            "Whether other models of this cohort are published was not looked up. If there are any, the "
            "costs add up."
        )
    if not facts.siblings:
        return f"No other model of this cohort is published: the register of its store has none. {anew}"
    return (
        "No other models of this cohort are published than those listed here, from the register of its "
        f"store. {anew}"
    )


def card_html(card: PrivacyCard) -> str:
    """The card as one page that needs no network."""
    upper = card.claim.epsilon_upper
    factor = None if upper is None else _factor(upper)
    found = next(
        row.true_positive_rate for row in card.attacks if row.false_positive_rate == FALSE_POSITIVE_RATE
    )
    judged = factor is not None and SEEDED not in card.reasons_against_release
    siblings = card.siblings or []
    return render(
        "card.html",
        card=card,
        factor=factor,
        verdict=strength_sentence(found, "images" if card.claim.unit == "image" else "patients")
        if judged
        else "",
        steps=_steps(card),
        others="one other model" if len(siblings) == 1 else f"{len(siblings)} other models",
        mixed=len({unit == "image" for unit in (card.claim.unit, *(row.unit for row in siblings))}) > 1,
        up=upper_text,
        down=lower_text,
    )


def _factor(epsilon: float) -> str:
    """e to the epsilon, rounded up, in words where it has too many digits to say anything."""
    power = epsilon / math.log(10)
    return f"10 to the power {math.ceil(power)}" if power >= 6 else f"{round_up(math.exp(epsilon), 3):,.7g}"


def _steps(card: PrivacyCard) -> int:
    return sum(row.steps for row in card.mechanisms if row.name != COUNTS)


def write_card(card: PrivacyCard, folder: Path) -> None:
    """Write `privacy_card.json` and `privacy_card.html`."""
    (folder / "privacy_card.json").write_text(card_json(card), encoding="utf-8")
    (folder / "privacy_card.html").write_text(card_html(card), encoding="utf-8")


def differing(card: PrivacyCard, other: PrivacyCard) -> list[str]:
    """Fields in which two cards differ by more than the rounding of two machines, by their path."""

    def compare(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return [found for key in a for found in compare(a[key], b[key], f"{path}.{key}" if path else key)]
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            return [
                found
                for i, pair in enumerate(zip(a, b, strict=True))
                for found in compare(*pair, f"{path}.{i}")
            ]
        if (
            isinstance(a, float)
            and isinstance(b, float)
            and math.isclose(a, b, rel_tol=10.0 ** (2 - DIGITS), abs_tol=0.0)
        ):
            return []
        return [] if a == b else [path]

    return compare(card.model_dump(mode="json"), other.model_dump(mode="json"), "")
