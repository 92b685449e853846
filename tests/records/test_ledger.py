import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.accounting import Spending
from jaxcxr.errors import InputError
from jaxcxr.records.chain import chained
from jaxcxr.records.ledger import (
    Entry,
    Ledger,
    Statistic,
    Terms,
    has_entries,
    read_contents,
    read_ledger,
    run_name,
)

TERMS = Terms("image", "add_remove", 100, "abc", seeded=False, run="r1")
COUNTS = Statistic("class_counts", 3.0, 2.0)


def entry(step: int, sigma: float = 1.5) -> Entry:
    return Entry(step, 0.1, sigma, 1.0)


def written(path: Path, steps: int, terms: Terms = TERMS) -> list[str]:
    ledger = Ledger(path, terms)
    for step in range(steps):
        ledger.record(entry(step))
    ledger.close()
    return path.read_text().splitlines()


def test_every_step_is_on_the_disk_before_the_next_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    for step in range(3):
        ledger.record(entry(step))
        terms, entries = read_ledger(tmp_path / "ledger.jsonl")
        assert terms == TERMS
        assert entries == [entry(s) for s in range(step + 1)]
    assert ledger.spendings() == [Spending(0.1, 1.5, 3)]
    assert ledger.spendings(before_step=2) == [Spending(0.1, 1.5, 2)]
    assert ledger.head == read_contents(tmp_path / "ledger.jsonl").heads[-1]
    ledger.close()


def test_reopening_keeps_every_line_and_repeats_add_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 4)
    before = path.read_bytes()
    again = Ledger(path, TERMS)
    again.record(entry(2))
    again.record(entry(3))
    again.close()
    assert path.read_bytes() == before
    assert again.covers(4)
    assert not again.covers(5)
    assert has_entries(path)


def test_a_reopened_ledger_goes_on_with_the_same_chain(tmp_path: Path) -> None:
    written(tmp_path / "whole", 4)
    written(tmp_path / "twice", 2)
    written(tmp_path / "twice", 4)
    assert (tmp_path / "twice").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_statistic_is_spent_once_and_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    assert not has_entries(path)
    ledger.record(COUNTS)
    ledger.record(entry(0))
    ledger.record(COUNTS)
    assert ledger.spendings() == [Spending(1.0, 3.0, 1), Spending(0.1, 1.5, 1)]
    assert ledger.spendings(before_step=0) == [Spending(1.0, 3.0, 1)]
    assert not ledger.covers(2)  # a statistic's line is no step's
    ledger.close()
    assert read_ledger(path)[1] == [COUNTS, entry(0)]
    with pytest.raises(InputError, match="statistic 'class_counts' was already spent with other parameters"):
        Ledger(path, TERMS).record(dataclasses.replace(COUNTS, noise_multiplier=1.0))


def test_a_repeated_step_must_be_the_same_release(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", TERMS)
    ledger.record(entry(0))
    with pytest.raises(InputError, match="step 0 was already spent with other parameters"):
        ledger.record(entry(0, sigma=1.0))


def test_a_line_cut_by_a_crash_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Ledger(path, TERMS)
    assert again.covers(1)
    assert not again.covers(2)
    again.record(entry(1))
    again.close()
    assert path.read_bytes() == whole


def edited(text: str, /, **values: object) -> str:
    return json.dumps({**json.loads(text), **values})


def test_no_field_of_any_line_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, TERMS)
    for it in (COUNTS, entry(0), entry(1)):
        ledger.record(it)
    ledger.close()
    lines, tried = path.read_text().splitlines(), 0
    for number, line in enumerate(lines):
        for field, value in json.loads(line).items():
            other = (
                not value if isinstance(value, bool) else f"{value}0" if isinstance(value, str) else value + 1
            )
            path.write_text(
                "\n".join([*lines[:number], edited(line, **{field: other}), *lines[number + 1 :]]) + "\n"
            )
            with pytest.raises(InputError, match="line"):
                read_ledger(path)
            tried += 1
    assert tried == 9 + 5 + 6 + 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: [*x[:3], *x[4:]], "line 4 is missing: line 5 stands in its place"),
        (lambda x: [*x[:2], *x[4:]], "line 3 is missing: line 5 stands in its place"),
        (lambda x: x[1:], "line 1 is missing: line 2 stands in its place"),
        (lambda x: [*x[:2], x[3], x[2], *x[4:]], "lines were reordered: line 4 stands where line 3 belongs"),
        (lambda x: [*x[:2], x[5], *x[2:5]], "lines were reordered: line 6 stands where line 3 belongs"),
        (lambda x: [*x[:2], x[1], *x[2:]], "lines were reordered: line 2 stands where line 3 belongs"),
        (lambda x: [*x[:3], edited(x[3], noise_multiplier=15.0), *x[4:]], "line 4 was edited"),
        (lambda x: [*x[:3], edited(x[3], chain="0" * 32), *x[4:]], "line 4 was edited"),
        (lambda x: [edited(x[0], dataset_size=1000), *x[1:]], "line 1 was edited"),
        (lambda x: [*x[:3], *(edited(line, line=i + 4) for i, line in enumerate(x[4:]))], "line 4 was edited"),
        (lambda x: [*x[:1], "{broken", *x[2:]], "line 2 is not a ledger entry"),
        (lambda x: [*x[:1], '{"step": 0}', *x[2:]], "line 2 is not a ledger entry"),
        (lambda x: [*x[:1], "[]", *x[2:]], "line 2 is not a ledger entry"),
    ],
    ids=["missing", "two missing", "first missing", "swapped", "last moved", "doubled", "edited", "chain edited", "terms edited",
         "renumbered", "broken", "unchained", "no object"],
)  # fmt: skip
def test_what_was_done_to_a_ledger_is_named(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("\n".join(change(written(path, 5))) + "\n")
    for open_it in (lambda: Ledger(path, TERMS), lambda: read_ledger(path), lambda: read_contents(path)):
        with pytest.raises(InputError, match=message):
            open_it()


@pytest.mark.parametrize(
    "values", [{"step": "0"}, {"step": True}, {"step": 0.0}, {"sample_rate": "much"}, {"noise_multiplier": float("nan")},
               {"noise_multiplier": -1.0}, {"l2_clip_norm": None}, {"surplus": 1}],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_though_its_chain_is_right(
    tmp_path: Path, values: dict[str, object]
) -> None:
    path = tmp_path / "ledger.jsonl"
    first, _ = chained("ledger", "", 1, dataclasses.asdict(TERMS))
    second, _ = chained("ledger", json.loads(first)["chain"], 2, {**dataclasses.asdict(entry(0)), **values})
    path.write_text(first + second)
    with pytest.raises(InputError, match="line 2 is not a ledger entry"):
        read_ledger(path)


def test_a_line_of_another_ledger_is_found(tmp_path: Path) -> None:
    """It is a whole line with its own right number: only the chain tells."""
    lines = written(tmp_path / "mine", 5)
    cheaper = Ledger(tmp_path / "other", TERMS)
    for step in range(5):
        cheaper.record(entry(step, sigma=9.0))
    cheaper.close()
    lines[3] = (tmp_path / "other").read_text().splitlines()[3]
    (tmp_path / "mine").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="line 4 was edited"):
        read_ledger(tmp_path / "mine")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_changed_byte_goes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    written(path, 3)
    whole = bytearray(path.read_bytes())
    place = data.draw(
        st.integers(0, len(whole) - 2)
    )  # the last byte ends the last line: without it, it is half a line
    whole[place] = data.draw(st.integers(33, 126).filter(lambda byte: byte != whole[place]))
    before = read_ledger(path)
    path.write_bytes(bytes(whole))
    try:
        after = read_ledger(path)
    except InputError:
        return
    assert after == before  # white space between two values


@pytest.mark.parametrize(
    "change", [{"dataset_size": 99}, {"data_fingerprint": "x"}, {"seeded": True}, {"unit": "patient"}]
)
def test_a_ledger_of_other_terms_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    Ledger(tmp_path / "ledger.jsonl", TERMS).close()
    with pytest.raises(InputError, match=next(iter(change))):
        Ledger(tmp_path / "ledger.jsonl", dataclasses.replace(TERMS, **change))


def test_another_runs_ledger_of_the_same_terms_is_refused(tmp_path: Path) -> None:
    mine, other = (dataclasses.replace(TERMS, run=run_name(bytes([i]) * 32)) for i in (1, 2))
    written(tmp_path / "ledger.jsonl", 3, other)
    with pytest.raises(InputError, match="belongs to another run"):
        Ledger(tmp_path / "ledger.jsonl", mine)


def test_the_runs_name_does_not_tell_its_secret() -> None:
    secret = bytes(range(32))
    assert run_name(secret) == run_name(secret) != run_name(bytes(32))
    assert len(run_name(secret)) == 32
    assert secret.hex()[:8] not in run_name(secret)


def test_no_ledger_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such ledger"):
        read_ledger(tmp_path / "ledger.jsonl")
    assert not has_entries(tmp_path / "ledger.jsonl")
    (tmp_path / "ledger.jsonl").write_text("{half")
    with pytest.raises(InputError, match="no complete first line"):
        read_ledger(tmp_path / "ledger.jsonl")
