"""The four questions of a data-protection officer, and the sentences that answer them on the first page.

Each function gives the sentence that follows from a card's facts and figures, or None where it would not be
true. The comparison is always with a model that was trained without the one image or patient: what holds of
everybody can be learned from the others.
"""

from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card.card_facts import SEEDED
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.terms import change, has_promise, of_images, per_thousand, plain, unit
from jaxcxr.report.verdicts import FALSE_POSITIVE_RATE, STRONG, WEAK, strength

ACCUSED = plain(1000 * FALSE_POSITIVE_RATE)
"""Of 1,000 units that were not used, how many the attacker of the verdict accuses wrongly."""
SEVERAL = 4
"""The patient with so many images is the first page's example."""


def found_of_1000(card: PrivacyCard) -> float:
    """Bound on the share of used units that the attacker of the verdict finds."""
    return next(
        row.true_positive_rate for row in card.attacks if row.false_positive_rate == FALSE_POSITIVE_RATE
    )


def no_limit(card: PrivacyCard) -> str | None:
    """No promise: something was released without noise, or with next to none."""
    return None if card.claim.epsilon_upper is not None else "There is no promise: epsilon is without limit."


def seeded(card: PrivacyCard) -> str | None:
    """No promise: the noise can be computed."""
    if SEEDED not in card.reasons_against_release:
        return None
    return "There is no promise: whoever has the seed of the training can compute its noise and take it away."


def limited(card: PrivacyCard) -> str | None:
    """The promise in words."""
    if not has_promise(card):
        return None
    one = unit(card)
    return (
        f"What anybody can learn from this model about one {one} of the training data is limited: it "
        "differs, by no more than the figures of this card allow, from what they would learn from a model "
        f"trained without this {one}."
    )


def anybody(card: PrivacyCard) -> str | None:
    """Against whom it holds."""
    if not has_promise(card):
        return None
    return (
        "This holds against anybody, whatever else they know and whatever they do with the model, as long as "
        "the conditions on this card are true."
    )


def reasons_stand(card: PrivacyCard) -> str | None:
    """A card that is not for release."""
    if card.for_release or not has_promise(card):
        return None
    return "Reasons stand against releasing this model (above), and some may undo what is said here."


def each_image(card: PrivacyCard) -> str | None:
    """Unit image."""
    if not has_promise(card) or not of_images(card):
        return None
    return f"To each image of the training data by itself: the figures are about {change(card)}."


def several_images(card: PrivacyCard) -> str | None:
    """What a patient with several images is promised, where the unit is the image."""
    row = next((row for row in card.patients if row.images == SEVERAL), None)
    if not has_promise(card) or row is None:
        return None
    if row.epsilon_upper is None:
        return f"A patient with {SEVERAL} images is promised nothing: epsilon is without limit."
    return (
        f"A patient with several images is promised less: with {SEVERAL} images, epsilon is "
        f"{upper_text(row.epsilon_upper)}, and at most {per_thousand(row.true_positive_rate_at_1_percent)} "
        "of 1,000 such patients are rightly named by the attacker of the next question."
    )


def each_patient(card: PrivacyCard) -> str | None:
    """Unit patient."""
    if not has_promise(card) or of_images(card):
        return None
    return (
        "To each patient of the training data, for all of their images together: the figures are about "
        f"{change(card)}."
    )


def twice_in_the_data(card: PrivacyCard) -> str | None:
    """Somebody may be in the training data under two names."""
    if not has_promise(card) or card.near_duplicates not in ("within", "within_and_across"):
        return None
    return "Whoever is in the training data under two names is promised less (see the conditions)."


def to_nobody(card: PrivacyCard) -> str | None:
    """No promise."""
    return None if has_promise(card) else "To nobody."


def verdict(card: PrivacyCard) -> str | None:
    """One word, and the bound that it follows from."""
    if not has_promise(card):
        return None
    found, many = found_of_1000(card), f"{unit(card)}s"
    attacker = (
        f"an attacker who may wrongly name {ACCUSED} of every 1,000 {many} that were not used for training"
    )
    word = strength(found)
    if word == "weak":
        limit = f"it cannot be ruled out that {attacker} rightly names {per_thousand(found)}"
    else:
        limit = f"{attacker} can rightly name at most {per_thousand(found)}"
    return f"{word.capitalize()}: {limit} of every 1,000 that were. Guessing names {ACCUSED}."


def scale_of_words(card: PrivacyCard) -> str | None:
    """The thresholds of the verdict."""
    if not has_promise(card):
        return None
    return (
        f"Strong means that such an attacker can name at most {plain(1000 * STRONG)} of 1,000, weak that "
        f"{plain(1000 * WEAK)} or more cannot be ruled out; moderate lies between."
    )


def in_figures(card: PrivacyCard) -> str | None:
    """mu first, then epsilon and delta."""
    claim = card.claim
    if not has_promise(card):
        return None
    if claim.mu is None:
        return (
            f"In the field's figures: epsilon = {upper_text(claim.epsilon_upper)} at delta = "
            f"{plain(claim.delta)}, with the choice of this model among several trainings."
        )
    return (
        f"In the field's figures: mu = {upper_text(claim.mu)} (Gaussian differential privacy); epsilon = "
        f"{upper_text(claim.epsilon_upper)} at delta = {plain(claim.delta)}."
    )


def with_others(card: PrivacyCard) -> str | None:
    """Together with the other released models of the cohort."""
    together = card.together
    if together is None:
        return None
    one = together.models == 2
    others = "One other model" if one else f"{together.models - 1} other models"
    began = f"{others} of this cohort {'was' if one else 'were'} released. Together with this one"
    if together.epsilon_upper is None:
        return f"{began} there is no promise: epsilon is without limit."
    return (
        f"{began}, epsilon = {upper_text(together.epsilon_upper)} at the same delta, for one {together.unit}."
    )


def in_general(card: PrivacyCard) -> str | None:
    """Inference about the population, with an example."""
    if not has_promise(card):
        return None
    return (
        "That nothing is learned about patients in general: if the model shows that an enlarged heart often "
        "comes with fluid in the lungs, everybody then knows this of every patient with an enlarged heart, "
        "whether or not their images were used."
    )


def who_was_tested(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Validation and test patients."""
    return "Anything to patients whose images only served to choose or to test the model."


def right_and_fair(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Utility and fairness."""
    return "That the model is right, or as good for one group of patients as for another."


def other_files(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Only what is listed."""
    return "Anything about other files of the training, such as logs, predictions and checkpoints."


def law(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """A judgement that is not the card's (EDPB Opinion 28/2024)."""
    return (
        "That the model counts as anonymous in law: this card gives figures for that judgement and does not "
        "make it."
    )


PROMISED = (no_limit, seeded, limited, anybody, reasons_stand)
TO_WHOM = (each_image, several_images, each_patient, twice_in_the_data, to_nobody)
HOW_STRONG = (verdict, scale_of_words, in_figures, with_others)
NOT_PROMISED = (in_general, who_was_tested, right_and_fair, other_files, law)
