"""Correlated noise in numbers: against dense matrices, published values, jax-privacy and dp-accounting."""

import math

import numpy as np
import pytest
from dp_accounting import pld
from jax_privacy.experimental import accounting as jax_privacy_accounting
from jax_privacy.matrix_factorization import toeplitz
from scipy.linalg import toeplitz as toeplitz_matrix
from scipy.optimize import minimize

from jaxcxr import accounting
from jaxcxr.accounting import Spending, banded
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import BandedEntry, Entry, Statistic, spendings_of


def dense(column: np.ndarray | tuple[float, ...], steps: int) -> np.ndarray:
    """C, with columns of norm 1 but for those that the end cuts."""
    first = np.zeros(steps)
    first[: len(column)] = column
    return np.tril(toeplitz_matrix(first)) / np.linalg.norm(column)


def dense_error(column: np.ndarray | tuple[float, ...], steps: int) -> float:
    """Root mean square over rows of the norm of those of A C^-1, A being the matrix of prefix sums."""
    rows = np.tril(np.ones((steps, steps))) @ np.linalg.inv(dense(column, steps))
    return float(np.sqrt(np.square(rows).sum() / steps))


@pytest.mark.parametrize(("bands", "steps"), [(1, 9), (2, 9), (4, 40), (16, 40), (16, 16)])
def test_the_error_is_that_of_the_dense_matrices(bands: int, steps: int) -> None:
    column = banded.coefficients(bands, steps)
    assert len(column) == bands
    assert banded.prefix_error(column, steps) == pytest.approx(dense_error(column, steps), rel=1e-9)
    assert banded.prefix_error(3 * np.asarray(column), steps) == pytest.approx(
        dense_error(column, steps), rel=1e-9
    )


def test_independent_noise_adds_up() -> None:
    assert banded.coefficients(1, 99) == (1.0,)
    assert banded.prefix_error((1.0,), 99) == pytest.approx(math.sqrt(100 / 2))


@pytest.mark.parametrize(("bands", "steps"), [(2, 12), (3, 30), (6, 30), (12, 12)])
def test_no_other_column_has_less_noise(bands: int, steps: int) -> None:
    """Looked for without gradients, from other places, on dense matrices."""
    found = banded.prefix_error(banded.coefficients(bands, steps), steps)
    rng = np.random.default_rng(0)
    for start in (np.full(bands - 1, 0.5), *rng.uniform(0, 1, (3, bands - 1))):
        other = minimize(
            lambda tail: dense_error((1.0, *tail), steps),
            start,
            method="Nelder-Mead",
            options={"maxiter": 4000},
        )
        assert found <= other.fun * (1 + 1e-4)


def test_the_square_root_is_the_published_one() -> None:
    """Its square is the matrix of prefix sums (Fichtenberger et al. 2022, Theorem 1)."""
    root = np.tril(toeplitz_matrix(banded.square_root(20)))
    np.testing.assert_allclose(root @ root, np.tril(np.ones((20, 20))), atol=1e-12)
    np.testing.assert_allclose(banded.square_root(4), [1, 1 / 2, 3 / 8, 5 / 16])


def test_many_steps_of_few_bands_come_near_the_limit() -> None:
    """b equal entries give 1 / sqrt(b) of independent noise and no Toeplitz matrix less, when transients are forgotten."""
    for bands in (2, 4, 8):
        relative = banded.prefix_error(banded.coefficients(bands, 8192), 8192) / math.sqrt(8193 / 2)
        assert 1 < relative * math.sqrt(bands) < 1.02


def test_a_unit_is_in_every_bands_th_step_at_the_rate_of_its_group() -> None:
    assert banded.spending_of(0.08, 1.3, 100, 8) == Spending(0.08, 1.3, 13)
    assert banded.spending_of(0.01, 1.3, 100, 1) == Spending(0.01, 1.3, 100)


def test_the_cost_is_that_of_jax_privacy() -> None:
    """Its event of the mechanism, composed by dp-accounting."""
    event = jax_privacy_accounting.amplified_bandmf_event(
        0.978, 509, num_bands=8, sampling_prob=8 * 128 / 8000
    )
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    theirs = accountant.compose(event).get_epsilon(6e-6)
    ours = accounting.epsilon_pld([banded.spending_of(8 * 128 / 8000, 0.978, 509, 8)], 6e-6)
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert ours == pytest.approx(7.89, rel=5e-3)


@pytest.mark.parametrize(("bands", "steps"), [(4, 45), (8, 45)])
def test_the_column_is_as_good_as_that_of_jax_privacy(bands: int, steps: int) -> None:
    theirs = np.asarray(toeplitz.optimize_banded_toeplitz(steps, bands))
    ours = banded.coefficients(bands, steps)
    assert banded.prefix_error(ours, steps) == pytest.approx(banded.prefix_error(theirs, steps), rel=1e-5)


def lines(steps: int, bands: int) -> list[Entry]:
    return [BandedEntry(step, 0.2, 1.5, 1.0, bands, step % bands) for step in range(steps)]


@pytest.mark.parametrize(("steps", "bands"), [(1, 4), (4, 4), (5, 4), (12, 3), (11, 3)])
def test_a_ledger_costs_what_its_longest_group_costs(steps: int, bands: int) -> None:
    assert spendings_of(lines(steps, bands)) == [banded.spending_of(0.2, 1.5, steps, bands)]
    counts = Statistic("class_counts", 9.0, 1.0)
    assert spendings_of([counts, *lines(9, bands)], before_step=steps) == [
        counts.spending,
        banded.spending_of(0.2, 1.5, min(steps, 9), bands),
    ]


def test_lines_of_one_group_are_all_counted() -> None:
    """A run that draws from the same group again and again costs each step."""
    one = [BandedEntry(step, 0.2, 1.5, 1.0, 4, 0) for step in range(8)]
    assert spendings_of(one) == [Spending(0.2, 1.5, 8)]


def test_steps_end_with_the_last_round_that_the_budget_pays() -> None:
    step = Spending(0.2, 1.0, 1)
    five = accounting.epsilon_pld([Spending(0.2, 1.0, 5)], 1e-5)
    for done, spent in ((0, []), (7, [Spending(0.2, 1.0, 2)]), (8, [Spending(0.2, 1.0, 2)])):
        assert banded.affordable(spent, step, (five * 1.001, 1e-5), (done, 100), 4) == 20
        assert banded.affordable(spent, step, (five * 0.999, 1e-5), (done, 100), 4) == 16
        assert banded.affordable(spent, step, (five * 9, 1e-5), (done, 18), 4) == 18


def test_the_number_of_bands_is_the_best_of_those_that_go() -> None:
    budget, n_units, batch, steps = (7.89, 6e-6), 8000, 128, 512
    errors = {}
    for bands in (1, 2, 4, 8, 16, 32):
        sigma = accounting.calibrated_noise(*budget, bands * batch / n_units, -(-steps // bands))
        errors[bands] = sigma * dense_error(banded.coefficients(bands, steps), steps)
    chosen = banded.chosen_bands(budget, (batch, n_units), steps)
    assert chosen == min(errors, key=lambda bands: errors[bands]) == 16
    assert errors[16] < 0.6 * errors[1]
    assert errors[8] > 1.02 * errors[16]
    # at a smaller budget eight bands are as good as sixteen, and take half the memory
    assert banded.chosen_bands((4.71, 6e-6), (batch, n_units), steps) == 8
    # a group has to hold a batch, and there are no more bands than steps
    assert banded.chosen_bands(budget, (2000, n_units), steps) <= 4
    assert banded.chosen_bands(budget, (128, n_units), 3) <= 3
    assert banded.chosen_bands((0.1, 6e-6), (8000, n_units), steps) == 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((8, 10, 1000, 7), "expected at most the 7 steps of the run, found 8"),
        ((8, 126, 1000, 70), "a batch of 126 is more than there are in one; expected at most 7 bands"),
    ],
)
def test_bands_that_no_run_can_have_are_refused(numbers: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=f"privacy.noise_bands: .*{message}"):
        banded.require_bands(*numbers)


def test_bands_at_their_limits_are_accepted() -> None:
    banded.require_bands(8, 125, 1000, 8)
