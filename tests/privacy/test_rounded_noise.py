import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxcxr.privacy import rounded_noise
from jaxcxr.privacy.rounded_noise import grid_for, rounded_gaussian

KEY = np.arange(4, dtype=np.uint32)
DEVIATION = 70_001


def draw(count: int = 300_000, deviation: int = DEVIATION, key: np.ndarray = KEY) -> np.ndarray:
    return rounded_gaussian(key, deviation, count).astype(np.int64)


def test_draws_follow_the_bell_curve_at_every_scale() -> None:
    z = draw(600_000)
    edges = np.r_[-np.inf, np.arange(-4, 4.01, 0.125) * DEVIATION, np.inf]
    ends = np.floor(edges) + 0.5  # between two whole numbers
    expected = np.diff(stats.norm.cdf(ends / DEVIATION)) * len(z)
    assert stats.chisquare(np.histogram(z, ends)[0], expected).pvalue > 1e-4
    for modulus in (2, 3, 64, 4096):
        assert stats.chisquare(np.bincount(z % modulus, minlength=modulus)).pvalue > 1e-4
    assert stats.chi2(len(z)).cdf((z / DEVIATION) @ (z / DEVIATION)) == pytest.approx(0.5, abs=0.4999)


def test_draws_are_independent_and_belong_to_their_key() -> None:
    z = draw(2 * rounded_noise._CHUNK)
    other = draw(2 * rounded_noise._CHUNK, key=KEY[::-1].copy())
    chunk = rounded_noise._CHUNK
    for a, b in ((z[:-1], z[1:]), (z[:chunk], z[chunk:]), (z, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)) < 5
    np.testing.assert_array_equal(z, draw(2 * chunk))


def test_exact_arithmetic_decides_as_floating_point_does_where_that_is_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = draw(1500)
    asked = []
    decide = rounded_noise._decide
    monkeypatch.setattr(rounded_noise, "_decide", lambda *a: asked.append(a) or decide(*a))
    monkeypatch.setattr(rounded_noise, "_UNSURE", 2.0)
    np.testing.assert_array_equal(draw(1500), quick)
    assert len(asked) >= 1500


@pytest.mark.parametrize("deviation", [2**16, 1_234_567, 2**26])
def test_the_density_is_the_probability_of_a_whole_number(deviation: int) -> None:
    for magnitude in (0, 1, deviation // 3, deviation, 5 * deviation + 1, 12 * deviation):
        exact = float(rounded_noise._exact_density(magnitude, deviation))
        assert rounded_noise._density(np.array([float(magnitude)]), deviation)[0] == pytest.approx(
            exact, rel=2.0**-44
        )
        if magnitude <= deviation:
            cell = np.diff(stats.norm.cdf(np.array([magnitude - 0.5, magnitude + 0.5]) / deviation))[0]
            assert exact == pytest.approx(cell * deviation * math.sqrt(2 * math.pi), rel=1e-7)


@pytest.mark.parametrize("deviation", [2**16, 99_991, 2**26])
def test_the_stair_lies_above_the_curve(deviation: int) -> None:
    cells = rounded_noise._cells(deviation)
    for index in (0, 1, len(cells.weights) // 2, len(cells.weights) - 1):
        top = (
            rounded_noise._exact_density(index << cells.bits, deviation) * cells.scale / cells.weights[index]
        )
        assert top < 1
        assert index > len(cells.weights) // 2 or top > 0.999
    assert sum(cells.weights) < 2**64
    assert len(cells.weights) << cells.bits >= 13 * deviation


def test_zero_has_one_sign() -> None:
    """A word of zeros proposes magnitude 0; with the sign bit set it would count zero twice."""
    cells = rounded_noise._cells(DEVIATION)
    words = np.array([[0, 0], [0, 1 << cells.bits]], np.uint64)
    assert rounded_noise._accepted(words, cells, DEVIATION, b"").tolist() == [0]
    words[1] += np.uint64(1)
    assert rounded_noise._accepted(words, cells, DEVIATION, b"").tolist() == [1, -1]


@settings(max_examples=60, deadline=None)
@given(
    coordinates=st.integers(1, 400),
    clip=st.floats(0.01, 50),
    sigma=st.floats(0.2, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_neighbouring_sums_differ_on_the_grid_by_what_the_noise_is_scaled_to(
    coordinates: int, clip: float, sigma: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = grid_for(clip, sigma, coordinates)
    # Just below half a step, where rounding moves a coordinate most.
    total = (rng.integers(-1000, 1000, coordinates) + 0.499999) * grid.step
    unit = rng.normal(size=coordinates)
    unit *= clip / np.linalg.norm(unit)
    whole = math.floor(
        clip / grid.step / math.sqrt(coordinates) - 1e-5
    )  # and a little more, which rounding makes a whole step
    for moved in (unit, np.full(coordinates, (whole + 2e-6) * grid.step)):
        apart = np.linalg.norm(np.rint((total + moved) / grid.step) - np.rint(total / grid.step))
        assert sigma * apart <= grid.deviation
    assert math.log2(grid.step) == int(math.log2(grid.step))
    assert 13 * grid.deviation <= 2**30
    assert grid.deviation * grid.step == pytest.approx(sigma * clip, rel=0.01 if sigma < 20 else 0.2)


@pytest.mark.parametrize("sigma", [1e-3, 1e6])
def test_noise_that_does_not_fit_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="does not fit into 32 bits"):
        grid_for(1.5, sigma, 4_909_896)


def test_what_the_grid_costs_the_papers_network() -> None:
    grid = grid_for(1.5, 1.0, 4_909_896)
    assert grid.deviation * grid.step / 1.5 == pytest.approx(1.0, abs=2e-3)


def test_no_draws_and_impossible_ones() -> None:
    assert len(rounded_gaussian(KEY, DEVIATION, 0)) == 0
    with pytest.raises(ValueError, match="deviation"):
        rounded_gaussian(KEY, 1000, 5)
