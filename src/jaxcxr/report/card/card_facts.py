"""What a privacy card is computed from, as a run folder says it; a folder whose files are at odds gives no
card.

What was spent is read by `records.spent`; the rest is what `run.json`, `config.yaml` and the audit say.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int
from pydantic import ValidationError

from jaxcxr import __version__
from jaxcxr.accounting import Spending
from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.accounting.selection import Choice
from jaxcxr.config import Experiment, PrivacyConfig
from jaxcxr.digests import check
from jaxcxr.errors import InputError, faults_in
from jaxcxr.records.binding import altered
from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_SIZE
from jaxcxr.records.ledger import AnyEntry, Entry, Terms
from jaxcxr.records.provenance import sealed_fingerprint
from jaxcxr.records.spent import Spent, spent_of
from jaxcxr.records.tuning import TuningTerms
from jaxcxr.report.card.card_schema import (
    VERSION,
    AuditFinding,
    Clipping,
    CostRow,
    Fingerprints,
    InitialWeightsRecord,
    Library,
    MechanismRow,
    NearDuplicates,
    PrivacyCard,
    ReleasedFile,
    SiblingRow,
    SplitOrigin,
    Sums,
    TuningRow,
)
from jaxcxr.report.card.statement import NOTHING_STATED, Statement
from jaxcxr.run_folder import AUDIT, FACTS, LEDGER, Facts, is_evaluated, read_config, read_facts

GRADIENT, MOMENTS, COUNTS = "noised gradient", "noised moments", "noised class counts"
ADAPTIVE = "noised gradient and clip count"
"""One vector: the clip norm follows a quantile of the gradients' norms (`privacy.adaptive`)."""
SEEDED = "the run was seeded (training.seed): anyone with the seed can recompute and subtract the noise"
UNCOVERED_WEIGHTS = "class weights not covered: they were computed from the private labels without noise"
REFUTED = "the audit refutes the claim"
NO_NOISE = "something was released without noise: there is no promise"
NOT_CHOSEN = (
    "it is one run of a tuning and was not chosen: the cost of the choice pays for the chosen run alone"
)
UNDECIDED = "it is one run of a tuning that has not ended: which run may be released is not chosen yet"
HOSPITAL_ONLY = "this card shows how many images the cohort's patients have, which is private"


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What everything else on a card follows from.

    Attributes:
        unit, images_per_step, adjacency: of the claim.
        delta, budget: of the claim.
        dataset_size, expected_batch_size, steps_planned: declared.
        mechanisms: what was released, as the ledger has it.
        class_weights: where they came from.
        clipping: rule by which each unit's contribution was bounded.
        noise: how it was sampled.
        findings: names of the model's outputs.
        fingerprints: what the run was made from.
        audit: its finding, if there was one.
        initial_weights_record, near_duplicates, split_origin, sums: as the card's schema describes them.
        siblings: other released models of the cohort; None if the register was not read.
        reasons: against releasing the run; none if it may be.
        statement: what the hospital states.
        released: day on which the model was first registered as released; None if it was not.
        files: of the release, beside those that follow from the card; none for a card without a release.
        cohort_images: number of images of each patient, for the hospital's own card.
        tuning: the choice of the model among several runs.
    """

    unit: str
    images_per_step: int | None
    adjacency: str
    delta: float
    budget: float
    dataset_size: int
    expected_batch_size: int
    steps_planned: int
    mechanisms: tuple[MechanismRow, ...]
    class_weights: str
    clipping: Clipping
    noise: str
    findings: tuple[str, ...]
    fingerprints: Fingerprints
    audit: AuditFinding | None
    reasons: tuple[str, ...]
    initial_weights_record: InitialWeightsRecord | None
    near_duplicates: NearDuplicates
    split_origin: SplitOrigin
    sums: Sums
    siblings: tuple[SiblingRow, ...] | None
    statement: Statement = NOTHING_STATED
    released: datetime.date | None = None
    files: tuple[ReleasedFile, ...] = ()
    cohort_images: Int[np.ndarray, " patients"] | None = None
    tuning: TuningRow | None = None

    @property
    def class_counts_noise_multiplier(self) -> float | None:
        """Noise multiplier of the noised class counts; None if there are none."""
        return next((row.noise_multiplier for row in self.mechanisms if row.name == COUNTS), None)

    @property
    def guarantee(self) -> Guarantee:
        """What every figure follows from."""
        return guarantee_of(self)


def guarantee_of(row: CardFacts | PrivacyCard | SiblingRow) -> Guarantee:
    """What is promised by the model that a card or a row of it is about, for the accountant."""
    spent = tuple(m.spending for m in row.mechanisms)
    return Guarantee(spent, None if row.tuning is None else choice_of(row.tuning))


def choice_of(row: TuningRow) -> Choice:
    """A card's choice, for the accountant."""
    costs = tuple(
        tuple(Spending(part.sample_rate, part.noise_multiplier, part.steps) for part in run)
        for run in row.costs
    )
    return Choice(costs, row.mean_runs, row.repetitions)


def tuning_row(terms: TuningTerms) -> TuningRow:
    """The terms of a tuning in the words of a card."""
    return TuningRow(
        repetitions=terms.repetitions,
        mean_runs=terms.mean_runs,
        candidates=len(terms.settings),
        varied=sorted({name for settings in terms.settings for name in settings}),
        costs=[[CostRow(**part.model_dump()) for part in run] for run in terms.costs],
        score_noise_multiplier=terms.score_noise_multiplier,
    )


def facts_of_card(card: PrivacyCard) -> CardFacts:
    """What a card is computed from, as it says itself: a card that does not follow from these was changed."""
    claim = card.claim
    return CardFacts(
        unit=claim.unit,
        images_per_step=claim.images_per_step,
        adjacency=claim.adjacency,
        delta=claim.delta,
        budget=claim.budget,
        dataset_size=card.dataset_size,
        expected_batch_size=card.expected_batch_size,
        steps_planned=card.steps_planned,
        mechanisms=tuple(card.mechanisms),
        class_weights=card.class_weights,
        clipping=card.clipping,
        noise=card.noise,
        findings=tuple(card.findings),
        fingerprints=card.fingerprints,
        audit=card.audit,
        reasons=tuple(card.reasons_against_release),
        initial_weights_record=card.initial_weights_record,
        near_duplicates=card.near_duplicates,
        split_origin=card.split_origin,
        sums=card.sums,
        siblings=None if card.siblings is None else tuple(card.siblings),
        statement=card.statement,
        released=card.released,
        files=tuple(card.files),
        tuning=card.tuning,
    )


def facts_of_run(
    run: Path, spent: Spent | None = None, siblings: Sequence[SiblingRow] | None = None
) -> CardFacts:
    """What the card of a private run is computed from.

    Args:
        run: its folder.
        spent: what it has spent, where that was read already.
        siblings: other released models of the cohort (`release.register`); None if nobody looked.

    Raises:
        InputError: the folder holds no private run, nothing was spent yet, or its files are damaged or
            contradict each other.
    """
    facts, spent = read_facts(run), spent or spent_of(run)
    if spent is None:
        raise InputError(f"{run}: trained without privacy; there is nothing to promise and no card")
    if not spent.steps:
        raise InputError(
            f"{run}: {LEDGER} has no step; nothing was trained yet, and there is nothing to promise"
        )
    config, terms = read_config(run), spent.terms
    assert config.privacy is not None  # spent_of
    fingerprints, mechanisms = _settled(run, facts, spent, config)
    audit = _audit(run, terms.data_fingerprint)
    return CardFacts(
        unit=terms.unit,
        images_per_step=images_per_step(config.privacy),
        adjacency=terms.adjacency,
        delta=spent.delta,
        budget=spent.budget,
        dataset_size=terms.dataset_size,
        expected_batch_size=spent.expected_batch_size,
        steps_planned=spent.steps_planned,
        mechanisms=mechanisms,
        class_weights=config.training.class_weights,
        clipping=config.privacy.clipping,
        noise=config.privacy.noise,
        findings=config.data.findings,
        fingerprints=fingerprints,
        audit=audit,
        reasons=(
            *_reasons(facts, config, terms, audit, mechanisms),
            *_unfinished(run, spent),
            *_unchosen(spent),
        ),
        initial_weights_record=_one_of(InitialWeightsRecord, facts, "initial_weights_record", "none", run)
        if fingerprints.initial_weights
        else None,
        near_duplicates=_near_duplicates(facts.get("near_duplicates"), run),
        split_origin=_one_of(SplitOrigin, facts, "split_origin", "unknown", run),
        sums=_one_of(Sums, facts, "sums", "float32", run),
        siblings=None if siblings is None else tuple(siblings),
        tuning=None if spent.tuning is None else tuning_row(spent.tuning.terms),
    )


def _unchosen(spent: Spent) -> list[str]:
    """Why a run of a tuning is not the one that its budget pays for; none if it is."""
    if spent.tuning is None or spent.tuning.standing == "chosen":
        return []
    return [NOT_CHOSEN if spent.tuning.standing == "not chosen" else UNDECIDED]


def _settled(
    run: Path, facts: Facts, spent: Spent, config: Experiment
) -> tuple[Fingerprints, tuple[MechanismRow, ...]]:
    """What the run was made from, and what it released, in the words of a card."""
    if "jaxcxr" not in facts:
        raise InputError(f"{run / FACTS}: key 'jaxcxr' is missing")
    try:
        bound, libraries = _every_step_by(facts, spent.terms)
        fingerprints = Fingerprints(
            data=sealed_fingerprint(spent.terms.data_fingerprint, spent.terms.run),
            code=facts.get("code_fingerprint") or (facts.get("made_with") or {}).get("code_fingerprint", ""),
            training_code=bound.get("sources", ""),
            libraries=libraries,  # type: ignore[arg-type]
            ledger=spent.head if spent.terms.run else "",
            initial_weights=facts.get("initial_weights_sha256", ""),
            jaxcxr=bound.get("jaxcxr") or facts["jaxcxr"],  # type: ignore[typeddict-item]  # KeyError below
            written_by=__version__,
            dp_accounting=importlib.metadata.version("dp-accounting"),
        )
        mechanisms = mechanism_rows(spent.entries, released_by(config))
    except ValidationError as error:
        found = error.errors()[0]["input"]
        raise InputError(f"{run}: {faults_in(error)[0]}, found {found!r}") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{run / FACTS}: not the facts of a run ({' '.join(str(error).split())})") from error
    return fingerprints, mechanisms


def _every_step_by(facts: Facts, terms: Terms) -> tuple[dict[str, str], dict[str, str]]:
    """The training code and the libraries that made every step: what the run's randomness is bound to.

    A run goes on only with what it is bound to, so that these are those of every step, also after an upgrade.
    Runs of earlier versions are not bound: which versions continued them is not known.
    """
    record: Any = facts.get("binding")
    if not terms.binding or not isinstance(record, dict) or record.get("digest") != terms.binding:
        return {}, {}
    libraries = {
        name: version
        for name, version in (record.get("libraries") or {}).items()
        if name in get_args(Library) and re.match(VERSION, str(version))  # a build of one's own tells more
    }
    return record.get("code") or {}, libraries


def _one_of(values: Any, facts: Facts, name: str, if_absent: str, run: Path) -> Any:
    """A fact that runs of earlier versions do not have."""
    found = facts.get(name) or if_absent
    if found not in get_args(values):
        raise InputError(
            f"{run / FACTS}: {name}: expected one of {', '.join(get_args(values))}, found {found!r}"
        )
    return found


def _near_duplicates(found: Any, run: Path) -> NearDuplicates:
    """Where nearly equal images of different patients were found, in the words of a card."""
    if found is None:
        return "not_looked_for"
    if (
        not isinstance(found, dict)
        or set(found) != {"within", "across"}
        or {type(said) for said in found.values()} != {bool}
    ):
        raise InputError(
            f"{run / FACTS}: near_duplicates: expected within and across, true or false, found {found!r}"
        )
    if found["within"]:
        return "within_and_across" if found["across"] else "within"
    return "across" if found["across"] else "none"


def _unfinished(run: Path, spent: Spent) -> list[str]:
    """Why the weights in the folder are not those that the run was meant to give; none if they are."""
    done = spent.newest_checkpoint
    if done is not None and done != spent.steps:
        return [
            f"the newest checkpoint is of step {done}, the ledger has {spent.steps} steps: finish the run "
            "first"
        ]
    if spent.steps < spent.steps_planned and not is_evaluated(run):
        return [f"stopped after step {spent.steps} of {spent.steps_planned}: finish the run first"]
    return []


def released_by(config: Experiment) -> str:
    """What a step of a private run releases, in the words of a card."""
    if config.training.releases_moments:
        return MOMENTS
    return ADAPTIVE if config.privacy is not None and config.privacy.clipping == "adaptive" else GRADIENT


def mechanism_rows(entries: Sequence[AnyEntry], released: str = GRADIENT) -> tuple[MechanismRow, ...]:
    """Equal releases of a ledger, counted; `released` is what the steps are called."""
    counts: dict[tuple[str, float, float, float, int], int] = {}
    for entry in entries:
        if isinstance(entry, Entry):
            bands, _ = entry.turn
            key = (released, entry.noise_multiplier, entry.sample_rate, entry.l2_clip_norm, bands)
        else:
            key = (
                f"noised {entry.statistic.replace('_', ' ')}",
                entry.noise_multiplier,
                1.0,
                entry.l2_sensitivity,
                1,
            )
        counts[key] = counts.get(key, 0) + 1
    return tuple(
        MechanismRow(
            name=name,  # type: ignore[arg-type]
            noise_multiplier=sigma,
            sample_rate=rate,
            steps=steps,
            l2_clip_norm=clip,
            bands=bands,
        )
        for (name, sigma, rate, clip, bands), steps in sorted(counts.items())
    )


def images_per_step(privacy: PrivacyConfig) -> int | None:
    """How many images of a patient are used in a step at most; None where the image is the unit."""
    return {"image": None, "patient_one_image": 1}.get(privacy.unit, privacy.images_per_patient)


def _reasons(
    facts: Facts,
    config: Experiment,
    terms: Terms,
    audit: AuditFinding | None,
    mechanisms: Sequence[MechanismRow],
) -> list[str]:
    """Why the run must not leave the hospital; none if it may."""
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
    changed = altered(facts.get("binding"), terms.binding, config.digest_fields(), facts)
    if changed:
        reasons.append(
            f"its files were changed after it was begun, or are of several runs ({', '.join(changed)})"
        )
    if not reasons and facts.get("release") is not True:
        reasons.append(f"{FACTS} does not say that the run may be released")
    return reasons


def _audit(run: Path, data: str) -> AuditFinding | None:
    path = run / AUDIT
    check(path, "audit the run's cohort again")
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        finding, audited = AuditFinding.model_validate(written["card"]), written["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an audit's finding ({' '.join(str(error).split())})") from error
    if audited != data:
        raise InputError(
            f"{path}: is the audit of another cohort than the run's; delete it, or audit the run's cohort"
        )
    return finding
