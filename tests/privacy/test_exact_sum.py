import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.exact_sum import LOW_BITS, MOST_PARTS, ExactSum

CLIP, UNITS = 1.5, 2112
STEP = exact_sum.step_for(CLIP, UNITS)
of_floats = jax.jit(lambda part: exact_sum.of_floats(part, STEP, True))


def steps(total: ExactSum) -> np.ndarray:
    return np.asarray(total.high, np.int64) * 2**LOW_BITS + np.asarray(total.low, np.int64)


def summed(parts: Any) -> ExactSum:
    total = exact_sum.empty(parts[0].high)
    for part in parts:
        total = jax.tree.map(jnp.add, total, part)
    return total


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-9, 1e-3, 1.0, 40.0]))
def test_parts_are_rounded_to_the_nearest_step_and_added_exactly_in_any_order(seed: int, size: float) -> None:
    parts = (np.random.default_rng(seed).normal(size=(30, 50)) * size).astype(np.float32)
    rounded = [of_floats(jnp.asarray(part)) for part in parts]
    wanted = np.rint(parts.astype(np.float64) / STEP).sum(axis=0)
    for order in (rounded, rounded[::-1], sorted(rounded, key=lambda part: float(part.high[0]))):
        np.testing.assert_array_equal(steps(summed(order)), wanted)


@pytest.mark.parametrize("units", [1, 999, MOST_PARTS])
def test_numbers_of_units_are_rounded_and_added_one_by_one(units: int) -> None:
    """However the units are cut into parts; a float32 sum of thirds would depend on that."""
    values = np.where(np.arange(units) % 3 == 0, np.float32(CLIP / 3), np.float32(-CLIP / 7))
    step = 2.0**5 * STEP  # that of larger batches
    total = exact_sum.of_units(jnp.asarray(values), step)
    assert steps(total) == np.rint(values.astype(np.float64) / step).sum()
    assert abs(int(total.low)) <= 2 ** (LOW_BITS - 1)
    with pytest.raises(ValueError, match="at most 65536 units, found 65537"):
        exact_sum.of_units(jnp.zeros(MOST_PARTS + 1), step)


def test_the_order_of_float32_sums_matters_where_that_of_exact_ones_does_not() -> None:
    parts = [jnp.float32(value).reshape(1) for value in (1.0, 2.0**-25, 2.0**-25, -1.0)]
    floats = {float(np.asarray(sum(order[1:], start=order[0]))[0]) for order in itertools.permutations(parts)}
    assert len(floats) > 1
    exact = {
        int(steps(summed([of_floats(part) for part in order]))[0]) for order in itertools.permutations(parts)
    }
    assert exact == {round(2.0**-24 / STEP)}


def test_the_largest_sums_that_are_declared_do_not_overflow() -> None:
    """`UNITS` units in one coordinate, in as many parts as there may be; and what the low words may come to."""
    aligned = exact_sum.of_floats(
        jnp.full(1, UNITS * 2.0), STEP, True
    )  # 2 is the power of two above the clip norm
    assert steps(aligned)[0] == round(UNITS * 2.0 / STEP)
    assert abs(int(aligned.high[0])) <= 2**30
    most = exact_sum.of_floats(jnp.full(1, (2.0 ** (LOW_BITS - 1)) * STEP), STEP, True)
    assert abs(int(most.low[0])) * MOST_PARTS <= 2**30
    with pytest.raises(ValueError, match=r"at most 2\^28"):
        exact_sum.step_for(1.0, 2**29)


@pytest.mark.parametrize("bits", [21, 22])
def test_whole_steps_of_so_many_units_do_not_overflow(bits: int) -> None:
    """As many units as there is room for, each with the most steps, in parts of 256."""
    part = exact_sum.of_steps(jnp.full(1, 256 << bits, jnp.int32), True)  # |v| < 2^31
    parts = exact_sum.most_units(1 << bits) // 256
    assert abs(int(part.high[0])) * parts <= 2**30
    assert exact_sum.most_units(1 << bits) == 1 << (45 - bits)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-(2**31) + 2**LOW_BITS, 2**31 - 2**LOW_BITS - 1), min_size=1, max_size=20),
    st.integers(-(2**30), 2**30),
)
def test_whole_steps_are_kept_and_noise_in_steps_is_added_before_anything_is_rounded(
    values: list[int], noise: int
) -> None:
    total = summed([exact_sum.of_steps(jnp.asarray([value], jnp.int32), True) for value in values])
    assert steps(total)[0] == sum(values)
    released = exact_sum.plus_steps(total, jnp.asarray([noise], jnp.int32), 2.0**-20)
    exact = (sum(values) + noise) * 2.0**-20
    assert float(released[0]) == pytest.approx(exact, rel=2.0**-22, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(-900, 900), st.floats(-3, 3))
def test_noise_in_floating_point_is_added_to_the_exact_sum(value: float, noise: float) -> None:
    total = exact_sum.of_floats(jnp.asarray([value], jnp.float32), STEP, True)
    released = float(exact_sum.plus_floats(total, jnp.asarray([noise], jnp.float32), STEP)[0])
    exact = steps(total)[0] * STEP + np.float32(noise)
    assert released == pytest.approx(exact, rel=2.0**-22, abs=1e-4)
    assert float(exact_sum.value(total, STEP)[0]) == pytest.approx(np.float32(value), rel=1e-6, abs=STEP)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_a_part_that_is_not_finite_makes_the_release_no_number(wrong: float) -> None:
    """Whatever its words are, and whatever is added later."""
    part = jnp.asarray([1.0, wrong], jnp.float32)
    one, other = exact_sum.of_floats(part, STEP, np.isfinite(part).all()), of_floats(jnp.ones(2))
    total = jax.tree.map(jnp.add, one, other)
    released = exact_sum.plus_floats(total, jnp.zeros(2), STEP)
    assert np.isnan(np.asarray(released)).all() == (not np.isfinite(np.asarray(part)).all())
