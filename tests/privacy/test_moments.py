from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxcxr.privacy import moments
from jaxcxr.privacy.moments import Moments, clipped_steps, upper_triangle
from jaxcxr.training.least_squares import plain_moments, symmetric

UNITS, FILMS, D, FINDINGS = 3, 2, 4, 2
ALL = np.ones((UNITS, FILMS), bool)
REAL = np.ones(UNITS, bool)
steps_of = jax.jit(clipped_steps, static_argnums=(4, 5), static_argnames=("stability",))


def clipped(x: Any, r: Any, is_image: Any, is_real: Any, clip: float, **how: Any) -> tuple[Moments, Any]:
    """In whole steps, made float."""
    step = moments.step_for(clip, None)
    total, norms = steps_of(x, r, is_image, is_real, clip, step, **how)
    return Moments(*(np.asarray(part, np.int64) * step for part in total)), norms


def drawn(seed: int, sizes: Any = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of the given sizes, and residuals, of each film."""
    rng = np.random.default_rng(seed)
    x = (
        rng.normal(size=(UNITS, FILMS, D))
        * np.broadcast_to(np.asarray(sizes, float), (UNITS,))[:, None, None]
    )
    return x.astype(np.float32), rng.normal(size=(UNITS, FILMS, FINDINGS)).astype(np.float32)


def of_units(x: np.ndarray, r: np.ndarray, is_image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both matrices of each unit, as they are defined."""
    found = []
    for unit in range(UNITS):
        films = [i for i in range(FILMS) if is_image[unit, i]]
        a = np.mean(
            [np.outer(x[unit, i], x[unit, i]).astype(float) for i in films] or [np.zeros((D, D))], axis=0
        )
        b = np.mean(
            [np.outer(x[unit, i], r[unit, i]).astype(float) for i in films] or [np.zeros((D, FINDINGS))],
            axis=0,
        )
        found.append((a, b))
    return found


def length(of: Moments) -> float:
    """Of the whole matrices: an entry off the diagonal of the triangle stands for two."""
    rows, columns = np.triu_indices(np.asarray(of.residuals).shape[0])
    twice = np.where(rows == columns, 1.0, 2.0)
    return float(
        np.sqrt(
            np.sum(twice * np.asarray(of.features, float) ** 2) + np.sum(np.asarray(of.residuals, float) ** 2)
        )
    )


def difference(a: Moments, b: Moments) -> float:
    return length(Moments(*(np.asarray(u, float) - np.asarray(v, float) for u, v in zip(a, b, strict=True))))


masks = st.lists(st.booleans(), min_size=UNITS * FILMS, max_size=UNITS * FILMS)
seeds = st.integers(0, 2**31)
powers = st.lists(st.integers(-4, 8), min_size=UNITS, max_size=UNITS)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    mask=masks,
    real=st.lists(st.booleans(), min_size=UNITS, max_size=UNITS),
    clip=st.sampled_from([0.1, 1.5, 20.0]),
)
def test_the_sum_is_that_of_the_units_matrices_clipped_together(
    seed: int, mask: list[bool], real: list[bool], clip: float
) -> None:
    (x, r), is_image = drawn(seed, [0.5, 1, 2]), np.reshape(mask, (UNITS, FILMS))
    total, norms = clipped(x, r, is_image, np.asarray(real), clip)
    a, b = np.zeros((D, D)), np.zeros((D, FINDINGS))
    for unit, (own_a, own_b) in enumerate(of_units(x, r, is_image)):
        norm = np.sqrt(np.sum(own_a**2) + np.sum(own_b**2))
        if real[unit]:
            assert norms[unit] == pytest.approx(norm, rel=1e-4, abs=1e-6)
            factor = min(1, clip * (1 - 4 * np.sqrt(moments.step_for(clip, None) / clip)) / max(norm, 1e-30))
            a, b = a + factor * own_a, b + factor * own_b
    np.testing.assert_allclose(symmetric(jnp.asarray(total.features), D), a, atol=6e-3 * clip)
    np.testing.assert_allclose(total.residuals, b, atol=6e-3 * clip)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, sizes=powers, clip=st.sampled_from([1e-3, 1.0, 30.0]), alike=st.booleans())
@example(seed=0, sizes=[8, 8, 8], clip=1.0, alike=True)
def test_one_unit_moves_the_sum_by_its_own_part_exactly_and_by_the_clip_norm_at_most(
    seed: int, sizes: list[int], clip: float, alike: bool
) -> None:
    """Also where the two films of a unit nearly cancel in its products with residuals."""
    x, r = drawn(seed, 10.0 ** np.asarray(sizes))
    if alike:
        x[:, 1], r[:, 1] = x[:, 0], -r[:, 0]
    whole, _ = clipped(x, r, ALL, REAL, clip)
    for unit in range(UNITS):
        own, _ = clipped(x, r, ALL, np.arange(UNITS) == unit, clip)
        others, _ = clipped(x, r, ALL, np.arange(UNITS) != unit, clip)
        assert length(own) <= clip
        for part, with_others, without in zip(own, whole, others, strict=True):
            np.testing.assert_array_equal(with_others - without, part)  # whole steps: nothing is rounded
        if sizes[unit] >= 3:  # far beyond the clip norm, and not lost
            assert length(own) == pytest.approx(clip, rel=6e-3)


@pytest.mark.parametrize("residual", [0.0, 0.7])
def test_features_made_to_be_rounded_up_do_not_exceed_the_clip_norm(residual: float) -> None:
    """Every coordinate just above one half of a step: rounding carries the unit beyond the clip norm, and it adds nothing."""
    d, clip = 512, 1.5
    step = moments.step_for(clip, None)
    level = np.floor(np.sqrt(clip / step / d)) + 0.501  # steps, of each feature
    x = np.full((1, 1, d), level * np.sqrt(step), np.float32)
    r = np.full((1, 1, FINDINGS), residual, np.float32)
    seen = set()
    for scale in np.linspace(0.98, 1.02, 41):
        own, _ = clipped(x * np.float32(scale), r, np.ones((1, 1), bool), np.ones(1, bool), clip)
        assert length(own) <= clip
        seen.add(length(own) > 0)
    assert True in seen


def test_an_image_that_adds_nothing_moves_no_sum() -> None:
    """Float32 sums of many microbatches moved by 1.8 clip norms when such an image was put before the others."""
    rng, n, size = np.random.default_rng(0), 4096, 32
    x = np.sqrt(rng.uniform(0.1, 0.9, (n + 1, 1, 1))).astype(np.float32)
    x[0] = 0.0
    r, step = np.zeros((n + 1, 1, 1), np.float32), moments.step_for(1.0, None)

    def total(first: int) -> int:
        whole = 0
        for start in range(first, n + 1, size):
            rows = slice(start, start + size)
            some, missing = x[rows], size - len(x[rows])
            padded = np.concatenate([some, np.zeros((missing, 1, 1), np.float32)])
            real = np.arange(size) < len(some)
            part, _ = steps_of(padded, r[:size], real[:, None], real, 1.0, step)
            whole += int(part.features[0])
        return whole

    assert total(0) == total(1)


def test_padding_and_place_in_the_microbatch_change_no_bit() -> None:
    x, r = drawn(8, [1.0, 2.0, 3.0])
    before, _ = clipped(x, r, ALL, REAL, 5.0)
    after, _ = clipped(x[::-1].copy(), r[::-1].copy(), ALL, REAL, 5.0)
    for u, v in zip(before, after, strict=True):
        np.testing.assert_array_equal(u, v)


def test_films_of_one_patient_count_as_one_unit() -> None:
    x, r = drawn(1, 1e3)
    own, _ = clipped(x, r, ALL, REAL, 1.0)
    assert length(own) <= UNITS
    once, norms = clipped(x[:, :1].repeat(2, axis=1), r[:, :1].repeat(2, axis=1), ALL, REAL, 50.0)
    alone, alone_norms = clipped(x[:, :1], r[:, :1], ALL[:, :1], REAL, 50.0)
    np.testing.assert_allclose(norms, alone_norms, rtol=1e-4)  # the mean over equal films is that of one
    assert difference(once, alone) < 3 * 0.002 * 50  # each unit's part is rounded by itself


def test_padding_counts_for_exactly_nothing_whatever_stands_there() -> None:
    x, r = drawn(2)
    is_image, is_real = ALL.copy(), np.array([True, True, False])
    is_image[1, 1] = False
    before, _ = clipped(x, r, is_image, is_real, 5.0)
    for filler in (7.0, np.nan, np.inf):
        x[2], r[2], x[1, 1], r[1, 1] = filler, filler, filler, filler
        after, _ = clipped(x, r, is_image, is_real, 5.0)
        assert all(np.array_equal(u, v) for u, v in zip(before, after, strict=True))
    nobody, _ = clipped(x, r, is_image, np.zeros(UNITS, bool), 5.0)
    assert length(nobody) == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["features", "residuals"])
def test_what_is_not_finite_is_not_hidden(wrong: float, where: str) -> None:
    x, r = drawn(3)
    (x if where == "features" else r)[0, 0, 0] = wrong
    total, norms = clipped(x, r, ALL, REAL, 1.0)
    assert not np.isfinite(
        np.asarray(norms)
    ).all()  # which stops the run (`exact_sum`); the unit itself adds nothing
    others, _ = clipped(x, r, ALL, np.arange(UNITS) != 0, 1.0)
    assert difference(total, others) == 0


def test_without_a_clip_norm_nothing_is_clipped() -> None:
    x, r = drawn(4, 100.0)
    total = jax.jit(plain_moments)(x, r, ALL & REAL[:, None])
    np.testing.assert_allclose(
        symmetric(total.features, D), sum(a for a, _ in of_units(x, r, ALL)), rtol=1e-4
    )
    np.testing.assert_allclose(total.residuals, sum(b for _, b in of_units(x, r, ALL)), rtol=1e-4)


def test_automatic_clipping_makes_all_units_count_alike_and_none_too_much() -> None:
    x, r = drawn(5, [0.1, 1.0, 1e4])
    for unit in range(UNITS):
        own, norms = clipped(x, r, ALL, np.arange(UNITS) == unit, 2.0, stability=1e-3)
        assert length(own) <= 2.0
        assert length(own) == pytest.approx(2.0 * float(norms[unit] / (norms[unit] + 1e-3)), rel=6e-3)


def test_the_triangle_gives_the_matrix_again_and_noise_off_its_diagonal_has_half_the_variance() -> None:
    matrix = jnp.asarray(np.random.default_rng(6).normal(size=(40, 40)), jnp.float32)
    matrix = matrix + matrix.T
    assert upper_triangle(matrix).shape == (40 * 41 // 2,)
    np.testing.assert_array_equal(symmetric(upper_triangle(matrix), 40), matrix)
    like = Moments(jnp.zeros(80_200), jnp.zeros((400, 3)))
    normal = np.random.default_rng(7).normal
    continuous = moments.halved_off_diagonal(
        Moments(*(jnp.asarray(normal(size=part.shape), jnp.float32) for part in like))
    )
    whole = moments.discrete_noise(np.arange(4, dtype=np.uint32), like, 1.5, 2.0)
    deviation = 2.0 * 1.5 / moments.step_for(1.5, 2.0)
    for drawn_noise, scale in ((continuous, 1.0), (whole, deviation)):
        noise = np.asarray(symmetric(jnp.asarray(drawn_noise.features, jnp.float32), 400)) / scale
        np.testing.assert_array_equal(noise, noise.T)
        assert np.diag(noise).std() == pytest.approx(1.0, rel=0.15)
        assert noise[np.triu_indices(400, 1)].std() == pytest.approx(np.sqrt(0.5), rel=0.02)
        assert (np.asarray(drawn_noise.residuals) / scale).std() == pytest.approx(1.0, rel=0.1)
        assert np.abs(np.linalg.eigvalsh(noise)).max() == pytest.approx(
            np.sqrt(2 * 400), rel=0.05
        )  # as the ridge takes it


def test_more_than_the_theorem_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 256 units"):
        clipped_steps(
            jnp.zeros((257, 1, 2)),
            jnp.zeros((257, 1, 1)),
            jnp.ones((257, 1), bool),
            jnp.ones(257, bool),
            1.0,
            2.0**-21,
        )
