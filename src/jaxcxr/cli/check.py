"""Compare everything in a folder with its checksums, whole: a run, a sweep, a store, weights or a release.

Examples:
  jaxcxr check runs/demo
  jaxcxr check stores/demo runs/sweep-demo

One line per kind of files: sound, unchecked (an earlier version wrote it without checksums), or damaged, and
what to do. The exit status is 2 if anything is damaged.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to check.

    Attributes:
        folders: of runs, sweeps, stores, weights or releases.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if not arguments.folders:
        raise InputError("expected the folder of a run, sweep, store, weights or release")
    say(f"{', '.join(map(str, arguments.folders))}: loading JAX")
    from jaxcxr.workflows.check import check_folder

    found = []
    with progress_bar(None, "image", "comparing") as bar:
        for folder in arguments.folders:
            found += check_folder(folder, bar.update)
    print("\n".join(finding.line() for finding in found))
    damaged = sum(finding.verdict == "damaged" for finding in found)
    if damaged:
        raise InputError(f"{damaged} of {len(found)} kinds of files are damaged, as the lines above say")
