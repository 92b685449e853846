"""One unit moves the sum by its own rounded contribution and nothing else."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.privacy import sampling
from jaxcxr.privacy.clipping import Flat, PerLayer
from jaxcxr.privacy.hardened_sum import MARGIN, rounded_sum
from jaxcxr.privacy.rounded_noise import grid_for

CLIP, UNITS = 1.5, 5
SHAPES = {"a": {"kernel": (37, 41), "bias": (41,)}, "b": {"kernel": (300, 3)}}
COORDINATES = 37 * 41 + 41 + 900
GRID = grid_for(CLIP, 1.0, COORDINATES)
clipped = jax.jit(partial(rounded_sum, l2_clip_norm=CLIP, step=GRID.step))
per_layer = jax.jit(partial(rounded_sum, l2_clip_norm=CLIP, step=GRID.step, rule=PerLayer()))
automatic = jax.jit(partial(rounded_sum, l2_clip_norm=CLIP, step=GRID.step, rule=Flat(stability=0.1)))


def drawn(seed: int, sizes: Any) -> Any:
    rng = np.random.default_rng(seed)
    sizes = np.asarray(sizes, float)[:, None]
    return {
        "params": {
            layer: {
                name: (rng.normal(size=(len(sizes), int(np.prod(shape)))) * sizes)
                .reshape(-1, *shape)
                .astype(np.float32)
                for name, shape in leaves.items()
            }
            for layer, leaves in SHAPES.items()
        }
    }


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.int64).ravel() for leaf in jax.tree.leaves(tree)])


def alone(gradients: Any, unit: int, how: Any = clipped) -> np.ndarray:
    return flat(how(gradients, np.arange(len(gradients["params"]["b"]["kernel"])) == unit)[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), powers=st.lists(st.integers(-4, 8), min_size=UNITS, max_size=UNITS))
def test_the_sum_is_the_whole_sum_of_contributions_none_longer_than_accounted(
    seed: int, powers: list[int]
) -> None:
    gradients = drawn(seed, 10.0 ** np.asarray(powers))
    for how in (clipped, per_layer, automatic):
        total = flat(how(gradients, np.ones(UNITS, bool))[0])
        own = [alone(gradients, unit, how) for unit in range(UNITS)]
        np.testing.assert_array_equal(total, np.sum(own, axis=0))
        longest = max(float(np.sqrt(np.sum(contribution.astype(float) ** 2))) for contribution in own)
        assert longest <= CLIP / GRID.step + np.sqrt(COORDINATES) / 2
        assert longest <= GRID.deviation  # for a noise multiplier of 1


def test_contributions_are_the_clipped_gradients() -> None:
    gradients = drawn(0, [1e-3, 1e-3, 1.0, 1e3, 1e3])
    norms = np.asarray(clipped(gradients, np.ones(UNITS, bool))[1])
    for unit in range(UNITS):
        exact = np.concatenate([leaf[unit].ravel() for leaf in jax.tree.leaves(gradients)]).astype(float)
        norm = np.linalg.norm(exact)
        assert norms[unit] == pytest.approx(norm, rel=1e-5)
        wanted = exact * min(1, CLIP * (1 - MARGIN) / norm) / GRID.step
        np.testing.assert_allclose(alone(gradients, unit), wanted, atol=0.5 + 1e-4 * np.abs(wanted).max())


def test_what_stands_elsewhere_in_the_microbatch_changes_nothing() -> None:
    """The same unit in the same place, among others and among others' rubbish."""
    gradients = drawn(1, [1.0] * UNITS)
    before = alone(gradients, 2)
    for filler in (0.0, 1e20, np.nan, np.inf):
        changed = jax.tree.map(np.copy, gradients)
        for leaf in jax.tree.leaves(changed):
            leaf[[0, 1, 3, 4]] = filler
        np.testing.assert_array_equal(alone(changed, 2), before)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e30])
def test_a_gradient_that_is_not_finite_adds_nothing_and_shows_in_the_norms(wrong: float) -> None:
    gradients = drawn(2, [1.0] * UNITS)
    gradients["params"]["a"]["bias"][1, 3] = wrong
    total, norms = clipped(gradients, np.ones(UNITS, bool))
    assert not np.isfinite(np.asarray(norms)).all()
    np.testing.assert_array_equal(flat(total), sum(alone(gradients, unit) for unit in (0, 2, 3, 4)))


def test_more_units_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 512 units"):
        rounded_sum({"params": {"a": {"kernel": jnp.zeros((513, 2))}}}, jnp.ones(513, bool), 1.0, 2.0**-20)


@settings(max_examples=50, deadline=None)
@given(
    step=st.integers(0, 1000),
    units=st.sets(st.integers(0, 199), min_size=1, max_size=80),
    places=st.sampled_from([1, 2, 3, 8, 16]),
    data=st.data(),
)
def test_a_unit_keeps_its_place_whatever_other_units_are_there(
    step: int, units: set[int], places: int, data: Any
) -> None:
    everyone = np.array(sorted(units))
    fewer = everyone[everyone != data.draw(st.sampled_from(sorted(units)))]

    def places_of(some: np.ndarray) -> dict[int, int]:
        rows = sampling.in_places(bytes(32), step, 200, some, places)
        assert sorted(rows[rows >= 0].tolist()) == list(range(len(some)))  # each once
        return {
            int(some[position]): column
            for row in rows
            for column, position in enumerate(row)
            if position >= 0
        }

    before, after = places_of(everyone), places_of(fewer)
    assert all(before[unit] == place for unit, place in after.items())


def test_places_and_orders_are_drawn_evenly_and_anew_in_each_step() -> None:
    units = np.arange(4000)
    rows = sampling.in_places(bytes(32), 0, 4000, units, 8)
    sizes = (rows >= 0).sum(axis=0)
    assert abs(sizes - 500).max() < 5 * np.sqrt(500)
    order = sampling.in_random_order(bytes(32), 0, 4000, units)
    assert sorted(order.tolist()) == units.tolist()
    assert abs(np.corrcoef(order, units)[0, 1]) < 0.1
    assert (order != sampling.in_random_order(bytes(32), 1, 4000, units)).mean() > 0.9
    assert (order != sampling.in_random_order(bytes(31) + b"1", 0, 4000, units)).mean() > 0.9
    assert sampling.in_places(bytes(32), 0, 4000, units[:0], 8).shape == (0, 8)
