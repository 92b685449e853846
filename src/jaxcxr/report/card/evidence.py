"""What a card's figures mean, what an audit tried, and which weights and code the card is about: a sentence
per function, or None where it would not be true.
"""

import math

from jaxcxr.report.bounds import lower_text, round_up, upper_text
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.first_page import ACCUSED, found_of_1000
from jaxcxr.report.card.terms import change, has_promise, of_images, per_thousand, plain, unit
from jaxcxr.report.card.tried import same_code

_AUDITED = {
    "logistic regression": "a logistic regression on the pixels",
    "network, narrower": "a narrower copy of the network",
}


_UNITS = {
    "image": "images",
    "patient": "patients with their images",
    "patient_one_image": "patients with one image at a time",
}


def factor_text(epsilon: float) -> str:
    """e to the epsilon, rounded up, in words where it has too many digits to say anything."""
    power = epsilon / math.log(10)
    return f"10 to the power {math.ceil(power)}" if power >= 6 else f"{round_up(math.exp(epsilon), 3):,.7g}"


def meaning_of_mu(card: PrivacyCard) -> str | None:
    """Gaussian differential privacy."""
    if not has_promise(card) or card.claim.mu is None:
        return None
    return (
        f"mu: telling from this model whether one {unit(card)} was used is no easier than telling from a "
        "single measurement with bell-shaped errors of size 1 whether the truth is 0 or "
        f"{upper_text(card.claim.mu)}, but for what delta allows. mu stands for the profile below, from this "
        "card's delta upwards, and can be compared between models."
    )


def meaning_of_epsilon(card: PrivacyCard) -> str | None:
    """epsilon and delta as a factor and a rest."""
    claim = card.claim
    if not has_promise(card) or claim.epsilon_upper is None:
        return None
    return (
        f"epsilon and delta: with {change(card)} in the training data, the probability of any outcome of the "
        f"training, and of anything that can be done with it, differs by a factor of at most "
        f"{factor_text(claim.epsilon_upper)}, plus {upper_text(1e6 * claim.delta)} in a million."
    )


def exact_epsilon(card: PrivacyCard) -> str | None:
    """Both bounds, and the cross-check."""
    claim = card.claim
    if not has_promise(card):
        return None
    if card.tuning is not None:
        return (
            "The figures are upper bounds by Rényi divergences, with the choice of this model among several "
            f"trainings; the budget for all of it was {plain(claim.budget)}. No lower bound and no mu are "
            "computed for a choice."
        )
    return (
        f"As the training is accounted for, the exact epsilon lies between {lower_text(claim.epsilon_lower)} "
        f"and {upper_text(claim.epsilon_upper)}; a coarser accountant gives {upper_text(claim.epsilon_rdp)}. "
        f"The training was allowed {plain(claim.budget)}."
    )


def worst_case(card: PrivacyCard) -> str | None:
    """What the limits on attackers are."""
    if not has_promise(card):
        return None
    return (
        "The limits are for the worst case: an attacker who saw every step of the training and knows all "
        f"other {unit(card)}s. They say what cannot happen, not what will."
    )


def alone(card: PrivacyCard) -> str | None:
    """Limits with siblings."""
    if card.together is None or not has_promise(card):
        return None
    return (
        "The limits hold for this model alone; whoever has the other released models too is limited by the "
        "epsilon of all together."
    )


def guesses(card: PrivacyCard) -> str | None:
    """Attribute inference and reconstruction."""
    if not has_promise(card):
        return None
    what, who = ("an image", "image") if of_images(card) else ("a patient's images", "patient")
    return (
        f"The same limits hold for guessing what {what} showed: a guess that is right {ACCUSED} times in "
        f"1,000 with a model that was trained without this {who} is right at most "
        f"{per_thousand(found_of_1000(card))} times with this one. Whatever is guessed, the {who}'s part in "
        f"the training adds at most {per_thousand(card.reconstruction_advantage)} right guesses in 1,000."
    )


def mixed_units(card: PrivacyCard) -> str | None:
    """Siblings that protect something else."""
    siblings = card.siblings or []
    if len({claimed == "image" for claimed in (card.claim.unit, *(row.unit for row in siblings))}) == 1:
        return None
    return (
        "Some of the released models protect patients, others images only: together they are counted for one "
        "image. For a patient with several images there is no figure for all of them together."
    )


def no_audit(card: PrivacyCard) -> str | None:
    """Nothing was tried."""
    return None if card.audit else "No audit was made: nothing on this card was tried by an attack."


def what_was_audited(card: PrivacyCard) -> str | None:
    """The audited training."""
    audit = card.audit
    if audit is None:
        return None
    steps = "" if audit.steps is None else f" of {audit.steps} steps"
    if audit.attacks:
        return (
            f"An audit made {audit.runs} trainings{steps} of its own by the same code, of "
            f"{_AUDITED[audit.model]}, on units of the same cohort (here {_UNITS[audit.unit]}) and "
            f"{audit.canaries} marked ones, each included with probability one half. Attackers who see every "
            "step, and one who sees the final weights alone, tried to tell which were included."
        )
    return (
        f"An audit made a training{steps} of its own, of {_AUDITED[audit.model]}, on images of the same "
        f"cohort and {audit.canaries} marked images, each included with probability one half. An attacker "
        "who sees every step tried to tell which were included, and every step was checked."
    )


def what_it_found(card: PrivacyCard) -> str | None:
    """The lower bound, beside what was claimed of the audited training."""
    audit = card.audit
    if audit is None:
        return None
    claims = "" if audit.epsilon_claimed is None else f"; that training claims {plain(audit.epsilon_claimed)}"
    sure = f"{plain(100 * audit.confidence)} % confidence"
    if audit.epsilon_lower == 0:
        return f"With {sure} the attack shows nothing{claims}."
    shown = lower_text(audit.epsilon_lower)
    return f"With {sure} the attack shows that the epsilon of that training is at least {shown}{claims}."


def by_the_weights_alone(card: PrivacyCard) -> str | None:
    """What an attacker proves who has what a release holds."""
    found = (
        [row for row in card.audit.attacks if row.attack == "final weights, guesses"] if card.audit else []
    )
    if not found:
        return None
    proved = found[0].epsilon_lower
    shown = f"an epsilon of at least {lower_text(proved)}" if proved else "nothing"
    return (
        f"From the final weights of that training alone, as a release gives them, the attack shows {shown}."
    )


def what_was_checked(card: PrivacyCard) -> str | None:
    """The checks."""
    audit = card.audit
    if audit is None or audit.checks is None or audit.checks_level is None:
        return None
    failed = "all passed" if not audit.checks_failed else f"{audit.checks_failed} failed"
    return (
        f"{audit.checks} checks compared batches, contributions, sums, noise, weights, ledger and keys of "
        f"these trainings with what the accountant assumes: {failed}. Right code fails any of them with a "
        f"probability of {plain(100 * audit.checks_level)} % at most."
    )


def contradicted(card: PrivacyCard) -> str | None:
    """An audit that refutes."""
    if card.audit is None or not card.audit.accused:
        return None
    return "The finding contradicts the claim: something in the training is not as it should be."


def not_contradicted(card: PrivacyCard) -> str | None:
    """An audit that does not refute."""
    if card.audit is None or card.audit.accused:
        return None
    return "The finding does not contradict the claim; it does not prove it either."


def other_code(card: PrivacyCard) -> str | None:
    """An audit of other code."""
    if card.audit is None or same_code(card, card.audit):
        return None
    return "The audit ran another or an unrecorded version of the training code."


def patients_not_tried(card: PrivacyCard) -> str | None:
    """The audit is of images, the claim of patients."""
    if card.audit is None or of_images(card) or card.audit.unit != "image":
        return None
    return "The audit attacked images: that all images of a patient are protected together was not tried."


def other_attacks(card: PrivacyCard) -> str | None:
    """The attacks of EDPB Opinion 28/2024 that no audit makes."""
    not_tried = (
        "Inference of attributes, extraction, model inversion and reconstruction of images were not tried."
    )
    if not has_promise(card):
        return not_tried
    return (
        f"{not_tried} What the part of one {unit(card)} in the training can add to them is limited as above."
    )


def named_files(card: PrivacyCard) -> str | None:
    """The files that the card is about."""
    if not card.files:
        return "This card names no files: it was not made for a release."
    return (
        "This card is about the files below, which are named by their SHA-256, and about no others: "
        "`sha256sum FILE` shows whether a file is the one meant."
    )


def dated(card: PrivacyCard) -> str | None:
    """The day of the first release."""
    if card.released is None:
        return None
    return f"The model was registered as released on {card.released.isoformat()}."


def every_step_by(card: PrivacyCard) -> str | None:
    """Code of a run whose randomness is bound to it."""
    if not card.fingerprints.training_code:
        return None
    return (
        f"Every step was made by jaxcxr {card.fingerprints.jaxcxr}, with the training code and libraries "
        "named below: a training is not continued with others."
    )


def begun_by(card: PrivacyCard) -> str | None:
    """Code of a run of an earlier version."""
    if card.fingerprints.training_code:
        return None
    return (
        f"The training was begun with jaxcxr {card.fingerprints.jaxcxr}; whether other versions continued it "
        "was not recorded."
    )


def written_by(card: PrivacyCard) -> str | None:
    """Code of the figures."""
    return f"The figures were computed by jaxcxr {card.fingerprints.written_by}."


def sealed(card: PrivacyCard) -> str | None:
    """Why the fingerprints of data and ledger tell nobody anything."""
    if not (card.fingerprints.data or card.fingerprints.ledger):
        return None
    return (
        "Sealed fingerprints are made with a name of the run that the hospital keeps: it can show an auditor "
        "which data and which ledger they stand for, and nobody else can test guesses at the data."
    )


EXPLAINED = (meaning_of_mu, meaning_of_epsilon, exact_epsilon, worst_case, alone, guesses, mixed_units)
AUDITED = (
    no_audit, what_was_audited, what_it_found, by_the_weights_alone, what_was_checked, contradicted,
    not_contradicted, other_code, patients_not_tried,
    other_attacks,
)  # fmt: skip
BOUND_TO = (named_files, dated, every_step_by, begun_by, written_by, sealed)
