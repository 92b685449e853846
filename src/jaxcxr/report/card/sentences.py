"""Every sentence of a card, by section: a function of the card's facts and figures that returns the sentence,
or None where it would not be true. What a page prints beside them are labels, numbers and what the hospital
states.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxcxr.report.card import evidence, first_page, scope
from jaxcxr.report.card.card_schema import PrivacyCard

Sentence = Callable[[PrivacyCard], str | None]

SECTIONS: Mapping[str, tuple[Sentence, ...]] = MappingProxyType(
    {
        "promised": first_page.PROMISED,
        "to_whom": first_page.TO_WHOM,
        "how_strong": first_page.HOW_STRONG,
        "not_promised": first_page.NOT_PROMISED,
        "explained": evidence.EXPLAINED,
        "covered": scope.COVERED,
        "not_covered": scope.NOT_COVERED,
        "assumptions": scope.ASSUMPTIONS,
        "audited": evidence.AUDITED,
        "bound_to": evidence.BOUND_TO,
    }
)
"""Field of the card -> its sentences, in order."""


def said(card: PrivacyCard, section: str) -> list[str]:
    """The sentences of a section that are true of a card."""
    return [text for sentence in SECTIONS[section] if (text := sentence(card)) is not None]
