import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcxr.accounting import Spending
from jaxcxr.privacy.mechanism import Mechanism

SECRET = bytes(range(32))
MECHANISM = Mechanism(
    n_units=1000, expected_batch_size=50, l2_clip_norm=1.5, noise_multiplier=2.0, epsilon=1.0, delta=1e-6
)


def released(
    total: dict[str, jax.Array], step: int, mechanism: Mechanism = MECHANISM
) -> dict[str, np.ndarray]:
    exact = mechanism.counted(total, True)
    out = jax.jit(mechanism.release)(exact, jnp.asarray(mechanism.noise_key(SECRET, step)))
    return jax.tree.map(np.asarray, out)


def test_release_is_the_sum_plus_noise_over_the_expected_batch() -> None:
    total = {"w": jnp.linspace(-5, 5, 100_000)}
    noise = released(total, 0)["w"] * 50 - np.asarray(total["w"])
    assert stats.kstest(noise / (2.0 * 1.5), "norm").pvalue > 1e-4


def test_an_empty_batch_is_noised_like_any_other() -> None:
    out = released({"w": jnp.zeros(50_000)}, 1)["w"]
    assert out.std() == pytest.approx(2.0 * 1.5 / 50, rel=0.02)


def test_no_two_steps_share_noise() -> None:
    zeros = {"w": jnp.zeros(4)}
    draws = {tuple(released(zeros, step)["w"]) for step in range(20)}
    assert len(draws) == 20


def test_what_is_drawn_is_what_is_accounted() -> None:
    sizes = [len(MECHANISM.draw(SECRET, step, 1000)) for step in range(400)]
    assert stats.binomtest(sum(sizes), 400 * 1000, MECHANISM.sample_rate).pvalue > 1e-4
    entry = MECHANISM.entry(7)
    assert (entry.step, entry.sample_rate, entry.noise_multiplier, entry.l2_clip_norm) == (7, 0.05, 2.0, 1.5)
    assert Spending(entry.sample_rate, entry.noise_multiplier, 1).sample_rate == MECHANISM.sample_rate


def test_the_rate_follows_the_declared_size_not_the_records_present() -> None:
    sizes = [len(MECHANISM.draw(SECRET, step, 900)) for step in range(400)]
    assert stats.binomtest(sum(sizes), 400 * 900, 0.05).pvalue > 1e-4


DISCRETE = dataclasses.replace(MECHANISM, expected_batch_size=64, discrete_coordinates=100_006)


def released_on_the_grid(
    total: dict[str, jax.Array], step: int, is_finite: bool = True
) -> dict[str, np.ndarray]:
    """Of a sum in whole steps."""
    randomness = DISCRETE.randomness(DISCRETE.noise_key(SECRET, step), total)
    return jax.tree.map(np.asarray, jax.jit(DISCRETE.release)(DISCRETE.counted(total, is_finite), randomness))


def test_a_discrete_release_is_the_rounded_sum_plus_whole_steps() -> None:
    grid = DISCRETE.grid
    assert grid is not None
    exact = {"a": jnp.linspace(-5, 5, 100_000), "b": jnp.full((2, 3), 0.3)}
    total = jax.tree.map(lambda leaf: jnp.rint(leaf / grid.step).astype(jnp.int32), exact)
    out = released_on_the_grid(total, 0)
    zeros = released_on_the_grid(jax.tree.map(jnp.zeros_like, total), 0)
    for name in total:
        moved = (out[name].astype(float) - zeros[name]) * 64
        np.testing.assert_allclose(moved, np.asarray(exact[name], float), atol=2.5 * grid.step)
    noise = zeros["a"].astype(float) * 64 / grid.step
    np.testing.assert_array_equal(noise, np.rint(noise))
    assert len(np.unique(noise % 16)) == 16
    assert stats.kstest(noise / grid.deviation, "norm").pvalue > 1e-4
    assert 2.0 * 1.5 <= grid.deviation * grid.step <= 2.0 * 1.5 * 1.001


def test_discrete_noise_is_not_used_twice_and_goes_with_its_tree() -> None:
    zeros = {"a": jnp.zeros(100_000, jnp.int32), "b": jnp.zeros((2, 3), jnp.int32)}
    assert len({released_on_the_grid(zeros, step)["b"].tobytes() for step in range(5)}) == 5
    with pytest.raises(ValueError, match="100006 coordinates, found 6"):
        DISCRETE.randomness(DISCRETE.noise_key(SECRET, 0), {"b": zeros["b"]})


def test_a_discrete_release_of_what_is_not_finite_is_no_number() -> None:
    zeros = {"a": jnp.zeros(100_000, jnp.int32), "b": jnp.zeros((2, 3), jnp.int32)}
    assert np.isnan(released_on_the_grid(zeros, 0, is_finite=False)["a"]).all()


def test_contributions_leave_room_for_the_rounding_of_as_many_as_are_expected() -> None:
    assert MECHANISM.clip_to == pytest.approx(1.5 * (1 - 32 * 2.0**-24 * 50), rel=1e-12)
    larger = dataclasses.replace(MECHANISM, n_units=10**6, expected_batch_size=16384)
    assert larger.rounding_allowance == pytest.approx(2**-5)
    assert DISCRETE.clip_to == 1.5  # whole numbers: nothing to leave room for
    assert MECHANISM.most_units == 264


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"expected_batch_size": 0}, r"expected_batch_size: expected 1 to 1000 \(n_units\), found 0"),
        ({"expected_batch_size": 1001}, "expected_batch_size: expected 1 to 1000"),
        ({"l2_clip_norm": 1e-9}, "l2_clip_norm: expected at least 1e-06, found 1e-09"),
        ({"l2_clip_norm": math.nan}, "l2_clip_norm: expected at least"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a positive number, found 0.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier: expected a positive number"),
    ],
)
def test_numbers_without_a_guarantee_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MECHANISM, **changed)
