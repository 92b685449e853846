"""A contact sheet for the radiologist: images on which two models disagree, with the saliency of both."""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from jaxcxr.report.figures.saliency_maps import overlay
from jaxcxr.report.paper.supplementary_tables import title


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """One row of the sheet.

    Attributes:
        image: as the networks read it.
        name: of the image.
        finding: on which the models disagree most.
        label: 1, 0 or NaN.
        probabilities: of the finding by the two models.
        maps: saliency of the finding in the two models.
    """

    image: UInt8[np.ndarray, "n n"]
    name: str
    finding: str
    label: float
    probabilities: tuple[float, float]
    maps: tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]


def changed_sheet(rows: Sequence[Changed], models: tuple[str, str], stays: str, path: Path) -> None:
    """Draw the sheet: per image the image itself and one overlay per model.

    Args:
        rows: most changed first.
        models: what the two models are called.
        stays: written above the images.
        path: .png, .svg or .pdf.
    """
    drawing = Figure(figsize=(9.6, 3.1 * len(rows) + 0.8), layout="constrained")
    axes = drawing.subplots(len(rows), 3, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        said = {1.0: "labelled present", 0.0: "labelled absent"}.get(row.label, "no label")
        titles = [f"{row.name}\n{title(row.finding)}: {said}"]
        titles += [f"{m}\nprobability {p:.2f}" for m, p in zip(models, row.probabilities, strict=True)]
        for axis, heading in zip(line, titles, strict=True):
            axis.set_axis_off()
            axis.imshow(row.image, cmap="gray", vmin=0, vmax=255)
            axis.set_title(heading, fontsize=8)
        for axis, shares in zip(line[1:], row.maps, strict=True):
            shown = overlay(shares, row.image.shape[0])
            axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, alpha=np.abs(shown) ** 0.5 * 0.6)
    drawing.suptitle(
        textwrap.fill(f"Test images on which the two models disagree most. {stays}", 90), fontsize=9
    )
    drawing.supxlabel(
        "Red speaks for the finding, blue against it, each panel on its own scale.\nIt shows what moved a "
        "network, not where disease is.",
        fontsize=7,
    )
    drawing.savefig(path, dpi=130)
