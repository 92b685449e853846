"""Commands in parts: what is launched, what a part does, and that a part is one process's."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcxr.atomic import BusyError
from jaxcxr.cli import ablate, audit, risk
from jaxcxr.cli import sweep as sweep_command
from jaxcxr.cli.launching import Launch, as_part, launch, part_of
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump, load
from jaxcxr.errors import InputError
from jaxcxr.launch import jobs, local
from jaxcxr.launch.jobs import BUSY, Job, claimed
from jaxcxr.run_folder import is_evaluated
from jaxcxr.workflows import sweep as sweeps


def test_a_launcher_names_the_part_at_the_end() -> None:
    assert part_of(["--eps", "8", "--part", "epsilon_8"]) == (["--eps", "8"], "epsilon_8")
    assert part_of(["--eps", "8"]) == (["--eps", "8"], None)
    assert part_of(["--part", "a", "--eps"]) == (["--part", "a", "--eps"], None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (Launch(jobs=2), "-j 2: expected --launcher local or slurm with it"),
        (Launch(launcher="local", slurm=("partition=gpu",)), "--slurm: expected --launcher slurm with it"),
        (Launch(launcher="local", jobs=0), "-j 0: expected at least 1"),
    ],
)
def test_flags_that_do_not_go_together(flags: Launch, message: str) -> None:
    with pytest.raises(InputError, match=message):
        flags.check()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a command would have run, and that were not."""
    found: list[Job] = []

    def run_none(those: list[Job], pool: Any, say: Any) -> bool:
        found.extend(those)
        return True

    monkeypatch.setattr(jobs, "run_all", run_none)
    monkeypatch.setattr(local, "LocalPool", lambda *_: None)
    return found


def test_a_part_is_the_same_command_in_a_process_of_its_own(launched: list[Job], tmp_path: Path) -> None:
    assert launch(Launch(launcher="local", jobs=2), ["risk", "runs/x"], ["a", "b"], tmp_path)
    command = (sys.executable, "-P", "-m", "jaxcxr", "risk", "runs/x", "--part")
    assert launched == [Job(name, (*command, name)) for name in ("a", "b")]


def test_slurm_has_no_minutes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--minutes: expected --launcher none or local"):
        launch(Launch(launcher="slurm"), ["ablate"], ["a"], tmp_path, minutes=3.0)


def test_a_part_that_another_process_has_ends_as_busy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, as_part():
        raise BusyError("runs/x: another process is at work on it")
    assert ended.value.code == BUSY
    assert capsys.readouterr().err == "runs/x: another process is at work on it\n"


def test_every_command_in_parts_takes_the_flags() -> None:
    for command in (sweep_command, ablate, risk, audit):
        assert issubclass(command.Arguments, Launch)


@pytest.fixture
def sweep_of_two(tmp_path: Path, tiny_config: Experiment) -> list[str]:
    """The arguments of a sweep with one budget and without privacy."""
    dump(tiny_config, tmp_path / "private.yaml")
    dump(dataclasses.replace(tiny_config, privacy=None), tmp_path / "plain.yaml")
    paths = ["--config", str(tmp_path / "private.yaml"), "--nonprivate-config", str(tmp_path / "plain.yaml")]
    return [*paths, "--eps", "8", "inf", "--out", str(tmp_path / "sweep"), "--launcher", "local", "-j", "1"]


def test_a_sweep_in_parts_is_reported_once_when_all_are_finished(
    launched: list[Job], sweep_of_two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def train(config: Experiment, folder: Path, **options: object) -> None:
        done.append((folder.name, config.privacy and config.privacy.epsilon))
        folder.mkdir(exist_ok=True)
        (folder / "evaluation.csv").touch()

    monkeypatch.setattr(sweeps, "run_experiment", train)
    monkeypatch.setattr(sweeps, "_write", lambda *_: done.append("report"))
    sweep_command.main(sweep_of_two)
    assert [job.name for job in launched] == ["epsilon_8", "non_private"]
    assert done == []  # nothing was run
    for job in launched:
        sweep_command.main(list(job.command[5:]))
    assert done == [("epsilon_8", 8.0), ("non_private", None)]
    sweep_command.main(sweep_of_two)
    assert done[2:] == ["report"]
    with pytest.raises(InputError, match="--part epsilon_3: expected one of epsilon_8, non_private"):
        sweep_command.main([*sweep_of_two, "--part", "epsilon_3"])


def test_a_part_of_a_sweep_that_is_taken(
    sweep_of_two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "sweep", "epsilon_8"), pytest.raises(SystemExit) as ended:
        sweep_command.main([*sweep_of_two, "--part", "epsilon_8"])
    assert ended.value.code == BUSY
    assert capsys.readouterr().err.endswith("epsilon_8: another process is at work on it\n")
    sweeps.report({8.0: load(Experiment, tmp_path / "private.yaml")}, tmp_path / "sweep")
    assert capsys.readouterr().out.startswith(f"{tmp_path}/sweep: epsilon_8 is not finished; summary and ")


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
def test_a_real_process_trains_its_part(
    sweep_of_two: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    monkeypatch.setattr(sweeps, "_write", lambda *_: None)
    sweep_command.main([argument for argument in sweep_of_two if argument != "8"])
    assert is_evaluated(tmp_path / "sweep" / "non_private")
    running, finished = capsys.readouterr().err.splitlines()[-2:]
    assert running.startswith("non_private: running, process ")
    assert finished.startswith("non_private: finished in ")
    assert "training without privacy: 6 steps" in (tmp_path / "sweep/jobs/non_private.log").read_text()
