"""A contact sheet of the synthetic cohort."""

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
"""Images among which examples are searched."""
GAP = 6
"""Pixels between images."""
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
    """Write a PNG of two unremarkable images, one of each finding on its own, and two with several.

    Args:
        path: file to write.
        domain: whose images.
        size: side of an image in pixels.
        columns: images per row.
        seed: of the cohort from which the images are taken.

    Returns:
        Number of images on the sheet.
    """
    images = examples(cohort(SyntheticConfig(domain, SEARCHED, 0, 0, seed)))
    rows = -(-len(images) // columns)
    cell_width, cell_height = size + GAP, size + GAP + 2 * LINE
    sheet = Image.new("L", (columns * cell_width + GAP, rows * cell_height + GAP), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, image in enumerate(images.to_dict("records")):
        x, y = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        sheet.paste(Image.fromarray(render(image, size)), (x, y))
        present = [finding for finding in UKA_FINDINGS if image[finding] == 1]
        draw.text((x, y + size + 1), _short(present), fill=0, font=font)
        draw.text(
            (x, y + size + LINE),
            f"{image['sex']}, {image['age']:.0f} years, {image['view']}",
            fill=90,
            font=font,
        )
    sheet.save(path, optimize=True)
    return len(images)


def examples(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of images worth showing, of different patients if possible, whose labels agree with the truth."""
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
