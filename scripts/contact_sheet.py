"""Draw a contact sheet of labelled synthetic films (the one in the README)."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import run


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw.

    Attributes:
        out: PNG file to write.
        domain: whose films, `private` or `public`.
        size: side of a film in pixels.
        seed: of the cohort that the films are taken from.
    """

    out: Path = Path("docs/contact_sheet.png")
    domain: Literal["private", "public"] = "private"
    size: int = 224
    seed: int = 0


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    from jaxcxr.data.synthetic.sheet import contact_sheet

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    n_films = contact_sheet(arguments.out, domain=arguments.domain, size=arguments.size, seed=arguments.seed)
    print(f"{arguments.out}: {n_films} films")


if __name__ == "__main__":
    run(main)
