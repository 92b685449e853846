"""No byte of a folder is used that was deleted, cut, changed or exchanged (`tests.damage` tries all of them)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import damage
from tests.training.tiny import MAKE_NETWORK, tiny_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

WITH_ARRAYS = ("predict", "release", "check", "resume")
"""Readers that restore a checkpoint, which takes time."""


DESCRIBE = ("config.yaml", "digests.json", "provenance.json", "privacy_card.json", "model.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Path], dict[str, Path]]]:
    base = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        yield damage.make(base / "ours", 0), damage.make(base / "theirs", 1)


def chosen(name: str, done: str, reader: str) -> bool:
    """Every file at the top of a folder under what reads it quickly, and some arrays under what restores them."""
    if "/" not in name:
        some = (reader == "check" and done == "flipped") or (reader == "predict" and name in DESCRIBE)
        return reader not in WITH_ARRAYS or some
    return done == "flipped" and reader in ("predict", "release") and "/4/default/d/" in name


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_file_is_refused_or_changes_nothing(
    folders: tuple[dict[str, Path], dict[str, Path]], kind: str, tmp_path: Path
) -> None:
    found = list(damage.tried(*folders, kind, tmp_path, chosen))
    assert len(found) > 5
    assert [row for row in found if row[3].startswith(("SILENT", "TRACE"))] == []
    # a check misses nothing but what is allowed to be another
    missed = {row[0] for row in found if row[2] == "check" and row[3] == "right"}
    assert missed <= {"digests.json"}
    assert kind != "run" or {row[3] for row in found if "checkpoints" in row[0]} == {"refused", "said"}


def test_a_damaged_checkpoint_of_a_finished_run_is_made_again(
    folders: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = damage._copy(folders[0]["run"], tmp_path)
    whole = damage.leaving(run)
    largest = max((run / "checkpoints" / "4").rglob("d/*"), key=lambda path: path.stat().st_size)
    damage.flipped(largest, largest)
    with pytest.raises(damage.InputError, match=r"damaged checkpoint .*resume the run"):
        damage.leaving(run)
    damage.resume(run)
    assert "the run goes on from step 2" in capsys.readouterr().err
    assert damage.leaving(run) == whole
    assert damage.verdict(run) == "sound"


def test_a_finished_run_does_not_resume_without_its_ledger(
    folders: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path
) -> None:
    run = damage._copy(folders[0]["run"], tmp_path)
    ledger = run / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-2]))
    for read in (damage.resume, damage.account, damage.results, damage.weights, damage.leaving):
        with pytest.raises(damage.InputError, match="lines were lost"):
            read(run)
    ledger.unlink()
    with pytest.raises(damage.InputError, match="no such ledger"):
        damage.resume(run)
