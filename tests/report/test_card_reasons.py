"""What was counted in the data, or changed after a run was begun, stands against its release."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.records.binding import Binding
from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_RATES, COUNTED_SIZE
from jaxcxr.records.ledger import Ledger, read_ledger
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_run
from tests.release.run_folder import DATA, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as an earlier version left it: nothing is bound."""
    return make_run(tmp_path / "run", unit="patient")


@pytest.fixture
def bound(run: Path) -> Path:
    """The same, bound to its configuration."""
    settled = {"release": True, "against_release": [], "near_duplicates": {"within": True, "across": False}}
    settled |= {"split_origin": "unknown", "initial_weights_record": "none"}
    bound_to = load(Experiment, run / "config.yaml").digest_fields() | {
        f"run.{name}": said for name, said in settled.items()
    }
    bind(run, Binding(bound_to, "aa" * 32, DATA, {}, {}, {}))
    edit(run / "run.json", initial_weights_sha256="aa" * 32, **settled)
    return run


def bind(run: Path, binding: Binding) -> None:
    edit(run / "run.json", binding=binding.as_json())
    terms, entries = read_ledger(run / "ledger.jsonl")
    (run / "ledger.jsonl").unlink()
    ledger = Ledger(run / "ledger.jsonl", dataclasses.replace(terms, binding=binding.digest))
    for entry in entries:
        ledger.record(entry)
    ledger.close()


def edit(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def configure(run: Path, section: str, **fields: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section].update(fields)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_runs_of_earlier_versions_are_released_as_before(run: Path) -> None:
    assert read_ledger(run / "ledger.jsonl")[0].binding == ""
    assert facts_of_run(run).reasons == ()


def test_a_bound_run_that_nobody_changed_may_be_released(bound: Path) -> None:
    assert facts_of_run(bound).reasons == ()


def test_a_counted_size_stands_against_release_in_earlier_runs_too(run: Path) -> None:
    configure(run, "privacy", dataset_size=None)
    facts = facts_of_run(run)
    assert facts.reasons == (AGAINST_RELEASE[COUNTED_SIZE],)
    card = card_of(facts)
    assert not card.for_release
    assert not any("that is declared (N)" in sentence for sentence in card.assumptions)


def test_counted_rates_stand_against_release_without_a_number(run: Path) -> None:
    configure(run, "training", class_weights="public", positive_rates=[0.1234, 0.4321])
    assert any("was known from elsewhere" in sentence for sentence in card_of(facts_of_run(run)).assumptions)
    edit(run / "run.json", against_release=[COUNTED_RATES], release=False)
    card = card_of(facts_of_run(run))
    assert card.reasons_against_release == [AGAINST_RELEASE[COUNTED_RATES]]
    assert not any(character.isdigit() for character in AGAINST_RELEASE[COUNTED_RATES])
    assert not any("was known from elsewhere" in sentence for sentence in card.assumptions)


@pytest.mark.parametrize(
    ("section", "fields"), [("privacy", {"dataset_size": 250}), ("training", {"learning_rate": 2e-3}), ("privacy", {"clipping": "automatic"})]
)  # fmt: skip
def test_a_configuration_that_was_edited_afterwards_is_found(
    bound: Path, section: str, fields: dict[str, Any]
) -> None:
    configure(bound, section, **fields)
    name = f"{section}.{next(iter(fields))}"
    assert facts_of_run(bound).reasons == (
        f"its files were changed after it was begun, or are of several runs ({name})",
    )


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ("near_duplicates", {"within": False, "across": False}),
        ("split_origin", "keyed_hash"),
        ("initial_weights_record", "recorded"),
        ("initial_weights_sha256", "bb" * 32),
    ],
)
def test_a_fact_that_was_edited_afterwards_is_found(bound: Path, fact: str, said: object) -> None:
    """The card would repeat it: films that were never looked at as looked at, an assumption as checked."""
    edit(bound / "run.json", **{fact: said})
    assert facts_of_run(bound).reasons == (
        f"its files were changed after it was begun, or are of several runs (run.{fact})",
    )


def test_what_stands_against_release_cannot_be_edited_away(run: Path) -> None:
    configure(run, "training", class_weights="public", positive_rates=[0.1234, 0.4321])
    edit(run / "run.json", initial_weights_sha256="aa" * 32)
    settled = {"release": False, "against_release": [COUNTED_RATES]}
    bound_to = load(Experiment, run / "config.yaml").digest_fields() | {
        f"run.{name}": said for name, said in settled.items()
    }
    bind(run, Binding(bound_to, "aa" * 32, DATA, {}, {}, {}))
    edit(run / "run.json", **settled)
    assert facts_of_run(run).reasons == (AGAINST_RELEASE[COUNTED_RATES],)
    edit(run / "run.json", release=True, against_release=[])
    (reason,) = facts_of_run(run).reasons
    assert reason.endswith("(run.against_release, run.release)")


def test_a_record_that_is_not_the_ledgers_is_found(bound: Path) -> None:
    record = json.loads((bound / "run.json").read_text())["binding"]
    for other in (None, record | {"starting_weights": "ab"}, Binding({}, "aa", DATA, {}, {}, {}).as_json()):
        edit(bound / "run.json", binding=other)
        assert "(binding)" in facts_of_run(bound).reasons[0]


SOURCES = "5a" * 32


def test_the_code_of_every_step_is_what_the_run_is_bound_to(run: Path) -> None:
    """Not what is installed now, nor what other files of the run say: a run goes on only with what it is bound to."""
    bound_to = load(Experiment, run / "config.yaml").digest_fields()
    libraries = {"jax": "0.9.0", "pillow": "12.0.0", "numpy": "2.4.0.dev20261130+hospital", "internal": "1.0"}
    code = {"jaxcxr": "0.1.0", "sources": SOURCES}
    bind(run, Binding(bound_to, "aa" * 32, DATA, code, libraries, {}))
    edit(run / "run.json", made_with={"code_fingerprint": "bb" * 32}, jaxcxr="0.7.0")  # as after an upgrade
    fingerprints = facts_of_run(run).fingerprints
    assert (fingerprints.training_code, fingerprints.jaxcxr) == (SOURCES, "0.1.0")
    assert fingerprints.libraries == {"jax": "0.9.0", "pillow": "12.0.0"}
    said = card_of(facts_of_run(run, siblings=())).bound_to
    assert any("Every step was made by jaxcxr 0.1.0" in line for line in said)
    record = json.loads((run / "run.json").read_text())["binding"]
    edit(run / "run.json", binding=record | {"digest": "cc" * 32})
    assert facts_of_run(run).fingerprints.training_code == ""


def test_which_code_continued_a_run_of_an_earlier_version_is_not_known(run: Path) -> None:
    edit(run / "run.json", made_with={"code_fingerprint": "bb" * 32})
    card = card_of(facts_of_run(run, siblings=()))
    assert (card.fingerprints.training_code, card.fingerprints.libraries) == ("", {})
    assert any("whether other versions continued it was not recorded" in line for line in card.bound_to)
