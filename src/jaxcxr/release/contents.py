"""What a release folder holds: the names of its files, and where in them a hospital's own words stand.

    model.safetensors          the weights
    orbax/                     the same weights for Flax
    config.yaml                how they were trained, without private paths
    LICENCE                    what may be done with them, as the hospital states it
    thresholds.json            from which score on a finding is called, if the hospital releases thresholds
    privacy_card.json, .html   the guarantee; it names the SHA-256 of every file above
    README.md                  what the folder is, and three lines to load the model
    registry.yaml              a record for a public registry of such releases, if it was asked for

The files above the card are its sources and are listed on it; README and record follow from the card.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jaxcxr.models.calibration import THRESHOLDS
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.page import CARD_HTML, CARD_JSON
from jaxcxr.run_folder import CONFIG

WEIGHTS: Final = "model.safetensors"
ORBAX: Final = "orbax"
LICENCE: Final = "LICENCE"
README: Final = "README.md"
REGISTRY: Final = "registry.yaml"

ALWAYS: Final = (WEIGHTS, CONFIG, LICENCE, CARD_JSON, CARD_HTML, README)
"""Files that every release holds, beside the folder `ORBAX`."""
IF_STATED: Final = (THRESHOLDS, REGISTRY)
"""Files that a release holds if the hospital stated thresholds, or asked for a record."""
SOURCES: Final = (WEIGHTS, CONFIG, CARD_JSON)
"""The files that all others follow from."""
FROM_CARD: Final = (CARD_JSON, CARD_HTML, README, REGISTRY)
"""Files that follow from the card, which therefore cannot name their SHA-256."""
MARKER: Final = "NOT-FOR-RELEASE.txt"
"""In a marked folder only."""


def not_the_cards(folder: Path, card: PrivacyCard) -> Iterator[str]:
    """A sentence for every file of a release that is not the one that its card names by SHA-256."""
    if not card.files:
        yield f"{CARD_JSON}: names no files, so that it might be the card of any weights"
    for file in card.files:
        path = folder / file.name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            yield f"{file.name}: is not the file that {CARD_JSON} names by its SHA-256"


def own_words(card: PrivacyCard) -> dict[str, str]:
    """Every text of a release that a hospital wrote itself, by its place on the card.

    What else a release holds of it (page, README, licence, record) repeats these.
    """
    return {f"statement.{name}": text for name, text in card.statement.words().items()}
