"""Several launchers share a sweep's folder: each budget is trained once, and the last one writes the summary."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.atomic import exclusive_lock
from jaxcxr.config import Experiment
from jaxcxr.workflows import sweep as sweeps

BUDGETS = (1.0, 8.0, math.inf)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tiny_config: Experiment) -> Callable[..., list[str]]:
    """Run a sweep whose training does nothing but what the test says; what was done, in order."""

    def launch(out: Path, during: Callable[[str], Any] = lambda _: None) -> list[str]:
        done: list[str] = []

        def train(config: Experiment, folder: Path, **_: object) -> None:
            during(folder.name)
            done.append(folder.name)

        monkeypatch.setattr(sweeps, "run_experiment", train)
        monkeypatch.setattr(sweeps, "_write", lambda *_: done.append("summary"))
        sweeps.sweep(dict.fromkeys(BUDGETS, dataclasses.replace(tiny_config)), out)
        return done

    return launch


def test_a_budget_that_another_launcher_trains_is_left_to_it(
    launched: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(tmp_path) == ["epsilon_1", "epsilon_8", "non_private", "summary"]
    with exclusive_lock(tmp_path / ".epsilon_8.lock", "busy"):
        assert launched(tmp_path) == ["epsilon_1", "non_private"]
    assert "epsilon_8: another process is at work on it; summary" in capsys.readouterr().out


def test_what_the_other_finishes_meanwhile_is_read_at_the_end(
    launched: Callable[..., list[str]], tmp_path: Path
) -> None:
    other = exclusive_lock(tmp_path / ".epsilon_1.lock", "busy")
    other.__enter__()

    def during(name: str) -> None:
        if name == "non_private":
            other.__exit__(None, None, None)

    assert launched(tmp_path, during) == ["epsilon_8", "non_private", "epsilon_1", "summary"]
