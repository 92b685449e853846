"""The few words and conditions that the sentences of a card share."""

from jaxcxr.report.bounds import round_up
from jaxcxr.report.card.card_facts import SEEDED
from jaxcxr.report.card.card_schema import PrivacyCard


def has_promise(card: PrivacyCard) -> bool:
    """Whether anything is promised: epsilon is finite, and nobody has a seed from which the noise follows."""
    return card.claim.epsilon_upper is not None and SEEDED not in card.reasons_against_release


def of_images(card: PrivacyCard) -> bool:
    """Whether one image is protected; else one patient with all of their images."""
    return card.claim.unit == "image"


def unit(card: PrivacyCard) -> str:
    """What is protected: 'image' or 'patient'."""
    return "image" if of_images(card) else "patient"


def change(card: PrivacyCard) -> str:
    """The change of the data that the figures are about."""
    how = "more or less" if card.claim.adjacency == "add_remove" else "exchanged for another"
    return f"one {unit(card)} {how}"


def per_thousand(rate: float) -> str:
    """An upper bound on a share, as a number of 1,000 in three digits."""
    return f"{round_up(1000 * rate, 3):.6g}"


def joined(names: list[str]) -> str:
    """Names as words: 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plain(value: float) -> str:
    """A number of a card in four digits."""
    return f"{value:.4g}"
