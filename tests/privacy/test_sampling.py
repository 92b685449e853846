import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxcxr.privacy.sampling import poisson_batch

SECRET = bytes(range(32))


def test_batch_sizes_are_binomial() -> None:
    n, q, steps = 400, 0.03, 3000
    sizes = np.array([len(poisson_batch(SECRET, step, n, q)) for step in range(steps)])
    counts = np.bincount(sizes, minlength=40)
    edges = [*range(6, 20)]
    observed = [counts[: edges[0]].sum(), *[counts[e] for e in edges], counts[edges[-1] + 1 :].sum()]
    law = stats.binom(n, q)
    expected = steps * np.array([law.cdf(edges[0] - 1), *stats.binom.pmf(edges, n, q), law.sf(edges[-1])])
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_units_join_independently_of_each_other_and_of_the_step() -> None:
    n, q, steps = 40, 0.3, 4000
    joined = np.zeros((steps, n))
    for step in range(steps):
        joined[step, poisson_batch(SECRET, step, n, q)] = 1
    assert (
        stats.chisquare(joined.sum(axis=0), np.full(n, steps * q) * joined.sum() / (steps * q * n)).pvalue
        > 1e-4
    )
    correlations = np.asarray(np.corrcoef(joined.T))[np.triu_indices(n, 1)] * np.sqrt(steps)
    assert np.abs(correlations).max() < 5
    between_steps = np.array([np.corrcoef(joined[:-1, i], joined[1:, i])[0, 1] for i in range(n)]) * np.sqrt(
        steps
    )
    assert np.abs(between_steps).max() < 5


def test_empty_batches_happen_as_often_as_they_should() -> None:
    n, q, steps = 10, 0.1, 2000
    empty = sum(len(poisson_batch(SECRET, step, n, q)) == 0 for step in range(steps))
    assert stats.binomtest(empty, steps, (1 - q) ** n).pvalue > 1e-4


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=16, max_size=32), st.integers(0, 2**40), st.integers(0, 300), st.floats(0, 1))
def test_a_batch_is_a_function_of_secret_and_step(secret: bytes, step: int, n: int, q: float) -> None:
    batch = poisson_batch(secret, step, n, q)
    assert np.array_equal(batch, poisson_batch(secret, step, n, q))
    assert np.all(np.diff(batch) > 0)
    assert batch.size == 0 or (batch[0] >= 0 and batch[-1] < n)


def test_a_unit_more_changes_nobody_elses_part() -> None:
    for step in range(50):
        shorter, longer = (poisson_batch(SECRET, step, n, 0.2) for n in (100, 101))
        assert np.array_equal(shorter, longer[longer < 100])


def test_other_secrets_and_steps_give_other_batches() -> None:
    batches = {tuple(poisson_batch(bytes([s]) * 32, step, 100, 0.5)) for s in range(5) for step in range(20)}
    assert len(batches) == 100


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 50)])
def test_certain_rates(rate: float, expected: int) -> None:
    assert len(poisson_batch(SECRET, 0, 50, rate)) == expected


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        poisson_batch(SECRET, 0, 10, rate)
