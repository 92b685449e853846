"""What a privacy card is computed from, as a run folder says it; a folder whose files are at odds gives no card.

The ledger says what was spent; `run.json` and `config.yaml` say what was promised; the checkpoints and the secret, where they
are still there, must be of the same run.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from pydantic import ValidationError

from jaxcxr.config import Experiment, PrivacyConfig, load
from jaxcxr.errors import InputError
from jaxcxr.privacy.accounting import Spending
from jaxcxr.privacy.binding import altered
from jaxcxr.privacy.declarations import AGAINST_RELEASE, COUNTED_SIZE
from jaxcxr.privacy.ledger import Entry, Statistic, Terms, ledger_head, read_ledger, run_name
from jaxcxr.privacy.provenance import sealed_fingerprint
from jaxcxr.report.card_schema import AuditFinding, Fingerprints, MechanismRow, PrivacyCard

GRADIENT, MOMENTS, COUNTS = "noised gradient", "noised moments", "noised class counts"
SEEDED = "its randomness was asked to be repeatable (training.seed), so that the noise can be computed and removed"
UNCOVERED_WEIGHTS = "class weights not covered: they were computed from the private labels without noise"
REFUTED = "the audit refutes the claim"
NO_NOISE = "something was released without noise: there is no promise"
HOUSE_ONLY = "this card shows how many films the cohort's patients have, which is private"


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What everything else on a card follows from.

    Attributes:
        unit, films_a_step, adjacency: of the claim.
        delta, budget: of the claim.
        dataset_size, expected_batch_size, steps_planned: declared.
        mechanisms: what was released, as the ledger has it.
        class_weights: where they came from.
        noise: how it was drawn.
        fingerprints: what the run was made from.
        audit: its finding, if there was one.
        reasons: against releasing the run; none if it may be.
        cohort_films: films of each patient, for the house's own card.
    """

    unit: str
    films_a_step: int | None
    adjacency: str
    delta: float
    budget: float
    dataset_size: int
    expected_batch_size: int
    steps_planned: int
    mechanisms: tuple[MechanismRow, ...]
    class_weights: str
    noise: str
    fingerprints: Fingerprints
    audit: AuditFinding | None
    reasons: tuple[str, ...]
    cohort_films: Int[np.ndarray, " patients"] | None = None

    @property
    def class_counts_noise_multiplier(self) -> float | None:
        """Of the noised class counts; None if there are none."""
        return next((row.noise_multiplier for row in self.mechanisms if row.name == COUNTS), None)

    @property
    def spent(self) -> list[Spending]:
        """For the accountant."""
        return [Spending(row.sample_rate, row.noise_multiplier, row.steps) for row in self.mechanisms]


def facts_of_card(card: PrivacyCard) -> CardFacts:
    """What a card is computed from, as it says itself: a card that does not follow from these was changed."""
    claim = card.claim
    return CardFacts(
        claim.unit,
        claim.films_a_step,
        claim.adjacency,
        claim.delta,
        claim.budget,
        card.dataset_size,
        card.expected_batch_size,
        card.steps_planned,
        tuple(card.mechanisms),
        card.class_weights,
        card.noise,
        card.fingerprints,
        card.audit,
        tuple(card.reasons_against_release),
    )


def facts_of_run(run: Path) -> CardFacts:
    """What the card of a private run is computed from.

    Raises:
        InputError: the folder holds no private run, nothing was spent yet, or its files are damaged or at odds.
    """
    facts, config = _facts(run), load(Experiment, run / "config.yaml")
    if config.privacy is None or "delta" not in facts:
        raise InputError(f"{run}: trained without privacy; there is nothing to promise and no card")
    terms, entries = read_ledger(run / "ledger.jsonl")
    steps = [entry for entry in entries if isinstance(entry, Entry)]
    if not steps:
        raise InputError(f"{run}: ledger.jsonl has no step; nothing was trained yet, and there is nothing to promise")
    try:
        _require_agreement(run, facts, config, terms, steps)
        fingerprints = Fingerprints(
            data=sealed_fingerprint(terms.data_fingerprint, terms.run),
            code=facts.get("code_fingerprint") or (facts.get("made_with") or {}).get("code_fingerprint", ""),
            ledger=ledger_head(run / "ledger.jsonl") if terms.run else "",
            initial_weights=facts.get("initial_weights_sha256", ""),
            jaxcxr=facts["jaxcxr"],
            dp_accounting=importlib.metadata.version("dp-accounting"),
        )
        numbers = {name: int(facts[name]) for name in ("expected_batch_size", "steps")}
        delta, budget = float(facts["delta"]), float(facts["epsilon"])
        mechanisms = mechanism_rows(entries, released_by(config))
    except KeyError as error:
        raise InputError(f"{run / 'run.json'}: key {error} is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{run}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}, found {first['input']!r}"
        ) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run / 'run.json'}: not the facts of a run ({' '.join(str(error).split())})") from error
    audit = _audit(run, terms.data_fingerprint)
    return CardFacts(
        terms.unit,
        _films_a_step(config.privacy),
        terms.adjacency,
        delta,
        budget,
        terms.dataset_size,
        numbers["expected_batch_size"],
        numbers["steps"],
        mechanisms,
        config.training.class_weights,
        config.privacy.noise,
        fingerprints,
        audit,
        tuple(_reasons(facts, config, terms, audit, mechanisms)),
    )


def released_by(config: Experiment) -> str:
    """What a step of a private run releases, in the words of a card."""
    return MOMENTS if config.training.optimizer == "least_squares" else GRADIENT


def mechanism_rows(entries: Sequence[Entry | Statistic], released: str = GRADIENT) -> tuple[MechanismRow, ...]:
    """Like releases of a ledger counted together; `released` is what the steps are called."""
    counts: dict[tuple[str, float, float, float], int] = {}
    for entry in entries:
        if isinstance(entry, Entry):
            key = (released, entry.noise_multiplier, entry.sample_rate, entry.l2_clip_norm)
        else:
            key = (f"noised {entry.statistic.replace('_', ' ')}", entry.noise_multiplier, 1.0, entry.l2_sensitivity)
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        MechanismRow(name=name, noise_multiplier=sigma, sample_rate=rate, steps=steps, l2_clip_norm=clip)  # type: ignore[arg-type]
        for (name, sigma, rate, clip), steps in sorted(counts.items())
    )


def _facts(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    for name in ("run.json", "config.yaml"):
        if not (run / name).is_file():
            raise InputError(f"{run}: no run there ({name} is missing)")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path}: expected an object of facts, found {type(facts).__name__}")
    return facts


def _films_a_step(privacy: PrivacyConfig) -> int | None:
    return {"image": None, "patient_one_image": 1}.get(privacy.unit, privacy.films_per_patient)


def _require_agreement(run: Path, facts: Mapping[str, Any], config: Experiment, terms: Terms, entries: Sequence[Entry]) -> None:
    """The ledger, `run.json`, `config.yaml`, checkpoints and secret must be of one run.

    Raises:
        InputError: they are at odds; what differs is named.
    """
    assert config.privacy is not None  # facts_of_run
    said = {"n_units": terms.dataset_size, "store_fingerprint": terms.data_fingerprint}
    wrong = [f"{name} ({value!r} in the ledger)" for name, value in said.items() if facts[name] != value]
    if wrong:
        raise InputError(f"{run}: ledger.jsonl and run.json are about different data; they differ in {', '.join(wrong)}")
    if terms.unit != config.privacy.unit:
        raise InputError(f"{run}: the ledger's unit is {terms.unit!r}, that of config.yaml {config.privacy.unit!r}")
    for place, entry in enumerate(entries):
        if entry.step != place:
            raise InputError(f"{run}: ledger.jsonl has step {entry.step} where step {place} belongs")
        for name in ("sample_rate", "noise_multiplier", "l2_clip_norm"):
            if getattr(entry, name) != facts[name]:
                raise InputError(
                    f"{run}: {name} of step {place} is {getattr(entry, name)} in ledger.jsonl, {facts[name]} in run.json"
                )
    if len(entries) > facts["steps"]:
        raise InputError(f"{run}: ledger.jsonl has {len(entries)} steps, run.json planned {facts['steps']}")
    done = newest_checkpoint(run)
    if done is not None and done > len(entries):
        raise InputError(f"{run}: a checkpoint is of step {done}, but ledger.jsonl has {len(entries)} steps: lines were lost")
    secret = run / "checkpoints" / "secret.key"
    if terms.run and secret.is_file() and run_name(secret.read_bytes()) != terms.run:
        raise InputError(f"{run}: ledger.jsonl belongs to another run than checkpoints/secret.key")


def newest_checkpoint(run: Path) -> int | None:
    """Steps done at the newest checkpoint of a run folder; None if there is none (they may be deleted)."""
    folder = run / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return max(steps, default=None)


def _reasons(
    facts: Mapping[str, Any],
    config: Experiment,
    terms: Terms,
    audit: AuditFinding | None,
    mechanisms: Sequence[MechanismRow],
) -> list[str]:
    """Why the run must not leave the house; none if it may."""
    weights = config.training.class_weights
    reasons = []
    if terms.seeded or config.training.seed is not None:
        reasons.append(SEEDED)
    if weights == "paper" or (weights == "noised" and COUNTS not in {row.name for row in mechanisms}):
        reasons.append(UNCOVERED_WEIGHTS)
    if any(row.noise_multiplier == 0 for row in mechanisms):
        reasons.append(NO_NOISE)
    if audit is not None and audit.accused:
        reasons.append(REFUTED)
    counted: set[str] = set(facts.get("against_release") or ())
    if config.privacy is not None and config.privacy.dataset_size is None:  # in runs of earlier versions, too
        counted.add(COUNTED_SIZE)
    reasons += [sentence for code, sentence in AGAINST_RELEASE.items() if code in counted]
    changed = altered(facts.get("binding"), terms.binding, config.digest_fields())
    if changed:
        reasons.append(f"its files were changed after it was begun, or are of several runs ({', '.join(changed)})")
    if not reasons and facts.get("release") is not True:
        reasons.append("run.json does not say that the run may be released")
    return reasons


def _audit(run: Path, data: str) -> AuditFinding | None:
    path = run / "audit.json"
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        finding, audited = AuditFinding.model_validate(written["card"]), written["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an audit's finding ({' '.join(str(error).split())})") from error
    if audited != data:
        raise InputError(f"{path}: is the audit of another cohort than the run's; delete it, or audit the run's cohort")
    return finding
