"""Second moments of features and residuals, clipped unit by unit and summed: what one step of noisy least squares releases.

A unit whose films have features x (d numbers) and residuals r (one a finding) contributes one vector v, the upper triangle of
the mean of x x^T over its films, off-diagonals times sqrt(2), followed by the mean of x r^T. The triangle so scaled is as long
as the whole symmetric matrix, and the matrix that is put together from it again has half the noise variance off its diagonal.

Guarantee: the summed contribution is `is_real * min(1, C / |v|) * v`, of L2 norm at most C, so that adding or removing one
unit moves the sum by at most C, whatever its films. The features must be those of a network that is fixed: public weights, or
released ones. Nothing is divided here.

The two parts share one factor. What is solved for with them is therefore an ordinary least-squares problem in which a clipped
unit counts less, and not one in which features and residuals belong to different films.

A contribution that is not finite is not hidden (`gradients`). Norms and sums are float32 at full precision.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxcxr.privacy.gradients import GRAM_ALLOWANCE, Scalar, clip_factors


class Moments(NamedTuple):
    """Of one unit, or summed, or released.

    Attributes:
        features: scaled upper triangle of the second moments of the features (`upper_triangle`).
        residuals: features times residuals, a column a finding.
    """

    features: Float[Array, "triangle"]
    residuals: Float[Array, "d findings"]


def upper_triangle(matrix: Float[Array, "d d"]) -> Float[Array, "triangle"]:
    """The upper triangle of a symmetric matrix, row by row, off-diagonals times sqrt(2): as long as the matrix."""
    rows, columns = np.triu_indices(matrix.shape[0])
    return matrix[rows, columns] * _scale(rows, columns)


def symmetric(triangle: Float[Array, "triangle"], d: int) -> Float[Array, "d d"]:
    """Inverse of `upper_triangle`."""
    rows, columns = np.triu_indices(d)
    half = jnp.zeros((d, d), triangle.dtype).at[rows, columns].set(triangle / _scale(rows, columns))
    return half + jnp.triu(half, 1).T


def _scale(rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "triangle"]:
    return np.where(rows == columns, 1.0, math.sqrt(2.0)).astype(np.float32)


def clipped_moment_sum(
    features: Float[Array, "n films d"],
    residuals: Float[Array, "n films findings"],
    is_film: Bool[Array, "n films"],
    is_real: Bool[Array, "n"],
    l2_clip_norm: Scalar | None,
    *,
    stability: Scalar | None = None,
) -> tuple[Moments, Float[Array, "n"]]:
    """The sum over a microbatch of n units.

    Args:
        features: of each film; whatever stands where there is none counts for nothing.
        residuals: of each film and finding.
        is_film: False where a unit has fewer films than the others.
        is_real: False for padding, which contributes exactly zero.
        l2_clip_norm: C; None sums without clipping, for training without privacy.
        stability: gamma of automatic clipping (`gradients.clip_factors`); None clips without.

    Returns:
        The sum, and the n norms before clipping (private; for the operator's eyes).
    """
    counted = is_film & is_real[:, None]
    # One rounding for norm and sum alike, as in `gradients`.
    x, r = jax.lax.optimization_barrier(tuple(jnp.where(counted[..., None], v, 0.0) for v in (features, residuals)))
    films = jnp.maximum(jnp.sum(counted, axis=1), 1).astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        squared = _squared_norms(x, r) / jnp.square(films)
        if l2_clip_norm is None:
            factors = is_real.astype(jnp.float32)
        else:
            factors = clip_factors(squared, is_real, l2_clip_norm, stability)
        flat, scaled = x.reshape(-1, x.shape[-1]), (x * (factors / films)[:, None, None]).reshape(-1, x.shape[-1])
        return Moments(upper_triangle(scaled.T @ flat), scaled.T @ r.reshape(-1, r.shape[-1])), jnp.sqrt(squared)


def _squared_norms(x: Float[Array, "n films d"], r: Float[Array, "n films findings"]) -> Float[Array, "n"]:
    """Of the unit's sums over films, |sum x x^T|^2 + |sum x r^T|^2, by inner products of its films: no matrix of a unit is
    held. The allowance is for products of both signs that cancel, as in `gradients`.
    """
    of_features = jnp.einsum("nid,njd->nij", x, x)
    products = of_features * (of_features + jnp.einsum("nif,njf->nij", r, r))
    return jnp.sum(products + GRAM_ALLOWANCE * jnp.abs(products), axis=(1, 2))
