"""Second moments of features and residuals, clipped unit by unit and summed: what one step of noisy least
squares releases.

A unit whose images have features x (d numbers) and residuals r (one per finding) contributes one vector v:
the mean over its images of x x^T (its upper triangle, off-diagonals times sqrt(2), so that it is as long as
the whole symmetric matrix) and of x r^T. It is scaled to length C at most. Sums are kept without the factor
sqrt(2); the noise of off-diagonals is divided by it instead, which is the same release, and makes every sum a
sum of whole numbers.

Guarantee (a theorem, on any hardware): the features must be those of a network that is fixed, and each
image's features and residuals a function of that image alone; units have places of their own for that, as in
`hardened_sum`. `clipped_steps` scales and rounds them to whole numbers y (at most 2^11) and z (at most 2^15),
unit by unit: v is then a vector of whole numbers. Its length is computed from them, with a bound on the
rounding of that computation; a unit for which rounding carried it above C / step contributes nothing. One
unit more or less therefore moves the sum by its own v, of length C at most, and by nothing else: y and z are
split into pieces of at most 2^5, so that every partial sum of every matrix product is a whole number below
2^24, exact in float32 in any order, and pieces are joined, and microbatches added, as integers (`exact_sum`).

The two parts share one factor. What is solved for with them is therefore an ordinary least-squares problem in
which a clipped unit counts less, and not one in which features and residuals belong to different images.
Rounding a unit's features changes its own part by some thousandths, at random; beside the noise, and over
many units, that is nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PyTree, UInt32

from jaxcxr.privacy import noise, rounded_noise
from jaxcxr.privacy.clipping import clip_factors

MOST_BITS = 21
"""The clip norm is between 2^21 and 2^22 steps, fewer where the noise would not fit into 32 bits."""
MOST_UNITS, MOST_IMAGES = 256, 8192
"""In a microbatch: beyond, 32-bit integers or float32's 24 bits might not hold the products."""
MOST_FINDINGS = 500
ROUNDINGS = 5e-7
"""Added to a squared norm, in parts of its terms' absolute sum: four float32 roundings."""
_PIECE_BITS = 6
_FEATURE_BITS, _RESIDUAL_BITS = 11, 15


class Moments(NamedTuple):
    """Of one unit, or summed, or released.

    Attributes:
        features: upper triangle of the second moments of the features, row by row.
        residuals: features times residuals, one column per finding.
    """

    features: Any
    residuals: Any


def upper_triangle(matrix: Array) -> Array:
    """The upper triangle of a symmetric matrix [d, d], row by row."""
    return matrix[np.triu_indices(matrix.shape[0])]


def step_for(l2_clip_norm: float, noise_multiplier: float | None) -> float:
    """In which moments are counted, a power of two; `noise_multiplier` of discrete noise, else None."""
    if noise_multiplier is not None:
        return rounded_noise.grid_for(l2_clip_norm, noise_multiplier, 0, MOST_BITS).step
    return 2.0 ** (math.floor(math.log2(l2_clip_norm)) - MOST_BITS)


def clipped_steps(
    features: Float[Array, "n images d"],
    residuals: Float[Array, "n images findings"],
    is_image: Bool[Array, "n images"],
    is_real: Bool[Array, "n"],
    l2_clip_norm: float,
    step: float,
    *,
    stability: float | None = None,
) -> tuple[Moments, Float[Array, "n"]]:
    """The clipped sum over a microbatch of n units, in whole steps.

    Args:
        features: of each image; whatever stands where there is none counts for nothing.
        residuals: of each image and finding.
        is_image: False where a unit has fewer images than the others.
        is_real: False for padding, which contributes exactly zero.
        l2_clip_norm: C.
        step: of the sum (`step_for`).
        stability: gamma of automatic clipping (`clipping.clip_factors`); None clips without.

    Returns:
        The sum in steps (int32), and the n norms before clipping and rounding (private; for the operator's
        eyes); a unit whose norm is not finite contributes nothing, and the caller stops the run.

    Raises:
        ValueError: there are more units, images or findings than the theorem allows.
    """
    if len(is_real) > MOST_UNITS or is_image.size > MOST_IMAGES or residuals.shape[-1] > MOST_FINDINGS:
        raise ValueError(
            f"moments: expected at most {MOST_UNITS} units, {MOST_IMAGES} images and {MOST_FINDINGS} "
            f"findings, found {(*is_image.shape, residuals.shape[-1])}"
        )
    x, r, images = _counted(features, residuals, is_image, is_real)
    largest = l2_clip_norm / step
    with jax.default_matmul_precision("highest"):
        norms = jnp.sqrt(_squared_norms(x, r)) / images
        # Rounding moves a unit's norm by about largest^(-1/2) / 2 of it; seven times that are kept free.
        factors = clip_factors(jnp.square(norms), l2_clip_norm * (1 - 4 / math.sqrt(largest)), stability)
        usable = jnp.isfinite(norms) & is_real
        scale = jnp.where(usable, jnp.sqrt(factors / (images * step)), 0.0)[:, None, None]
        y, z = (
            jnp.clip(jnp.rint(jnp.where(usable[:, None, None], v, 0.0) * scale), -(2.0**bits), 2.0**bits)
            for v, bits in ((x, _FEATURE_BITS), (r, _RESIDUAL_BITS))
        )
        kept = _is_at_most(largest, y, z)[:, None, None]
        y, z = (jnp.where(kept, v, 0.0).reshape(-1, v.shape[-1]) for v in (y, z))
        return Moments(upper_triangle(_product(y, y, 2)), _product(y, z, 3)), norms


def _is_at_most(
    largest: float, y: Float[Array, "n images d"], z: Float[Array, "n images findings"]
) -> Bool[Array, "n"]:
    """Whether a unit's v is no longer than `largest` (at most 2^22), as a theorem.

    The squared length is the sum over pairs i, j of images of p (p + q), with inner products p = y_i . y_j
    and q = z_i . z_j. No p is rounded where no image's own is above 2^23, which is asked first, with an error
    of far less than one half: all partial sums are whole numbers below 2^24. A q of F findings is off by at
    most F 2^-24 |z_i| |z_j|, and the sum of the k^2 terms by (k^2 + 8) 2^-24 of the sum of the terms'
    absolute values, the conversions included.
    """
    own = jnp.sum(jnp.square(y), axis=2)
    of_features = jnp.einsum("nid,njd->nij", y, y)
    of_residuals = jnp.einsum("nif,njf->nij", z, z)
    lengths = jnp.sqrt(jnp.sum(jnp.square(z), axis=2)) * (1 + 1e-4)
    absolute = jnp.abs(of_features) * (jnp.abs(of_features) + lengths[:, :, None] * lengths[:, None, :])
    allowance = (z.shape[2] + y.shape[1] ** 2 + 16) * 2.0**-24
    terms = of_features * (of_features + of_residuals)
    squared = jnp.sum(terms, axis=(1, 2)) + allowance * jnp.sum(absolute, axis=(1, 2))
    return (jnp.max(own, axis=1) <= 2.0**23) & (squared <= largest**2)


def _product(y: Float[Array, "n d"], other: Float[Array, "n e"], pieces: int) -> Int32[Array, "d e"]:
    """y^T other of whole numbers, exact: by pieces (`pieces` of `other`), whose products and their sums over
    images stay below 2^24. They are joined modulo 2^32; the result itself is below 2^31.
    """
    total = jnp.zeros((y.shape[1], other.shape[1]), jnp.int32)
    for i, piece in enumerate(_pieces(y, 2)):
        for j, others_piece in enumerate(_pieces(other, pieces)):
            total += (piece.T @ others_piece).astype(jnp.int32) << (i + j) * _PIECE_BITS
    return total


def _pieces(v: Float[Array, "..."], count: int) -> list[Float[Array, "..."]]:
    """v = sum of piece_i 2^(i PIECE_BITS), each at most 2^5 if v is at most 2^(count PIECE_BITS - 1)."""
    found = []
    for _ in range(count - 1):
        higher = jnp.rint(v * 2.0**-_PIECE_BITS)
        found.append(v - higher * 2.0**_PIECE_BITS)
        v = higher
    return [*found, v]


def _counted(
    features: Float[Array, "n images d"],
    residuals: Float[Array, "n images findings"],
    is_image: Bool[Array, "n images"],
    is_real: Bool[Array, "n"],
) -> tuple[Array, Array, Float[Array, "n"]]:
    """Features and residuals, zero where there is no image, and each unit's number of images (at least 1)."""
    counted = is_image & is_real[:, None]
    # One rounding for norm and sum alike, as in `gradients`.
    x, r = jax.lax.optimization_barrier(
        tuple(jnp.where(counted[..., None], v, 0.0) for v in (features, residuals))
    )
    return x, r, jnp.maximum(jnp.sum(counted, axis=1), 1).astype(jnp.float32)


def _squared_norms(x: Float[Array, "n images d"], r: Float[Array, "n images findings"]) -> Float[Array, "n"]:
    """Of the unit's sums over images, |sum x x^T|^2 + |sum x r^T|^2, by inner products of its images: no
    matrix of a unit is held. The allowance is for products of both signs that cancel.
    """
    of_features = jnp.einsum("nid,njd->nij", x, x)
    products = of_features * (of_features + jnp.einsum("nif,njf->nij", r, r))
    return jnp.sum(products + ROUNDINGS * jnp.abs(products), axis=(1, 2))


def halved_off_diagonal(drawn: Moments) -> Moments:
    """Independent noise of one deviation, with half the variance where an entry stands for two."""
    off = _off_diagonal(drawn)
    return Moments(jnp.where(off, drawn.features * math.sqrt(0.5), drawn.features), drawn.residuals)


def discrete_noise(
    key: UInt32[np.ndarray, "4"], like: PyTree, l2_clip_norm: float, noise_multiplier: float
) -> Moments:
    """Noise in whole steps for moments in the shapes of `like`; to be drawn once from a key."""
    grid = rounded_noise.grid_for(l2_clip_norm, noise_multiplier, 0, MOST_BITS)
    off = _off_diagonal(like)
    parts = [
        (grid.deviation, like.residuals.size),
        (grid.deviation, int((~off).sum())),
        (math.ceil(grid.deviation * math.sqrt(0.5)), int(off.sum())),
    ]
    keys = [noise.derive_key(key.tobytes(), "part of moments", part) for part in range(len(parts))]
    draws = [rounded_noise.rounded_gaussian(own, *part) for own, part in zip(keys, parts, strict=True)]
    features = np.empty(off.shape, np.int32)
    features[~off], features[off] = draws[1], draws[2]
    return Moments(features, draws[0].reshape(like.residuals.shape))


def _off_diagonal(like: Moments) -> Bool[np.ndarray, "triangle"]:
    """Which entries of the triangle stand for two of the matrix."""
    rows, columns = np.triu_indices(like.residuals.shape[0])
    return rows != columns
