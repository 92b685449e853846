"""The console command: what it lists, how fast it can speak, and that scripts are the same commands."""

import json
import pkgutil
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxcxr.cli
from jaxcxr.cli import commands

ROOT = Path(__file__).resolve().parents[2]
HELPERS = {"commands", "console", "configuration_reference", "experiment_flags", "launching"}
"""Modules of the room that are no command."""
HEAVY = ("jax", "pandas", "scipy", "sklearn", "matplotlib", "optax", "orbax", "pyarrow")


def named(name: str) -> str:
    return name.replace("-", "_")


def test_every_module_of_the_room_is_a_command_and_has_a_script() -> None:
    modules = {module.name for module in pkgutil.iter_modules(jaxcxr.cli.__path__)}
    assert {named(name) for name in commands.COMMANDS} == modules - HELPERS
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == modules - HELPERS


def test_the_list_is_there_before_anything_is_imported() -> None:
    code = (
        "import sys; from jaxcxr.cli.commands import main; main(['--help']); "
        "print([m for m in ('tyro', 'pydantic', 'numpy', 'yaml') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
    for name, summary in commands.COMMANDS.items():
        assert f"  {name} " in said
        assert summary in said


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command answers to --help, all in one process; what that process has imported is the last entry."""
    code = f"""
import contextlib, importlib, io, json, sys
answers = {{}}
for name in {list(commands.COMMANDS)}:
    sys.argv = ["jaxcxr " + name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        importlib.import_module("jaxcxr.cli." + name.replace("-", "_")).main()
    answers[name] = said.getvalue()
answers["imported"] = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(answers))
"""
    cwd = tmp_path_factory.mktemp("help")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return json.loads(done.stdout)


def test_no_help_waits_for_a_heavy_library(helps: dict[str, str]) -> None:
    assert helps["imported"] == []


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_has_its_examples_one_per_line(helps: dict[str, str], name: str) -> None:
    assert helps[name].startswith(f"usage: jaxcxr {name} ")
    examples = [line for line in helps[name].splitlines() if line.startswith(f"  jaxcxr {name}")]
    assert examples
    assert all(line.count(f"jaxcxr {name}") == 1 for line in examples)
    doc = sys.modules.get(f"jaxcxr.cli.{named(name)}") or __import__(
        f"jaxcxr.cli.{named(name)}", fromlist=["_"]
    )
    written = [line for line in (doc.__doc__ or "").splitlines() if line.startswith("  jaxcxr ")]
    assert set(written) >= set(examples)


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for word, hint in (("swep", "did you mean 'sweep'?"), ("xyz", "lists the commands")):
        with pytest.raises(SystemExit) as stop:
            commands.main([word])
        assert stop.value.code == 2
        assert hint in capsys.readouterr().err


def test_the_command_the_module_and_the_scripts_are_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"jaxcxr": "jaxcxr.cli.commands:main"}
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(commands, "start", lambda name: started.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["jaxcxr", "sweep", "--eps", "0.29"])
    runpy.run_module("jaxcxr", run_name="__main__")
    for name in commands.COMMANDS:
        monkeypatch.setattr(sys, "argv", [f"{named(name)}.py", "--out", "there"])
        runpy.run_path(str(ROOT / "scripts" / f"{named(name)}.py"), run_name="__main__")
    assert started == [
        ("sweep", ["--eps", "0.29"]),
        *((name, ["--out", "there"]) for name in commands.COMMANDS),
    ]
    commands.main(["--version"])
    assert capsys.readouterr().out == f"jaxcxr {jaxcxr.__version__}\n"


def test_a_reader_that_has_seen_enough() -> None:
    """As in `jaxcxr configs | head -1`: no trace."""
    command = f"{sys.executable} -m jaxcxr configs prepare_example.yaml | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
