"""What scripts/audit.py refuses before it trains, and what its finding does to a run's card."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxcxr.audit.released import attack_release
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump, load
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.ledger import Entry, Ledger, Terms
from jaxcxr.records.provenance import code_fingerprint
from jaxcxr.report.card.card import make_card
from tests.conftest import load_script
from tests.training.tiny import MAKE_NETWORK, tiny_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUICK = ["--canaries", "20", "--steps", "8", "--films", "30", "--side", "16"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("audit.py")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer hypotheses, simulations and draws: what an audit finds is tested elsewhere."""
    monkeypatch.setattr("jaxcxr.audit.rank_bound._HALVINGS", 1)
    monkeypatch.setattr("jaxcxr.audit.rank_bound.SIMULATED", 199)
    monkeypatch.setattr("jaxcxr.audit.audit._LONG_DRAWS", 400)


@pytest.fixture
def run(tiny_config: Experiment, tiny_store: Store, tmp_path: Path) -> Path:
    """A run folder on the tiny store, as far as a card needs it."""
    folder = tmp_path / "run"
    folder.mkdir()
    training = dataclasses.replace(tiny_config.training, seed=None, class_weights="none")
    assert tiny_config.privacy is not None
    privacy = dataclasses.replace(tiny_config.privacy, dataset_size=50)
    dump(dataclasses.replace(tiny_config, training=training, privacy=privacy), folder / "config.yaml")
    facts = {
        "jaxcxr": "0.1.0", "store_fingerprint": tiny_store.fingerprint, "sample_rate": 0.12, "steps": 6, "n_units": 50, "release": True,
        "expected_batch_size": 6, "l2_clip_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 8.0, "delta": 1e-4,
        "made_with": {"code_fingerprint": code_fingerprint()},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    ledger = Ledger(
        folder / "ledger.jsonl", Terms("image", "add_remove", 50, tiny_store.fingerprint, seeded=False)
    )
    for step in range(6):
        ledger.record(Entry(step, 0.12, 1.0, 1.0))
    ledger.close()
    (folder / "checkpoints" / "6").mkdir(parents=True)
    return folder


def test_a_run_is_audited_by_its_own_configuration_and_its_card_says_so(
    script: ModuleType, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_card(run, ()).audit is None
    script.main(["--out", str(run), *QUICK])
    assert "nothing found against the claim" in capsys.readouterr().out
    card = make_card(run, ())
    assert card.audit is not None
    assert (card.audit.canaries, card.audit.runs, card.audit.checks) == (40, 2, 25)
    assert not card.audit.accused
    assert card.for_release
    tried = {row.part: row.tried for row in card.tried}
    assert {tried[part] for part in ("training code", "noise", "clipping", "protected unit")} == {"tried"}
    assert (card.audit.noise, card.audit.unit, card.audit.clipping) == ("gaussian", "image", "flat")
    assert card.audit.steps is not None
    assert any(
        "An audit made 2 trainings of 8 steps of its own by the same code" in line for line in card.audited
    )
    assert any("25 checks compared batches" in line and "all passed" in line for line in card.audited)
    assert {path.name for path in run.iterdir()} >= {
        "audit.json",
        "membership.csv",
        "membership.png",
        "membership.svg",
    }


@pytest.mark.thorough
def test_the_network_is_audited_by_the_runs_own_unit_clipping_and_optimiser(
    script: ModuleType, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a network that compiles quickly; its finding goes on the card of a run of patients."""
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)
    config = load(Experiment, run / "config.yaml")
    assert config.privacy is not None
    privacy = dataclasses.replace(config.privacy, unit="patient", images_per_patient=2, clipping="per_layer")
    model = dataclasses.replace(config.model, network="resnet9")  # in whose place the tiny one is made
    dump(dataclasses.replace(config, privacy=privacy, model=model), run / "config.yaml")
    script.main(["--model", "network", "--out", str(run), *QUICK])
    finding = json.loads((run / "audit.json").read_text())["card"]
    assert (finding["unit"], finding["clipping"], finding["accused"]) == ("patient", "per_layer", False)
    assert finding["model"] == "network, narrower"


def test_a_refuted_claim_is_exit_status_1(
    script: ModuleType, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)
    key = Mechanism.noise_key
    monkeypatch.setattr(Mechanism, "noise_key", lambda self, secret, _: key(self, secret, 0))
    with pytest.raises(SystemExit, match="1"):
        script.main(["--out", str(run), *QUICK])
    assert "FAILED: no noise key is used twice" in capsys.readouterr().out
    assert "the audit refutes the claim" in make_card(run, ()).reasons_against_release


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda run: (run / "run.json").unlink(), r"has not begun \(no run\.json\)"),
        (lambda run: (run / "checkpoints" / "6").rmdir(), "has no checkpoint"),
        (lambda run: (run / "checkpoints" / "6").rename(run / "checkpoints" / "4"), r"is unfinished \(4 of 6 steps\)"),
    ],
    ids=["not begun", "no checkpoint", "unfinished"],
)  # fmt: skip
def test_a_run_that_is_not_finished_is_not_audited(
    script: ModuleType, run: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    spoil(run)
    with pytest.raises(InputError, match=complaint):
        script.main(["--out", str(run), *QUICK])
    assert not (run / "audit.json").exists()


def test_a_folder_that_is_no_release_is_not_attacked(script: ModuleType, run: Path) -> None:
    with pytest.raises(InputError, match="is no release"):
        script.main(["--release", str(run)])


def test_a_release_is_attacked_with_pairs_of_patients(tiny_store: Store) -> None:
    """A model that knows its training images by heart is told; one that knows nothing is not."""
    trained, held_out = tiny_store.split("train"), tiny_store.split("valid")
    known = {image.tobytes(): label for image, label in zip(trained.read_all(), trained.labels, strict=True)}

    def by_heart(images: np.ndarray) -> np.ndarray:
        unknown = np.full(len(trained.findings), 0.5)
        return np.stack([0.9 * known.get(image.tobytes(), unknown) + 0.05 for image in images])

    rng = np.random.default_rng(0)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("jaxcxr.audit.released.LEAST_PAIRS", 10)
    try:
        found = attack_release(by_heart, (trained, held_out), 1e-4, rng)
        assert (found.pairs, found.right) == (10, 1.0)
        assert found.epsilon_lower > 0.5
        nothing = attack_release(
            lambda images: np.full((len(images), 3), 0.5), (trained, held_out), 1e-4, rng
        )
        assert (nothing.right, nothing.epsilon_lower) == (0.5, 0.0)
    finally:
        monkey.undo()
    with pytest.raises(InputError, match="needs at least 20"):
        attack_release(by_heart, (trained, held_out), 1e-4, rng)
    with pytest.raises(InputError, match="0 training and 0 test patients with labels and one image each"):
        attack_release(by_heart, (trained, held_out), 1e-4, rng, of_images=True)  # all have two


def test_a_folder_without_a_run_is_not_taken_for_the_demo(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TYPO: holds no run \(no config\.yaml\) to be audited"):
        script.main(["--out", str(tmp_path / "TYPO"), *QUICK])
    assert not (tmp_path / "TYPO").exists()


def test_another_cohorts_run_folder_is_refused(script: ModuleType, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"store_fingerprint": "00" * 32}))
    with pytest.raises(InputError, match="another cohort"):
        script.main(["--out", str(run), *QUICK])
    (run / "run.json").write_text("[]")
    with pytest.raises(InputError, match="not the facts of a run"):
        script.main(["--out", str(run), *QUICK])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--canaries", "3"], "at least 20"),
        (["--steps", "7"], "8 --steps"),
        (["--films", "0"], "at least 20"),
        (["--sample-rate", "1.5"], "between 0 and 1"),
        (["--epsilon", "0"], "--epsilon: expected a positive number"),
        (["--epsilon", "inf"], "--epsilon: expected a positive number"),
        (["--epsilon", "nan"], "--epsilon: expected a positive number"),
        (["--side", "8"], "--side: expected at least 16 pixels"),
        (["--model", "network", "--width", "48"], "--width: expected a multiple of 32"),
        (["--seed", "-1"], "--seed: expected a number of at least 0"),
        (["--config", "none.yaml"], "no such configuration"),
    ],
)
def test_impossible_audits_are_refused(
    script: ModuleType, run: Path, arguments: list[str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        script.main(["--out", str(run), *arguments])
    assert not (run / "audit.json").exists()


def test_the_network_is_not_audited_for_a_run_that_releases_moments(script: ModuleType, run: Path) -> None:
    config = load(Experiment, run / "config.yaml")
    training = dataclasses.replace(config.training, optimizer="least_squares", scope="head")
    dump(dataclasses.replace(config, training=training), run / "config.yaml")
    with pytest.raises(
        InputError, match=r"training\.scope|training\.optimizer: an audit of the network is of gradients"
    ):
        script.main(["--out", str(run), "--model", "network", *QUICK])
    assert not (run / "audit.json").exists()


def test_a_run_without_privacy_has_no_claim(
    script: ModuleType, tiny_nonprivate_config: Experiment, tmp_path: Path
) -> None:
    dump(tiny_nonprivate_config, tmp_path / "config.yaml")
    with pytest.raises(InputError, match="no claim to audit"):
        script.main(["--out", str(tmp_path)])
