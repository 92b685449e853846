"""Saliency over a film, as a picture for a radiologist."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

BLUR = 1 / 64
"""Width of the Gaussian that gathers pixels to regions, as a share of the film's side."""


def overlay(shares: Float[np.ndarray, "i j"], side: int) -> Float[np.ndarray, "{side} {side}"]:
    """Contributions of pixels or cells as a smooth map over the film, scaled to [-1, 1] by the largest
    magnitude (a map of zeros stays so).
    """
    spread = np.asarray(
        resize(shares.astype(np.float64), (side, side), order=1, mode="edge", anti_aliasing=False)
    )
    smooth = np.asarray(gaussian_filter(spread, side * BLUR)) if shares.shape[0] == side else spread
    largest = np.abs(smooth).max()
    return smooth / largest if largest > 0 else smooth


def saliency_figure(
    film: UInt8[np.ndarray, "n n"],
    maps: Sequence[Float[np.ndarray, "_ _"]],
    findings: Sequence[str],
    probabilities: Sequence[float],
    method: str,
    path: Path,
) -> None:
    """The film, and beside it one overlay a finding: red where the film speaks for the finding, blue where
    against it.

    Args:
        film: as the network read it.
        maps: contributions to each finding's logit.
        findings: their names.
        probabilities: predicted, one a finding.
        method: named under the picture.
        path: .png, .svg or .pdf.
    """
    panels = len(findings) + 1
    columns = min(panels, 3)
    rows = -(-panels // columns)
    drawing = Figure(figsize=(3.4 * columns, 3.6 * rows + 0.35), layout="constrained")
    axes = drawing.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis in axes[:panels]:
        axis.imshow(film, cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("the film as the network sees it", fontsize=9)
    for axis, shares, finding, probability in zip(axes[1:panels], maps, findings, probabilities, strict=True):
        shown = overlay(shares, film.shape[0])
        axis.imshow(
            shown, cmap="RdBu_r", vmin=-1, vmax=1, alpha=np.abs(shown) ** 0.5 * 0.6, interpolation="bilinear"
        )
        axis.set_title(f"{finding.replace('_', ' ')}: probability {probability:.2f}", fontsize=9)
    colours = "red speaks for the finding, blue against it, each panel on its own scale"
    drawing.supxlabel(
        f"{method}: {colours}.\nIt shows what moved the network, not where disease is.", fontsize=7
    )
    drawing.savefig(path, dpi=150)
