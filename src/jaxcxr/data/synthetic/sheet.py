"""A contact sheet: what the embedded cohort looks like, at a glance."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from jaxcxr.config import SyntheticConfig
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.synthetic.cohort import cohort
from jaxcxr.data.synthetic.render import render

SEARCHED = 6000
"""Films among which the examples are sought."""
GAP = 6
"""Pixels between films."""
LINE = 15
"""Pixels a line of caption takes."""


def contact_sheet(
    path: Path,
    *,
    domain: Literal["private", "public"] = "private",
    size: int = 224,
    columns: int = 4,
    seed: int = 0,
) -> int:
    """Write a PNG of two unremarkable films, one of each finding on its own, and two with several.

    Args:
        path: file to write.
        domain: whose films.
        size: side of a film in pixels.
        columns: films a row.
        seed: of the cohort that the films are taken from.

    Returns:
        Number of films on the sheet.
    """
    films = examples(cohort(SyntheticConfig(domain, SEARCHED, 0, 0, seed)))
    rows = -(-len(films) // columns)
    cell_width, cell_height = size + GAP, size + GAP + 2 * LINE
    sheet = Image.new("L", (columns * cell_width + GAP, rows * cell_height + GAP), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, film in enumerate(films.to_dict("records")):
        x, y = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        sheet.paste(Image.fromarray(render(film, size)), (x, y))
        present = [finding for finding in UKA_FINDINGS if film[finding] == 1]
        draw.text((x, y + size + 1), _short(present), fill=0, font=font)
        draw.text(
            (x, y + size + LINE),
            f"{film['sex']}, {film['age']:.0f} years, {film['view']}",
            fill=90,
            font=font,
        )
    sheet.save(path, optimize=True)
    return len(films)


def examples(frame: pd.DataFrame) -> pd.DataFrame:
    """Films worth showing, each of another patient where there is one, chosen among those whose label tells
    what was drawn.
    """
    labels = frame[list(UKA_FINDINGS)].to_numpy() == 1
    grades = frame[[f"draw_{finding}" for finding in UKA_FINDINGS]].to_numpy()
    told = ((grades >= 2) == labels).all(axis=1) & (grades != 1).all(axis=1)
    n_present = labels.sum(axis=1)
    wanted = [told & (n_present == 0)] * 2
    wanted += [told & (n_present == 1) & (grades[:, i] >= 3) for i in range(len(UKA_FINDINGS))]
    wanted += [told & (n_present == n) for n in (2, 3)]
    chosen: list[int] = []
    patients = frame["patient_id"].to_numpy()
    for is_wanted in wanted:
        candidates = np.flatnonzero(is_wanted & ~np.isin(patients, patients[chosen]))
        chosen.extend(candidates[:1].tolist())
    return frame.iloc[chosen]


def _short(findings: list[str]) -> str:
    if not findings:
        return "no finding"
    words = {
        "pleural_effusion": "effusion",
        "pneumonic_infiltrates": "infiltrates",
        "_right": " R",
        "_left": " L",
    }
    text = ", ".join(findings)
    for long, short in words.items():
        text = text.replace(long, short)
    return text.replace("_", " ")
