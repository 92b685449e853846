"""What a card's promise covers, what it does not, and what must be true for it to hold: a sentence per
function, or None where it would not be true.
"""

import dataclasses

from jaxcxr.accounting import Spending
from jaxcxr.privacy import rounding
from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_RATES, COUNTED_SIZE
from jaxcxr.report.bounds import round_down, upper_text
from jaxcxr.report.card.card_facts import (
    ADAPTIVE,
    COUNTS,
    MOMENTS,
    UNCOVERED_WEIGHTS,
    choice_of,
    guarantee_of,
)
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.terms import has_promise, joined, of_images, plain, unit

_UNNOISED = {
    "utility": "how good the model is",
    "utility_by_group": "how good the model is by group of patients",
}


def _releases(card: PrivacyCard, name: str) -> bool:
    return name in {row.name for row in card.mechanisms}


def weights(card: PrivacyCard) -> str | None:
    """The released weights."""
    if not has_promise(card):
        return None
    whom = "one image of the training cohort"
    if not of_images(card):
        whom = "all images of one patient of the training cohort together"
    return f"the released weights, against anybody, whatever else they know, for {whom}"


def class_counts(card: PrivacyCard) -> str | None:
    """Noised class counts."""
    if not has_promise(card) or not _releases(card, COUNTS):
        return None
    return f"the {COUNTS} that training used: their cost is in the figures"


def clip_norm(card: PrivacyCard) -> str | None:
    """Adaptive clipping."""
    if not has_promise(card) or not _releases(card, ADAPTIVE):
        return None
    return (
        "the clip norm that training adjusted from step to step: it was computed from what the steps "
        "released, and its cost is in the figures"
    )


def bands_of(card: PrivacyCard) -> int:
    """Over how many steps noise is correlated; 1 if it is not."""
    return max((row.bands for row in card.mechanisms), default=1)


def turns(card: PrivacyCard) -> str | None:
    """Noise that is correlated over several steps."""
    bands = bands_of(card)
    if not has_promise(card) or bands == 1:
        return None
    return (
        f"noise that partly cancels from step to step (it is correlated over {bands} steps): training drew "
        f"from {bands} groups in turn, to which patients were assigned at random, so that nobody was in two "
        f"steps less than {bands} apart, and the figures count the steps of one group at its own sample rate"
    )


def choice(card: PrivacyCard) -> str | None:
    """The choice among several runs."""
    tuning = card.tuning
    if not has_promise(card) or tuning is None:
        return None
    varied = [name.partition(".")[2].replace("_", " ") for name in tuning.varied]
    settings = f"{tuning.candidates} settings of {joined(varied)}" if varied else "one setting"
    return (
        f"the choice of this model among several trainings, each with one of {settings} drawn at random: how "
        f"many there were was drawn beforehand ({tuning.repetitions} distribution, mean "
        f"{plain(tuning.mean_runs)}) and is not told, and the cost of the choice is in the figures"
    )


def uncovered_weights(card: PrivacyCard) -> str | None:
    """Class weights from exact counts."""
    return UNCOVERED_WEIGHTS if UNCOVERED_WEIGHTS in card.reasons_against_release else None


def large_delta(card: PrivacyCard) -> str | None:
    """delta that permits publishing a record."""
    if card.claim.delta < 1 / card.dataset_size:
        return None
    return (
        "delta is not below 1 in the number of units: publishing somebody's record outright would not break "
        "the promise"
    )


def several_images(card: PrivacyCard) -> str | None:
    """The unit image."""
    if not of_images(card):
        return None
    return "a patient with several images is protected less than one image is: see the table of patients"


def files_that_stay(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Files of the run."""
    return "training loss, predictions, checkpoints and logs of the training: they stay in the hospital"


def tested_images(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Evaluation."""
    return (
        "the images on which the finished model was tested: whatever is published of the tests needs a "
        "promise of its own, or has none"
    )


def choosing_images(card: PrivacyCard) -> str | None:
    """The patients by whose images a run was chosen."""
    tuning = card.tuning
    if tuning is None:
        return None
    score = Spending(1.0, tuning.score_noise_multiplier, 1)
    epsilon = dataclasses.replace(choice_of(tuning), candidates=((score,),)).epsilon(card.claim.delta)
    return (
        "the validation patients, by whose images the best of several trainings was chosen: they are not "
        "training data, and the choice, made by noised counts, costs each of them another epsilon of at most "
        f"{upper_text(epsilon)} at the same delta; what else is published of their images adds to it"
    )


def quality(card: PrivacyCard) -> str | None:  # noqa: ARG001  # true of every card
    """Utility and fairness."""
    return "whether the model is right, and as good for one group of patients as for another"


def unnoised_figures(card: PrivacyCard) -> str | None:
    """Figures that the hospital publishes without noise."""
    stated = [
        words
        for name, words in _UNNOISED.items()
        if (figures := getattr(card.statement, name)) is not None and figures.protection == "none"
    ]
    if not stated:
        return None
    return (
        f"the figures on {joined(stated)}, which the hospital states: they were computed from patients' "
        "images without noise"
    )


def noised_figures(card: PrivacyCard) -> str | None:
    """Figures that have a promise of their own."""
    stated = [
        (words, figures)
        for name, words in _UNNOISED.items()
        if (figures := getattr(card.statement, name)) is not None and figures.protection == "noised"
    ]
    if not stated:
        return None
    each = [f"{words}: epsilon = {plain(f.epsilon)}, delta = {plain(f.delta)}" for words, f in stated]
    return (
        "the figures that the hospital states of its tests: by its word they were noised, under a promise of "
        f"their own to the patients who were tested ({'; '.join(each)})"
    )


def thresholds(card: PrivacyCard) -> str | None:
    """Thresholds chosen on patients' images."""
    stated = card.statement.thresholds
    if stated is None or stated.protection == "public":
        return None
    if stated.protection == "noised":
        return "the thresholds: by the hospital's word they were chosen under a promise of their own"
    return "the thresholds: they were chosen on patients' images without noise"


def origin_of_split(card: PrivacyCard) -> str | None:
    """A split that may have depended on everybody."""
    if card.split_origin != "unknown":
        return None
    return (
        "which patients were trained on: whether a patient's images were used for training or for testing "
        "may have depended on which other patients were there, and the promise does not count that"
    )


def duplicates_across(card: PrivacyCard) -> str | None:
    """Nearly equal images in training and test."""
    if card.near_duplicates not in ("across", "within_and_across"):
        return None
    return (
        "how well the model does on new images: nearly equal images stand in the training and in the test "
        "part under different patients, so that results on the test images may be too good"
    )


def looked_up(card: PrivacyCard) -> str | None:
    """Bits of the images themselves that stand on the card."""
    found = [
        *(["images that are nearly equal"] if card.near_duplicates != "not_looked_for" else []),
        *(
            ["images that the starting weights were trained on"]
            if card.initial_weights_record not in (None, "none")
            else []
        ),
    ]
    if not found:
        return None
    return f"what this card says of {' and of '.join(found)}: it was looked up in the images, without noise"


def finding_of_audit(card: PrivacyCard) -> str | None:
    """The audit's own figure."""
    if card.audit is None:
        return None
    return "the audit's finding: a figure and a verdict from a training on the cohort, made for the audit"


def public_settings(card: PrivacyCard) -> str | None:
    """What is taken as known beforehand."""
    declared = AGAINST_RELEASE[COUNTED_SIZE] not in card.reasons_against_release
    public = f"declared number of {unit(card)}s (N), the settings" if declared else "settings"
    return f"The {public} and the findings' names are public."


def one_person_one_unit(card: PrivacyCard) -> str | None:
    """What must hold for the protected unit to be all that one person has in the data."""
    if card.near_duplicates in ("within", "within_and_across"):
        return None
    right = "All images of one person carry the same patient id, and no image is there under two"
    if of_images(card):
        right = "No image is in the data twice, under any name"
    if card.near_duplicates == "not_looked_for":
        return f"{right}: ASSUMED, nearly equal images were not looked for."
    found = (
        "nearly equal images of different patients were looked for in the training data, and none were found"
    )
    among = " Among the images of one patient they were not looked for." if of_images(card) else ""
    return f"{right}: {found}.{among}"


def somebody_twice(card: PrivacyCard) -> str | None:
    """The promise to whoever is in the data under two names."""
    if card.near_duplicates not in ("within", "within_and_across"):
        return None
    promised, delta = guarantee_of(card), card.claim.delta
    # with groups that take turns, the two may be in two groups
    pair = upper_text(promised.bounds(delta, 2).upper if bands_of(card) == 1 else promised.apart(delta))
    return (
        "Nearly equal images stand in the training data under different patients: they may be one image, or "
        "one person's images, under two names. The promise to whoever is in the data twice is that of a "
        f"group of two {unit(card)}s: epsilon = {pair}. Nobody is in the data more often than that."
    )


def sampling(card: PrivacyCard) -> str | None:
    """Poisson sampling."""
    steps = "step" if bands_of(card) == 1 else "step of its group"
    return (
        f"In each {steps} every {unit(card)} is included at random, independently of all others, as the "
        "sampler's code does."
    )


def secret(card: PrivacyCard) -> str | None:  # noqa: ARG001  # asked of every run
    """The secret of the run."""
    return (
        "The noise comes from 256 random bits of the operating system, which stayed secret and are deleted "
        "or locked away."
    )


def rounded(card: PrivacyCard) -> str | None:
    """What rounding leaves of the guarantee, which is one of exact arithmetic."""
    one = unit(card)
    noise = "exactly" if card.noise == "discrete" else "in 32-bit arithmetic"
    sampled = f"Computers round: the noise was sampled {noise}"
    if card.sums == "float32":
        return f"{sampled}, and the sums that it was added to were formed in 32-bit arithmetic."
    if card.noise == "discrete" or _releases(card, MOMENTS):
        return (
            f"{sampled}. What each {one} adds was rounded by itself and added in whole numbers, so that no "
            f"{one} changes a sum by more than the noise is for; this is proved for programs that repeat "
            "their own roundings."
        )
    percent = round_down(100 * rounding.rounding_allowance(card.expected_batch_size), 2)
    return (
        f"{sampled}. Microbatches were added up exactly, but each was summed in 32-bit arithmetic, and how "
        f"one {one} more changes that rounding is not proved. {percent:g} % of the clip norm was left free "
        f"for it: {rounding.FACTOR / rounding.FOUND:.0f} times the most that a search over images made for "
        "the purpose found."
    )


def others_published(card: PrivacyCard) -> str | None:
    """Which other models of the cohort there are, as far as its register knows."""
    if card.siblings is None:
        return (
            "Whether other models of this cohort are published was not looked up. If there are any, the "
            "costs add up."
        )
    known = "No other model of this cohort is published: the register of its store has none."
    if card.siblings:
        known = (
            "No other models of this cohort are published than those listed here, from the register of its "
            "store."
        )
    return (
        f"{known} Models of the same images from a store that was prepared anew or copied are not in it, and "
        "their costs add up."
    )


def tuned(card: PrivacyCard) -> str | None:
    """Choices."""
    if card.tuning is None:
        return "Settings were not tuned by looking at private results, or that cost is stated elsewhere."
    return (
        "Nobody looked at private results when the settings to draw from were listed, nothing of the "
        "trainings that were not chosen is published, nor how many there were, and the trainings were not "
        "made anew until a better one came."
    )


def given_split(card: PrivacyCard) -> str | None:
    """A split that came with the data."""
    if card.split_origin != "given":
        return None
    return (
        "The division into training and test images came with the data: it is assumed that no patient's "
        "place in it depended on the other patients."
    )


def public_rates(card: PrivacyCard) -> str | None:
    """Declared positive rates."""
    if card.class_weights != "public" or AGAINST_RELEASE[COUNTED_RATES] in card.reasons_against_release:
        return None
    return "How frequent each finding is was known from elsewhere, and not counted in the training images."


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


def starting_weights(card: PrivacyCard) -> str | None:
    """What is known of the images behind the starting weights."""
    record = card.initial_weights_record
    return None if record is None else _STARTING_WEIGHTS[record]


COVERED = (weights, class_counts, clip_norm, turns, choice)
NOT_COVERED = (
    uncovered_weights, large_delta, several_images, files_that_stay, tested_images, choosing_images, quality,
    unnoised_figures, noised_figures, thresholds, origin_of_split, duplicates_across, looked_up,
    finding_of_audit,
)  # fmt: skip
ASSUMPTIONS = (
    public_settings, one_person_one_unit, somebody_twice, sampling, secret, rounded, others_published, tuned,
    given_split, public_rates, starting_weights,
)  # fmt: skip
