"""Every field of an experiment's configuration, from the dataclasses themselves: `--help-config` and
docs/configuration.md.
"""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from jaxcxr.config import (
    DataConfig,
    EvaluationConfig,
    HeadConfig,
    ModelConfig,
    PrivacyConfig,
    SyntheticConfig,
    TrainingConfig,
)

SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("data", DataConfig, "required"),
    ("data.synthetic", SyntheticConfig, "null for real images"),
    ("model", ModelConfig, "required"),
    ("privacy", PrivacyConfig, "null trains without privacy"),
    ("training", TrainingConfig, "required"),
    ("head", HeadConfig, "read where training.scope is head_on_features"),
    ("evaluation", EvaluationConfig, "all defaults unless given"),
)
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
_WORDS = {str: "text", float: "number", int: "whole number", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: name with its section, type with its range, default, meaning."""

    name: str
    kind: str
    default: str
    meaning: str


def fields_of(section: str, cls: type) -> list[Field]:
    """The fields of a section, in their order."""
    meanings, kinds = meanings_of(cls), typing.get_type_hints(cls, include_extras=True)
    return [
        Field(f"{section}.{field.name}", kind_of(kinds[field.name]), _default(field), meanings[field.name])
        for field in dataclasses.fields(cls)
    ]


def meanings_of(cls: type) -> dict[str, str]:
    """Field -> what the docstring's `Attributes:` say of it; fields that share an entry share its text."""
    _, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(attributes)):
        names, _, text = entry.partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(text.split())
    return found


def kind_of(annotation: Any) -> str:
    """A type in words, with its range."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return f"{kind_of(arguments[0])} {', '.join(_bounds(arguments[1:]))}"
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {kind_of(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind_of(one) for one in arguments)
    if dataclasses.is_dataclass(annotation):
        return "a section of its own"
    return _WORDS[annotation]


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    limits = [
        limit for entry in metadata for limit in (entry.metadata if isinstance(entry, FieldInfo) else [entry])
    ]
    return [
        f"{sign} {getattr(limit, name):g}"
        for limit in limits
        for name, sign in _BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "null"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return str(field.default)


def as_text() -> str:
    """For the screen."""
    lines = [
        "Every field of an experiment's configuration (YAML). On the command line: --SECTION.FIELD VALUE."
    ]
    for section, cls, when in SECTIONS:
        lines.append(f"\n{section} ({when})")
        for field in fields_of(section, cls):
            lines.append(f"  {field.name}: {field.kind} [{field.default}]")
            lines += textwrap.wrap(field.meaning, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def as_markdown() -> str:
    """For docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Every field of an experiment. A configuration is a YAML file with these sections; unknown keys,",
        "texts where numbers belong and impossible values are refused with the key and what is expected.",
        "`jaxcxr train`, `sweep` and `pretrain` take each field as a flag, such as `--privacy.epsilon 1.06`.",
        "",
        "This page is written by `jaxcxr configs --reference docs/configuration.md`, and",
        "`jaxcxr train --help-config` prints the same.",
    ]
    for section, cls, when in SECTIONS:
        lines += ["", f"## `{section}`", "", f"{when[0].upper()}{when[1:]}.", ""]
        lines += ["| field | type and range | default | meaning |", "|---|---|---|---|"]
        for field in fields_of(section, cls):
            cells = [f"`{field.name}`", field.kind, field.default, field.meaning]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
