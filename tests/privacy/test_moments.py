from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxcxr.privacy.gradients import CLIP_MARGIN
from jaxcxr.privacy.moments import Moments, clipped_moment_sum, symmetric, upper_triangle

UNITS, FILMS, D, FINDINGS = 3, 2, 4, 2
ALL = np.ones((UNITS, FILMS), bool)
REAL = np.ones(UNITS, bool)
clipped = jax.jit(clipped_moment_sum)
automatic = jax.jit(lambda *batch, gamma: clipped_moment_sum(*batch, stability=gamma))


def drawn(seed: int, sizes: Any = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of the given sizes, and residuals, of each film."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(UNITS, FILMS, D)) * np.broadcast_to(np.asarray(sizes, float), (UNITS,))[:, None, None]
    return x.astype(np.float32), rng.normal(size=(UNITS, FILMS, FINDINGS)).astype(np.float32)


def of_units(x: np.ndarray, r: np.ndarray, is_film: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both matrices of each unit, as they are defined."""
    found = []
    for unit in range(UNITS):
        films = [i for i in range(FILMS) if is_film[unit, i]]
        a = np.mean([np.outer(x[unit, i], x[unit, i]).astype(float) for i in films] or [np.zeros((D, D))], axis=0)
        b = np.mean([np.outer(x[unit, i], r[unit, i]).astype(float) for i in films] or [np.zeros((D, FINDINGS))], axis=0)
        found.append((a, b))
    return found


def length(moments: Moments) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(part, float) ** 2) for part in moments)))


def difference(a: Moments, b: Moments) -> float:
    return length(Moments(*(np.asarray(u, float) - np.asarray(v, float) for u, v in zip(a, b, strict=True))))


masks = st.lists(st.booleans(), min_size=UNITS * FILMS, max_size=UNITS * FILMS)
seeds = st.integers(0, 2**31)
powers = st.lists(st.integers(-4, 8), min_size=UNITS, max_size=UNITS)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, mask=masks, real=st.lists(st.booleans(), min_size=UNITS, max_size=UNITS), clip=st.floats(0.1, 20))
def test_the_sum_is_that_of_the_units_matrices_clipped_together(
    seed: int, mask: list[bool], real: list[bool], clip: float
) -> None:
    (x, r), is_film = drawn(seed, [0.5, 1, 2]), np.reshape(mask, (UNITS, FILMS))
    total, norms = clipped(x, r, is_film, np.asarray(real), clip)
    a, b = np.zeros((D, D)), np.zeros((D, FINDINGS))
    for unit, (own_a, own_b) in enumerate(of_units(x, r, is_film)):
        norm = np.sqrt(np.sum(own_a**2) + np.sum(own_b**2))
        if real[unit]:
            assert norms[unit] == pytest.approx(norm, rel=1e-4, abs=1e-6)
            factor = min(1, clip * (1 - CLIP_MARGIN) / max(norm, 1e-30))
            a, b = a + factor * own_a, b + factor * own_b
    np.testing.assert_allclose(symmetric(total.features, D), a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total.residuals, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, sizes=powers, clip=st.sampled_from([1e-3, 1.0, 30.0]), alike=st.booleans())
@example(seed=0, sizes=[8, 8, 8], clip=1.0, alike=True)
def test_one_unit_moves_the_sum_by_the_clip_norm_at_most(seed: int, sizes: list[int], clip: float, alike: bool) -> None:
    """Also where the two films of a unit nearly cancel in its products with residuals."""
    x, r = drawn(seed, 10.0 ** np.asarray(sizes))
    if alike:
        x[:, 1], r[:, 1] = x[:, 0], -r[:, 0]
    whole, _ = clipped(x, r, ALL, REAL, clip)
    for unit in range(UNITS):
        own, _ = clipped(x, r, ALL, np.arange(UNITS) == unit, clip)
        others, _ = clipped(x, r, ALL, np.arange(UNITS) != unit, clip)
        assert length(own) <= clip
        assert difference(whole, others) <= clip + 1e-6 * clip * UNITS  # three contributions are added up in float32
        if sizes[unit] >= 3:  # far beyond the clip norm, and not lost
            assert length(own) == pytest.approx(clip, rel=1e-4)


def test_films_of_one_patient_count_as_one_unit() -> None:
    x, r = drawn(1, 1e3)
    own, _ = clipped(x, r, ALL, REAL, 1.0)
    assert length(own) <= UNITS
    once, norms = clipped(x[:, :1].repeat(2, axis=1), r[:, :1].repeat(2, axis=1), ALL, REAL, 50.0)
    alone, alone_norms = clipped(x[:, :1], r[:, :1], ALL[:, :1], REAL, 50.0)
    np.testing.assert_allclose(norms, alone_norms, rtol=1e-4)  # the mean over equal films is that of one
    assert difference(once, alone) < 0.05


def test_padding_counts_for_exactly_nothing_whatever_stands_there() -> None:
    x, r = drawn(2)
    is_film, is_real = ALL.copy(), np.array([True, True, False])
    is_film[1, 1] = False
    before, _ = clipped(x, r, is_film, is_real, 5.0)
    for filler in (7.0, np.nan, np.inf):
        x[2], r[2], x[1, 1], r[1, 1] = filler, filler, filler, filler
        after, _ = clipped(x, r, is_film, is_real, 5.0)
        assert all(np.array_equal(u, v) for u, v in zip(before, after, strict=True))
    nobody, _ = clipped(x, r, is_film, np.zeros(UNITS, bool), 5.0)
    assert length(nobody) == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["features", "residuals"])
def test_what_is_not_finite_is_not_hidden(wrong: float, where: str) -> None:
    x, r = drawn(3)
    (x if where == "features" else r)[0, 0, 0] = wrong
    total, _ = clipped(x, r, ALL, REAL, 1.0)
    assert not all(np.isfinite(np.asarray(part)).all() for part in total)


def test_without_a_clip_norm_nothing_is_clipped() -> None:
    x, r = drawn(4, 100.0)
    total, _ = clipped(x, r, ALL, REAL, None)
    np.testing.assert_allclose(symmetric(total.features, D), sum(a for a, _ in of_units(x, r, ALL)), rtol=1e-4)


def test_automatic_clipping_makes_all_units_count_alike_and_none_too_much() -> None:
    x, r = drawn(5, [1e-2, 1.0, 1e4])
    for unit in range(UNITS):
        own, norms = automatic(x, r, ALL, np.arange(UNITS) == unit, 2.0, gamma=1e-3)
        assert length(own) <= 2.0
        assert length(own) == pytest.approx(2.0 * float(norms[unit] / (norms[unit] + 1e-3)), rel=1e-3)


def test_the_triangle_is_as_long_as_the_matrix_and_halves_the_noise() -> None:
    matrix = jnp.asarray(np.random.default_rng(6).normal(size=(40, 40)), jnp.float32)
    matrix = matrix + matrix.T
    triangle = upper_triangle(matrix)
    assert triangle.shape == (40 * 41 // 2,)
    assert float(jnp.linalg.norm(triangle)) == pytest.approx(float(jnp.linalg.norm(matrix)), rel=1e-5)
    np.testing.assert_allclose(symmetric(triangle, 40), matrix, rtol=1e-6)
    noise = np.asarray(symmetric(jnp.asarray(np.random.default_rng(7).normal(size=80_200), jnp.float32), 400))
    np.testing.assert_array_equal(noise, noise.T)
    assert np.diag(noise).std() == pytest.approx(1.0, rel=0.15)
    assert noise[np.triu_indices(400, 1)].std() == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert np.abs(np.linalg.eigvalsh(noise)).max() == pytest.approx(np.sqrt(2 * 400), rel=0.05)  # as the ridge takes it
