import dataclasses
import json
from pathlib import Path

import pytest

from jaxcxr.errors import InputError
from jaxcxr.privacy.accounting import Spending
from jaxcxr.privacy.ledger import Entry, Ledger, Terms, read_ledger

TERMS = Terms("image", "add_remove", 100, "abc", seeded=False)


def entry(step: int, sigma: float = 1.5) -> Entry:
    return Entry(step, 0.1, sigma, 1.0)


def test_every_step_is_on_the_disk_before_the_next_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    for step in range(3):
        ledger.record(entry(step))
        terms, entries = read_ledger(tmp_path / "ledger.jsonl")
        assert terms == TERMS
        assert entries == [entry(s) for s in range(step + 1)]
    assert ledger.spendings() == [Spending(0.1, 1.5, 3)]
    assert ledger.spendings(before_step=2) == [Spending(0.1, 1.5, 2)]
    ledger.close()


def test_reopening_keeps_every_line_and_repeats_add_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    for step in range(4):
        ledger.record(entry(step))
    ledger.close()
    before = path.read_bytes()
    again = Ledger(path, TERMS)
    again.record(entry(2))
    again.record(entry(3))
    again.close()
    assert path.read_bytes() == before
    assert again.covers(4)
    assert not again.covers(5)


def test_a_repeated_step_must_be_the_same_release(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    ledger.record(entry(0))
    with pytest.raises(InputError, match="step 0 was already spent with other parameters"):
        ledger.record(entry(0, sigma=1.0))


def test_a_line_cut_by_a_crash_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    ledger.record(entry(0))
    ledger.record(entry(1))
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Ledger(path, TERMS)
    assert again.covers(1)
    assert not again.covers(2)
    again.record(entry(1))
    again.close()
    assert path.read_bytes() == whole


def test_damage_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(TERMS)) + "\n{broken\n")
    with pytest.raises(InputError, match="line 2"):
        Ledger(path, TERMS)


@pytest.mark.parametrize("change", [{"dataset_size": 99}, {"data_fingerprint": "x"}, {"seeded": True}, {"unit": "patient"}])
def test_another_runs_ledger_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    Ledger(tmp_path / "ledger.jsonl", TERMS).close()
    with pytest.raises(InputError, match=next(iter(change))):
        Ledger(tmp_path / "ledger.jsonl", dataclasses.replace(TERMS, **change))
