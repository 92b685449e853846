"""How every notebook here begins: in the project's folder, without library chatter, in its full or its quick
setting.
"""

import dataclasses
import io
import math
import os
import runpy
import shlex
import sys
from pathlib import Path

from IPython.display import Image
from PIL import Image as Pictures

from jaxcxr.cli.console import keep_compilations, quiet
from jaxcxr.config import PAPER_BUDGETS

COLOURS = 24
"""Of a shown picture: as many as keep its look."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a notebook works with.

    Attributes:
        quick: the reduced setting (environment variable JAXCXR_QUICK=1): everything runs, nothing is learned.
        config: configuration of private training.
        nonprivate: the same without privacy.
        out: folder of the notebooks' own runs.
        sweep: folder of a sweep; it is read if it is there.
        budgets: of that sweep, as `scripts/sweep.py --eps` takes them.
    """

    quick: bool
    config: Path
    nonprivate: Path
    out: Path
    sweep: Path
    budgets: str


def begin() -> Setting:
    """Go to the project's folder, quieten the libraries and choose the setting."""
    os.chdir(Path(__file__).resolve().parents[1])
    quiet()
    keep_compilations()
    quick = os.environ.get("JAXCXR_QUICK") == "1"
    name, out = ("quick", Path("runs/notebooks-quick")) if quick else ("demo", Path("runs/notebooks"))
    out.mkdir(parents=True, exist_ok=True)
    return Setting(
        quick,
        Path(f"configs/{name}.yaml"),
        Path(f"configs/{name}_nonprivate.yaml"),
        out,
        Path(f"runs/sweep-{name}"),
        "7.89 0.29 inf" if quick else " ".join(f"{epsilon:g}" for epsilon in (*PAPER_BUDGETS, math.inf)),
    )


def command(line: str) -> None:
    """What `python LINE` does in a terminal, in this process, which has its libraries loaded and compiled.

    Raises:
        RuntimeError: the script refused, for the reason that it printed.
    """
    print(f"$ python {line}")
    name, *arguments = shlex.split(line)
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(name, run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"python {line}: ended with status {stop.code}") from None
    finally:
        sys.argv = before


def show(path: str | Path, width: int = 800, photo: bool = False) -> Image:
    """A picture file as output of a cell, small enough to commit.

    Args:
        path: a figure is written for print (300 dpi).
        width: in pixels, at most.
        photo: there are films in the picture: as JPEG.
    """
    with Pictures.open(path) as picture:
        plain = Pictures.new("RGB", picture.size, "white")
        plain.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    if plain.width > width:
        plain = plain.resize((width, round(plain.height * width / plain.width)), Pictures.Resampling.LANCZOS)
    small = io.BytesIO()
    if photo:
        plain.save(small, "JPEG", quality=80, optimize=True)
    else:
        plain.quantize(COLOURS, dither=Pictures.Dither.NONE).save(small, "PNG", optimize=True)
    return Image(small.getvalue())
