"""Whether the files of a release agree: the configuration with its card, the card with itself and its audit.

Every figure and sentence of a card follows from what was recorded (`report.card.card.recomputed`); here it is
what was recorded that must be possible.
"""

import datetime
import re
from collections.abc import Iterator
from typing import Any

from jaxcxr.accounting import sample_rate_of, steps_of_epochs
from jaxcxr.audit.lower_bounds import one_run_epsilon
from jaxcxr.config import Experiment, PrivacyConfig
from jaxcxr.release.attributes import FIRST_DAY
from jaxcxr.release.contents import CARD_JSON
from jaxcxr.report.card.card_facts import COUNTS, choice_of, guarantee_of, images_per_step, released_by
from jaxcxr.report.card.card_schema import AuditFinding, PrivacyCard
from jaxcxr.run_folder import CONFIG

LONGEST_EMBARGO = datetime.timedelta(days=2 * 366)
"""How long after today a publication may be announced."""


def config_and_card(config: Experiment, card: PrivacyCard) -> Iterator[str]:
    """Sentences about what the configuration and the card say differently."""
    privacy, training = config.privacy, config.training
    if privacy is None:
        yield f"{CONFIG}: has no privacy section, {CARD_JSON} makes a promise"
        return
    said = _said_twice(config, privacy, card)
    steps, wanted = {row.name for row in card.mechanisms} - {COUNTS}, released_by(config)
    if steps != {wanted}:
        yield (
            f"{CONFIG}: training.optimizer {training.optimizer!r} goes with {wanted!r}, {CARD_JSON} says "
            f"{sorted(steps)}"
        )
    clip_norms = {row.l2_clip_norm for row in card.mechanisms if row.name != COUNTS}
    if clip_norms != {privacy.l2_clip_norm}:
        yield (
            f"{CONFIG}: privacy.l2_clip_norm is {privacy.l2_clip_norm}, {CARD_JSON} says {sorted(clip_norms)}"
        )
    declared = (card.dataset_size, card.expected_batch_size)
    rates = {row.sample_rate for row in card.mechanisms if row.name != COUNTS}
    (bands, *others) = {row.bands for row in card.mechanisms if row.name != COUNTS} or {1}
    drawn = declared[1] * bands
    if others or privacy.noise_bands not in (bands, "auto"):
        yield f"{CONFIG}: privacy.noise_bands is {privacy.noise_bands}, {CARD_JSON} says {[bands, *others]}"
    if 0 < drawn <= declared[0] and rates != {sample_rate_of(drawn, declared[0])}:
        groups = "" if bands == 1 else f", {bands} groups taking turns"
        yield (
            f"{CARD_JSON}: a sample rate of {sorted(rates)} is not that of {declared[1]} expected of "
            f"{declared[0]} units{groups}"
        )
    if drawn > declared[0] >= declared[1]:
        yield f"{CARD_JSON}: each of {bands} groups of {declared[0]} units is smaller than a batch"
    planned = training.steps
    if planned is None and training.epochs is not None:
        planned = steps_of_epochs(training.epochs, *declared)
    if planned != card.steps_planned:
        yield f"{CONFIG}: its training has {planned} steps, {CARD_JSON} says {card.steps_planned}"
    for name in card.tuning.varied if card.tuning is not None else ():
        if name not in config.digest_fields():
            yield f"{CARD_JSON}: tuning: {name} is no field of a configuration"
    if_given = {
        "privacy.dataset_size": (privacy.dataset_size, card.dataset_size),
        "privacy.noise_multiplier": (privacy.noise_multiplier, _noise_of(card)),
        "privacy.class_counts_noise_multiplier": (
            privacy.class_counts_noise_multiplier,
            card.class_counts_noise_multiplier,
        ),
    }
    said |= {key: (there, here) for key, (there, here) in if_given.items() if there is not None}
    for key, (there, here) in said.items():
        if there != here:
            yield f"{CONFIG}: {key} is {there}, {CARD_JSON} says {here}"


def _said_twice(config: Experiment, privacy: PrivacyConfig, card: PrivacyCard) -> dict[str, tuple[Any, Any]]:
    """Field of the configuration -> its value there, and on the card."""
    training, claim = config.training, card.claim
    return {
        "privacy.unit": (privacy.unit, claim.unit),
        "privacy.delta": (privacy.delta, claim.delta),
        "privacy.epsilon": (privacy.epsilon, claim.budget),
        "privacy.noise": (privacy.noise, card.noise),
        "privacy.clipping": (privacy.clipping, card.clipping),
        "privacy.images_per_patient": (images_per_step(privacy), claim.images_per_step),
        "training.expected_batch_size": (training.expected_batch_size, card.expected_batch_size),
        "training.class_weights": (training.class_weights, card.class_weights),
        "data.findings": (list(config.data.findings), card.findings),
    }


def _noise_of(card: PrivacyCard) -> float | None:
    """Noise multiplier of the steps; None if there are several."""
    (noise, *others) = {row.noise_multiplier for row in card.mechanisms if row.name != COUNTS} or {None}
    return None if others else noise


def card_with_itself(card: PrivacyCard, today: datetime.date) -> Iterator[str]:
    """Sentences about what a released card records and no run gives.

    Args:
        card: that follows from what it records.
        today: no release is later.
    """
    if card.released is not None and not FIRST_DAY <= card.released <= today:
        yield f"{CARD_JSON}: released: {card.released} is no day of a release"
    published = card.statement.publication_date
    if published is not None and not FIRST_DAY <= published <= today + LONGEST_EMBARGO:
        yield f"{CARD_JSON}: statement.publication_date: {published} is no day of a publication"
    rows = [row for row in card.mechanisms if row.name != COUNTS]
    done = sum(row.steps for row in rows)
    if not 0 < done <= card.steps_planned:
        yield f"{CARD_JSON}: its mechanisms have {done} steps, of {card.steps_planned} that were planned"
    if any(row.steps != 1 or row.sample_rate != 1 for row in card.mechanisms if row.name == COUNTS):
        yield f"{CARD_JSON}: mechanisms: class counts are released once, of everybody"
    if (card.initial_weights_record is None) != (card.fingerprints.initial_weights == ""):
        yield f"{CARD_JSON}: says something else of starting weights than of their images"
    if card.claim.unit == "image" and card.claim.images_per_step is not None:
        yield f"{CARD_JSON}: claim.images_per_step goes with patients, and the unit is the image"
    if len({sibling.ledger for sibling in card.siblings or ()}) != len(card.siblings or ()):
        yield f"{CARD_JSON}: siblings: lists a model twice"
    if any(sibling.ledger == card.fingerprints.ledger for sibling in card.siblings or ()):
        yield f"{CARD_JSON}: siblings: lists the model itself"
    if card.tuning is not None and not choice_of(card.tuning).covers(guarantee_of(card).spent):
        yield f"{CARD_JSON}: tuning: its mechanisms are those of no candidate"
    if card.audit is not None:
        yield from _audit(card.audit)
    yield from _digests(card)


def _audit(audit: AuditFinding) -> Iterator[str]:
    where = f"{CARD_JSON}: audit"
    if audit.accused:
        yield f"{where}: refutes the claim"
    if audit.epsilon_claimed is not None and audit.epsilon_lower > audit.epsilon_claimed:
        yield f"{where}: proved {audit.epsilon_lower:g}, more than the {audit.epsilon_claimed:g} claimed"
    most = one_run_epsilon(audit.canaries, audit.canaries, audit.canaries, 0.0, audit.confidence)
    for found in _guessed(audit):
        if found > most * (1 + 1e-6):
            yield (
                f"{where}: {audit.canaries} canaries at confidence {audit.confidence:g} prove epsilon "
                f"{most:.4g} at most, if every guess is right; found {found:g}"
            )
    if audit.attacks and not (audit.checks and audit.runs and audit.checks_level):
        yield f"{where}: names its attacks and no runs or checks, which are made together"
    if audit.steps == 0:
        yield f"{where}: audited a training without steps"


def _guessed(audit: AuditFinding) -> list[float]:
    """What was proved by guesses alone, for which the number of canaries sets a limit; an attack that looks
    at every step, or at the order of scores under the claim's curve, may prove more.
    """
    by_guesses = [row.epsilon_lower for row in audit.attacks if row.attack.endswith("guesses")]
    return by_guesses if audit.attacks else [audit.epsilon_lower]


def _digests(card: PrivacyCard) -> Iterator[str]:
    """Digests that no hash function gives but by a chance of one in a million."""
    found = card.fingerprints.model_dump(exclude={"libraries"})
    found |= {f"siblings.{i}.ledger": row.ledger for i, row in enumerate(card.siblings or ())}
    if card.audit is not None:
        found |= {"audit.code": card.audit.code, "audit.training_code": card.audit.training_code}
    for name, digest in found.items():
        if name in ("jaxcxr", "written_by", "dp_accounting") or not digest:
            continue
        runs = max(len(run[0]) for run in re.finditer(r"(.)\1*", digest))
        repeats = any(
            digest == (digest[:k] * len(digest))[: len(digest)] for k in range(1, len(digest) // 2 + 1)
        )
        if runs > 9 or repeats or len(set(digest)) < 8 or digest.isdigit():
            yield f"{CARD_JSON}: {name}: {digest} is no digest"
