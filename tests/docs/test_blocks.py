"""What README and docs tell people to type works: Python blocks run, YAML blocks load, commands parse, names exist.

A command is not run: its own parser must accept its words, and the configurations, extras and files that it names must
exist. A block that cannot be tried carries `<!-- not run: reason -->` with one of `REASONS`.
"""

import dataclasses
import importlib
import importlib.util
import json
import re
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from pydantic import TypeAdapter

import jaxcxr
from jaxcxr.cli.commands import COMMANDS
from jaxcxr.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.config_files import load, override, validate
from jaxcxr.data.sources.table import TableSource
from jaxcxr.errors import InputError
from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands, links, spans

REASONS = {
    "tests/test_dp.py runs it": ROOT / "tests" / "test_dp.py",
    "needs a trained run and an image of yours": None,
    "needs files from elsewhere": None,
}
"""Why a block may be left out; where another test runs it, that test."""
SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "privacy": PrivacyConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
YOURS: set[str] = set()
"""Files that a reader makes."""
TOOLS = {
    "mkdocs": "mkdocs-material",
    "jupyter": "jupyterlab",
    "pre-commit": "pre-commit",
    "ruff": "ruff",
    "basedpyright": "basedpyright",
}
"""Commands of other packages, and the package that an extra must name."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVERY_BLOCK = [block for page in PAGES for block in blocks(page)]
EVERY_SPAN = [span for page in PAGES for span in spans(page)]
FLAGS = {"help"} | {
    name
    for pattern in ("src/jaxcxr/cli/*.py", "src/jaxcxr/config.py", "tests/*/speed.py")
    for file in ROOT.glob(pattern)
    for names in re.findall(r'^    (\w+): |"--([\w-]+)"|name="(\w+)"', file.read_text(encoding="utf-8"), re.M)
    for name in names
}
"""Options of the commands, by the names of their fields."""
SUFFIXES = {".csv", ".json", ".md", ".parquet", ".py", ".safetensors"}
"""Of files that are named like a field of a configuration."""
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "tests", "scripts", "configs", "docs", "notebooks")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
)


class Parsed(BaseException):
    """The words were accepted; what follows is not run. (Not an Exception: nothing on the way may catch it.)"""


def place(block: Block) -> str:
    return block.place


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end once their words are parsed."""
    parse = tyro.cli

    def parse_and_stop(*args: Any, **kwargs: Any) -> Any:
        result = parse(*args, **kwargs)
        if kwargs.get("return_unknown_args"):  # the rest is a configuration's fields
            _, flags = result
            override(load(Experiment, ROOT / "configs" / "demo.yaml"), flags, prog="the page")
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse_and_stop)


def try_command(words: Sequence[str]) -> None:
    """Fail unless a user can give this command in a clone."""
    program, *rest = words
    if program == "jaxcxr":
        try_subcommand(rest[0], rest[1:])
    elif program == "python" and rest[0].startswith("scripts/"):
        assert (ROOT / rest[0]).is_file(), rest[0]
        try_subcommand(Path(rest[0]).stem.replace("_", "-"), rest[1:])
    elif program == "python" and rest[:3] == ["-m", "pip", "install"]:
        try_install(rest[3:])
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None, rest[1]
        assert all((ROOT / word).exists() for word in rest[2:] if "/" in word), rest
    elif program == "python" and rest[0] == "-c":
        compile(rest[1], "the page", "exec")
    elif program == "python":
        text = (ROOT / rest[0]).read_text(encoding="utf-8")
        for word in rest[1:]:
            assert not word.startswith("--") or word in text or word[2:].replace("-", "_") in text, (
                rest[0],
                word,
            )
    else:
        assert program in TOOLS, f"no way to try {program!r}"
        wanted = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
        assert any(re.split(r"[=<>\[]", line)[0] == TOOLS[program] for line in wanted), program


def try_subcommand(name: str, words: Sequence[str]) -> None:
    assert name in COMMANDS, f"jaxcxr has no command {name!r}"
    for word in words:
        if word.startswith("configs/"):
            assert word in YOURS or (ROOT / word).is_file(), word
    with pytest.raises((Parsed, SystemExit)) as ended:
        importlib.import_module(f"jaxcxr.cli.{name.replace('-', '_')}").main(list(words))
    assert isinstance(ended.value, Parsed) or not ended.value.code  # --help-config prints and ends


def try_install(words: Sequence[str]) -> None:
    constraints = [words[i + 1] for i, word in enumerate(words) if word == "-c"]
    assert constraints == ["constraints.txt"], words
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert extra in PROJECT["optional-dependencies"], extra


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {**values, **{key: {**(values.get(key) or {}), **part} for key, part in over.items()}}


def try_yaml(text: str) -> None:
    """A part of an experiment completes the demo's; anything else is a column map."""
    values = yaml.safe_load(text)
    if values.keys() <= {field.name for field in dataclasses.fields(Experiment)}:
        demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
        validate(Experiment, merged(demo, values), "the page")
    else:
        validate(TableSource, values, "the page")


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=place)
def test_a_block_works_or_says_why_it_is_not_tried(
    block: Block, parse_only: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.not_run is not None:
        assert block.not_run in REASONS
        if (test := REASONS[block.not_run]) is not None:
            assert block.place.split(":")[0].removeprefix("docs/") in test.read_text(encoding="utf-8")
    elif block.language in ("bash", ""):
        assert commands(block.text)
        for words in commands(block.text):
            try_command(words)
    elif block.language == "python":
        monkeypatch.chdir(tmp_path)
        exec(compile(block.text, block.place, "exec"), {})
    elif block.language == "yaml":
        try_yaml(block.text)
    else:
        assert block.language == "text", "expected bash (or nothing), python, yaml, or text for a screen"


def is_command(span: str) -> bool:
    return bool(re.match(r"(python |jaxcxr [a-z]|[a-z_]+\.py )\S", span)) and "COMMAND" not in span


def is_file(span: str) -> bool:
    folders = ("src/", "tests/", "scripts/", "configs/", "docs/", "notebooks/")
    of_the_tree = span.endswith(".py") or span.startswith(folders)
    return bool(re.fullmatch(r"[\w./-]+", span)) and of_the_tree and not re.search("NAME|COMMAND", span)


def is_flag(span: str) -> bool:
    return span.startswith("--") and not span.startswith("--xla")


def is_field(span: str) -> bool:
    return (
        bool(re.match(rf"({'|'.join(SECTIONS)})\.\w+(: \S+)?$", span)) and Path(span).suffix not in SUFFIXES
    )


def chosen(what: Any) -> Any:
    return pytest.mark.parametrize(("place", "span"), [pair for pair in EVERY_SPAN if what(pair[1])])


@chosen(is_command)
def test_a_command_in_a_sentence_works(place: str, span: str, parse_only: None) -> None:
    words = span.split()
    if words[0] == "jaxcxr" and len(words) == 2:
        assert words[1] in COMMANDS
    else:
        for command in commands(f"python scripts/{span}" if words[0].endswith(".py") else span):
            try_command(command)


@chosen(is_file)
def test_a_file_in_a_sentence_exists(place: str, span: str) -> None:
    assert span in YOURS or (ROOT / span).exists() or any(file.endswith(f"/{span}") for file in FILES)


@chosen(is_flag)
def test_a_flag_in_a_sentence_exists(place: str, span: str) -> None:
    for flag in re.findall(r"--([a-z][\w.-]*)", span):
        assert flag.split(".")[-1].removeprefix("no-").replace("-", "_") in FLAGS, flag


@chosen(is_field)
def test_a_field_in_a_sentence_exists_and_takes_the_value(place: str, span: str) -> None:
    name, _, value = span.partition(": ")
    section, field = name.split(".")
    package = Path(jaxcxr.__file__).parent / section
    if not value and (package / f"{field}.py").is_file():
        return  # a module, such as `data.build`
    hints = typing.get_type_hints(SECTIONS[section], include_extras=True)
    assert field in hints, f"{section} has no field {field}"
    if value:
        TypeAdapter(hints[field]).validate_json(json.dumps(yaml.safe_load(value)), strict=True)


@pytest.mark.parametrize(
    "page", [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    """Links between the site's pages are checked when it is built."""
    for target in links(page):
        file = (page.parent / target.split("#")[0]).resolve()
        assert target.startswith("https://") or file.exists(), target


@pytest.mark.parametrize(
    "shell",
    [
        "jaxcxr trian --config configs/demo.yaml",
        "jaxcxr train --configs configs/demo.yaml",
        "jaxcxr train --config configs/demos.yaml",
        "jaxcxr train --privacy.epsilons 1",
        "jaxcxr train --privacy.epsilon none",
        "jaxcxr release",
        "python scripts/trains.py",
        "python scripts/sweep.py --eps small",
        "python -m pip install -c constraints.txt -e '.[tests]'",
        "python -m pip install -e .",
        "python tests/data/speeds.py",
        "python -m jaxcxr.trains",
        "make all",
    ],
)
def test_a_wrong_command_is_found(shell: str, parse_only: None) -> None:
    for words in commands(shell):
        with pytest.raises(
            (AssertionError, SystemExit, InputError, FileNotFoundError, pytest.fail.Exception)
        ):
            try_command(words)


@pytest.mark.parametrize(
    "text", ["privacy: {epsilons: 1.0}", "training: {steps: 5, epochs: 2}", "columns: {path: a}"]
)
def test_a_wrong_yaml_block_is_found(text: str) -> None:
    with pytest.raises(InputError):
        try_yaml(text)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
