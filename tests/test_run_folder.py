"""One module knows what a run folder holds; what it says of a folder."""

import math
import re
from pathlib import Path

import pytest

from jaxcxr.errors import InputError
from jaxcxr.records.ledger import Terms
from jaxcxr.run_folder import (
    Facts,
    budget_name,
    evaluated_budgets,
    is_private,
    newest_checkpoint,
    promise_of,
    read_facts,
    runs_in,
    write_facts,
)
from tests.run_files import write_plain_run, write_run

SOURCES = Path(__file__).parents[1] / "src" / "jaxcxr"
TERMS = Terms("image", "add_remove", 200, "ab12", seeded=False, run="0f" * 16)


@pytest.mark.parametrize(
    ("literal", "owners"),
    [
        (r"[\"']run\.json[\"']", {"run_folder.py"}),
        (r"[:.]ResNet9\b", {"models/network.py"}),
    ],
)
def test_one_owner_names_it(literal: str, owners: set[str]) -> None:
    found = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if re.search(literal, path.read_text(encoding="utf-8"))
    }
    assert {name for name in found if not name.startswith("bench/")} == owners


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    facts = Facts(steps=3, store_fingerprint="ab", against_release=[], discrete_coordinates=None)
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="cut, changed or exchanged"):
        read_facts(tmp_path)
    (tmp_path / "digests.json").unlink()  # as of an earlier version
    with pytest.raises(InputError, match="expected an object of facts, found list"):
        read_facts(tmp_path)


def test_a_promise_and_none(tmp_path: Path) -> None:
    run, plain = write_run(tmp_path / "run", TERMS, []), write_plain_run(tmp_path / "plain")
    promise = promise_of(run)
    assert promise is not None
    assert (promise.epsilon, promise.delta, promise.n_units, promise.steps) == (3.0, 1e-4, 200, 5)
    assert is_private(run)
    assert not is_private(plain)
    assert promise_of(plain) is None
    assert runs_in(tmp_path) == [plain, run]


def test_checkpoints_are_counted_by_their_steps(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("3", "12", "secret.key", "7.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == 12


def test_budgets_of_a_sweep_by_the_names_of_their_folders(tmp_path: Path) -> None:
    names = [budget_name(epsilon) for epsilon in (0.29, 7.89, math.inf)]
    assert names == ["epsilon_0.29", "epsilon_7.89", "non_private"]
    for name in (*names, "untouched"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.csv").touch()
    (tmp_path / budget_name(2.0)).mkdir()
    assert [folder.name for folder in evaluated_budgets(tmp_path)] == names
