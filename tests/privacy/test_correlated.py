"""Correlated noise: the dense product, groups that take turns, and neighbouring batches."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcxr.accounting import Spending, banded
from jaxcxr.audit.turns import whitened
from jaxcxr.privacy import noise, sampling
from jaxcxr.privacy.correlated import Correlation, Stream
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.ledger import BandedEntry
from tests.accounting.test_banded import dense

SECRET = bytes(range(32))
STEPS, BANDS = 23, 4
MECHANISM = Mechanism(
    n_units=1000,
    expected_batch_size=50,
    l2_clip_norm=1.5,
    noise_multiplier=2.0,
    epsilon=1.0,
    delta=1e-6,
    correlation=Correlation(banded.coefficients(BANDS, STEPS)),
)
LIKE = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(6)}
IDS = [f"patient {i}" for i in range(1000)]


def rows(stream: Stream, steps: Any) -> np.ndarray:
    """Steps times coordinates, as all leaves in one row."""
    found = [stream.at(step, LIKE) for step in steps]
    return np.stack(
        [np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]) for tree in found]
    )


def stream(mechanism: Mechanism = MECHANISM, secret: bytes = SECRET) -> Stream:
    found = mechanism.stream(secret)
    assert isinstance(found, Stream)
    return found


def independent() -> np.ndarray:
    """z of every step, from its own key alone."""
    flat = jnp.zeros(21)
    return np.stack(
        [
            np.asarray(noise.gaussian_noise(jnp.asarray(MECHANISM.noise_key(SECRET, step)), flat, 3.0))
            for step in range(STEPS)
        ]
    )


@pytest.mark.parametrize("bands", [2, 3, BANDS, 16, STEPS])
def test_streamed_noise_is_the_dense_product(bands: int) -> None:
    correlation = Correlation(banded.coefficients(bands, STEPS))
    mechanism = dataclasses.replace(MECHANISM, expected_batch_size=20, correlation=correlation)
    expected = np.linalg.inv(dense(correlation.column, STEPS)) @ independent()
    streamed = rows(stream(mechanism), range(STEPS))
    np.testing.assert_allclose(streamed, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whitened(correlation.column, streamed), independent(), rtol=1e-4, atol=1e-4)


def test_columns_have_norm_1() -> None:
    """Or a unit would add more to C x than the clip norm."""
    column = np.asarray(MECHANISM.correlation.column)
    assert MECHANISM.correlation.norm == pytest.approx(np.linalg.norm(column))
    norms = np.linalg.norm(dense(column, STEPS), axis=0)
    np.testing.assert_allclose(norms[: -BANDS + 1], 1.0)
    assert (norms <= 1 + 1e-12).all()
    # the noise of the first step, which no other is taken from, is z times the norm: less would be too little
    first = rows(stream(), [0])
    np.testing.assert_allclose(first[0], np.linalg.norm(column) * independent()[0], rtol=1e-5)


@pytest.mark.parametrize("begun", [1, 3, BANDS, 17])
def test_a_stream_that_begins_later_draws_the_same_bits(begun: int) -> None:
    whole = rows(stream(), range(STEPS))
    assert rows(stream(), range(begun, STEPS)).tobytes() == whole[begun:].tobytes()
    assert not np.array_equal(whole, rows(stream(secret=bytes(32)), range(STEPS)))
    again = stream()
    again.at(5, LIKE)
    with pytest.raises(ValueError, match="expected 6 or later, found 5"):
        again.at(5, LIKE)


def test_a_release_is_the_sum_and_the_correlated_noise() -> None:
    total = {"a": jnp.linspace(-5, 5, 15).reshape(3, 5), "b": jnp.linspace(0, 1, 6)}
    drawn = stream().at(7, LIKE)
    released = jax.jit(MECHANISM.release)(MECHANISM.counted(total, True), drawn)
    for name in total:
        np.testing.assert_allclose(
            released[name] * 50, np.asarray(total[name]) + drawn[name], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="keys of several steps"):
        MECHANISM.randomness(MECHANISM.noise_key(SECRET, 7), LIKE)


def test_prefix_sums_have_the_noise_that_the_table_says() -> None:
    """Over many coordinates, at the end of a run and on average."""
    many = {"w": jnp.zeros(20_000)}
    drawn = stream()
    noises = np.stack([np.asarray(drawn.at(step, many)["w"]) for step in range(STEPS)])
    found = np.sqrt(np.square(np.cumsum(noises, axis=0)).mean())
    assert found == pytest.approx(3.0 * banded.prefix_error(MECHANISM.correlation.column, STEPS), rel=0.01)


def test_each_step_draws_from_its_group_at_the_accounted_rate() -> None:
    groups = sampling.groups(SECRET, IDS, BANDS)
    counts = np.zeros(1000, int)
    for step in range(400):
        drawn = MECHANISM.draw(SECRET, step, 1000, groups)
        assert set(groups[drawn]) <= {step % BANDS}
        counts[drawn] += 1
    assert MECHANISM.sample_rate == 0.2
    assert stats.binomtest(int(counts.sum()), 100 * 1000, 0.2).pvalue > 1e-4
    # each unit by itself: 100 steps of its group
    assert stats.kstest((counts - 20) / math.sqrt(100 * 0.2 * 0.8), "norm").statistic < 0.1
    entry = MECHANISM.entry(7)
    assert entry == BandedEntry(7, 0.2, 2.0, 1.5, BANDS, 7 % BANDS)
    assert MECHANISM.spending(400) == Spending(0.2, 2.0, 100)
    for wrong in (None, groups[:-1]):
        with pytest.raises(ValueError, match="groups: expected one of 4 for each of 1000 units"):
            MECHANISM.draw(SECRET, 0, 1000, wrong)


def test_a_group_follows_from_the_secret_and_the_id_alone() -> None:
    groups = dict(zip(IDS, sampling.groups(SECRET, IDS, 7), strict=True))
    fewer = [*IDS[500:], *IDS[100:250]]  # others are missing, and the order is another
    assert sampling.groups(SECRET, fewer, 7).tolist() == [groups[unit] for unit in fewer]
    assert sampling.groups(bytes(32), IDS, 7).tolist() != [*groups.values()]
    sizes = np.bincount([*groups.values()], minlength=7)
    assert stats.chisquare(sizes).pvalue > 1e-4
    assert len(set(sampling.groups(SECRET, ["patient 3"] * 4, 7).tolist())) == 1  # images of one patient


def test_one_unit_moves_each_block_of_c_x_by_the_clip_norm_at_most() -> None:
    """Neighbouring data sets: with and without one unit, whose steps are a group's.

    What is released is as if C x + z were; the unit's part of C x in the rows of one of its steps is disjoint from those of
    its others, and no longer than the clip norm.
    """
    groups = sampling.groups(SECRET, IDS, BANDS)
    c, unit = dense(MECHANISM.correlation.column, 40), 17
    rng = np.random.default_rng(0)
    seen = 0
    blocks = np.zeros(40, int)
    for step in range(40):
        with_it = MECHANISM.draw(SECRET, step, 1000, groups)
        x = np.zeros((40, 5))
        if unit in with_it:
            direction = rng.normal(size=5)
            x[step] = 1.5 * direction / np.linalg.norm(direction)  # clipped to the clip norm
            seen += 1
        moved = c @ x
        assert np.linalg.norm(moved) <= 1.5 * (1 + 1e-12)
        blocks += (np.abs(moved) > 0).any(axis=1)
        others = np.delete(np.arange(1000), unit)
        assert [i for i in with_it if i != unit] == [i for i in others if i in with_it]
    assert seen >= 1
    assert blocks.max() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correlation": Correlation((1.0,) * 21)}, "more than each of 21 groups of 1000 units has"),
        ({"discrete_coordinates": 9}, "no whole number of steps of a grid"),
    ],
)
def test_mechanisms_without_a_guarantee_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MECHANISM, **changes)


@pytest.mark.parametrize("column", [(), (2.0, 1.0), (1.0, math.nan)])
def test_a_column_that_is_none_is_refused(column: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="column: expected finite numbers, the first 1"):
        Correlation(column)
