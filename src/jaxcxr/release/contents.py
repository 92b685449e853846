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

from collections.abc import Iterator
from typing import Final

from jaxcxr.run_folder import CONFIG

WEIGHTS: Final = "model.safetensors"
ORBAX: Final = "orbax"
LICENCE: Final = "LICENCE"
THRESHOLDS: Final = "thresholds.json"
CARD_JSON: Final = "privacy_card.json"
CARD_HTML: Final = "privacy_card.html"
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


def top_level() -> Iterator[str]:
    """Every name that may stand at the top of a release folder."""
    yield from (*ALWAYS, ORBAX, *IF_STATED)
