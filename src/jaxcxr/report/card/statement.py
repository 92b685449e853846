"""What the hospital itself says of a model that it releases: one YAML file, printed on the card as stated.

Nothing in it is computed or checked here; an empty field is printed as 'not stated'. The fields are those
that the OpenDP deployments registry, NIST SP 800-226 (access to and retention of the raw data, trust model),
EDPB Opinion 28/2024 (residual risks, duties of whoever deploys the model) and FUTURE-AI (intended use and
users, reference standard, external validation, monitoring) ask for and that no run can know.
`configs/release.yaml` is the form to fill in.
"""

import datetime
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jaxcxr.config_files import load
from jaxcxr.report.card.plain_text import pretences, spaced_plainly

NOT_STATED = "not stated"

Protection = Literal["none", "public", "noised"]
"""Of figures from patients' images: none; none needed, as they were fixed beforehand; noise with a promise of
its own."""


def _tidied(value: Any) -> Any:
    """Blank is None; one form of each letter, one space between words, none at the ends of lines."""
    if not isinstance(value, str):
        return value
    return spaced_plainly(unicodedata.normalize("NFC", value)) or None


def _readable(value: str) -> str:
    """Refuse texts in which something might be hidden."""
    for expected in pretences(value):
        raise ValueError(expected)
    return value


def _one_line(value: str) -> str:
    if "\n" in value:
        raise ValueError("one line")
    return value


_Word = Annotated[
    str, Field(min_length=1, max_length=200), AfterValidator(_readable), AfterValidator(_one_line)
]
_Prose = Annotated[str, Field(max_length=4000), AfterValidator(_readable)]
_Document = Annotated[str, Field(max_length=40_000), AfterValidator(_readable)]
Line = Annotated[_Word | None, BeforeValidator(_tidied)]
Text = Annotated[_Prose | None, BeforeValidator(_tidied)]
Document = Annotated[_Document | None, BeforeValidator(_tidied)]
Lines = Annotated[
    tuple[Annotated[_Word, BeforeValidator(_tidied)], ...],
    BeforeValidator(lambda found: () if found is None else found),
]


def described_on_one_line(schema: dict[str, Any]) -> None:
    """A docstring says the same in a JSON schema wherever its lines end."""
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())


class _Stated(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=described_on_one_line)


class Figures(_Stated):
    """Results on patients' images that the hospital chooses to publish.

    Raises:
        ValueError: they are said to be noised and the promise is not stated, or the other way round.
    """

    text: Annotated[_Prose, BeforeValidator(_tidied)] = Field(description="the figures, with their intervals")
    protection: Literal["none", "noised"] = Field(
        description="none: computed from the test patients' images without noise; noised: released under a "
        "promise of its own to them"
    )
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="of the noised figures' promise"
    )
    delta: Annotated[float, Field(ge=0, lt=1)] | None = Field(default=None, description="of the same")

    @model_validator(mode="after")
    def _noise_has_a_promise(self) -> "Figures":
        stated = (self.epsilon is not None, self.delta is not None)
        if stated != (self.protection == "noised",) * 2:
            raise ValueError("epsilon and delta with protection 'noised', and only with it")
        return self


class Thresholds(_Stated):
    """From which score on each finding is called; a file of its own in the release."""

    values: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        description="finding -> threshold on the network's score; every finding of the model, no other"
    )
    chosen_on: Line = Field(default=None, description="what they were chosen on")
    protection: Protection = Field(
        description="none: chosen on patients' images without noise; public: fixed beforehand; noised"
    )


class Statement(_Stated):
    """What the hospital says of a release; every field may be left empty."""

    name: Line = Field(default=None, description="name of the model")
    version: Line = Field(default=None, description="version of the model, as text")
    description: Text = Field(default=None, description="what the model is, in a sentence or two")
    intended_use: Text = Field(default=None, description="what it is meant for")
    intended_users: Text = Field(default=None, description="who is meant to use it")
    not_for: Text = Field(default=None, description="what it must not be used for")
    curator: Line = Field(default=None, description="the hospital or data holder that publishes the model")
    curator_type: Literal["Government", "Industry", "Nonprofit"] | None = Field(
        default=None, description="kind of curator, in the registry's words"
    )
    contact: Line = Field(default=None, description="whom to ask, such as an address for mail")
    region: Line = Field(default=None, description="where the data are from, whose law applies")
    sector: Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"] | None = (
        Field(default=None, description="in the registry's words")
    )
    data_domain: Text = Field(default=None, description="which images of which patients may be in the data")
    reference_standard: Text = Field(default=None, description="how the training labels were made")
    legal_basis: Text = Field(default=None, description="lawful basis of training on the patients' images")
    raw_data_access: Text = Field(default=None, description="who may access the raw images, and how")
    raw_data_retention: Text = Field(default=None, description="how long the raw images and the run are kept")
    trust_model: Text = Field(
        default=None, description="whom the patients must trust, and who may see what; with reasons"
    )
    licence: Line = Field(default=None, description="name of the licence of the weights, such as CC-BY-4.0")
    licence_text: Document = Field(default=None, description="its full text, for the file LICENCE")
    residual_risks: Text = Field(default=None, description="risks that remain, for whoever deploys the model")
    duties: Text = Field(default=None, description="what whoever deploys it must do")
    monitoring: Text = Field(default=None, description="how the model is watched in use")
    external_validation: Text = Field(default=None, description="tests at other hospitals")
    attacks_tried: Text = Field(default=None, description="attacks on the released model that were tried")
    justification: Text = Field(default=None, description="why this epsilon, unit and delta")
    tuning: Text = Field(
        default=None, description="how the settings were chosen, and whether that cost is counted"
    )
    future_releases: Text = Field(default=None, description="plans for more models from the same data")
    utility: Figures | None = Field(default=None, description="how good the model is")
    utility_by_group: Figures | None = Field(default=None, description="how good it is by group of patients")
    thresholds: Thresholds | None = Field(default=None, description="null: none are released")
    publication_date: datetime.date | None = Field(
        default=None, description="year-month-day; the day on which it was first released if empty"
    )
    registry_authors: Lines = Field(default=(), description="who filled in the registry's record")
    sources: Lines = Field(default=(), description="addresses of papers or pages about the model")

    def numbers(self) -> dict[str, float]:
        """Every number and day that the hospital gives, by field; a day as YYYYMMDD."""
        found: dict[str, float] = {}
        if self.publication_date is not None:
            found["publication_date"] = int(self.publication_date.strftime("%Y%m%d"))
        for name in ("utility", "utility_by_group"):
            figures: Figures | None = getattr(self, name)
            if figures is not None and figures.epsilon is not None and figures.delta is not None:
                found |= {f"{name}.epsilon": figures.epsilon, f"{name}.delta": figures.delta}
        if self.thresholds is not None:
            found |= {f"thresholds.{finding}": value for finding, value in self.thresholds.values.items()}
        return found

    def words(self) -> dict[str, str]:
        """Every text in the hospital's own words, by field."""
        found: dict[str, str] = {}
        for name, value in self.model_dump(mode="json").items():
            if name not in _CHOSEN:
                _collect(name, value, found)
        return found


_CHOSEN = ("curator_type", "sector", "publication_date", "protection")
"""Fields whose values are not free."""


def _collect(name: str, value: Any, found: dict[str, str]) -> None:
    if isinstance(value, str):
        found[name] = value
    elif isinstance(value, dict):
        for key, part in value.items():
            found[f"{name}.{key} (name)"] = key
            if key not in _CHOSEN:
                _collect(f"{name}.{key}", part, found)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            _collect(f"{name}.{place}", part, found)


NOTHING_STATED = Statement()


def read_statement(path: Path) -> Statement:
    """A hospital's statement, from its YAML file.

    Raises:
        InputError: the file is missing or no YAML, or a field is unknown, repeated or of a wrong kind; the
            message names it.
    """
    return load(Statement, path)
