import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxcxr import accounting
from jaxcxr.accounting import Spending, epsilon_pld, group_privacy
from jaxcxr.accounting.gaussian import gaussian_epsilon
from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import BandedEntry, Entry, Ledger, Terms, run_name
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card.card import card_of, differing, make_card, recomputed
from jaxcxr.report.card.card_facts import SEEDED, CardFacts, facts_of_run, mechanism_rows
from jaxcxr.report.card.card_schema import MechanismRow, PrivacyCard, card_json, card_schema, read_card
from jaxcxr.report.card.page import card_html, write_card
from tests.release.run_folder import CODE, DATA, SECRET, make_run

METHOD = "one run; white-box gradient alignment and black-box loss; every step checked"
SPENT = [Spending(0.05, 1.0, 5), Spending(1.0, 20.0, 1)]
FINDING = {
    "method": METHOD, "model": "logistic regression", "canaries": 200, "confidence": 0.95, "epsilon_lower": 0.4,
    "epsilon_claimed": 2.0, "accused": False, "code": CODE,
}  # fmt: skip
SCHEMA = Path(__file__).parents[3] / "docs" / "privacy_card.schema.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("card") / "run")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run folder to be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def card(run: Path) -> PrivacyCard:
    return make_card(run, ())


@pytest.fixture(scope="module")
def quick(run: Path) -> CardFacts:
    """Facts of a patient run: no table of patients to compute."""
    return dataclasses.replace(facts_of_run(run, siblings=()), unit="patient", images_per_step=4)


def words(card: PrivacyCard) -> str:
    """The page as it is read, without tags."""

    class Text(HTMLParser):
        said = ""
        hidden = False

        def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
            self.hidden = tag == "style"

        def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
            self.hidden = False

        def handle_data(self, data: str) -> None:
            self.said += "" if self.hidden else f" {data} "

    reader = Text()
    reader.feed(card_html(card))
    return re.sub(r"\s+([.,:;])", r"\1", " ".join(reader.said.split()))


def test_the_claim_is_what_the_ledger_spent_and_rounding_keeps_it_a_bound(card: PrivacyCard) -> None:
    bounds = accounting.epsilon_bounds(SPENT, 1e-4)
    assert card.claim.epsilon_upper is not None
    assert card.claim.epsilon_lower is not None
    assert bounds.upper <= card.claim.epsilon_upper <= bounds.upper * 1.0001
    assert bounds.lower * 0.9999 <= card.claim.epsilon_lower <= bounds.lower
    assert card.claim.epsilon_upper > accounting.epsilon_pld(SPENT[:1], 1e-4)  # the counts are in it
    assert card.claim.budget == 3.0 > card.claim.epsilon_upper  # what was spent, not what was allowed
    assert {(row.name, row.steps) for row in card.mechanisms} == {
        ("noised gradient", 5),
        ("noised class counts", 1),
    }
    assert card.for_release
    assert card.watermark is None


def test_noised_class_counts_say_their_noise(card: PrivacyCard, tmp_path: Path) -> None:
    assert card.class_counts_noise_multiplier == 20.0  # of the counts' own line, not of the steps
    assert json.loads(card_json(card))["class_counts_noise_multiplier"] == 20.0
    assert "class counts noised with a noise multiplier of 20" in words(card)
    louder = card.model_copy(update={"class_counts_noise_multiplier": 30.0})
    assert differing(louder, recomputed(louder)) == ["class_counts_noise_multiplier"]
    plain = make_run(tmp_path / "run", unit="patient")
    ledger_of(unit="patient")(plain)
    without = make_card(plain, ())
    assert without.class_counts_noise_multiplier is None
    assert "class counts noised" not in words(without)


def test_a_run_that_stopped_early_claims_what_it_spent(tmp_path: Path, card: PrivacyCard) -> None:
    early = make_card(make_run(tmp_path / "run", steps=2, unit="patient"))
    assert early.claim.epsilon_upper is not None
    assert card.claim.epsilon_upper is not None
    assert early.claim.epsilon_upper < card.claim.epsilon_upper
    assert "2 made, 5 planned" in words(early)


def test_patients_with_more_films_are_told_more(card: PrivacyCard) -> None:
    assert [row.images for row in card.patients] == [1, 2, 4, 10, 20]
    epsilons = [row.epsilon_upper for row in card.patients]
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(epsilons))
    assert card.patients[0].epsilon_upper == card.claim.epsilon_upper
    assert all(row.patient is None for row in card.patients)


def test_attack_bounds_follow_from_the_claim(card: PrivacyCard) -> None:
    assert [row.false_positive_rate for row in card.attacks] == [0.001, 0.01, 0.1]
    assert card.claim.epsilon_upper is not None
    for row in card.attacks:
        simple = np.exp(card.claim.epsilon_upper) * row.false_positive_rate + card.claim.delta
        assert row.false_positive_rate < row.true_positive_rate <= simple * 1.02
        assert row.true_positive_rate - row.false_positive_rate <= card.reconstruction_advantage


def test_same_run_same_bytes(run: Path, card: PrivacyCard, tmp_path: Path) -> None:
    elsewhere = make_card(Path(shutil.copytree(run, tmp_path / "elsewhere" / "under another name")), ())
    assert card_json(elsewhere) == card_json(card)
    assert card_html(elsewhere) == card_html(card)
    write_card(card, tmp_path)
    assert read_card(tmp_path / "privacy_card.json") == card
    assert card.fingerprints.code == CODE  # the code that trained, not the code that writes the card
    assert str(run) not in card_json(card) + card_html(card)


def test_no_exact_fingerprint_of_private_data_is_published(
    run: Path, card: PrivacyCard, tmp_path: Path
) -> None:
    """Who knows all films but one could try that one: neither the store's fingerprint nor what it follows from is on the card."""
    text = card_json(card) + card_html(card)
    assert DATA not in text
    assert run_name(SECRET) not in text
    assert len(card.fingerprints.data) == 64
    ledger_of(run="")(copied := Path(shutil.copytree(run, tmp_path / "nameless")))
    nameless = facts_of_run(copied).fingerprints
    assert nameless.data == nameless.ledger == ""


def test_json_follows_its_documented_schema(card: PrivacyCard, tmp_path: Path) -> None:
    values = json.loads(card_json(card))
    schema = card_schema()
    assert json.loads(SCHEMA.read_text()) == schema, f"write {SCHEMA.name} anew"
    assert "\n" not in "".join(
        named["description"] for named in schema["$defs"].values()
    )  # however it is wrapped
    assert set(schema["required"]) == set(values)
    assert schema["additionalProperties"] is False
    pytest.importorskip("jsonschema").validate(values, schema)
    for change, named in (
        ({"surplus": 1}, "surplus"),
        ({"schema_version": 1}, "schema_version: found 1, expected 3; check the folder with the version"),
        ({"schema_version": 2}, "schema_version: found 2, expected 3; check the folder with the version"),
        ({"attacks": 3}, "attacks"),
    ):
        (tmp_path / "card.json").write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=named):
            read_card(tmp_path / "card.json")
    del values["claim"]
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="claim"):
        read_card(tmp_path / "card.json")


def test_a_card_follows_from_its_own_facts_and_a_changed_one_does_not(card: PrivacyCard) -> None:
    assert differing(card, recomputed(card)) == []
    better = card.model_copy(update={"claim": card.claim.model_copy(update={"epsilon_upper": 0.1})})
    assert differing(better, recomputed(better)) == ["claim.epsilon_upper"]
    kinder = card.model_copy(update={"assumptions": card.assumptions[1:]})
    assert differing(kinder, recomputed(kinder)) == ["assumptions"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"seed": 3}, "training.seed"), ({"class_weights": "paper"}, "class weights not covered")],
)
def test_a_run_that_must_stay_is_watermarked(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    card = make_card(make_run(tmp_path / "run", unit="patient", **changes))  # type: ignore[arg-type]
    assert not card.for_release
    assert reason in card.reasons_against_release[0]
    assert "NOT FOR RELEASE" in card_html(card)
    assert '"watermark": "not for release"' in card_json(card)


def test_more_spent_than_allowed_is_no_release(quick: CardFacts) -> None:
    card = card_of(dataclasses.replace(quick, budget=0.5))
    assert card.reasons_against_release == ["more was spent than the run was allowed"]


def test_noised_weights_without_their_line_in_the_ledger_are_not_covered(copy: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["training"]["class_weights"] = "noised"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert facts_of_run(copy).reasons == ()
    (copy / "ledger.jsonl").unlink()
    ledger = Ledger(
        copy / "ledger.jsonl", Terms("image", "add_remove", 200, DATA, seeded=False, run=run_name(SECRET))
    )
    for step in range(5):
        ledger.record(Entry(step, 0.05, 1.0, 1.5))
    ledger.close()
    assert "class weights not covered" in facts_of_run(copy).reasons[0]


def test_a_clip_norm_that_adapts_is_part_of_the_steps_release(copy: Path, quick: CardFacts) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["privacy"]["clipping"] = "adaptive"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    facts = facts_of_run(copy, siblings=())
    assert {row.name for row in facts.mechanisms} == {"noised gradient and clip count", "noised class counts"}
    adaptive, flat = card_of(dataclasses.replace(quick, mechanisms=facts.mechanisms)), card_of(quick)
    assert adaptive.claim == flat.claim
    assert [line for line in adaptive.covered if line not in flat.covered] == [
        "the clip norm that training adjusted from step to step: it was computed from what the steps released, "
        "and its cost is in the figures"
    ]


def test_correlated_noise_counts_the_steps_of_one_group(quick: CardFacts) -> None:
    own = {"name": "noised gradient", "noise_multiplier": 1.0, "sample_rate": 0.1, "l2_clip_norm": 1.5}
    rows = mechanism_rows([BandedEntry(step, 0.1, 1.0, 1.5, 2, step % 2) for step in range(5)])
    assert rows == (MechanismRow(**own, steps=5, bands=2),)
    facts = dataclasses.replace(quick, mechanisms=rows, near_duplicates="within")
    card = card_of(facts)
    spent = [Spending(0.1, 1.0, 3)]
    assert card.claim.epsilon_upper == pytest.approx(epsilon_pld(spent, facts.delta), rel=1e-3)
    (said,) = [line for line in card.covered if "correlated over 2 steps" in line]
    assert "from 2 groups in turn" in said
    assert "In each step of its group every patient is included at random" in words(card)
    # two images under two names may be in two groups: of them nothing is known but each one's promise
    pair = Guarantee(tuple(spent)).apart(facts.delta)
    assert pair > group_privacy.patient_bounds(spent, facts.delta, 2).upper
    assert f"that of a group of two patients: epsilon = {upper_text(pair)}" in words(card)
    plain = card_of(dataclasses.replace(quick, mechanisms=(MechanismRow(**own, steps=3),)))
    assert "correlated" not in words(plain)
    assert plain.claim.epsilon_upper == card.claim.epsilon_upper


def test_delta_beyond_one_unit_in_n_is_said(quick: CardFacts) -> None:
    assert "outright" not in words(card_of(quick))
    assert "publishing somebody's record outright" in words(
        card_of(dataclasses.replace(quick, delta=1 / 200))
    )


def test_assumptions_are_those_of_the_run(run: Path) -> None:
    facts = facts_of_run(run)
    said = words(card_of(dataclasses.replace(facts, class_weights="public", noise="discrete")))
    assert "was known from elsewhere" in said
    assert (
        "the noise was sampled exactly, and the sums that it was added to were formed in 32-bit arithmetic"
        in said
    )
    assert "known from elsewhere" not in words(card_of(facts))


def test_what_rounding_leaves_of_the_guarantee_is_that_of_the_runs_sums(run: Path) -> None:
    facts = facts_of_run(run)
    assert facts.sums == "float32"  # a run of an earlier version
    exact = dataclasses.replace(facts, sums="exact", expected_batch_size=512)
    said = words(card_of(exact))
    assert (
        "is not proved. 0.097 % of the clip norm was left free for it: 7 times the most" in said
    )  # 32 x 512 / 2^24
    assert "is not proved" not in words(card_of(facts))
    for proved in (
        dataclasses.replace(exact, noise="discrete"),
        dataclasses.replace(
            exact, mechanisms=tuple(r.model_copy(update={"name": "noised moments"}) for r in exact.mechanisms)
        ),
    ):
        assert "no image changes a sum by more than the noise is for" in words(card_of(proved))


def test_where_the_weights_came_from_is_said(copy: Path) -> None:
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(facts | {"initial_weights_sha256": "5eed" * 16}))
    said = words(make_card(copy, ()))
    assert f"starting weights {'5eed' * 16}" in said
    assert "made without the images of these patients" in said


@pytest.mark.parametrize(
    ("record", "shown", "said", "unsaid"),
    [
        (
            "recorded",
            "recorded",
            "checked by salted hashes of pixels and patient ids",
            "ASSUMED, not checked: the weights",
        ),
        (
            "ids_declared_unrelated",
            "ids_declared_unrelated",
            "declared to belong to different people",
            "ASSUMED, not checked: the",
        ),
        (
            "none",
            "none",
            "ASSUMED, not checked: the weights that training started from carry no record",
            "salted hashes",
        ),
        (
            None,
            "none",
            "ASSUMED, not checked: the weights that training started from carry no record",
            "salted hashes",
        ),
    ],
)
def test_what_is_known_of_the_starting_weights_films_is_said(
    copy: Path, record: str | None, shown: str, said: str, unsaid: str
) -> None:
    of_json(initial_weights_sha256="5eed" * 16, initial_weights_record=record)(copy)
    facts = facts_of_run(copy, siblings=())
    assert facts.initial_weights_record == shown
    card = card_of(dataclasses.replace(facts, unit="patient", images_per_step=4))
    assert card.initial_weights_record == shown
    assert said in words(card)
    assert unsaid not in words(card)
    looked_up = "says of images that the starting weights were trained on: it was looked up in the images"
    assert (looked_up in words(card)) == (shown != "none")


def test_random_starting_weights_have_no_record(copy: Path) -> None:
    of_json(initial_weights_record="recorded")(copy)
    facts = facts_of_run(copy, siblings=())
    assert facts.initial_weights_record is None
    assert "weights that training started from" not in words(
        card_of(dataclasses.replace(facts, unit="patient", images_per_step=4))
    )


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "not_looked_for"),
        ({"within": False, "across": False}, "none"),
        ({"within": True, "across": False}, "within"),
        ({"within": False, "across": True}, "across"),
        ({"within": True, "across": True}, "within_and_across"),
    ],
)
def test_nearly_equal_films_change_the_card(copy: Path, found: object, shown: str, unit: str) -> None:
    of_json(near_duplicates=found)(copy)
    facts = facts_of_run(copy, siblings=())
    assert facts.near_duplicates == shown
    card = card_of(dataclasses.replace(facts, unit=unit, images_per_step=None if unit == "image" else 4))
    said, right = (
        words(card),
        "No image is in the data twice" if unit == "image" else "carry the same patient id",
    )
    assert ("ASSUMED, nearly equal images were not looked for" in said) == (found is None)
    assert ("were looked for in the training data, and none were found" in said) == (
        shown in ("none", "across")
    )
    assert ("in the training and in the test part" in said) == ("across" in shown)
    assert (right in said) == ("within" not in shown)
    # The sentence is a bit of the films themselves, which no noise hides.
    assert ("says of images that are nearly equal: it was looked up in the images" in said) == (
        found is not None
    )
    of_one_patient = "Among the images of one patient they were not looked for" in said
    assert of_one_patient == (unit == "image" and shown in ("none", "across"))
    if "within" in shown:
        pair = re.search(r"that of a group of two (images|patients): epsilon = ([\d.]+)\.", said)
        assert pair is not None
        exact = group_privacy.patient_bounds(facts.guarantee.spent, facts.delta, 2).upper
        assert exact <= float(pair[2]) <= exact * 1.001
        assert card.claim.epsilon_upper is not None
        assert exact > card.claim.epsilon_upper
        assert pair[1] == ("images" if unit == "image" else "patients")


def test_what_decided_the_split_is_said(copy: Path) -> None:
    for origin, shown, said in (
        ("keyed_hash", "keyed_hash", None),
        ("given", "given", "The division into training and test images came with the data"),
        (
            "unknown",
            "unknown",
            "whether a patient's images were used for training or for testing may have depended",
        ),
        (
            None,
            "unknown",
            "whether a patient's images were used for training or for testing may have depended",
        ),
    ):
        of_json(split_origin=origin)(copy)
        facts = facts_of_run(copy, siblings=())
        assert facts.split_origin == shown
        card = card_of(dataclasses.replace(facts, unit="patient", images_per_step=4))
        for sentence in ("The division into training", "whether a patient's images were used for training"):
            assert (sentence in words(card)) == (said is not None and said.startswith(sentence))
    louder = card.model_copy(update={"split_origin": "keyed_hash"})
    assert differing(louder, recomputed(louder)) == ["not_covered"]


def test_a_card_of_which_nobody_looked_for_siblings_is_not_for_release(quick: CardFacts) -> None:
    card = card_of(dataclasses.replace(quick, siblings=None))
    assert card.reasons_against_release == ["the other released models of the cohort were not looked up"]
    assert "Whether other models of this cohort are published was not looked up" in words(card)


def test_the_hospitals_card_shows_the_cohort_and_stays_there(run: Path) -> None:
    card = make_card(run, cohort_images=np.array([1] * 18 + [3, 9]))
    assert [(row.patient, row.images) for row in card.patients[-3:]] == [
        ("median", 1),
        ("95th percentile", 3),
        ("maximum", 9),
    ]
    assert not card.for_release


@pytest.mark.parametrize(("unit", "films"), [("patient", 4), ("patient_one_image", 1)])
def test_a_patient_run_needs_no_table_of_films(tmp_path: Path, unit: str, films: int) -> None:
    card = make_card(make_run(tmp_path / "run", unit=unit))
    assert card.patients == []
    said = words(card)
    assert "To each patient of the training data, for all of their images together" in said
    assert "To each image" not in said
    assert "of 1,000 patients that were not used" in said
    assert f"at most {films} images of each in a step" in said
    assert "carry the same patient id" in said


def of_json(**changes: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        facts = json.loads((run / "run.json").read_text()) | changes
        (run / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not ...}))

    return change


def ledger_of(**terms: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / "ledger.jsonl").unlink()
        said = Terms("image", "add_remove", 200, DATA, seeded=False, run=run_name(SECRET))
        ledger = Ledger(
            run / "ledger.jsonl",
            dataclasses.replace(said, **{k: v for k, v in terms.items() if k != "steps"}),
        )
        for step in terms.get("steps", range(5)):  # type: ignore[attr-defined]
            ledger.record(Entry(step, 0.05, 1.0, 1.5))
        ledger.close()

    return change


def cut(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))


def without_privacy(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"privacy": None}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "run.json").unlink(), r"run\.json is missing"),
        (lambda run: (run / "config.yaml").unlink(), r"config\.yaml is missing"),
        (lambda run: (run / "ledger.jsonl").unlink(), "no such ledger"),
        (lambda run: (run / "run.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "run.json").write_text("[]"), "expected an object"),
        (lambda run: (run / "config.yaml").write_text("data: 3"), "config.yaml"),
        (of_json(n_units=20), "different data; they differ in n_units"),
        (of_json(store_fingerprint="00" * 32), "store_fingerprint"),
        (of_json(delta=...), "without privacy"),
        (of_json(epsilon=...), "key 'epsilon' is missing"),
        (of_json(epsilon="much"), "not the facts of a run"),
        (of_json(jaxcxr="1.2.840.113619.2"), "jaxcxr"),
        (of_json(noise_multiplier=9.0), "noise_multiplier of step 0 is 1.0 in ledger.jsonl, 9.0 in run.json"),
        (of_json(sample_rate=0.01), "sample_rate of step 0"),
        (of_json(steps=4), "5 steps, run.json planned 4"),
        (without_privacy, "without privacy"),
        (ledger_of(unit="patient"), "unit is 'patient', that of config.yaml 'image'"),
        (ledger_of(run="0f" * 16), "another run than checkpoints/secret.key"),
        (lambda run: (ledger_of(steps=[])(run), shutil.rmtree(run / "checkpoints")), "nothing was trained yet"),
        (of_json(initial_weights_sha256="5eed" * 16, initial_weights_record="trust me"), "initial_weights_record: expected one of"),
        (of_json(near_duplicates={"within": "no", "across": False}), "near_duplicates: expected within and across"),
        (of_json(near_duplicates={"within": True}), "near_duplicates: expected within and across"),
        (of_json(split_origin="by hand"), "split_origin: expected one of"),
        (of_json(delta=1.5), "delta: expected a number between 0 and 1, found 1.5"),
        (of_json(steps=5.5), "steps: expected a whole number"),
        (of_json(epsilon=9.0), r"privacy.epsilon is 3.0 in config.yaml, 9.0 in run.json"),
        (ledger_of(steps=[0, 2, 3]), "step 2 where step 1 belongs"),
        (cut, "a checkpoint is of step 5, but ledger.jsonl has 4 steps: lines were lost"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_private_run_or_at_odds_has_no_card(
    copy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=message):
        make_card(copy, ())


def test_the_page_needs_no_network_and_its_figures_are_the_cards(card: PrivacyCard) -> None:
    page, said = card_html(card), words(card)
    assert not re.search(r"(src|href)=|https?://|<script|@import|url\(", page)
    assert 'name="viewport"' in page
    assert "@media print" in page
    claim, attack = card.claim, card.attacks[1]
    assert claim.epsilon_upper is not None
    assert claim.mu is not None
    for number, bound in (
        (r"mu = (\S+) \(Gaussian differential privacy\)", claim.mu),
        (r"epsilon = (\S+) at delta = 0\.0001\.", claim.epsilon_upper),
        (r"with one image more or less in the training data", None),
        (r"a factor of at most (\S+), plus 100 in a million", np.exp(claim.epsilon_upper)),
        (r"and ([\d.]+); a coarser accountant", claim.epsilon_upper),
        (r"can rightly name at most (\S+) of every 1,000 that were", 1000 * attack.true_positive_rate),
        (r"is right at most (\S+) times with this one", 1000 * attack.true_positive_rate),
        (r"adds at most (\S+) right guesses in 1,000", 1000 * card.reconstruction_advantage),
        (r"with 4 images, epsilon is ([\d.]+), and", card.patients[2].epsilon_upper),
    ):
        shown = re.search(number, said)
        assert shown is not None, number
        if bound is not None:
            assert bound <= float(shown[1]) <= bound * 1.01  # fewer digits make no bound smaller
    head = page[: page.index("<body>")]
    assert f"<title>Privacy card of run {card.fingerprints.ledger[:8]}: epsilon " in head
    assert f"<h1>Privacy card of run {card.fingerprints.ledger[:8]}</h1>" in page
    assert not re.findall(r"<th(?![^>]*scope=)[^>]*>", page.replace("<thead>", ""))
    assert len(re.findall("<tr[ >]", page)) == len(re.findall("<tr[^>]*><th", page))
    for text in (
        "The training was allowed 3",
        "unit image",
        "adjacency one added or removed",
        "dp-accounting",
        "5 made, 5 planned",
        "clipping flat",
        f"data (sealed) {card.fingerprints.data}",
        f"ledger (sealed) {card.fingerprints.ledger}",
        f"code at the beginning {CODE}",
        "starting weights random",
        "intended use not stated",
    ):
        assert text in said, text
    assert "NOT FOR RELEASE" not in said


def test_mu_covers_the_whole_profile_and_comes_first(card: PrivacyCard) -> None:
    exact = accounting.gdp_mu(SPENT, 1e-4)
    assert card.claim.mu is not None
    assert exact <= card.claim.mu <= exact * 1.0001
    for row in card.profile:
        (bounds,) = accounting.profile(SPENT, [row.delta])
        assert row.epsilon_upper is not None
        assert bounds.upper <= row.epsilon_upper <= bounds.upper * 1.0001
        if row.delta >= card.claim.delta:  # from the claimed delta on, mu's own profile lies above
            assert row.epsilon_upper <= gaussian_epsilon(row.delta, card.claim.mu)[1]
    assert [row.delta for row in card.profile] == [1e-3, 1e-4, 1e-5, 1e-6, 1e-8]
    (figures,) = (line for line in card.how_strong if "mu = " in line)
    assert figures.index("mu = ") < figures.index("epsilon = ")
    page = card_html(card)
    assert page.index("mu = ") < page.index('class="profile"') < page.index("epsilon at other deltas")


def test_the_scale_is_what_an_epsilon_allows_whatever_the_mechanism(card: PrivacyCard) -> None:
    """The best attacker on randomised response, which attains (epsilon, 0), must not beat a row."""
    assert [row.epsilon for row in card.scale] == [0.29, 1.0, 3.0, 8.0]
    for row in card.scale:
        assert row.true_positive_rate_at_1_percent >= min(
            0.01 * np.exp(row.epsilon), 1 - 0.99 * np.exp(-row.epsilon)
        )
    assert [round(row.true_positive_rate_at_1_percent, 3) for row in card.scale] == [0.013, 0.027, 0.201, 1.0]
    assert [row.strength for row in card.scale] == ["strong", "moderate", "moderate", "weak"]


@pytest.mark.parametrize(
    ("noise", "word"), [(0.5, "Weak: it cannot be ruled out that"), (1.2, "Moderate: an attacker"), (8.0, "Strong: an attacker")]
)  # fmt: skip
def test_the_verdict_is_the_one_of_its_threshold(quick: CardFacts, noise: float, word: str) -> None:
    row = MechanismRow(
        name="noised gradient", noise_multiplier=noise, sample_rate=0.05, steps=200, l2_clip_norm=1.5
    )
    card = card_of(dataclasses.replace(quick, mechanisms=(row,), budget=99.0))
    found = card.attacks[1].true_positive_rate
    assert {"Weak": found >= 0.5, "Strong": found <= 0.02}.get(word.split(":")[0], 0.02 < found < 0.5)
    assert card.how_strong[0].startswith(word)
    others = {"Weak:", "Moderate:", "Strong:"} - {word.split()[0]}
    assert not any(other in words(card) for other in others)
    seeded = card_of(dataclasses.replace(quick, mechanisms=(row,), reasons=(SEEDED,)))
    assert seeded.how_strong == []  # whoever has the seed subtracts the noise
    assert seeded.to_whom == ["To nobody."]


def test_without_noise_nothing_is_promised(quick: CardFacts) -> None:
    row = MechanismRow(
        name="noised gradient", noise_multiplier=0.0, sample_rate=0.05, steps=5, l2_clip_norm=1.5
    )
    card = card_of(dataclasses.replace(quick, mechanisms=(row,)))
    assert (card.claim.epsilon_upper, card.claim.mu) == (None, None)
    assert not card.for_release
    said = words(card)
    assert card.promised == ["There is no promise: epsilon is without limit."]
    assert "epsilon = without" not in said
    assert 'class="profile"' not in card_html(card)
    json.loads(card_json(card))


def test_the_comparison_is_with_a_model_trained_without_the_one_image(
    card: PrivacyCard, quick: CardFacts
) -> None:
    """An image's label can be learned from the others: the promise bounds what the image's own part adds."""
    assert "a model trained without this image" in card.promised[0]
    said = words(card) + words(card_of(quick))
    assert "without the model" not in said
    assert "a model trained without this patient" in said
    assert "That nothing is learned about patients in general: if the model shows" in said


def audited(copy: Path, **finding: object) -> PrivacyCard:
    (copy / "audit.json").write_text(json.dumps({"card": {**FINDING, **finding}, "data": DATA}))
    return make_card(copy, ())


def test_an_audit_says_exactly_what_it_tried(copy: Path) -> None:
    card = audited(copy, steps=60, noise="gaussian")
    assert card.for_release
    tried = {row.part: row for row in card.tried}
    assert {part for part, row in tried.items() if row.tried == "tried"} == {
        "what each step releases", "protected unit", "clipping", "noise", "training code", "membership inference",
    }  # fmt: skip
    assert (tried["model"].tried, tried["model"].how) == ("not tried", "a logistic regression on the pixels")
    assert tried["class counts"].tried == "not tried"
    assert tried["reconstruction of training images"].tried == "not tried"
    said = words(card)
    assert "An audit made a training of 60 steps of its own, of a logistic regression" in said
    assert "and 200 marked images" in said
    assert "epsilon of that training is at least 0.4; that training claims 2." in said
    assert audited(copy, epsilon_lower=0.0).audited[1] == (
        "With 95 % confidence the attack shows nothing; that training claims 2."
    )
    assert "a narrower copy of the network" in words(audited(copy, model="network, narrower"))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"clipping": "adaptive"}, "clipping"),
        ({"clipping": "automatic"}, "clipping"),
        ({"unit": "patient", "images_per_step": 4}, "protected unit"),
        ({"noise": "discrete"}, "noise"),
        ({"mechanisms": (MechanismRow(name="noised gradient", noise_multiplier=1.0, sample_rate=0.1, steps=5, l2_clip_norm=1.5, bands=2),)}, "noise"),
        ({"mechanisms": (MechanismRow(name="noised moments", noise_multiplier=1.0, sample_rate=0.05, steps=5, l2_clip_norm=1.5),)}, "what each step releases"),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_audit_did_not_run_is_not_tried(copy: Path, changes: dict, part: str) -> None:
    (copy / "audit.json").write_text(json.dumps({"card": {**FINDING, "noise": "gaussian"}, "data": DATA}))
    facts = facts_of_run(copy, siblings=())
    same, other = card_of(facts), card_of(dataclasses.replace(facts, **changes))
    assert {row.part: row.tried for row in same.tried}[part] == "tried"
    assert {row.part: row.tried for row in other.tried}[part] == "not tried"


def test_an_audit_of_an_earlier_version_says_what_it_did_not_record(copy: Path) -> None:
    tried = {row.part: row.tried for row in audited(copy, code="").tried}
    assert (tried["noise"], tried["training code"], tried["clipping"]) == (
        "not recorded",
        "not tried",
        "tried",
    )


def test_an_audit_that_refutes_or_contradicts_itself(copy: Path) -> None:
    accused = audited(copy, accused=True)
    assert "contradicts the claim" in words(accused)
    assert accused.reasons_against_release == ["the audit refutes the claim"]
    for finding, message in (
        ({"accused": "perhaps"}, "not an audit's finding"),
        ({"epsilon_lower": 50.0}, "accused: true, since more was proved than claimed"),
        ({"confidence": 0.0}, "confidence"),
        ({"confidence": 1.0}, "confidence"),
        ({"unit": "patient"}, "unit"),
    ):
        with pytest.raises(InputError, match=message):
            audited(copy, **finding)
    for written, message in (
        ({"card": FINDING, "data": "cd34" * 16}, "audit of another cohort"),
        ({"card": FINDING}, "not an audit's finding"),
        ([], "not an audit's finding"),
    ):
        (copy / "audit.json").write_text(json.dumps(written))
        with pytest.raises(InputError, match=message):
            make_card(copy, ())
