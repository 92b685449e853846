"""Draw a sheet of labelled synthetic radiographs (the one in the README).

Examples:
  jaxcxr contact-sheet --out sheet.png --size 128
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import say


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw.

    Attributes:
        out: PNG file to write.
        domain: whose images, `private` or `public`.
        size: side of an image in pixels.
        seed: of the cohort that the images are taken from.
    """

    out: Path = Path("docs/contact_sheet.png")
    domain: Literal["private", "public"] = "private"
    size: int = 224
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(f"drawing {arguments.out}")
    from jaxcxr.data.synthetic.sheet import contact_sheet

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    n_images = contact_sheet(arguments.out, domain=arguments.domain, size=arguments.size, seed=arguments.seed)
    print(f"{arguments.out}: {n_images} images")
