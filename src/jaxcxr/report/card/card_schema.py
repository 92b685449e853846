"""What a privacy card holds: the models that its JSON follows, and how it is written, read and validated.

`card_schema` gives the JSON schema, which docs/privacy_card.schema.json shows. Cards of schema 2 can still be
read (`read_card`); their releases are checked by the version that built them.
"""

import datetime
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxcxr.accounting import Spending
from jaxcxr.accounting.banded import spending_of
from jaxcxr.errors import InputError, faults_in
from jaxcxr.report.card.statement import Statement, described_on_one_line

SCHEMA_VERSION = 3
READABLE = (2, 3)
"""Schema versions that `read_card` reads."""
NOT_FOR_RELEASE = "not for release"

_Model = TypeVar("_Model", bound=BaseModel)
Digest = Annotated[
    str, Field(pattern="^([0-9a-f]{32}|[0-9a-f]{64})?$", description="hexadecimal; empty if not recorded")
]
VERSION = r"^\d{1,4}\.\d{1,4}(\.\d{1,4})?((a|b|rc|\.dev|\.post)\d{1,4})?$"
Version = Annotated[str, Field(pattern=VERSION)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
InitialWeightsRecord = Literal["recorded", "ids_declared_unrelated", "none"]
NearDuplicates = Literal["not_looked_for", "none", "within", "across", "within_and_across"]
Sums = Literal["exact", "float32"]
SplitOrigin = Literal["keyed_hash", "given", "unknown"]
Clipping = Literal["flat", "per_layer", "automatic", "adaptive"]
MechanismName = Literal[
    "noised gradient", "noised gradient and clip count", "noised moments", "noised class counts"
]
Library = Literal["jax", "jaxlib", "flax", "optax", "numpy", "pillow"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=described_on_one_line)


class Claim(_Strict):
    """The guarantee. Epsilons are null where they are infinite."""

    unit: Literal["image", "patient", "patient_one_image"]
    images_per_step: Count | None = Field(
        description="how many images of a patient are used in a step at most; null for images"
    )
    adjacency: Literal["add_remove", "replace_one"]
    mu: NonNegative | None = Field(
        description="least mu, rounded up, of Gaussian differential privacy that covers the whole profile "
        "from delta on (Gomez et al. 2025, arXiv 2503.10945); null where epsilon is, and for a model that "
        "was chosen among several runs"
    )
    epsilon_upper: NonNegative | None = Field(
        description="upper bound of what the ledger says was spent, with the choice among several runs if "
        "there was one: this is the claim"
    )
    epsilon_lower: NonNegative | None = Field(
        description="no epsilon below this one is true of the mechanism"
    )
    epsilon_rdp: NonNegative | None = Field(
        description="upper bound by the looser Rényi accountant, a cross-check"
    )
    delta: Probability
    budget: NonNegative = Field(description="epsilon that the run was allowed to spend")


class ProfileRow(_Strict):
    """A point of the privacy profile: epsilon at another delta."""

    delta: Probability
    epsilon_upper: NonNegative | None
    epsilon_lower: NonNegative | None


class ScaleRow(_Strict):
    """What an epsilon by itself allows, at the delta of the claim, whatever the mechanism."""

    epsilon: NonNegative
    true_positive_rate_at_1_percent: Probability
    strength: Literal["weak", "moderate", "strong"]


class PatientRow(_Strict):
    """What the run costs a patient with so many images."""

    patient: Literal["median", "95th percentile", "maximum"] | None = Field(
        description="null for any patient; else which one of the cohort, on the hospital's own card"
    )
    images: Count
    epsilon_upper: NonNegative | None
    epsilon_lower: NonNegative | None
    true_positive_rate_at_1_percent: Probability = Field(
        description="best at 1 % false positives, for any attack"
    )


class MechanismRow(_Strict):
    """One kind of release, as often as the ledger has it."""

    name: MechanismName
    noise_multiplier: NonNegative = Field(description="noise standard deviation over the L2 bound")
    sample_rate: Probability
    steps: Count
    l2_clip_norm: NonNegative = Field(description="L2 bound on what one unit adds")
    bands: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="over how many steps noise is correlated, and how many groups of units take turns: each "
        "is in its group's steps alone, at the sample rate",
    )

    @property
    def spending(self) -> Spending:
        """What it costs a unit."""
        return spending_of(self.sample_rate, self.noise_multiplier, self.steps, self.bands)


class CostRow(_Strict):
    """One kind of release of a candidate, as often as a run with its settings makes it."""

    noise_multiplier: NonNegative
    sample_rate: Probability
    steps: Count


class TuningRow(_Strict):
    """The choice of a model among a random number of runs (Papernot & Steinke 2022, arXiv 2110.03620), from
    which its figures follow. How many runs were made is not told.
    """

    repetitions: Literal["geometric", "poisson", "logarithmic"] = Field(
        description="distribution of the number of runs"
    )
    mean_runs: Annotated[float, Field(ge=1, le=1000)] = Field(description="of that number")
    candidates: Annotated[int, Field(ge=1)] = Field(description="settings among which each run's were drawn")
    varied: list[Annotated[str, Field(pattern=r"^[a-z_]{1,40}\.[a-z0-9_]{1,40}$")]] = Field(
        description="fields of the configuration in which they differ"
    )
    costs: Annotated[list[Annotated[list[CostRow], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="each distinct cost of a candidate: all that a run with its settings releases"
    )
    score_noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="of the counts of scored validation images that decided"
    )


class SiblingRow(_Strict):
    """Another released model of the same cohort, as the register in the cohort's store has it."""

    ledger: Digest = Field(description="last link of its ledger's chain, as on its own card")
    unit: Literal["image", "patient", "patient_one_image"]
    mechanisms: list[MechanismRow]
    tuning: TuningRow | None = Field(default=None, description="if it was chosen among several runs")


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


class AuditAttack(_Strict):
    """What one attack of an audit proved, at its share of the error probability."""

    attack: Literal[
        "white-box, every step", "white-box, order of scores", "white-box, guesses", "final weights, guesses"
    ]
    epsilon_lower: NonNegative


class AuditFinding(_Strict):
    """What an attack on a training that was made for it found, and what exactly was attacked.

    Audits of earlier versions do not say the unit, clipping and released quantity, which were always `image`,
    `flat` and gradients, nor the attacks and checks one by one.

    Raises:
        ValueError: it proves more than was claimed, or a check failed, and says that the claim stands; or it
            contradicts itself.
    """

    method: Literal[
        "one run; white-box gradient alignment and black-box loss; every step checked",
        "two runs of the training's own loop; white-box and final-weights attacks; every part checked",
    ]
    model: Literal["logistic regression", "network, narrower"] = Field(
        description="what was trained for the audit, by the real training's code"
    )
    unit: Literal["image", "patient", "patient_one_image"] = Field(
        default="image", description="whose membership was attacked"
    )
    clipping: Clipping = Field(default="flat", description="clip rule that was attacked")
    released: Literal["noised gradient", "noised gradient and clip count"] = Field(
        default="noised gradient", description="by each step"
    )
    noise: Literal["gaussian", "discrete"] | None = Field(
        default=None, description="how it was sampled; null if not recorded"
    )
    bands: Annotated[int, Field(ge=1)] = Field(default=1, description="over how many steps it was correlated")
    steps: Count | None = Field(default=None, description="of each audited training; null if not recorded")
    runs: Count = Field(default=1, description="trainings that were attacked, with secrets of their own")
    canaries: Count = Field(description="units that were marked, over all trainings")
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    epsilon_lower: NonNegative = Field(description="epsilon that the attacks prove")
    epsilon_claimed: NonNegative | None = Field(description="that the audited training was meant to have")
    attacks: list[AuditAttack] = Field(default_factory=list, description="one by one; empty if not recorded")
    checks: Count | None = Field(
        default=None, description="of batches, sums, noise, weights, ledger and keys; null if not recorded"
    )
    checks_failed: Count = Field(default=0, description="how many of them")
    checks_level: Probability | None = Field(
        default=None, description="with which a right implementation fails any; null if not recorded"
    )
    accused: bool = Field(description="whether the finding contradicts the claim")
    code: Digest = Field(description="all source files of jaxcxr that audited (SHA-256)")
    training_code: Digest = Field(default="", description="those of them that determine a training")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "AuditFinding":
        claimed = self.epsilon_claimed
        if claimed is not None and self.epsilon_lower > claimed and not self.accused:
            raise ValueError("accused: true, since more was proved than claimed")
        if self.checks_failed and not self.accused:
            raise ValueError("accused: true, since a check failed")
        if self.checks_failed > (self.checks or 0):
            raise ValueError(f"checks_failed: expected at most {self.checks or 0}, the number of checks")
        proved = [row.epsilon_lower for row in self.attacks]
        if proved and self.epsilon_lower != max(proved):
            raise ValueError("epsilon_lower: the largest of the attacks")
        if len({row.attack for row in self.attacks}) != len(self.attacks):
            raise ValueError("attacks: each once")
        if self.method.startswith("one run") and (self.unit != "image" or self.clipping != "flat"):
            raise ValueError("unit, clipping: audits by that method were of images, clipped flat")
        return self


class TriedRow(_Strict):
    """One part of what the card claims, and whether an audit tried it."""

    part: str
    released: str = Field(description="as it was in the training that is released")
    tried: Literal["tried", "not tried", "not recorded"]
    how: str = Field(description="as it was in the audit; empty if it was not tried")


class Fingerprints(_Strict):
    """What the run was made from. Those of data and ledger are sealed by the run's name, which stays in the
    hospital: an exact fingerprint of private data would let a guess at them be confirmed.
    """

    data: Digest = Field(
        description="images and labels: SHA-256 of their store's fingerprint and the run's name"
    )
    code: Digest = Field(description="all source files of jaxcxr when the training was begun (SHA-256)")
    training_code: Digest = Field(
        description="source files of jaxcxr that determine a training (SHA-256), the same for every step; "
        "empty for runs of earlier versions, for which that is not known"
    )
    libraries: dict[Library, Version] = Field(
        description="versions of every step; empty for runs of earlier versions"
    )
    ledger: Digest = Field(description="last link of the ledger's chain, which begins with the run's name")
    initial_weights: Digest = Field(
        description="weights that training started from (SHA-256); empty for random ones"
    )
    jaxcxr: Version = Field(description="version that trained")
    written_by: Version = Field(description="version of jaxcxr that computed the figures of this card")
    dp_accounting: Version = Field(description="version of the accountant of the cross-check")


class ReleasedFile(_Strict):
    """A file of the release that does not itself follow from the card."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", max_length=200)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PrivacyCard(_Strict):
    """Everything that the page says: facts and figures, and the sentences that follow from them.

    Raises:
        ValueError: it states thresholds for other findings than the model's.
    """

    schema_version: Literal[3]
    for_release: bool
    watermark: Literal["not for release"] | None
    reasons_against_release: list[str]
    findings: list[str] = Field(description="what the model looks for, in the order of its outputs")
    statement: Statement = Field(description="what the hospital states; not checked")
    released: datetime.date | None = Field(
        description="day on which the model was first registered as released; null if it was not"
    )
    files: list[ReleasedFile] = Field(
        description="the released files that the card is about; empty for a card without a release"
    )
    claim: Claim
    profile: list[ProfileRow]
    scale: list[ScaleRow] = Field(description="what well-known epsilons allow, for comparison")
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
    clipping: Clipping
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
    tuning: TuningRow | None = Field(
        description="the choice of this model among several runs, whose cost is in every figure; null if it "
        "was the only one",
    )
    accountant: str
    promised: list[str] = Field(description="sentences of the first page: what is promised")
    to_whom: list[str] = Field(description="to whom")
    how_strong: list[str] = Field(description="how strong it is")
    not_promised: list[str] = Field(description="what is not promised")
    explained: list[str] = Field(description="what the figures mean")
    covered: list[str]
    not_covered: list[str]
    attacks: list[AttackRow]
    reconstruction_advantage: Probability = Field(
        description="bound on guessing a record right with this model, less with one that was trained "
        "without the record"
    )
    audit: AuditFinding | None
    tried: list[TriedRow] = Field(description="what the audit tried, part by part")
    audited: list[str] = Field(description="sentences on the audit")
    fingerprints: Fingerprints
    bound_to: list[str] = Field(description="sentences on the weights and the code that the card is about")
    assumptions: list[str]

    @model_validator(mode="after")
    def _thresholds_of_the_findings(self) -> "PrivacyCard":
        stated = self.statement.thresholds
        if stated is not None and set(stated.values) != set(self.findings):
            raise ValueError("statement.thresholds: one for each of the findings")
        return self


def card_json(card: PrivacyCard) -> str:
    """The card as JSON text."""
    return json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def card_schema() -> dict[str, Any]:
    """JSON schema of the card."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PrivacyCard.model_json_schema()}


def read_card(path: Path) -> PrivacyCard:
    """Read and validate a card of this schema version.

    Raises:
        InputError: the file is missing or no card (the first wrong field is named), or a card of an earlier
            version, which `read_claim` reads.
    """
    content, version = _content(path)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version: found {version!r}, expected {SCHEMA_VERSION}; check the folder with "
            "the version of jaxcxr that built it, or build it anew"
        )
    return _validated(PrivacyCard, content, path)


class Identity(BaseModel):
    """Which model a card of any readable schema version is about, and what it claims of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    class Claimed(BaseModel):
        """The part of the claim that a register of released models keeps."""

        model_config = ConfigDict(extra="ignore", frozen=True)
        unit: Literal["image", "patient", "patient_one_image"]
        adjacency: Literal["add_remove", "replace_one"]
        delta: Probability

    class Sealed(BaseModel):
        """The fingerprints that a register can compare."""

        model_config = ConfigDict(extra="ignore", frozen=True)
        data: Digest
        ledger: Digest

    claim: Claimed
    mechanisms: list[MechanismRow]
    tuning: TuningRow | None = None
    siblings: list[SiblingRow] | None
    fingerprints: Sealed
    released: datetime.date | None = None


def read_identity(path: Path) -> Identity:
    """Which model a card is about; cards of schema 2 are read, too.

    Raises:
        InputError: the file is missing or no card, or of a schema version that cannot be read.
    """
    content, version = _content(path)
    if version not in READABLE:
        raise InputError(f"{path}: schema_version: found {version!r}, expected one of {READABLE}")
    return _validated(Identity, content, path)


def _content(path: Path) -> tuple[bytes, object]:
    """Bytes of a card, and its schema version; that of this module where it says nothing readable."""
    if not path.is_file():
        raise InputError(f"{path}: no such privacy card")
    content = path.read_bytes()
    try:
        return content, json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return content, SCHEMA_VERSION


def _validated(model: type[_Model], content: bytes, path: Path) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}: {faults_in(error)[0]}") from None
