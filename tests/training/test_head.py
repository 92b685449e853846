"""What the steps of a head on kept features release, and how they move it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.directions import Directions, directions_of
from jaxcxr.training.head import HeadGradients, in_features, rows_of
from jaxcxr.training.least_squares import LeastSquares
from jaxcxr.training.objective import curvature

FEATURES, K, FINDINGS, UNITS = 12, 5, 3, 40
WEIGHTS = np.asarray([1.0, 2.0, 6.0], np.float32)
CLIP = 0.2


@pytest.fixture(scope="module")
def directions() -> Directions:
    rng = np.random.default_rng(0)
    return directions_of(rng.normal(3, 1, (60, FEATURES)) * np.linspace(0.2, 2, FEATURES), K)


@pytest.fixture(scope="module")
def start() -> Any:
    rng = np.random.default_rng(1)
    head = {"kernel": 0.1 * rng.normal(size=(FEATURES, FINDINGS)), "bias": rng.normal(size=FINDINGS)}
    return {"params": {"head": {name: jnp.asarray(value, jnp.float32) for name, value in head.items()}}}


@pytest.fixture(scope="module")
def cohort() -> tuple[np.ndarray, np.ndarray]:
    """Features of two images for each unit, and labels, a tenth of which are unknown."""
    rng = np.random.default_rng(2)
    features = rng.normal(3, 1, (UNITS, 2, FEATURES)) * np.linspace(0.2, 2, FEATURES)
    labels = rng.integers(0, 2, (UNITS, 2, FINDINGS)).astype(np.float32)
    labels[rng.uniform(size=labels.shape) < 0.1] = np.nan
    return features.astype(np.float32), labels


def batch_of(directions: Directions, features: np.ndarray, labels: np.ndarray, films: int) -> dict[str, Any]:
    """The first `films` of each unit's images; every fourth unit has one alone."""
    rows = rows_of(directions, features[:, :films].reshape(-1, FEATURES))
    is_image = np.ones((len(features), films), bool)
    is_image[::4, 1:] = False
    return {
        "image": jnp.asarray(rows.reshape(len(features), films, -1)),
        "label": labels[:, :films],
        "is_image": is_image,
        "is_real": np.ones(len(features), bool),
    }


def private(n: int = UNITS, clip: float = CLIP, **fields: Any) -> Mechanism:
    return Mechanism(n, n, clip, 1.0, 1.0, 1e-5, **fields)


def contributions(directions: Directions, start: Any, batch: dict[str, Any]) -> np.ndarray:
    """Of each unit, before clipping, in float64."""
    d = {name: np.asarray(leaf, float) for name, leaf in start["params"]["head"].items()}
    rows, y = np.asarray(batch["image"], float), batch["label"]
    p = expit(rows[..., :FEATURES] @ d["kernel"] + d["bias"])
    slopes = np.where(np.isnan(y), 0.0, np.where(y == 1, -WEIGHTS * (1 - p), p)) / FINDINGS
    each = np.einsum("nfk,nfe->nfke", rows[..., FEATURES:], slopes) * batch["is_image"][..., None, None]
    return each.sum(axis=1) / batch["is_image"].sum(axis=1)[:, None, None]


def total_of(gradients: HeadGradients, start: Any, batch: dict[str, Any]) -> np.ndarray:
    total, _ = jax.jit(gradients.summed)(start, batch)
    if gradients.mechanism is None:
        return np.asarray(total["coordinates"])
    return np.asarray(exact_sum.value(total, gradients.mechanism.step_size(total.high))["coordinates"])


@pytest.mark.parametrize("films", [1, 2])
@pytest.mark.parametrize("method", ["layerwise", "vmap"])
def test_the_sum_is_that_of_units_clipped_with_their_intercept(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray], films: int, method: Any
) -> None:
    batch = batch_of(directions, *cohort, films)
    each = contributions(directions, start, batch)
    norms = np.sqrt(np.square(each).sum(axis=(1, 2)))
    assert np.sqrt(np.square(each[:, :-1]).sum(axis=(1, 2))).min() < CLIP < norms.max()
    expected = (each * np.minimum(1, CLIP / norms)[:, None, None]).sum(axis=0)
    gradients = HeadGradients(directions, WEIGHTS, private(method=method))
    np.testing.assert_allclose(total_of(gradients, start, batch), expected, rtol=1e-3, atol=1e-4)
    plain = total_of(HeadGradients(directions, WEIGHTS), start, batch)
    np.testing.assert_allclose(plain, each.sum(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", ["gaussian", "discrete"])
@pytest.mark.parametrize("films", [1, 2])
def test_one_unit_moves_the_sum_by_the_clip_norm_at_most(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray], noise: str, films: int
) -> None:
    """Of units as bad as they come: one with features a thousand times as long, and one with none but the
    intercept.
    """
    coordinates = (K + 1) * FINDINGS if noise == "discrete" else None
    gradients = HeadGradients(directions, WEIGHTS, private(discrete_coordinates=coordinates))
    features, labels = cohort[0].copy(), cohort[1]
    features[0] = 3000 * features[0]
    features[1] = directions.centre
    batch = batch_of(directions, features, labels, films)
    whole, allowed = total_of(gradients, start, batch), 0.0
    if gradients.mechanism is not None and gradients.mechanism.grid is not None:
        allowed = gradients.mechanism.grid.step * np.sqrt((K + 1) * FINDINGS) / 2
    moved = []
    for unit in range(4):
        without = {**batch, "is_real": np.arange(UNITS) != unit}
        moved.append(float(np.linalg.norm(whole - total_of(gradients, start, without))))
    assert max(moved) <= CLIP + allowed + 1e-6
    assert moved[0] > 0.9 * CLIP  # a bound that nobody reaches would be no test


def test_a_step_moves_logits_by_coordinates_and_by_nothing_else(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray]
) -> None:
    moved = np.random.default_rng(3).normal(size=(K + 1, FINDINGS)).astype(np.float32)
    change = jax.tree.map(np.asarray, in_features(directions, jnp.asarray(moved)))["params"]["head"]
    features = cohort[0][:, 0]
    x = directions.coordinates(features)
    np.testing.assert_allclose(features @ change["kernel"] + change["bias"], x @ moved, rtol=1e-3, atol=1e-3)


def test_a_learning_rate_of_one_is_newtons_along_the_steepest_direction(
    directions: Directions, start: Any
) -> None:
    gradients = HeadGradients(directions, WEIGHTS)
    released = {"coordinates": jnp.ones((K + 1, FINDINGS))}
    found = gradients.direction(start, released)
    steepest = np.max(np.square(directions.spread)) * curvature(WEIGHTS) / FINDINGS
    wanted = in_features(directions, jnp.ones((K + 1, FINDINGS)) / steepest)
    for u, v in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-5)


def test_descent_ends_at_the_best_head_of_these_directions(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray]
) -> None:
    """Without noise, and with weights of 1: no gradient is left in any direction."""
    gradients = HeadGradients(directions, np.ones(FINDINGS, np.float32))
    batch = batch_of(directions, *cohort, 1)

    @jax.jit
    def step(params: Any) -> Any:
        total, _ = gradients.summed(params, batch)
        change = gradients.direction(params, jax.tree.map(lambda leaf: leaf / UNITS, total))
        return jax.tree.map(lambda p, g: p - g, params, change)

    params = start
    first = np.abs(total_of(gradients, params, batch)).max()
    for _ in range(2000):
        params = step(params)
    assert np.abs(total_of(gradients, params, batch)).max() < 0.01 * first


def test_least_squares_takes_the_same_rows(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray]
) -> None:
    """Without noise its step is Newton's in the coordinates, and needs no network."""
    squares = LeastSquares(ResNet9(FINDINGS), WEIGHTS, (4, 4), directions=directions)
    batch = batch_of(directions, *cohort, 1)
    total, _ = jax.jit(squares.summed)(start, batch)
    found = squares.direction(start, jax.tree.map(lambda leaf: leaf / UNITS, total))
    x = np.asarray(batch["image"][:, 0, FEATURES:], float)
    products = -FINDINGS * contributions(directions, start, batch).sum(axis=0)
    step = np.linalg.solve(x.T @ x, products) / curvature(WEIGHTS)
    wanted = in_features(directions, jnp.asarray(-step, jnp.float32))
    for u, v in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(u, v, rtol=2e-2, atol=2e-2 * np.abs(np.asarray(v)).max())


def test_directions_are_public_constants_of_the_release(
    directions: Directions, start: Any, cohort: tuple[np.ndarray, np.ndarray]
) -> None:
    """The sums of two halves of a cohort add up: nothing is estimated from the batch."""
    gradients = HeadGradients(directions, WEIGHTS, private())
    batch = batch_of(directions, *cohort, 1)
    halves = [
        total_of(gradients, start, {**batch, "is_real": np.arange(UNITS) % 2 == half}) for half in (0, 1)
    ]
    np.testing.assert_allclose(sum(halves), total_of(gradients, start, batch), atol=1e-5)
    assert dataclasses.fields(gradients)[0].name == "directions"
