import dataclasses
import hashlib
import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.errors import InputError
from jaxcxr.inference import load_model
from jaxcxr.records.ledger import run_name
from jaxcxr.release import released_weights
from jaxcxr.release.build import build_release
from jaxcxr.release.check import check_release
from jaxcxr.release.public_config import public_config
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import facts_of_card
from jaxcxr.report.card.card_schema import read_card
from jaxcxr.report.card.page import write_card
from jaxcxr.report.risk_files import write_private_csv
from jaxcxr.training.weights import flat_weights, load_weights
from tests.release.plantings import PLANTINGS
from tests.release.run_folder import CONFIG, DATA, MANIFEST, PARAMS, SECRET, cohort, make_run, network_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

OF_THE_NETWORK = released_weights.network_shapes
IDS = (
    "IMG-0003",
    "Müller^Anna",
    "p-77",
    "1.2.840.113619.2",
    "483920",
    "0042",
    "88241907",
    "scan004",
    "deadbeefcafe0123",
)
SPECIAL = {
    "weights: bytes of a kernel": "IMG-0003",
    "weights: bytes of a kernel, UTF-16": "deadbeefcafe0123",
    "weights: tensor of bytes": "IMG-0003",
    "weights: after the end": "scan004",
    "NPZ bytes": "IMG-0003",
    "DICOM": "IMG-0003",
    "UTF-16 big-endian": "scan004",
    "Latin-1": "Müller^Anna",
    "decomposed": "Müller^Anna",
    "file name, upper case": "deadbeefcafe0123",
    "card: version": "1.2.840.113619.2",
    "card: fingerprint": "deadbeefcafe0123" * 2,
}
"""Plantings that make sense with some identifiers only, or that must be long enough to be told from chance."""


@pytest.fixture(autouse=True, scope="module")
def tiny_network() -> Iterator[None]:
    """The check's idea of the network is the tiny one of the plantings, not the real one of five megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            released_weights,
            "network_shapes",
            lambda _: {k: v.shape for k, v in flat_weights(PARAMS).items()},
        )
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_network: None) -> Path:
    return build_release(make_run(tmp_path_factory.mktemp("release") / "run"), MANIFEST).folder


@pytest.fixture
def release(built: Path, tmp_path: Path) -> Path:
    """A copy of a clean release, to be spoilt."""
    return Path(shutil.copytree(built, tmp_path / "release"))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_release_holds_the_weights_and_what_is_promised(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {
        "model.safetensors", "orbax", "config.yaml", "privacy_card.json", "privacy_card.html",
        "LICENCE", "README.md",
    }  # fmt: skip
    weights = load_file(built / "model.safetensors")
    np.testing.assert_array_equal(weights["params/conv1/kernel"], PARAMS["params"]["conv1"]["kernel"])
    np.testing.assert_array_equal(weights["params/head/bias"], PARAMS["params"]["head"]["bias"])
    again = load_weights(built / "orbax", PARAMS)
    np.testing.assert_array_equal(again["params"]["conv1"]["kernel"], PARAMS["params"]["conv1"]["kernel"])
    with ocp.StandardCheckpointer() as checkpointer:  # as a stranger would read it
        plain = checkpointer.restore((built / "orbax" / "params").resolve())
    np.testing.assert_array_equal(plain["params"]["head"]["bias"], PARAMS["params"]["head"]["bias"])


def test_nothing_of_the_hospital_comes_along(built: Path) -> None:
    content = b"".join(path.read_bytes() for path in built.rglob("*") if path.is_file())
    for private in (
        b"hospital of",
        b"images_per_second",
        b'"loss"',
        bytes(range(32)),
        str(built.parent).encode(),
        b"nsecs",
        DATA.encode(),
        run_name(SECRET).encode(),
    ):
        assert private not in content
    config = yaml.safe_load((built / "config.yaml").read_text())
    assert config["data"]["store"] == config["model"]["weights"] == "not released"
    assert config["training"]["learning_rate"] == 1e-3
    assert check_release(built, MANIFEST).wrong == check_release(built, None).wrong == ()


def test_the_same_run_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert digests(build_release(make_run(tmp_path / "elsewhere"), MANIFEST).folder) == digests(built)


def test_how_the_model_is_judged_stays_in_the_house_and_packaged_weights_keep_their_name() -> None:
    judged = dataclasses.replace(
        CONFIG.evaluation, threshold="fixed", fixed_thresholds=(0.317, 0.402), groups=("ward:3",)
    )
    released = public_config(dataclasses.replace(CONFIG, evaluation=judged))
    assert released.evaluation.fixed_thresholds is None
    assert released.evaluation.groups is None
    for weights, shown in (
        (None, None),
        ("/pacs/weights", "not released"),
        ("jaxcxr/weights/../../../pacs", "not released"),
    ):
        model = dataclasses.replace(CONFIG.model, weights=weights)
        assert public_config(dataclasses.replace(CONFIG, model=model)).model.weights == shown


@pytest.mark.parametrize("place", PLANTINGS)
def test_a_planted_identifier_is_refused_and_named(release: Path, place: str) -> None:
    """The measure: no false negative. That it is the planting and no other fault: the clean copy passes (see above)."""
    value = SPECIAL.get(place, IDS[list(PLANTINGS).index(place) % len(IDS)])
    PLANTINGS[place](release, value)
    wrong = check_release(release, MANIFEST).wrong
    assert wrong
    shown = "483920" if place == "orbax: number" else unicodedata.normalize("NFC", value)[:16].lower()
    assert any(
        shown in sentence.split(": ", 1)[1].lower() for sentence in wrong if "no part" not in sentence
    ), wrong


def test_fifty_plantings_at_least() -> None:
    assert len(PLANTINGS) >= 50


@pytest.mark.parametrize(
    "manifest",
    [
        pd.DataFrame({"image_id": ["32", "1000", "200"], "patient_id": ["5", "10", "0.05"], "path": ["1", "2", "3"]}),
        pd.DataFrame({"image_id": range(400), "patient_id": [i // 2 for i in range(400)], "path": [f"{i}.png" for i in range(400)]}),
        pd.DataFrame({"image_id": [f"{i:04x}" for i in range(3000)], "patient_id": [f"{i:03x}" for i in range(3000)], "path": [f"image/{i:05d}/none.dcm" for i in range(3000)]}),
        pd.DataFrame({"image_id": ["a1", "a2"], "patient_id": [1.0, None], "path": ["x/a1.png", None], "comment": ["none", ""]}),
    ],
    ids=["numbers of the training", "1, 2, 3", "short hexadecimal", "missing cells"],
)  # fmt: skip
def test_a_clean_release_passes_whatever_the_ids_look_like(built: Path, manifest: pd.DataFrame) -> None:
    verdict = check_release(built, manifest)
    assert verdict.wrong == ()
    assert any("fewer than" in sentence for sentence in verdict.unchecked)


def test_what_could_not_be_looked_for_is_said(built: Path) -> None:
    numbered = pd.DataFrame(
        {"image_id": ["1", "2", "77"], "patient_id": ["3", "4", "long-enough-an-id"], "path": ["7", "8", "9"]}
    )
    bare, short = check_release(built, numbered).unchecked
    assert bare.startswith("8 of 9 identifiers are numbers of fewer than 4 digits")
    assert short.startswith("8 of 9 identifiers have fewer than")
    assert check_release(built, None).unchecked == (
        "no manifest was given, so no identifier was searched for",
    )
    assert (
        check_release(
            built, numbered.iloc[[2]].assign(image_id="long-enough", path="images/long-enough")
        ).unchecked
        == ()
    )


def test_short_numbers_are_still_found_in_foreign_files_and_names(release: Path) -> None:
    (release / "patient 7.txt").write_text("also 8\n")
    manifest = pd.DataFrame({"image_id": ["7", "8"], "patient_id": ["3", "4"], "path": ["a", "b"]})
    wrong = check_release(release, manifest).wrong
    assert "patient 7.txt: its name holds the image_id '7'" in wrong
    assert "patient 7.txt: holds the image_id '8'" in wrong


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda card: card["claim"].update(epsilon_upper=0.5), "claim.epsilon_upper"),
        (lambda card: card["attacks"][1].update(true_positive_rate=0.011), "attacks.1.true_positive_rate"),
        (lambda card: card["patients"].pop(), "patients"),
        (lambda card: card["not_covered"].pop(0), "not_covered"),
        (lambda card: card["mechanisms"][1].update(steps=4), "claim.epsilon_upper"),
    ],
    ids=["epsilon", "attack bound", "a patient row", "a caveat", "fewer releases"],
)
def test_a_card_made_to_look_better_is_refused(release: Path, change: object, named: str) -> None:
    path = release / "privacy_card.json"
    card = json.loads(path.read_text())
    change(card)  # type: ignore[operator]
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    wrong = check_release(release, None).wrong
    assert any(
        "does not follow from its own mechanisms" in sentence and named in sentence for sentence in wrong
    )


def test_configuration_and_card_must_tell_the_same(release: Path) -> None:
    config = yaml.safe_load((release / "config.yaml").read_text())
    config["privacy"].update(unit="patient", delta=1e-6, dataset_size=7, class_counts_noise_multiplier=0.5)
    config["training"]["class_weights"], config["training"]["positive_rates"] = "noised", None
    (release / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    wrong = check_release(release, None).wrong
    assert "config.yaml: privacy.unit is patient, privacy_card.json says image" in wrong
    assert "config.yaml: privacy.delta is 1e-06, privacy_card.json says 0.0001" in wrong
    assert any(
        sentence.startswith("config.yaml: privacy.dataset_size is 7, privacy_card.json says ")
        for sentence in wrong
    )
    assert "config.yaml: privacy.class_counts_noise_multiplier is 0.5, privacy_card.json says 20.0" in wrong


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"steps_planned": 4}, "config.yaml: its training has 5 steps, privacy_card.json says 4"),
        ({"rate": 0.01}, "a sample rate of [0.01] is not that of 10 expected of 200 units"),
        ({"images_per_step": 2}, "config.yaml: privacy.images_per_patient is None, privacy_card.json says 2"),
    ],
    ids=str,
)
def test_a_card_of_its_own_must_be_that_of_the_configuration(release: Path, facts: dict, named: str) -> None:
    """Every sentence of such a card follows from its mechanisms, which are not those of the training."""
    of_card = facts_of_card(read_card(release / "privacy_card.json"))
    rate = facts.pop("rate", None)
    if rate is not None:
        rows = (
            row if row.sample_rate == 1 else row.model_copy(update={"sample_rate": rate})
            for row in of_card.mechanisms
        )
        facts = {"mechanisms": tuple(rows)}
    write_card(card_of(dataclasses.replace(of_card, **facts)), release)
    assert any(named in wrong for wrong in check_release(release, None).wrong)


def test_a_release_of_moments_says_so_and_of_gradients_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"].update(optimizer="least_squares", scope="head")
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    folder = build_release(run, MANIFEST).folder
    card = json.loads((folder / "privacy_card.json").read_text())
    assert {row["name"]: row["steps"] for row in card["mechanisms"]} == {
        "noised moments": 5,
        "noised class counts": 1,
    }
    assert check_release(folder, MANIFEST).wrong == ()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"].update(optimizer="nadam")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    wrong = check_release(folder, None).wrong
    assert (
        "config.yaml: training.optimizer 'nadam' goes with 'noised gradient', privacy_card.json says ['noised moments']"
        in wrong
    )


def test_other_weights_than_the_orbax_ones_are_refused(release: Path) -> None:
    weights = load_file(release / "model.safetensors")
    save_file({name: array + 1 for name, array in weights.items()}, release / "model.safetensors")
    assert any(
        "orbax/params/params.head.bias/0: is not the file" in sentence
        for sentence in check_release(release, None).wrong
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "privacy_card.json", "privacy_card.html", "orbax/provenance.json"])  # fmt: skip
@pytest.mark.parametrize("content", [None, b"\x00\xff", b"[1]"], ids=["missing", "bytes", "[1]"])
def test_a_missing_or_damaged_file_is_refused(release: Path, name: str, content: bytes | None) -> None:
    (release / name).unlink()
    if content is not None:
        (release / name).write_bytes(content)
    assert any(sentence.startswith(f"{name}: ") for sentence in check_release(release, MANIFEST).wrong)


def test_a_manifest_that_names_nobody_is_refused(built: Path) -> None:
    with pytest.raises(InputError, match="column 'path' is missing"):
        check_release(built, MANIFEST.drop(columns="path"))
    with pytest.raises(InputError, match="holds no image"):
        check_release(built, MANIFEST.iloc[:0])
    with pytest.raises(InputError, match="no such folder"):
        check_release(built / "nowhere", MANIFEST)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"seed": 1}, "training.seed"), ({"class_weights": "paper"}, "class weights")]
)
def test_a_run_that_must_stay_is_refused_or_marked_everywhere(
    tmp_path: Path, changes: dict, reason: str
) -> None:
    run = make_run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=f"not for release.*{reason}"):
        build_release(run, MANIFEST)
    assert not (run / "release").exists()
    marked = build_release(run, MANIFEST, watermark=True)
    assert marked.folder.name == "not-for-release"
    assert not marked.for_release
    for name in digests(marked.folder):
        if not name.startswith("orbax/params/"):  # arrays; their record beside them is marked
            assert b"not for release" in (marked.folder / name).read_bytes().lower(), name
    assert (marked.folder / "NOT-FOR-RELEASE.txt").exists()
    assert load(Experiment, marked.folder / "config.yaml").privacy is not None
    assert check_release(marked.folder, MANIFEST).wrong


def test_an_unfinished_or_damaged_run_is_not_released(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    with pytest.raises(InputError, match="stopped after step 3 of 5"):
        build_release(run, MANIFEST)
    shutil.rmtree(run / "checkpoints" / "3" / "default")
    (run / "evaluation.csv").write_text("")
    with pytest.raises(InputError, match="damaged checkpoint"):
        build_release(run, MANIFEST)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint there"):
        build_release(run, MANIFEST)
    assert [path.name for path in run.iterdir() if "release" in path.name] == []


def test_a_release_is_never_written_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "release").mkdir()
    (run / "release" / "mine").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        build_release(run, MANIFEST)
    assert (run / "release" / "mine").read_text() == "kept"


def test_a_run_that_an_audit_refutes_is_not_released(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finding = {
        "method": "one run; white-box gradient alignment and black-box loss; every step checked", "model": "logistic regression",
        "canaries": 200, "confidence": 0.95, "epsilon_lower": 4.0, "epsilon_claimed": 1.0, "accused": True, "code": "",
    }  # fmt: skip
    (run / "audit.json").write_text(json.dumps({"card": finding, "data": DATA}))
    with pytest.raises(InputError, match="the audit refutes the claim"):
        build_release(run, MANIFEST)


def test_a_release_with_an_identifier_is_not_built(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spoilt = pd.concat(
        [MANIFEST, pd.DataFrame({"image_id": ["cardiomegaly"], "patient_id": ["pp11"], "path": ["a.dcm"]})]
    )
    with pytest.raises(InputError, match="holds the image_id 'cardiomegaly'"):
        build_release(run, spoilt)
    assert [path.name for path in run.iterdir() if "release" in path.name] == []


def test_the_house_card_does_not_pass(release: Path) -> None:
    path = release / "privacy_card.json"
    card = json.loads(path.read_text())
    card["patients"][0].update(patient="maximum")
    path.write_text(json.dumps(card))
    assert any("images per patient" in sentence for sentence in check_release(release, None).wrong)


@pytest.mark.parametrize(
    "name", ["risk/patients.csv", "risk/risk.json", "patients.csv", "risk/kept/heads-0.npz"]
)
def test_a_risk_assessment_does_not_leave(release: Path, name: str) -> None:
    """Nor its folder, nor a file of it among those of the release, whether or not the identifiers are known."""
    path = release / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private_csv(MANIFEST[["patient_id"]].assign(lira_found_non_private=0.9), path)
    for manifest in (None, MANIFEST):
        wrong = check_release(release, manifest).wrong
        assert f"{name}: is not part of a release" in wrong
    assert any(sentence.startswith(f"{name}: holds the patient_id") for sentence in wrong)


def test_the_manifest_is_the_runs_own(tmp_path: Path) -> None:
    head = {"bias": np.array([0.5, 2.0], np.float32)}
    run = make_run(tmp_path / "run", params={"params": {**PARAMS["params"], "head": head}})
    assert check_release(build_release(run).folder, cohort().manifest).wrong == ()
    shutil.rmtree(run / "release")
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("- cardiomegaly", "- IMG-0003")
    )
    with pytest.raises(InputError, match="holds the image_id 'img-0003'"):
        build_release(run)


def test_other_parameters_than_the_networks_are_refused(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released_weights, "network_shapes", OF_THE_NETWORK)
    (wrong, *_) = check_release(release, None).wrong
    assert wrong.startswith(
        "model.safetensors: does not hold the parameters of the network in config.yaml: params/conv1/kernel"
    )


def test_the_real_network_is_released_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_weights, "network_shapes", OF_THE_NETWORK)
    params = network_params()
    model = load_model(build_release(make_run(tmp_path / "run", params=params), MANIFEST).folder)
    np.testing.assert_array_equal(
        model.params["params"]["head"]["kernel"], params["params"]["head"]["kernel"]
    )
