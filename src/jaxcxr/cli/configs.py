"""List the configurations that come with the package, show one, or copy some to change them.

Examples:
  jaxcxr configs                          names and what each is for
  jaxcxr configs demo.yaml                print one
  jaxcxr configs your_data.yaml --to .    copy it into this folder (nothing is overwritten)
  jaxcxr configs --to configs             copy all
  jaxcxr configs --reference docs/configuration.md      write the page of all fields

Commands find a packaged configuration by `configs/NAME` in any folder, unless the folder has that file.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.config_files import PACKAGED
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which configurations, and what to do with them.

    Attributes:
        names: such as demo.yaml or study/private.yaml; all unless given.
        to: folder to copy them into.
        reference: write the reference of all fields of an experiment as a Markdown page instead.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    to: Path | None = None
    reference: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.reference is not None:
        from jaxcxr.cli.configuration_reference import as_markdown

        arguments.reference.write_text(as_markdown(), encoding="utf-8")
        print(f"{arguments.reference}: every field of an experiment's configuration")
        return
    packaged = {path.relative_to(PACKAGED).as_posix(): path for path in sorted(PACKAGED.rglob("*.yaml"))}
    wanted = [name.removeprefix("configs/") for name in arguments.names] or list(packaged)
    for name in wanted:
        if name not in packaged:
            raise InputError(
                f"{name}: no configuration of the package; expected one of {', '.join(packaged)}"
            )
    if arguments.to is not None:
        _copy({name: packaged[name] for name in wanted}, arguments.to)
    elif arguments.names:
        print("\n".join(packaged[name].read_text(encoding="utf-8").rstrip() for name in wanted))
    else:
        width = max(map(len, packaged))
        print("\n".join(f"configs/{name:<{width}}  {summary_of(path)}" for name, path in packaged.items()))


def summary_of(path: Path) -> str:
    """What a configuration is for: the first sentence of the comment that it begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    sentence = " ".join(words)
    for end in (". ", ": "):
        sentence = sentence.split(end)[0]
    return sentence.rstrip(".:")


def _copy(files: dict[str, Path], folder: Path) -> None:
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise InputError(f"{folder / there[0]}: exists already; nothing was copied")
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
        print(folder / name)
