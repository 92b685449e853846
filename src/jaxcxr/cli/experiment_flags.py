"""Commands that take an experiment: its configuration file, and every field of it as a flag."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import tyro

from jaxcxr.config import Experiment
from jaxcxr.config_files import load, override

ArgumentsT = TypeVar("ArgumentsT")
Recipe = Literal["paper", "recommended", "head"]
"""How a command trains (`jaxcxr.workflows.recipes`); `paper` as the configuration says."""


def parse(
    kind: type[ArgumentsT], doc: str | None, argv: Sequence[str] | None
) -> tuple[ArgumentsT, list[str]]:
    """The command's own arguments, and the others, which are fields of the configuration.

    `--help-config` prints every field and ends the command, whatever else is given.
    """
    if "--help-config" in (sys.argv[1:] if argv is None else argv):
        from jaxcxr.cli.configuration_reference import as_text

        print(as_text())
        raise SystemExit(0)
    return tyro.cli(kind, description=doc, args=argv, return_unknown_args=True)


def experiment_of(path: Path, flags: Sequence[str], prog: str) -> Experiment:
    """The experiment of a file with the fields that the flags replace.

    Raises:
        InputError: the file or a flag is refused.
    """
    return override(load(Experiment, path), flags, prog)
