"""Configurations as files and as flags: read strictly, overridden on the command line, written whole.

Unknown keys, texts where numbers belong and impossible values are refused with the file, the key, what was
found and what is expected.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from jaxcxr.config import Experiment, Formerly
from jaxcxr.errors import InputError
from jaxcxr.yaml_files import read_yaml, require_plain, shortened

ConfigT = TypeVar("ConfigT")
PACKAGED = Path(__file__).parent / "configs"
"""The configurations that come with the package: those of the clone's `configs/`."""


def config_file(named: str | Path) -> Path:
    """The file that a configuration's name means.

    `configs/NAME` is the package's own, wherever it is installed, if there is no such file below the working
    folder.
    """
    path = Path(named)
    if path.parts[:1] == ("configs",) and not path.exists():
        own = PACKAGED.joinpath(*path.parts[1:])
        if own.is_file():
            return own
    return path


def _on_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def load(cls: type[ConfigT], path: str | Path, say: Callable[[str], None] | None = _on_stderr) -> ConfigT:
    """Read a YAML file (`config_file`) into the frozen dataclass `cls`, strictly.

    Args:
        cls: what the file describes.
        path: of the file.
        say: is told of fields by their former names; None where nobody is to change the file.

    Raises:
        InputError: the file is missing or no YAML, or a key is repeated, unknown, absent, of a wrong type or
            out of range.
    """
    path, file = Path(path), config_file(path)
    if not file.is_file():
        hint = "; `jaxcxr configs` lists those of the package" if path.parts[:1] == ("configs",) else ""
        raise InputError(f"{path}: no such configuration file{hint}")
    values = read_yaml(file, str(path))
    return validate(cls, values, str(path), say)


def validate(
    cls: type[ConfigT], values: Any, source: str, say: Callable[[str], None] | None = None
) -> ConfigT:
    """Turn plain values into the dataclass `cls`; `source` is named in errors, and `say` as in `load`."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a mapping of keys to values, found {type(values).__name__}")
    require_plain(values, source)
    try:
        values = by_present_names(cls, values, lambda told: say and say(f"{source}: {told}"))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    try:
        config = _adapter(cls).validate_json(json.dumps(values))
    except ValidationError as error:
        raise InputError(f"{source}: {'; '.join(_sentence(e) for e in error.errors())}") from None
    if cls is Experiment:
        try:
            config.check()
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    return config


def by_present_names(
    cls: type, values: dict[Any, Any], say: Callable[[str], None], within: str = ""
) -> dict[Any, Any]:
    """The values with the fields that have a former name (`config.Formerly`) under their present one.

    Args:
        cls: the dataclass that they describe.
        values: by field; those of a section are a mapping again.
        say: is told of each former name.
        within: the section, as `training.`.

    Raises:
        InputError: a field is there by both names.
    """
    found = dict(values)
    for name, former, section in _fields(cls):
        if former in found:
            if name in found:
                raise InputError(f"{within}{former} is the former name of {within}{name}; found both")
            say(f"{within}{former} is called {within}{name} now")
            found = {name if key == former else key: value for key, value in found.items()}
        if section is not None and isinstance(found.get(name), dict):
            found[name] = by_present_names(section, found[name], say, f"{within}{name}.")
    return found


@functools.cache
def _fields(cls: type) -> list[tuple[str, str | None, type | None]]:
    """Of each field its name, its former one, and the dataclass that it holds."""
    found = []
    for name, hint in get_type_hints(cls, include_extras=True).items():
        former = [m.name for m in getattr(hint, "__metadata__", ()) if isinstance(m, Formerly)]
        sections = [
            part
            for part in (hint, *get_args(hint))
            if isinstance(part, type) and dataclasses.is_dataclass(part)
        ]
        found.append((name, former[0] if former else None, sections[0] if sections else None))
    return found


@functools.cache
def _adapter(cls: Any) -> Any:
    """What validates a class, kept: making it takes longer than all else."""
    return TypeAdapter(cls)


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    found = error.get("input")
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: missing"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    kind = error["type"]
    number = _number_of(found, whole=kind.startswith("int")) if kind.startswith(("int", "float")) else None
    hint = f" (YAML reads {found} as text here; write {number}, without quotes)" if number else ""
    if kind == "string_type" and isinstance(found, (bool, int, float)):
        hint = " (put it in quotes, so that it is text)"
    return f"{key}: expected {message}, found {shortened(repr(found))}{hint}"


def _number_of(found: Any, whole: bool) -> str | None:
    """How YAML wants the number that a text stands for to be written; None if it stands for none (of the
    kind).
    """
    if not isinstance(found, str):
        return None
    try:
        value = float(found)
    except ValueError:
        return None
    if not math.isfinite(value) or (whole and not value.is_integer()):
        return None
    if whole:
        return str(int(value))
    digits, _, exponent = repr(value).partition("e")
    if not exponent:
        return digits
    return f"{digits if '.' in digits else digits + '.0'}e{int(exponent):+d}"


def override(config: ConfigT, arguments: Sequence[str], prog: str) -> ConfigT:
    """Replace fields by command-line flags such as `--privacy.epsilon 1.06`; the result is validated as a
    file would be.
    """
    cls = type(config)
    flags = [_by_present_flag(cls, argument) for argument in arguments]
    changed = tyro.cli(tyro.conf.AvoidSubcommands[cls], default=config, args=flags, prog=prog)  # type: ignore[valid-type]
    return validate(cls, dataclasses.asdict(changed), source="command line")  # type: ignore[arg-type]


def _by_present_flag(cls: type, argument: str, within: str = "--") -> str:
    """The argument, with the present name of a field in place of its former one, which is said."""
    flag, equals, value = argument.partition("=")
    for name, former, section in _fields(cls):
        if former is not None and flag.replace("-", "_") == f"{within}{former}".replace("-", "_"):
            _on_stderr(f"{flag} is called {within}{name} now")
            return f"{within}{name}{equals}{value}"
        if section is not None and flag.startswith(f"{within}{name}."):
            return _by_present_flag(section, argument, f"{within}{name}.")
    return argument


def dump(config: Any, path: Path) -> None:
    """Write a configuration as YAML, every default spelt out."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
