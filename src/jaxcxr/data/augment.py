"""The paper's augmentation for non-private training, on the host: a small rotation and a left-right flip.

Source: the paper, Non-DP Training. Unlike the paper's code, a flip also swaps the labels of the right and the
left side.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from jaxcxr.data.findings import mirror_permutation

MAX_DEGREES = 10.0
FLIP_PROBABILITY = 0.5


def flip_rotate(
    images: UInt8[np.ndarray, "n height width"],
    labels: Float32[np.ndarray, "n findings"],
    findings: Sequence[str],
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "n height width"], Float32[np.ndarray, "n findings"]]:
    """Each image rotated by a uniform angle in [-10, 10] degrees and flipped with probability 0.5.

    Args:
        images: the batch; not changed.
        labels: 1, 0 or NaN; not changed.
        findings: names of the label columns; those ending in `_right` and `_left` change places when their
            image is flipped.
        rng: the only source of randomness: the same generator state gives the same result.

    Returns:
        New images, black where the rotation uncovers a corner, and their labels.

    Raises:
        ValueError: a sided finding is present without its other side.
    """
    mirror = list(mirror_permutation(findings))
    degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES, size=len(images))
    flipped = rng.random(len(images)) < FLIP_PROBABILITY
    turned = np.empty_like(images)
    for place, (image, angle) in enumerate(zip(images, degrees, strict=True)):
        turned[place] = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=0)
    turned[flipped] = turned[flipped, :, ::-1]
    swapped = labels.copy()
    swapped[flipped] = labels[flipped][:, mirror]
    return turned, swapped
