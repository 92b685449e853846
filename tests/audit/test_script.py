"""What scripts/audit.py refuses before it trains, and what its finding does to a run's card."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxcxr.config import Experiment, dump, load
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.privacy import clipping
from jaxcxr.records.ledger import Entry, Ledger, Terms
from jaxcxr.records.provenance import code_fingerprint
from jaxcxr.report.card.card import make_card
from tests.conftest import load_script
from tests.training.tiny import MAKE_NETWORK, tiny_network

QUICK = ["--canaries", "40", "--steps", "8", "--films", "50"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("audit.py")


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
    return folder


def test_a_run_is_audited_by_its_own_configuration_and_its_card_says_so(
    script: ModuleType, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_card(run, ()).audit is None
    script.main(["--out", str(run), *QUICK])
    assert "nothing found against the claim" in capsys.readouterr().out
    card = make_card(run, ())
    assert card.audit is not None
    assert card.audit.canaries == 40
    assert not card.audit.accused
    assert card.for_release
    tried = {row.part: row.tried for row in card.tried}
    assert {tried[part] for part in ("training code", "noise", "clipping", "protected unit")} == {"tried"}
    assert (card.audit.noise, card.audit.unit, card.audit.clipping) == ("gaussian", "image", "flat")
    assert card.audit.steps is not None
    assert any(f"a training of {card.audit.steps} steps" in line for line in card.audited)


@pytest.mark.parametrize("too_much", [1, 4], ids=["right", "clipped too little"])
def test_the_network_is_audited_through_the_layerwise_step(
    script: ModuleType,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    too_much: int,
) -> None:
    """With a network that compiles quickly, whose gradients the audit takes image by image as it does those of a large one."""
    whole, traced = clipping.clipped_sum, []

    def clipped(
        loss: Any, params: Any, units: Any, is_real: Any, l2_clip_norm: float, rule: Any, method: str
    ) -> Any:
        traced.append((l2_clip_norm, method))
        return whole(loss, params, units, is_real, too_much * l2_clip_norm, rule, "layerwise")

    monkeypatch.setattr(clipping, "clipped_sum", clipped)
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)
    monkeypatch.setattr("jaxcxr.audit.canaries._COORDINATES_AT_ONCE", 3000)
    config = load(Experiment, run / "config.yaml")
    assert config.privacy is not None
    dump(
        dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, l2_clip_norm=0.05)),
        run / "config.yaml",
    )
    size = ["--canaries", "40", "--films", "40", "--steps", "4", "--side", "16", "--epsilon", "50"]
    arguments = ["--model", "network", "--out", str(run), *size]
    if too_much > 1:
        with pytest.raises(SystemExit, match="1"):
            script.main(arguments)
    else:
        script.main(arguments)
    assert traced == [(pytest.approx(0.05, rel=1e-3), "layerwise")]  # one compilation for all microbatches
    said = capsys.readouterr().out
    verdict = "passed" if too_much == 1 else "FAILED"
    assert (
        f"{verdict}: released sum is the clipped sum" in said
    )  # against each image's gradient by its definition
    assert "passed: images are sampled independently" in said
    finding = json.loads((run / "audit.json").read_text())["card"]
    assert (finding["model"], finding["accused"]) == ("network, narrower", too_much > 1)


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
        (["--steps", "1"], "at least 20"),
        (["--films", "0"], "at least 20"),
        (["--sample-rate", "1.5"], "between 0 and 1"),
        (["--epsilon", "0"], "--epsilon: expected a positive number"),
        (["--epsilon", "inf"], "--epsilon: expected a positive number"),
        (["--epsilon", "nan"], "--epsilon: expected a positive number"),
        (["--side", "4"], "--side: expected at least 8 pixels"),
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
    with pytest.raises(InputError, match=r"training\.optimizer: an audit of the network is of gradients"):
        script.main(["--out", str(run), "--model", "network", *QUICK])
    assert not (run / "audit.json").exists()


def test_a_run_without_privacy_has_no_claim(
    script: ModuleType, tiny_nonprivate_config: Experiment, tmp_path: Path
) -> None:
    dump(tiny_nonprivate_config, tmp_path / "config.yaml")
    with pytest.raises(InputError, match="no claim to audit"):
        script.main(["--out", str(tmp_path)])
