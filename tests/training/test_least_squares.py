from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy.optimize import minimize
from scipy.special import expit

from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.moments import Moments, upper_triangle
from jaxcxr.training.least_squares import (
    CONSTANT,
    FEATURE_SCALE,
    RIDGE,
    LeastSquares,
    curvature,
    empty_moments,
    symmetric,
)
from jaxcxr.training.step import make_step

SIDE, FEATURES, FINDINGS = 4, 4, 3
SHAPE = (SIDE, SIDE)
WEIGHTS = np.asarray([1.0, 6.0, 12.0], np.float32)
EVEN = np.ones(FINDINGS, np.float32)


class Quarters(ResNet9):
    """The mean grey value of each quarter of an image, and a head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """Logits of one image."""
        quarters = image.astype(jnp.float32).reshape(2, SIDE // 2, 2, SIDE // 2).mean(axis=(1, 3))
        return nn.Dense(self.n_findings, name="head")(quarters.reshape(-1) / 64.0)


def quarters(images: np.ndarray) -> np.ndarray:
    return (
        images.astype(float).reshape(-1, 2, SIDE // 2, 2, SIDE // 2).mean(axis=(2, 4)).reshape(-1, FEATURES)
        / 64
    )


MODEL = Quarters(FINDINGS)
CENTRE = quarters(np.random.default_rng(0).integers(0, 256, (8, *SHAPE)).astype(np.uint8)).mean(axis=0)
SCALE = FEATURE_SCALE / np.linalg.norm(CENTRE)


def scaled(images: np.ndarray) -> np.ndarray:
    """Features as they enter the moments."""
    return np.concatenate([(quarters(images) - CENTRE) * SCALE, np.full((len(images), 1), CONSTANT)], axis=1)


@pytest.fixture(scope="module")
def cohort() -> tuple[np.ndarray, np.ndarray]:
    """Images whose quarters say something about their labels, a tenth of which are unknown."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (400, *SHAPE)).astype(np.uint8)
    chance = expit(3 * (quarters(images)[:, :FINDINGS] - 2) - np.asarray([0.0, 1.5, 2.5]))
    labels = (rng.uniform(size=chance.shape) < chance).astype(np.float32)
    labels[rng.uniform(size=labels.shape) < 0.1] = np.nan
    return images, labels


@pytest.fixture(scope="module")
def start() -> Any:
    rng = np.random.default_rng(2)
    head = {"kernel": rng.normal(size=(FEATURES, FINDINGS)), "bias": rng.normal(size=FINDINGS)}
    return {"params": {"head": {name: jnp.asarray(value, jnp.float32) for name, value in head.items()}}}


def batch_of(images: np.ndarray, labels: np.ndarray, per_unit: int = 1) -> dict[str, Any]:
    units = len(images) // per_unit
    return {
        "image": jnp.asarray(images.reshape(units, per_unit, *SHAPE)),
        "label": jnp.asarray(labels.reshape(units, per_unit, FINDINGS)),
        "is_image": jnp.ones((units, per_unit), bool),
        "is_real": jnp.ones(units, bool),
    }


def private(clip: float = 1.5, sigma: float = 1.0, n: int = 400) -> Mechanism:
    return Mechanism(n, n, clip, sigma, 1.0, 1e-5)


def residuals(params: Any, images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w (1 - p) of a positive label, -p of a negative one, 0 of an unknown one."""
    head = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["params"]["head"])
    p = expit(quarters(images) @ head["kernel"] + head["bias"])
    return np.where(np.isnan(labels), 0.0, np.where(labels == 1, weights * (1 - p), -p))


def loss_of(head: np.ndarray, images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean weighted cross-entropy of a head (a row a feature, the last one the bias)."""
    logits = quarters(images) @ head[:-1] + head[-1]
    terms = np.where(labels == 1, weights * np.logaddexp(0, -logits), np.logaddexp(0, logits))
    return float(np.where(np.isnan(labels), 0.0, terms).sum() / labels.size)


def as_rows(params: Any) -> np.ndarray:
    head = params["params"]["head"]
    return np.concatenate([np.asarray(head["kernel"], float), np.asarray(head["bias"], float)[None]])


@pytest.mark.parametrize("per_unit", [1, 2])
@pytest.mark.parametrize(("clip", "gamma"), [(0.6, None), (0.6, 0.5), (None, None)])
def test_the_sum_is_that_of_features_and_weighted_residuals(
    cohort: Any, start: Any, per_unit: int, clip: float | None, gamma: float | None
) -> None:
    images, labels = cohort[0][:8], cohort[1][:8]
    assert np.isnan(labels).any()
    squares = LeastSquares(MODEL, WEIGHTS, SHAPE, None if clip is None else private(clip), stability=gamma)
    total, log = jax.jit(squares.summed)(start, batch_of(images, labels, per_unit))
    if clip is not None:  # in whole steps
        total = exact_sum.value(total, private(clip).step_size(total.high))
    x, r = scaled(images), residuals(start, images, labels, WEIGHTS)
    a, b, norms = np.zeros((FEATURES + 1,) * 2), np.zeros((FEATURES + 1, FINDINGS)), []
    for first in range(0, 8, per_unit):
        own = slice(first, first + per_unit)
        own_a, own_b = x[own].T @ x[own] / per_unit, x[own].T @ r[own] / per_unit
        norms.append(np.sqrt(np.sum(own_a**2) + np.sum(own_b**2)))
        factor = (
            1 if clip is None else min(1, clip / norms[-1]) if gamma is None else clip / (norms[-1] + gamma)
        )
        a, b = a + factor * own_a, b + factor * own_b
    assert min(norms) < 0.6 < max(norms)
    rounding = 1e-4 if clip is None else 0.01 * clip
    np.testing.assert_allclose(symmetric(total.features, FEATURES + 1), a, rtol=1e-3, atol=rounding)
    np.testing.assert_allclose(total.residuals, b, rtol=1e-3, atol=rounding)
    assert log["loss"] == pytest.approx(
        loss_of(as_rows(start), images, labels, WEIGHTS) * 8 / per_unit, rel=1e-4
    )
    if clip is not None:
        assert log["norm"] == pytest.approx(sum(norms), rel=1e-3)
        assert log["clipped"] == sum(norm > clip for norm in norms)
    assert jax.tree.map(jnp.shape, empty_moments(start)) == jax.tree.map(jnp.shape, total)


def test_without_noise_the_step_is_newtons_in_plain_features(cohort: Any, start: Any) -> None:
    """Centre and scale leave no trace: the step is that of the kernel and the bias themselves, each finding by its curvature."""
    images, labels = cohort
    squares = LeastSquares(MODEL, WEIGHTS, SHAPE)
    total, _ = jax.jit(squares.summed)(start, batch_of(images, labels))
    direction = jax.jit(squares.direction)(start, jax.tree.map(lambda leaf: leaf / 400, total))
    x = np.concatenate([quarters(images), np.ones((400, 1))], axis=1)
    expected = np.linalg.solve(x.T @ x, x.T @ residuals(start, images, labels, WEIGHTS)) / curvature(WEIGHTS)
    np.testing.assert_allclose(-as_rows(direction), expected, rtol=2e-2, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("weights", "rate", "steps"), [(EVEN, 1.0, 60), (WEIGHTS, 0.2, 300)])
def test_steps_never_raise_the_loss_and_end_at_the_optimum(
    cohort: Any, start: Any, weights: np.ndarray, rate: float, steps: int
) -> None:
    """With a rate at which no curvature is larger than the bound for any head, max(w, 1) / 4."""
    assert (curvature(weights) / rate >= np.maximum(weights, 1) / 4 - 1e-6).all()
    images, labels = cohort
    squares, batch = LeastSquares(MODEL, weights, SHAPE), batch_of(*cohort)

    @jax.jit
    def step(params: Any) -> Any:
        total, _ = squares.summed(params, batch)
        direction = squares.direction(params, jax.tree.map(lambda leaf: leaf / 400, total))
        return jax.tree.map(lambda p, g: p - rate * g, params, direction)

    params, losses = start, [loss_of(as_rows(start), images, labels, weights)]
    for _ in range(steps):
        params = step(params)
        losses.append(loss_of(as_rows(params), images, labels, weights))
    assert losses[1] < losses[0] - 1e-3
    assert (np.diff(losses) < 1e-6).all()
    shape = (FEATURES + 1, FINDINGS)
    best = minimize(
        lambda flat: loss_of(flat.reshape(shape), images, labels, weights),
        as_rows(start).ravel(),
        method="BFGS",
    )
    assert losses[-1] == pytest.approx(best.fun, abs=2e-5)
    np.testing.assert_allclose(as_rows(params), best.x.reshape(shape), atol=0.1)


def test_curvature_bounds_what_is_expected_of_a_calibrated_head() -> None:
    q = np.linspace(1e-4, 1 - 1e-4, 20_001)[:, None]
    weights = np.asarray([0.3, 1.0, 4.0, 12.0], np.float32)
    p = weights * q / (weights * q + 1 - q)
    expected = q * weights * p * (1 - p) + (1 - q) * p * (1 - p)
    np.testing.assert_allclose(curvature(weights), expected.max(axis=0), rtol=1e-4)
    assert curvature(EVEN) == pytest.approx(0.25)


@pytest.mark.parametrize("sigma", [5.0, 400.0])
def test_the_private_step_is_numpys(start: Any, sigma: float) -> None:
    """Also where noise has made eigenvalues negative, which count as zero."""
    rng, d, clip, n = np.random.default_rng(3), FEATURES + 1, 1.5, 400
    half = rng.normal(size=(d, d))
    a, b = half + half.T, rng.normal(size=(d, FINDINGS))
    assert np.linalg.eigvalsh(a).min() < -0.5
    squares = LeastSquares(MODEL, WEIGHTS, SHAPE, private(clip, sigma, n))
    released = Moments(upper_triangle(jnp.asarray(a, jnp.float32)), jnp.asarray(b, jnp.float32))
    values, vectors = np.linalg.eigh(a)
    edge = sigma * clip * np.sqrt(2 * d) / n
    inverse = vectors @ np.diag(1 / (np.maximum(values, 0) + RIDGE * edge * (1 + edge / clip))) @ vectors.T
    step = inverse @ b / curvature(WEIGHTS)
    kernel = step[:-1] * SCALE
    expected = np.concatenate([kernel, (CONSTANT * step[-1] - CENTRE @ kernel)[None]])
    np.testing.assert_allclose(
        -as_rows(jax.jit(squares.direction)(start, released)), expected, rtol=1e-3, atol=1e-3
    )


def test_the_step_is_that_of_the_scaled_logits(cohort: Any, start: Any) -> None:
    """Kernel and bias together move each image's logits by its scaled features times the step."""
    squares = LeastSquares(MODEL, EVEN, SHAPE)
    b = np.random.default_rng(4).normal(size=(FEATURES + 1, FINDINGS))
    released = Moments(upper_triangle(jnp.eye(FEATURES + 1)), jnp.asarray(b, jnp.float32))
    direction = as_rows(jax.jit(squares.direction)(start, released))
    moved = -(quarters(cohort[0]) @ direction[:-1] + direction[-1])
    np.testing.assert_allclose(moved, scaled(cohort[0]) @ b / 0.25, rtol=1e-3, atol=1e-3)


def test_overwhelming_noise_leaves_the_head_where_it_is(cohort: Any, start: Any) -> None:
    moved: list[float] = []
    total, _ = jax.jit(LeastSquares(MODEL, WEIGHTS, SHAPE).summed)(start, batch_of(*cohort))
    for sigma in (1e4, 1e6, 1e8):
        mechanism = private(sigma=sigma)
        squares = LeastSquares(MODEL, WEIGHTS, SHAPE, mechanism)
        released = jax.jit(mechanism.release)(
            mechanism.counted(total, True), mechanism.noise_key(bytes(32), 0)
        )
        moved.append(np.abs(as_rows(jax.jit(squares.direction)(start, released))).max())
    assert moved[0] < 5
    assert moved[1] < 0.03 * moved[0]
    assert moved[2] < 0.03 * moved[1]


def test_two_devices_do_what_one_does(cohort: Any, start: Any) -> None:
    images, labels = (part[:6] for part in cohort)
    mechanism, moved = private(n=6, sigma=0.1), []
    squares = LeastSquares(MODEL, WEIGHTS, SHAPE, mechanism)
    optimizer = optax.sgd(1.0)
    batch = jax.tree.map(np.asarray, batch_of(images, labels))
    assert jax.local_device_count() == 2
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        functions = make_step(squares, optimizer, 6, 3, devices)
        params = functions.replicate(jax.tree.map(jnp.copy, start))
        total, size = functions.start(params), functions.microbatch_size
        for first in range(0, 6, size):
            piece = jax.tree.map(lambda leaf, first=first, size=size: leaf[first : first + size], batch)
            total = functions.accumulate(params, total, functions.place(piece))
        total, log = functions.collect(total)
        assert int(log["count"]) == 6
        state = functions.replicate(optimizer.init(params))
        params, _, finite, _ = functions.finish(params, state, total, mechanism.noise_key(bytes(32), 0))
        assert bool(finite)
        moved.append((jax.tree.map(np.asarray, total), as_rows(params)))
    for u, v in zip(jax.tree.leaves(moved[0][0]), jax.tree.leaves(moved[1][0]), strict=True):
        np.testing.assert_array_equal(u, v)
    np.testing.assert_allclose(moved[0][1], moved[1][1], rtol=1e-3, atol=1e-3)
    assert np.abs(moved[0][1] - as_rows(start)).max() > 0.01
