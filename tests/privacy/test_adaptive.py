"""A clip norm that adapts: one contribution of constant length, one release, and a state that follows from releases."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.privacy import exact_sum
from jaxcxr.privacy.adaptive import MOST, Adaptive
from jaxcxr.privacy.clipping import CLIP_MARGIN, LEAST, Extended, Flat, clipped_sum
from jaxcxr.privacy.hardened_sum import MARGIN
from jaxcxr.privacy.mechanism import Mechanism

CLIP, BATCH, UNITS, KEY = 0.7, 40, 5, np.arange(4, dtype=np.uint32)
PARAMS = {"a": {"kernel": jnp.zeros(3)}, "b": jnp.zeros((2, 2))}
COORDINATES = 8
"""Seven of the gradient, and the rule's."""
MECHANISM = Mechanism(1000, BATCH, CLIP, 1.3, 1.0, 1e-5)
EVERYONE = [True] * UNITS
RULES = [Adaptive(), Adaptive(0.9), Adaptive(0.1, share=0.45)]
GRADES = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "discrete"])
METHODS = pytest.mark.parametrize("method", ["vmap", "layerwise"])


def loss(params: Any, example: Any) -> Any:
    """Whose gradient is the example."""
    return jnp.vdot(params["a"]["kernel"], example[:3]) + jnp.vdot(params["b"].ravel(), example[3:])


def adaptive(rule: Adaptive, discrete: bool, method: str = "layerwise") -> Mechanism:
    coordinates = COORDINATES if discrete else None
    return dataclasses.replace(MECHANISM, rule=rule, discrete_coordinates=coordinates, method=method)


_compiled: dict[Any, Any] = {}


def summed(mechanism: Mechanism, gradients: Any, is_real: Any, r: float) -> Any:
    if mechanism not in _compiled:
        _compiled[mechanism] = jax.jit(lambda *args: mechanism.clipped_sum(loss, PARAMS, *args))
    return _compiled[mechanism](np.asarray(gradients, np.float32), np.asarray(is_real), np.float32(r))


def rows(tree: Any) -> tuple[np.ndarray, float]:
    """The gradient as one row, and the coordinate."""
    leaves = [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves[:-1]), float(leaves[-1][0])


def value(mechanism: Mechanism, total: Any) -> tuple[np.ndarray, float]:
    """An exact sum, in float64."""
    step = mechanism.step_size(total.high)
    return rows(
        jax.tree.map(
            lambda high, low: (np.asarray(high, float) * 2**15 + np.asarray(low)) * step,
            total.high,
            total.low,
        )
    )


def drawn(seed: int, sizes: Any = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(UNITS, 7)) * np.reshape(sizes, (-1, 1))


SIZES = st.one_of(st.just(0.0), st.floats(-30, 15).map(lambda power: 10.0**power))


@GRADES
@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    method=st.sampled_from(["vmap", "layerwise"]),
    seed=st.integers(0, 2**31),
    sizes=st.lists(SIZES, min_size=UNITS, max_size=UNITS),
    r=st.one_of(
        st.floats(-6, 12).map(lambda power: 10.0**power), st.sampled_from([LEAST / CLIP, 1.0, MOST / CLIP])
    ),
)
def test_no_contribution_is_longer_than_the_constant_norm(
    discrete: bool, rule: Adaptive, method: str, seed: int, sizes: list[float], r: float
) -> None:
    mechanism, gradients = adaptive(rule, discrete, method), drawn(seed, sizes)
    most = CLIP + (0.5 * np.sqrt(COORDINATES) * mechanism.step_size(PARAMS) if discrete else 0.0)
    for unit in range(UNITS):
        total, _, norms = summed(mechanism, gradients, np.arange(UNITS) == unit, r)
        gradient, coordinate = value(mechanism, total)
        assert int(total.broken) == 0
        assert np.hypot(np.linalg.norm(gradient), coordinate) <= most
        assert coordinate != 0
        if (
            float(norms[unit]) > 1.001 * r * CLIP
        ):  # clipped: nothing of the norm is given away, and no more taken
            assert np.linalg.norm(gradient) == pytest.approx(CLIP * np.sqrt(1 - rule.share**2), rel=2e-4)


@GRADES
@METHODS
@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_what_its_definition_says(rule: Adaptive, method: str, discrete: bool) -> None:
    """By numpy, unit by unit; the noise is that of the empty sum with the same key."""
    mechanism, r, is_real = adaptive(rule, discrete, method), 1.7, [True, True, False, True, True]
    gradients = drawn(3, [0.1, 0.3, 1.0, 2.0, 10.0])
    norms = np.linalg.norm(gradients, axis=1)
    clip = mechanism.clip_to * (1 - (MARGIN if discrete else CLIP_MARGIN))
    assert 0 < (norms[is_real] <= r * clip).sum() < 4
    kept, far = np.sqrt(1 - rule.share**2), max(rule.quantile, 1 - rule.quantile)
    gradient, coordinate = np.zeros(7), 0.0
    for g, norm, real in zip(gradients, norms, is_real, strict=True):
        if real:
            gradient += kept * (g / r) * min(1.0, clip / np.linalg.norm(g / r))
            coordinate += rule.share * CLIP * ((norm <= r * CLIP) - rule.quantile) / far

    total = summed(mechanism, gradients, is_real, r).total
    randomness = mechanism.randomness(KEY, total.high)
    release = jax.jit(mechanism.release)
    alone = rows(release(exact_sum.empty(total.high), randomness))
    released = release(total, randomness)
    step = mechanism.step_size(total.high)
    np.testing.assert_allclose((rows(released)[0] - alone[0]) * BATCH, gradient, atol=3e-5 + 3 * step)
    # clip_to leaves a little less than CLIP for the coordinate too
    assert (rows(released)[1] - alone[1]) * BATCH == pytest.approx(coordinate, rel=1e-3, abs=3 * step)
    assert abs(alone[1]) < 6 * 1.3 * CLIP / BATCH
    assert alone[1] != 0

    mean, after = jax.jit(mechanism.learnt)(released, jnp.float32(r))
    assert jax.tree.structure(mean) == jax.tree.structure(PARAMS)
    excess = rows(released)[1] * far / (rule.share * CLIP)
    assert float(after) == pytest.approx(r * np.exp(-rule.learning_rate * excess), rel=1e-5)
    np.testing.assert_allclose(rows(Extended(mean, 0.0))[0], rows(released)[0] * r / kept, rtol=1e-5)
    assert mechanism.clip_norm(after) == pytest.approx(float(after) * mechanism.clip_to)


@GRADES
@METHODS
def test_padding_contributes_nothing_not_even_to_the_count(method: str, discrete: bool) -> None:
    mechanism, gradients, is_real = (
        adaptive(RULES[1], discrete, method),
        drawn(1),
        [True, True, False, True, False],
    )
    total = summed(mechanism, gradients, is_real, 1.0).total
    gradients[[2, 4]] = 99.0
    again = summed(mechanism, gradients, is_real, 1.0).total
    jax.tree.map(np.testing.assert_array_equal, (again.high, again.low), (total.high, total.low))
    nobody = summed(mechanism, gradients, [False] * UNITS, 1.0).total
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(nobody))


@GRADES
def test_a_gradient_that_is_not_finite_is_not_hidden(discrete: bool) -> None:
    mechanism, gradients = adaptive(RULES[0], discrete), drawn(1)
    for wrong in (np.nan, np.inf, 1e30):  # the last one's square is not finite
        gradients[2, 0] = wrong
        assert int(summed(mechanism, gradients, EVERYONE, 1.0).total.broken) == 1


@pytest.mark.parametrize("present", [BATCH, 2 * BATCH])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-3, 1e3])
def test_without_noise_the_clip_norm_moves_to_the_quantile(
    quantile: float, start: float, present: int
) -> None:
    """Of those that are there, though the expected batch was declared as half of them."""
    rule = Adaptive(quantile)
    norms = jnp.asarray(np.random.default_rng(0).lognormal(size=present), jnp.float32)

    def step(r: Any, _: Any) -> Any:
        mean = jnp.sum(rule.coordinates(norms, CLIP, r)) / BATCH
        return rule.learnt(Extended(PARAMS, mean), CLIP, r)[1], None

    r, _ = jax.lax.scan(step, jnp.float32(start), length=400)
    assert np.mean(norms <= float(r) * CLIP) == pytest.approx(quantile, abs=0.04)


def test_the_clip_norm_stays_within_what_float32_can_hold() -> None:
    rule, always = Adaptive(learning_rate=5.0), jnp.zeros(BATCH)
    for coordinate, end in ((jnp.inf, LEAST), (1e9, LEAST), (-1e9, MOST)):
        _, r = rule.learnt(Extended(always, jnp.float32(coordinate)), CLIP, jnp.float32(1.0))
        assert float(r) * CLIP == pytest.approx(end, rel=1e-6)
    assert np.isnan(rule.learnt(Extended(always, jnp.float32(np.nan)), CLIP, jnp.float32(1.0))[1])


def test_at_first_it_clips_as_the_flat_rule_does_but_for_its_share() -> None:
    rule, gradients = Adaptive(), np.asarray(drawn(5), np.float32)
    flat, one = (
        clipped_sum(loss, PARAMS, gradients, jnp.asarray(EVERYONE), CLIP, some)[0]
        for some in (Flat(), rule.at(rule.start()))
    )
    kept = np.sqrt(1 - rule.share**2)
    jax.tree.map(lambda f, o: np.testing.assert_allclose(o, kept * f, rtol=1e-5), flat, one)


def test_the_count_is_part_of_the_one_release_that_is_accounted() -> None:
    mechanism = adaptive(Adaptive(), False)
    assert mechanism.entry(3) == MECHANISM.entry(3)
    contribution = mechanism.contribution(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(contribution)) == COORDINATES
    assert MECHANISM.contribution(PARAMS) is PARAMS
    assert MECHANISM.start() is None
    assert MECHANISM.learnt(PARAMS, None) == (PARAMS, None)
    assert MECHANISM.clip_norm(None) == MECHANISM.clip_to


def test_a_step_without_the_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state: a clip rule that adapts has one"):
        adaptive(Adaptive(), False).clipped_sum(loss, PARAMS, drawn(0), jnp.asarray(EVERYONE))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantile", 0.0),
        ("quantile", 1.0),
        ("learning_rate", -1.0),
        ("share", 0.0),
        ("share", 0.5),
        ("share", np.nan),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected more than 0 and less than"):
        Adaptive(**{field: value})
