"""Each sentence of a card is there if and only if the fact is true that it follows from."""

import dataclasses
import datetime
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_RATES, COUNTED_SIZE
from jaxcxr.report.card.card import card_of, differing, recomputed
from jaxcxr.report.card.card_facts import SEEDED, UNCOVERED_WEIGHTS, CardFacts
from jaxcxr.report.card.card_schema import (
    AuditFinding,
    CostRow,
    Fingerprints,
    MechanismRow,
    ReleasedFile,
    SiblingRow,
    TuningRow,
)
from jaxcxr.report.card.page import card_html
from jaxcxr.report.card.sentences import SECTIONS
from jaxcxr.report.card.statement import Figures, Statement, Thresholds

CODE, TRAINING_CODE = "c0de" * 16, "7a17" * 16
COUNTS = MechanismRow(name="noised class counts", noise_multiplier=20.0, sample_rate=1.0, steps=1, l2_clip_norm=1.5)  # fmt: skip


def mechanism(name: str = "noised gradient", noise: float = 5.0, bands: int = 1) -> MechanismRow:
    """Without sampling, so that its cost has a closed form."""
    numbers = {"noise_multiplier": noise, "sample_rate": 1.0, "steps": 5, "l2_clip_norm": 1.5, "bands": bands}
    return MechanismRow.model_validate({"name": name, **numbers})


def fingerprints(bound: bool, named: bool) -> Fingerprints:
    return Fingerprints(
        data="da" * 32 if named else "",
        code=CODE,
        training_code=TRAINING_CODE if bound else "",
        libraries={"jax": "0.9.0"} if bound else {},
        ledger="1e" * 16 if named else "",
        initial_weights="",
        jaxcxr="0.1.0",
        written_by="0.1.0",
        dp_accounting="0.6.0",
    )


def audit_of(**finding: object) -> AuditFinding:
    return AuditFinding.model_validate(
        {
            "method": "one run; white-box gradient alignment and black-box loss; every step checked",
            "model": "logistic regression", "canaries": 200, "confidence": 0.95, "epsilon_lower": 0.4,
            "epsilon_claimed": 2.0, "accused": False, "code": "",
        }
        | finding
    )  # fmt: skip


NEW = {
    "method": "two runs of the training's own loop; white-box and final-weights attacks; every part checked",
    "runs": 2, "steps": 64, "noise": "gaussian", "checks": 25, "checks_level": 0.001,
    "attacks": [
        {"attack": "white-box, every step", "epsilon_lower": 0.4}, {"attack": "final weights, guesses", "epsilon_lower": 0.0},
    ],
}  # fmt: skip
AUDITS = st.sampled_from(
    [
        None,
        audit_of(),
        audit_of(code=CODE, epsilon_lower=0.0),
        audit_of(accused=True, training_code=TRAINING_CODE),
        audit_of(model="network, narrower", steps=60, noise="gaussian"),
        audit_of(**NEW),
        audit_of(**NEW | {"unit": "patient", "clipping": "per_layer", "checks_failed": 1, "accused": True}),
    ]
)
STATEMENTS = st.sampled_from(
    [
        Statement(),
        Statement(utility=Figures(text="AUROC 0.8", protection="none")),
        Statement(utility_by_group=Figures(text="0.8, 0.7", protection="noised", epsilon=1.0, delta=1e-5)),
        Statement(thresholds=Thresholds(values={"a": 0.2}, protection="none")),
        Statement(thresholds=Thresholds(values={"a": 0.5}, protection="public")),
        Statement(thresholds=Thresholds(values={"a": 0.5}, protection="noised")),
    ]
)  # fmt: skip


TUNED = TuningRow(
    repetitions="geometric", mean_runs=2.0, candidates=6, varied=["training.learning_rate"], score_noise_multiplier=3.0,
    costs=[[CostRow(noise_multiplier=5.0, sample_rate=1.0, steps=5), CostRow(noise_multiplier=20.0, sample_rate=1.0, steps=1)]],
)  # fmt: skip


@st.composite
def facts(draw: Callable) -> CardFacts:
    unit = draw(st.sampled_from(["image", "patient", "patient_one_image"]))
    released = draw(st.sampled_from(["noised gradient", "noised gradient and clip count", "noised moments"]))
    bands = draw(st.sampled_from([1, 2]))
    rows = (
        mechanism(released, draw(st.sampled_from([5.0, 0.0])), bands),
        *draw(st.sampled_from([(), (COUNTS,)])),
    )
    siblings = (SiblingRow(ledger="ab" * 16, unit=draw(st.sampled_from(["image", "patient"])), mechanisms=[mechanism()]),)  # fmt: skip
    reasons = [SEEDED, UNCOVERED_WEIGHTS, AGAINST_RELEASE[COUNTED_SIZE], AGAINST_RELEASE[COUNTED_RATES]]
    return CardFacts(
        unit=unit,
        images_per_step=None if unit == "image" else 4,
        adjacency="add_remove",
        delta=draw(st.sampled_from([1e-4, 1 / 200])),
        budget=99.0,
        dataset_size=200,
        expected_batch_size=10,
        steps_planned=5,
        mechanisms=rows,
        class_weights=draw(st.sampled_from(["none", "public", "noised", "paper"])),
        clipping="flat",
        noise=draw(st.sampled_from(["gaussian", "discrete"])),
        findings=("a",),
        fingerprints=fingerprints(draw(st.booleans()), draw(st.booleans())),
        audit=draw(AUDITS),
        reasons=tuple(draw(st.lists(st.sampled_from(reasons), unique=True, max_size=2))),
        initial_weights_record=draw(st.sampled_from([None, "none", "recorded", "ids_declared_unrelated"])),
        near_duplicates=draw(
            st.sampled_from(["not_looked_for", "none", "within", "across", "within_and_across"])
        ),
        split_origin=draw(st.sampled_from(["keyed_hash", "given", "unknown"])),
        sums=draw(st.sampled_from(["exact", "float32"])),
        siblings=draw(st.sampled_from([None, (), siblings])),
        statement=draw(STATEMENTS),
        released=draw(st.sampled_from([None, datetime.date(2026, 11, 30)])),
        tuning=draw(st.sampled_from([None, TUNED])),
        files=draw(st.sampled_from([(), (ReleasedFile(name="model.safetensors", sha256="5a" * 32),)])),
    )


def promises(f: CardFacts) -> bool:
    return all(row.noise_multiplier > 0 for row in f.mechanisms) and SEEDED not in f.reasons


def names(f: CardFacts) -> set[str]:
    return {row.name for row in f.mechanisms}


def stated(f: CardFacts, name: str, protection: str) -> bool:
    figures = getattr(f.statement, name)
    return figures is not None and figures.protection == protection


ALWAYS = lambda _: True  # noqa: E731
CONDITIONS: dict[str, Callable[[CardFacts], bool]] = {
    # promised
    "no_limit": lambda f: any(row.noise_multiplier == 0 for row in f.mechanisms),
    "seeded": lambda f: SEEDED in f.reasons,
    "limited": promises,
    "anybody": promises,
    "reasons_stand": lambda f: promises(f) and (bool(f.reasons) or f.siblings is None),
    # to whom
    "each_image": lambda f: promises(f) and f.unit == "image",
    "first_page.several_images": lambda f: promises(f) and f.unit == "image",
    "each_patient": lambda f: promises(f) and f.unit in ("patient", "patient_one_image"),
    "twice_in_the_data": lambda f: promises(f) and "within" in f.near_duplicates,
    "to_nobody": lambda f: not promises(f),
    # how strong
    "verdict": promises,
    "scale_of_words": promises,
    "in_figures": promises,
    "with_others": lambda f: bool(f.siblings) and SEEDED not in f.reasons,
    # not promised
    "in_general": promises,
    "who_was_tested": ALWAYS,
    "right_and_fair": ALWAYS,
    "other_files": ALWAYS,
    "law": ALWAYS,
    # explained
    "meaning_of_mu": lambda f: promises(f) and f.tuning is None,
    "meaning_of_epsilon": promises,
    "exact_epsilon": promises,
    "worst_case": promises,
    "alone": lambda f: promises(f) and bool(f.siblings),
    "guesses": promises,
    "mixed_units": lambda f: any((row.unit == "image") != (f.unit == "image") for row in f.siblings or ()),
    # covered
    "weights": promises,
    "class_counts": lambda f: promises(f) and "noised class counts" in names(f),
    "clip_norm": lambda f: promises(f) and "noised gradient and clip count" in names(f),
    "turns": lambda f: promises(f) and any(row.bands > 1 for row in f.mechanisms),
    "choice": lambda f: promises(f) and f.tuning is not None,
    "choosing_images": lambda f: f.tuning is not None,
    # not covered
    "uncovered_weights": lambda f: UNCOVERED_WEIGHTS in f.reasons,
    "large_delta": lambda f: f.delta == 1 / 200,
    "scope.several_images": lambda f: f.unit == "image",
    "files_that_stay": ALWAYS,
    "tested_images": ALWAYS,
    "quality": ALWAYS,
    "unnoised_figures": lambda f: stated(f, "utility", "none"),
    "noised_figures": lambda f: stated(f, "utility_by_group", "noised"),
    "thresholds": lambda f: stated(f, "thresholds", "none") or stated(f, "thresholds", "noised"),
    "origin_of_split": lambda f: f.split_origin == "unknown",
    "duplicates_across": lambda f: "across" in f.near_duplicates,
    "looked_up": lambda f: f.near_duplicates != "not_looked_for" or f.initial_weights_record in ("recorded", "ids_declared_unrelated"),
    "finding_of_audit": lambda f: f.audit is not None,
    # conditions
    "public_settings": ALWAYS,
    "one_person_one_unit": lambda f: "within" not in f.near_duplicates,
    "somebody_twice": lambda f: "within" in f.near_duplicates,
    "sampling": ALWAYS,
    "secret": ALWAYS,
    "rounded": ALWAYS,
    "others_published": ALWAYS,
    "tuned": ALWAYS,
    "given_split": lambda f: f.split_origin == "given",
    "public_rates": lambda f: f.class_weights == "public" and AGAINST_RELEASE[COUNTED_RATES] not in f.reasons,
    "starting_weights": lambda f: f.initial_weights_record is not None,
    # audited
    "no_audit": lambda f: f.audit is None,
    "what_was_audited": lambda f: f.audit is not None,
    "what_it_found": lambda f: f.audit is not None,
    "by_the_weights_alone": lambda f: f.audit is not None and bool(f.audit.attacks),
    "what_was_checked": lambda f: f.audit is not None and f.audit.checks is not None,
    "contradicted": lambda f: f.audit is not None and f.audit.accused,
    "not_contradicted": lambda f: f.audit is not None and not f.audit.accused,
    "other_code": lambda f: f.audit is not None and not (f.audit.code == CODE or (f.audit.training_code == TRAINING_CODE and f.fingerprints.training_code != "")),
    "patients_not_tried": lambda f: f.audit is not None and f.unit != "image" and f.audit.unit == "image",
    "other_attacks": ALWAYS,
    # bound to
    "named_files": ALWAYS,
    "dated": lambda f: f.released is not None,
    "every_step_by": lambda f: f.fingerprints.training_code != "",
    "begun_by": lambda f: f.fingerprints.training_code == "",
    "written_by": ALWAYS,
    "sealed": lambda f: f.fingerprints.data != "",
}  # fmt: skip
"""Sentence -> when it is true, said here once more from the facts alone."""


def key(sentence: Callable) -> str:
    module = sentence.__module__.rpartition(".")[2]
    return sentence.__name__ if sentence.__name__ in CONDITIONS else f"{module}.{sentence.__name__}"


SENTENCES = [sentence for section in SECTIONS.values() for sentence in section]
EVERY_CHECK: list[Any] = list(HealthCheck)


def test_every_sentence_has_a_condition_here() -> None:
    assert {key(sentence) for sentence in SENTENCES} == set(CONDITIONS)
    assert len(SENTENCES) == len(CONDITIONS)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # what draws here is hypothesis alone
@settings(max_examples=100, deadline=None, suppress_health_check=EVERY_CHECK, derandomize=True)
@given(facts())
def test_a_sentence_is_said_if_and_only_if_it_is_true(f: CardFacts) -> None:
    card = card_of(f)
    said = {key(sentence): sentence(card) for sentence in SENTENCES}
    wrong = {name for name, text in said.items() if (text is not None) != CONDITIONS[name](f)}
    assert wrong == set()
    on_card = [line for section in SECTIONS for line in getattr(card, section)]
    assert on_card == [text for text in said.values() if text is not None]
    prose = re.findall(r"<(?:li|p)(?: class=\"first\")?>(.*?)</(?:li|p)>", card_html(card), re.S)
    assert sorted(unescape(line) for line in prose) == sorted([*on_card, *card.reasons_against_release])
    assert differing(card, recomputed(card)) == []


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_a_sentence_reads_as_one(unit: str) -> None:
    """No double space, no empty bracket, one end; on a card where most of them are said."""
    f = dataclasses.replace(
        FULL, unit=unit, images_per_step=None if unit == "image" else 4, statement=Statement(utility=Figures(text="x", protection="none"))
    )  # fmt: skip
    lines = [(s, line) for card in (card_of(f), card_of(dataclasses.replace(f, tuning=TUNED))) for s in SECTIONS for line in getattr(card, s)]  # fmt: skip
    for section, line in lines:
        assert not re.search(r"  |\(\)|\{|\}|None$|_|\.\.", line), line
        if section not in ("covered", "not_covered"):
            assert line[0].isupper() or line.startswith(("mu:", "epsilon and")), line
            assert line.endswith("."), line


FULL = CardFacts(
    unit="image", images_per_step=None, adjacency="add_remove", delta=1e-4, budget=99.0, dataset_size=200, expected_batch_size=10,
    steps_planned=5, mechanisms=(mechanism("noised gradient and clip count"), COUNTS), class_weights="public", clipping="adaptive",
    noise="gaussian", findings=("a",), fingerprints=fingerprints(True, True), audit=audit_of(), reasons=(),
    initial_weights_record="recorded", near_duplicates="within_and_across", split_origin="given", sums="exact",
    siblings=(SiblingRow(ledger="ab" * 16, unit="patient", mechanisms=[mechanism()]),), released=datetime.date(2026, 11, 30),
    files=(ReleasedFile(name="model.safetensors", sha256="5a" * 32),),
)  # fmt: skip
