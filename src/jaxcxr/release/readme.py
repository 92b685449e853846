"""The README and the licence of a release, as they follow from its privacy card."""

from jaxcxr.release.contents import (
    CARD_HTML,
    CARD_JSON,
    LICENCE,
    ORBAX,
    REGISTRY,
    THRESHOLDS,
    WEIGHTS,
)
from jaxcxr.report.card.card_schema import PrivacyCard
from jaxcxr.report.card.page import QUESTIONS
from jaxcxr.report.card.statement import NOT_STATED, Statement
from jaxcxr.run_folder import CONFIG

LOAD = """\
import jaxcxr
model = jaxcxr.load_model("release")
print(model.predict(["image.png"]).table().T)
"""
"""Three lines, for the folder that holds `release/` and an image; a test runs them."""


def licence_text(stated: Statement) -> str:
    """The licence as the hospital states it; without a statement, that nobody has granted anything."""
    if stated.licence is None and stated.licence_text is None:
        whom = f": {stated.contact}" if stated.contact else ""
        return (
            "No licence was stated. Nothing that needs the permission of whoever holds the rights in these\n"
            f"weights is permitted by this folder; ask the hospital that released them{whom}.\n"
        )
    named = f"Licence of the weights in this folder: {stated.licence or 'the following'}\n"
    holder = f"Released by: {stated.curator}\n" if stated.curator else ""
    text = f"\n{stated.licence_text}\n" if stated.licence_text else ""
    return f"{named}{holder}{text}"


def readme_text(card: PrivacyCard) -> str:
    """What the folder is, what its card promises, three lines that load the model, and the files."""
    stated = card.statement
    name = stated.name or "A model for chest radiographs"
    version = f", version {stated.version}" if stated.name and stated.version else ""
    parts = [f"# {_flat(name)}{_flat(version)}"]
    if stated.description:
        parts.append(stated.description)
    parts.append(f"Findings: {', '.join(_flat(finding) for finding in card.findings)}.")
    parts.append(_table("", [
        ("intended use", stated.intended_use), ("intended users", stated.intended_users),
        ("not to be used for", stated.not_for), ("hospital or data holder", stated.curator),
        ("contact", stated.contact), ("licence", stated.licence),
        ("released", None if card.released is None else card.released.isoformat()),
    ]))  # fmt: skip
    parts.append(
        "## Load the model\n\nWith `jaxcxr` installed, in the folder that holds this one and an image "
        f"(DICOM, PNG, JPEG or TIFF):\n\n```python\n{LOAD}```\n\n"
        f"`{ORBAX}/params` holds the same weights for Flax."
    )
    parts.append(
        f"## Privacy\n\nFrom the privacy card (`{CARD_HTML}`), which holds the figures and the conditions:"
    )
    parts += [
        f"**{asked}**\n\n" + "\n".join(f"- {line}" for line in getattr(card, section))
        for section, asked in QUESTIONS
    ]
    parts.append("## Files\n\n" + _files(card))
    return "\n\n".join(parts) + "\n"


def _files(card: PrivacyCard) -> str:
    files = [
        (WEIGHTS, "the weights"),
        (f"{ORBAX}/", "the same weights for Flax"),
        (CONFIG, "how they were trained"),
        (LICENCE, "what may be done with them"),
        (CARD_HTML, "the privacy card, to be read and signed"),
        (CARD_JSON, "the same for machines; it names the SHA-256 of every file above"),
    ]
    if card.statement.thresholds is not None:
        files.append((THRESHOLDS, "from which score on a finding is called"))
    return _table("file", [(f"`{name}`", what) for name, what in files]) + (
        f"\n\n`{REGISTRY}`, if it is there, is a record for the OpenDP registry of deployments."
    )


def _table(heading: str, rows: list[tuple[str, str | None]]) -> str:
    lines = [f"| {heading} | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {label} | {_flat(value or NOT_STATED)} |" for label, value in rows)])


def _flat(text: str) -> str:
    """A text for one line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
