"""What a privacy card holds: the models that its JSON follows, and how it is written, read and validated.

`card_schema` gives the JSON schema, which docs/privacy_card.schema.json shows.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxcxr.errors import InputError

SCHEMA_VERSION = 2
NOT_FOR_RELEASE = "not for release"

Digest = Annotated[
    str, Field(pattern="^([0-9a-f]{32}|[0-9a-f]{64})?$", description="hexadecimal; empty if not recorded")
]
Version = Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}(\.\d{1,4})?((a|b|rc|\.dev|\.post)\d{1,4})?$")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
InitialWeightsRecord = Literal["recorded", "ids_declared_unrelated", "none"]
NearDuplicates = Literal["not_looked_for", "none", "within", "across", "within_and_across"]
Sums = Literal["exact", "float32"]
SplitOrigin = Literal["keyed_hash", "given", "unknown"]


def _described_on_one_line(schema: dict[str, Any]) -> None:
    """A docstring says the same wherever its lines end."""
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_described_on_one_line)


class Claim(_Strict):
    """The guarantee. Epsilons are null where they are infinite."""

    unit: Literal["image", "patient", "patient_one_image"]
    films_a_step: Count | None = Field(
        description="how many images of a patient are used in a step at most; null for images"
    )
    adjacency: Literal["add_remove", "replace_one"]
    epsilon_upper: NonNegative | None = Field(
        description="upper bound of what the ledger says was spent: this is the claim"
    )
    epsilon_lower: NonNegative | None = Field(
        description="no epsilon below this one is true of the mechanism"
    )
    epsilon_rdp: NonNegative | None = Field(
        description="upper bound by the looser Rényi accountant, a cross-check"
    )
    delta: Probability
    budget: NonNegative = Field(description="epsilon that the run was allowed to spend")


class PatientRow(_Strict):
    """What the run costs a patient with so many images."""

    patient: Literal["median", "95th percentile", "maximum"] | None = Field(
        description="null for any patient; else which one of the cohort, on the hospital's own card"
    )
    films: Count
    epsilon_upper: NonNegative | None
    epsilon_lower: NonNegative | None
    true_positive_rate_at_1_percent: Probability = Field(
        description="best at 1 % false positives, for any attack"
    )


class MechanismRow(_Strict):
    """One kind of release, as often as the ledger has it."""

    name: Literal[
        "noised gradient", "noised gradient and clip count", "noised moments", "noised class counts"
    ]
    noise_multiplier: NonNegative = Field(description="noise standard deviation over the L2 bound")
    sample_rate: Probability
    steps: Count
    l2_clip_norm: NonNegative = Field(description="L2 bound on what one unit adds")


class SiblingRow(_Strict):
    """Another released model of the same cohort, as the register in the cohort's store has it."""

    ledger: Digest = Field(description="last link of its ledger's chain, as on its own card")
    unit: Literal["image", "patient", "patient_one_image"]
    mechanisms: list[MechanismRow]


class Together(_Strict):
    """What this and all other released models of the cohort cost together, at the delta of the claim."""

    models: Count = Field(description="how many they are, this one included")
    unit: Literal["image", "patient"] = Field(
        description="whom the figure is for: patients only if every model protects patients"
    )
    epsilon_upper: NonNegative | None


class AttackRow(_Strict):
    """No attack on one unit does better."""

    false_positive_rate: Probability
    true_positive_rate: Probability


class AuditFinding(_Strict):
    """What an attack on the mechanism itself found."""

    method: Literal["one run; white-box gradient alignment and black-box loss; every step checked"]
    model: Literal["logistic regression", "network, narrower"] = Field(
        description="what was trained for the audit, by the real training's code"
    )
    canaries: Count
    confidence: Probability
    epsilon_lower: NonNegative = Field(description="epsilon that the attack proves")
    epsilon_claimed: NonNegative | None = Field(description="that the audited training was meant to have")
    accused: bool = Field(description="whether the finding contradicts the claim")
    code: Digest


class Fingerprints(_Strict):
    """What the run was made from. Those of data and ledger are sealed by the run's name, which stays in the
    hospital: an exact fingerprint of private data would let a guess at them be confirmed.
    """

    data: Digest = Field(
        description="images and labels: SHA-256 of their store's fingerprint and the run's name"
    )
    code: Digest = Field(description="source files of jaxcxr that trained (SHA-256)")
    ledger: Digest = Field(description="last link of the ledger's chain, which begins with the run's name")
    initial_weights: Digest = Field(
        description="weights that training started from (SHA-256); empty for random ones"
    )
    jaxcxr: Version = Field(description="version that trained")
    dp_accounting: Version = Field(description="version of the accountant")


class PrivacyCard(_Strict):
    """Everything that the page says."""

    schema_version: Literal[2]
    for_release: bool
    watermark: Literal["not for release"] | None
    reasons_against_release: list[str]
    claim: Claim
    siblings: list[SiblingRow] | None = Field(
        description="other released models of the cohort; null if the register was not read: such a card is "
        "not for release"
    )
    together: Together | None = Field(description="null if there are no siblings")
    dataset_size: Count = Field(description="declared, public number of units N")
    expected_batch_size: Count
    steps_planned: Count
    class_weights: Literal["none", "public", "noised", "paper"]
    class_counts_noise_multiplier: NonNegative | None = Field(
        description="noise standard deviation over the L2 bound of the noised counts of the class weights; "
        "null without such"
    )
    noise: Literal["gaussian", "discrete"] = Field(
        description="sampled in floating point, or exactly on a grid"
    )
    sums: Sums = Field(
        description="how microbatches were added up: in whole numbers, or in floating point (earlier "
        "versions)"
    )
    initial_weights_record: InitialWeightsRecord | None = Field(
        description="what is known of the training images of the weights that training started from; null if "
        "those were random"
    )
    near_duplicates: NearDuplicates = Field(
        description="nearly equal images of different patients: within the training images, across the splits"
    )
    split_origin: SplitOrigin = Field(description="what decided who is in the training cohort")
    patients: list[PatientRow]
    mechanisms: list[MechanismRow]
    accountant: str
    covered: list[str]
    not_covered: list[str]
    attacks: list[AttackRow]
    reconstruction_advantage: Probability = Field(
        description="bound on guessing a record right with this model, less with one that was trained "
        "without the record"
    )
    audit: AuditFinding | None
    fingerprints: Fingerprints
    assumptions: list[str]


def card_json(card: PrivacyCard) -> str:
    """The card as JSON text."""
    return json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def card_schema() -> dict[str, Any]:
    """JSON schema of the card."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PrivacyCard.model_json_schema()}


def read_card(path: Path) -> PrivacyCard:
    """Read and validate a card.

    Raises:
        InputError: the file is missing or no card; the first wrong field is named.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such privacy card")
    content = path.read_bytes()
    try:
        return PrivacyCard.model_validate_json(content)
    except ValidationError as error:
        if (version := _version(content)) != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema_version: found {version!r}, expected {SCHEMA_VERSION}; check the folder "
                "with the version of "
                "jaxcxr that built it, or build it anew"
            ) from None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {f'{where}: ' if where else ''}{first['msg']}") from None


def _version(content: bytes) -> object:
    """What a card says of its own form; that of this module where it says nothing readable."""
    try:
        return json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return SCHEMA_VERSION
