"""The privacy card of a run: what is promised to whom, what is not, and what follows from it, as JSON and as a page.

The card is computed from the run folder alone (`config.yaml`, `run.json`, `ledger.jsonl` and, if there, `audit.json`), holds
no date and no path, and is the same byte for byte whenever it is made. Its JSON follows `PrivacyCard`, whose JSON schema
`card_schema` gives. A card that may be released says what patients with 1, 2, 4, ... films get; the cohort's own distribution
of films is private and goes on the house's card only.
"""

import importlib.metadata
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import numpy as np
import yaml
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxcxr import __version__
from jaxcxr.errors import InputError
from jaxcxr.privacy import accounting, group_privacy
from jaxcxr.privacy.attack_bounds import attack_bounds
from jaxcxr.privacy.ledger import Entry, Statistic, ledger_head, read_ledger, spendings_of
from jaxcxr.privacy.provenance import code_fingerprint

SCHEMA_VERSION = 1
PUBLIC_FILMS = (1, 2, 4, 10, 20)
"""Numbers of films a patient for which every card says the epsilon."""
NOT_FOR_RELEASE = "not for release"
_DIGITS = 6


Hexadecimal = Annotated[str, Field(pattern="^[0-9a-f]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(_Strict):
    """The guarantee. Epsilons are null where they are infinite."""

    unit: Literal["image", "patient", "patient_one_image"]
    adjacency: Literal["add_remove", "replace_one"]
    epsilon_upper: float | None = Field(description="upper bound: this is the claim")
    epsilon_lower: float | None = Field(description="no epsilon below this one is true")
    epsilon_rdp: float | None = Field(description="upper bound by the looser Rényi accountant, a cross-check")
    delta: float
    budget: float = Field(description="epsilon that the run was allowed to spend")


class PatientRow(_Strict):
    """What the run costs a patient with so many films."""

    patient: str | None = Field(description="null for any patient; else median, 95th percentile or maximum of the cohort")
    films: int
    epsilon_upper: float | None
    epsilon_lower: float | None
    true_positive_rate_at_1_percent: float = Field(description="best at 1 % false positives, for any attack")


class MechanismRow(_Strict):
    """One kind of release, as often as the ledger has it."""

    name: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    l2_clip_norm: float


class AttackRow(_Strict):
    """No attack on one unit does better."""

    false_positive_rate: float
    true_positive_rate: float


class AuditFinding(_Strict):
    """What an attack on the mechanism itself found."""

    method: Literal["one run; white-box gradient alignment and black-box loss; every step checked"]
    canaries: int
    confidence: float
    epsilon_lower: float
    epsilon_claimed: float | None
    accused: bool


class Fingerprints(_Strict):
    """What the run was made from."""

    data: Hexadecimal
    code: Hexadecimal
    ledger: Hexadecimal
    run: Hexadecimal
    jaxcxr: str
    dp_accounting: str


class PrivacyCard(_Strict):
    """Everything that the page says."""

    schema_version: Literal[1]
    for_release: bool
    watermark: str | None
    reasons_against_release: list[str]
    claim: Claim
    dataset_size: int
    expected_batch_size: int
    steps_planned: int
    patients: list[PatientRow]
    mechanisms: list[MechanismRow]
    accountant: str
    covered: list[str]
    not_covered: list[str]
    attacks: list[AttackRow]
    reconstruction_advantage: float = Field(description="bound on guessing a record, less guessing it without the model")
    audit: AuditFinding | None
    fingerprints: Fingerprints
    assumptions: list[str]


def make_card(run: Path, cohort_films: Int[np.ndarray, " patients"] | None = None) -> PrivacyCard:
    """The card of a private run.

    Args:
        run: its folder.
        cohort_films: films of each patient of the training split, for the house's own card; such a card is not for release.

    Raises:
        InputError: the folder holds no private run, or its files are damaged or at odds.
    """
    facts, config = _facts(run)
    terms, entries = read_ledger(run / "ledger.jsonl")
    if terms.dataset_size != facts["n_units"] or terms.data_fingerprint != facts["store_fingerprint"]:
        raise InputError(f"{run}: ledger.jsonl and run.json are about different data")
    spent, delta = spendings_of(entries), float(facts["delta"])
    bounds = accounting.epsilon_bounds(spent, delta)
    attacks = attack_bounds(spent, delta)
    audit = _audit(run)
    covered_weights = config["training"].get("class_weights") != "paper"
    reasons = reasons_against_release(facts, config, seeded=terms.seeded)
    if cohort_films is not None:
        reasons.append("this card shows how many films the cohort's patients have, which is private")
    return PrivacyCard(
        schema_version=SCHEMA_VERSION,
        for_release=not reasons,
        watermark=NOT_FOR_RELEASE if reasons else None,
        reasons_against_release=reasons,
        claim=Claim(
            unit=terms.unit,  # type: ignore[arg-type]
            adjacency=terms.adjacency,  # type: ignore[arg-type]
            epsilon_upper=_up(bounds.upper),
            epsilon_lower=_down(bounds.lower),
            epsilon_rdp=_up(accounting.epsilon_rdp(spent, delta)),
            delta=delta,
            budget=float(facts["epsilon"]),
        ),
        dataset_size=terms.dataset_size,
        expected_batch_size=int(facts["expected_batch_size"]),
        steps_planned=int(facts["steps"]),
        patients=_patients(terms.unit, spent, delta, cohort_films),
        mechanisms=_mechanisms(entries),
        accountant=accounting.ACCOUNTANT,
        covered=_covered(terms.unit, entries),
        not_covered=_not_covered(terms.unit, class_weights_covered=covered_weights) + ([AUDIT_NOT_COVERED] if audit else []),
        attacks=[
            AttackRow(false_positive_rate=a, true_positive_rate=_up(b) or 0.0) for a, b in attacks.true_positive_rate.items()
        ],
        reconstruction_advantage=_up(attacks.advantage) or 0.0,
        audit=audit,
        fingerprints=Fingerprints(
            data=terms.data_fingerprint,
            code=facts.get("code_fingerprint") or code_fingerprint(),
            ledger=ledger_head(run / "ledger.jsonl"),
            run=terms.run,
            jaxcxr=__version__,
            dp_accounting=importlib.metadata.version("dp-accounting"),
        ),
        assumptions=_assumptions(terms.unit),
    )


def _facts(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in ("run.json", "config.yaml"):
        if not (run / name).is_file():
            raise InputError(f"{run}: no run there ({name} is missing)")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    if "delta" not in facts:
        raise InputError(f"{run}: trained without privacy; there is nothing to promise and no card")
    return facts, config


def reasons_against_release(facts: dict[str, Any], config: dict[str, Any], *, seeded: bool) -> list[str]:
    """Why the run must not leave the house; an empty list if it may."""
    reasons = []
    if seeded or config["training"].get("seed") is not None:
        reasons.append(
            "its randomness was asked to be repeatable (training.seed), so that the noise can be computed and removed"
        )
    if config["training"].get("class_weights") == "paper":
        reasons.append("class weights not covered: they were computed from the private labels without noise")
    if not facts.get("release", False) and not reasons:
        reasons.append("run.json says so")
    return reasons


def _up(value: float) -> float | None:
    """Rounded so that a bound from above stays one."""
    return _rounded(value, math.ceil)


def _down(value: float) -> float | None:
    return _rounded(value, math.floor)


def _rounded(value: float, towards: Any) -> float | None:
    if math.isinf(value):
        return None
    if value == 0:
        return 0.0
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return towards(value * scale) / scale


def _patients(
    unit: str, spent: Sequence[accounting.Spending], delta: float, cohort: Int[np.ndarray, " patients"] | None
) -> list[PatientRow]:
    if unit != "image":
        return []
    rows: list[tuple[str | None, int]] = [(None, films) for films in PUBLIC_FILMS]
    if cohort is not None:
        rows += [(row.patient, row.films) for row in group_privacy.patient_epsilons(spent, delta, cohort)]
    found: dict[int, PatientRow] = {}
    for _, films in rows:
        if films not in found:
            bounds = group_privacy.patient_bounds(spent, delta, films)
            certain = math.isinf(bounds.upper)
            rate = 1.0 if certain else attack_bounds(spent, delta, films).true_positive_rate[0.01]
            found[films] = PatientRow(
                patient=None,
                films=films,
                epsilon_upper=_up(bounds.upper),
                epsilon_lower=_down(bounds.lower),
                true_positive_rate_at_1_percent=_up(rate) or 0.0,
            )
    return [found[films].model_copy(update={"patient": patient}) for patient, films in rows]


def _mechanisms(entries: Sequence[Entry | Statistic]) -> list[MechanismRow]:
    counts: dict[tuple[str, float, float, float], int] = {}
    for entry in entries:
        if isinstance(entry, Entry):
            key = ("noised gradient", entry.noise_multiplier, entry.sample_rate, entry.l2_clip_norm)
        else:
            key = (f"noised {entry.statistic.replace('_', ' ')}", entry.noise_multiplier, 1.0, entry.l2_sensitivity)
        counts[key] = counts.get(key, 0) + 1
    return [
        MechanismRow(name=name, noise_multiplier=sigma, sample_rate=rate, steps=steps, l2_clip_norm=clip)
        for (name, sigma, rate, clip), steps in sorted(counts.items())
    ]


def _covered_weights(unit: str) -> str:
    whom = "one film of the training cohort" if unit == "image" else "all films of one patient of the training cohort together"
    return f"the published weights, against anybody, whatever else they know, for {whom}"


def _covered(unit: str, entries: Sequence[Entry | Statistic]) -> list[str]:
    covered = [_covered_weights(unit)]
    covered += [f"the noised {e.statistic.replace('_', ' ')} that training used" for e in entries if isinstance(e, Statistic)]
    return covered


AUDIT_NOT_COVERED = "the audit's finding: one figure from a training run on the cohort that was made for it"


def _not_covered(unit: str, *, class_weights_covered: bool) -> list[str]:
    missing = [
        "training loss, predictions, checkpoints and logs: they stay in the house",
        "patients of the validation and test films",
    ]
    if unit == "image":
        missing.insert(0, "a patient with several films is protected less than one film is: see the table of patients")
    if not class_weights_covered:
        missing.insert(0, "class weights not covered: they were computed from the private labels without noise")
    return missing


def _assumptions(unit: str) -> list[str]:
    who = "film" if unit == "image" else "patient"
    return [
        f"The number of {who}s that is declared (N), the settings and the findings' names are public.",
        f"In each step every {who} takes part by its own throw of the dice, as the sampler's code says.",
        "The noise comes from 256 random bits of the operating system, which stayed secret and are deleted or locked away.",
        "Computers round: the noise is drawn in 32-bit arithmetic, and the guarantee is that of exact arithmetic.",
        "No other model of this cohort is published. If there is one, the costs add up; scripts/account.py --sweep says how.",
        "Settings were not tuned by looking at private results, or that cost is stated elsewhere.",
    ]


def foreign_texts(card: PrivacyCard) -> list[str]:
    """Texts of a card that this module would not have written: an edited card may say anything."""
    unit = card.claim.unit
    own = {
        *_assumptions(unit),
        *_not_covered(unit, class_weights_covered=True),
        *_not_covered(unit, class_weights_covered=False),
    }
    own |= {_covered_weights(unit), *(f"the {row.name} that training used" for row in card.mechanisms)}
    texts = [*card.assumptions, *card.covered, *card.not_covered, card.accountant, *(row.name for row in card.mechanisms)]
    known = own | {AUDIT_NOT_COVERED, accounting.ACCOUNTANT, "noised gradient", "noised class counts"}
    versions = (card.fingerprints.jaxcxr, card.fingerprints.dp_accounting)
    return [text for text in texts if text not in known] + [v for v in versions if not re.fullmatch(r"\d+(\.\d+)*", v)]


def _audit(run: Path) -> AuditFinding | None:
    path = run / "audit.json"
    if not path.is_file():
        return None
    try:
        return AuditFinding.model_validate(json.loads(path.read_text(encoding="utf-8"))["card"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an audit's finding ({' '.join(str(error).split())})") from error


def card_json(card: PrivacyCard) -> str:
    """The card as JSON text."""
    return json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def card_schema() -> dict[str, Any]:
    """JSON schema of the card."""
    return PrivacyCard.model_json_schema()


def read_card(path: Path) -> PrivacyCard:
    """Read and validate a card.

    Raises:
        InputError: the file is missing or no card; the first wrong field is named.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such privacy card")
    try:
        return PrivacyCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def card_html(card: PrivacyCard) -> str:
    """The card as one page that needs no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxcxr.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "without limit" if value is None else f"{value:.4g}"
    environment.filters["percent"] = lambda value: f"{100 * value:.3g}"
    return environment.get_template("card.html").render(card=card) + "\n"


def write_card(card: PrivacyCard, folder: Path) -> None:
    """Write `privacy_card.json` and `privacy_card.html`."""
    (folder / "privacy_card.json").write_text(card_json(card), encoding="utf-8")
    (folder / "privacy_card.html").write_text(card_html(card), encoding="utf-8")
