"""The directions in which a head moves: centre, projection and scale of features, by public images alone.

A head for d features has d + 1 parameters per finding, and each gets its noise. So it moves along k + 1
directions only, which public images say: with mean c and covariance U L U^T of their features, an image with
features f has the coordinates

    x = (U_k^T (f - c) L_k^(-WHITENING / 2), 1) / length,

U_k being the k directions in which public images differ most. `length` makes the mean squared length of the
public images' x 1. The last coordinate stands for the intercept, and enters the clipped length like any
other. At WHITENING 1 all directions would count alike (whitened), at 0 as much as public images differ in
them; half of it is a compromise: directions in which features vary little carry signal, too, but noise of
public sampling as well.

Guarantee: nothing here is computed from private images. `require_apart` refuses public images that are in
the private store, and directions enter a run by their digest, which its noise is bound to.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.training.trained_on import images_of

WHITENING = 0.5
FACTOR, POWER, UNITS_PER_DIRECTION = 2.8, 0.4, 6
LEAST, MOST = 8, 512
"""Of `number_of_directions`; docs/recipes.md has the study that they come from."""
_NEGLIGIBLE = 1e-6
"""Of the largest variance: directions with less are rounding, and get no coordinate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """The map between features and coordinates.

    Attributes:
        centre: c.
        axes: columns of U_k L_k^(-WHITENING / 2) / length; zero where public images do not differ.
        constant: the last coordinate.
        spread: root mean square of each coordinate over public images; the largest bounds the curvature.
    """

    centre: Float32[np.ndarray, "features"]
    axes: Float32[np.ndarray, "features k"]
    constant: float
    spread: Float32[np.ndarray, "coordinates"]

    def coordinates(self, features: Float[np.ndarray, "n features"]) -> Float32[np.ndarray, "n coordinates"]:
        """Of images with these features."""
        x = (np.asarray(features, np.float32) - self.centre) @ self.axes
        return np.concatenate([x, np.full((len(x), 1), self.constant, np.float32)], axis=1)

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers."""
        parts = (self.centre, self.axes, np.float32(self.constant), self.spread)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def number_of_directions(
    n_units: int,
    epsilon: float | None,
    findings: int,
    features: int,
    public_images: int,
    units_per_direction: int = UNITS_PER_DIRECTION,
) -> int:
    """How many directions a head moves in, from public numbers alone: `FACTOR` (N epsilon /
    sqrt(findings)) ^ `POWER`, but at most one for `units_per_direction` units, which is all that is asked of
    a run without privacy.

    Args:
        n_units: declared N.
        epsilon: of the budget; None without privacy.
        findings: number of them, which share a release.
        features: number of the network's.
        public_images: how many there are.
        units_per_direction: at least.
    """
    wanted = n_units / units_per_direction
    if epsilon is not None:
        wanted = min(wanted, FACTOR * (n_units * epsilon / math.sqrt(findings)) ** POWER)
    return max(1, min(MOST, features, public_images - 1, max(LEAST, round(wanted))))


def directions_of(public: Float[np.ndarray, "n features"], k: int, parts: Sequence[int] = ()) -> Directions:
    """k directions by the features of public images.

    Args:
        public: features.
        k: how many.
        parts: how many of the features belong to each part that a head sees (`Network.seen_parts`), where
            there are several, which have other scales: public images are made to differ as much in each.

    Raises:
        InputError: there are not more public images than directions.
    """
    n, d = public.shape
    if not 1 <= k < min(n, d + 1):
        raise InputError(
            f"head.directions: expected 1 to {min(n - 1, d)} for {n} public images with {d} features, found "
            f"{k}"
        )
    public = np.asarray(public, np.float64)
    centre = public.mean(axis=0)
    units = _units(public - centre, parts)
    _, singular, rows = np.linalg.svd((public - centre) / units, full_matrices=False)
    variance = np.square(singular[:k]) / n
    differs = variance > _NEGLIGIBLE * variance[0]
    scale = np.where(differs, np.where(differs, variance, 1.0) ** (-WHITENING / 2), 0.0)
    spread = np.sqrt(variance) * scale
    # the intercept counts like one direction more
    constant = math.sqrt(float(np.mean(np.square(spread))))
    length = math.sqrt(float(np.sum(np.square(spread))) + constant**2)
    return Directions(
        centre.astype(np.float32),
        (rows[:k].T * scale / length / units[:, None]).astype(np.float32),
        constant / length,
        (np.append(spread, constant) / length).astype(np.float32),
    )


def _units(
    deviations: Float[np.ndarray, "n features"], parts: Sequence[int]
) -> Float[np.ndarray, "features"]:
    """What each feature is divided by: 1 for a single part, else the root of the variance of its part."""
    if len(parts) < 2:
        return np.ones(deviations.shape[1])
    variance = np.split(np.square(deviations).mean(axis=0), np.cumsum(parts)[:-1])
    return np.repeat([math.sqrt(float(part.sum())) or 1.0 for part in variance], parts)


def require_apart(public: Store, private: Store, ids_unrelated: bool) -> None:
    """Refuse public images that are in the private store.

    Args:
        public: store of the images that choose the directions.
        private: store of the images that are to be protected.
        ids_unrelated: whether equal ids in both are declared to be different images and people.

    Raises:
        InputError: they share an image, by its pixels or id, or a patient's id.
    """
    if public.fingerprint == private.fingerprint:
        raise InputError(
            f"head.public {public.path}: is the private store itself; its images would choose the directions "
            "outside of the budget; expected a store of public images, or null"
        )
    shared = {"pixels": 0, "image_id": 0, "patient_id": 0}
    mine, theirs = (
        [images_of(store, name) for name in ("train", "valid", "test")] for store in (private, public)
    )
    for what, kind in (("pixels", "pixels"), ("image_id", "image_ids"), ("patient_id", "patient_ids")):
        if what == "pixels" or not ids_unrelated:
            here, there = (
                {text for part in parts for text in getattr(part, kind)} for parts in (mine, theirs)
            )
            shared[what] = len(here & there)
    if any(shared.values()):
        told = ", ".join(f"{count:,} with the same {what}" for what, count in shared.items() if count)
        declared = (
            ""
            if shared["pixels"]
            else ("; if equal ids are different images and people, set model.weights_ids_unrelated to true")
        )
        raise InputError(
            f"head.public {public.path}: shares images or patients with {private.path} ({told}); the "
            "directions would be chosen by private images, outside of the budget; expected other images"
            f"{declared}"
        )
