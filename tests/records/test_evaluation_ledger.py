import json
from pathlib import Path

import pytest

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.errors import InputError
from jaxcxr.records.evaluation_ledger import EVALUATIONS, EvaluationLedger, held

STORE, DELTA = "ab" * 32, 1e-6


def test_evaluations_of_the_same_patients_compose(tmp_path: Path) -> None:
    noise = accounting.calibrated_noise(1.0, DELTA, 1.0, 1)
    with held(tmp_path, STORE, DELTA) as ledger:
        assert ledger.spent().epsilon == 0
        first = ledger.record(noise, 2.0, 2.0)
    with held(tmp_path, STORE, DELTA) as ledger:
        assert ledger.budget == 2.0
        second = ledger.record(noise, 2.0, 2.0)
    assert 0.99 < first.epsilon <= 1.0
    wanted = accounting.epsilon_pld([Spending(1.0, noise, 2)], DELTA)
    assert second.epsilon == pytest.approx(wanted)
    assert 1.3 < second.epsilon < 2
    assert (first.evaluations, second.evaluations) == (1, 2)


def test_one_beyond_the_budget_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    with held(tmp_path, STORE, DELTA) as ledger:
        ledger.record(5.0, 2.0, 1.5)
    before = (tmp_path / EVALUATIONS).read_bytes()
    with held(tmp_path, STORE, DELTA) as ledger:
        with pytest.raises(InputError, match=r"nothing was released.*--private-budget"):
            ledger.record(5.0, 2.0, 1.1)
        assert ledger.spent().evaluations == 1
    assert (tmp_path / EVALUATIONS).read_bytes() == before


def test_the_budget_that_a_refusal_names_is_enough(tmp_path: Path) -> None:
    with held(tmp_path, STORE, DELTA) as ledger:
        ledger.record(5.0, 2.0, 1.1)
        with pytest.raises(InputError) as refused:
            ledger.record(5.0, 2.0, 1.1)
        ledger.record(5.0, 2.0, float(str(refused.value).rpartition("--private-budget ")[2].rstrip(")")))


@pytest.mark.parametrize("change", [{"noise_multiplier": 50.0}, {"budget": -1.0}, {"patient": "p-77"}])
def test_a_changed_line_is_found(tmp_path: Path, change: dict) -> None:
    with held(tmp_path, STORE, DELTA) as ledger:
        ledger.record(5.0, 2.0, 1.1)
    path = tmp_path / EVALUATIONS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | change)]) + "\n")
    with pytest.raises(InputError, match="line 2"):
        EvaluationLedger(path, STORE, DELTA)


def test_an_incomplete_line_is_dropped_since_its_release_never_took_place(tmp_path: Path) -> None:
    with held(tmp_path, STORE, DELTA) as ledger:
        ledger.record(5.0, 2.0, 9.0)
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('{"line": 3, "noise')
    with held(tmp_path, STORE, DELTA) as ledger:
        assert ledger.record(5.0, 2.0, 9.0).evaluations == 2
    assert EvaluationLedger(tmp_path / EVALUATIONS, STORE, DELTA).spent().evaluations == 2


@pytest.mark.parametrize(
    ("store", "delta", "said"), [("cd" * 32, DELTA, "another store"), (STORE, 1e-5, "--private-delta 1e-06")]
)
def test_another_store_or_delta_is_refused(tmp_path: Path, store: str, delta: float, said: str) -> None:
    with held(tmp_path, STORE, DELTA) as ledger:
        ledger.record(5.0, 2.0, 9.0)
    with pytest.raises(InputError, match=said), held(tmp_path, store, delta):
        pass


def test_two_processes_do_not_spend_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcxr.records.evaluation_ledger._PATIENCE", 0.0)
    with (
        held(tmp_path, STORE, DELTA),
        pytest.raises(InputError, match="try again"),
        held(tmp_path, STORE, DELTA),
    ):
        pass
