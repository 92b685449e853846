"""The accountant on a few cases of true_epsilon.csv. All of them: python -m tests.accounting.truth.table"""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from tests.accounting.truth import table
from tests.accounting.truth.cases import DEMO_RATE, PAPER_DELTA, PAPER_RATE, Known, one, read
from tests.accounting.truth.composition import Truth, by_inversion, truth
from tests.accounting.truth.many_digits import error_in_digits
from tests.accounting.truth.mechanism import Case, Releases
from tests.accounting.truth.table import answer, judge

KNOWN = {known.case: known for known in read()}
FEW = (
    one(PAPER_RATE, 1, 179885, 1e-10),
    one(PAPER_RATE, 1, 179885, 1e-12),
    one(0.001, 1, 10**6, 1e-12),
    one(1, 1500, 10**6, 1e-9),
    one(1, 100, 10**4, 1e-13),
    one(1, 1000, 10**5, 1e-12),
    one(1, 2000, 10**6, 1e-12, images=2),
    one(0.01, 2, 1000, 1e-15),
    one(PAPER_RATE, 4.311, 179885, PAPER_DELTA),
    one(DEMO_RATE, 1.641, 45, 1e-4, images=2),
    one(DEMO_RATE, 1.641, 45, 1e-4, adjacency="replace_one"),
    one(1e-6, 0.2, 1, 1e-5),
    Case((Releases(1.0, 4.0, 1), Releases(DEMO_RATE, 1.641, 45)), 1e-4),
)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_bounds_enclose_the_truth(case: Case) -> None:
    found = answer(case)
    verdict = judge(KNOWN[case], found)
    assert not found.refusal
    assert not verdict.violation
    if KNOWN[case].truth.epsilon == 0:
        assert found.upper == 0
    else:
        assert verdict.looseness < 0.01
        assert verdict.looseness_below < 0.01


@pytest.mark.parametrize("case", [one(0.001, 1, 10**6, 1e-12), one(1, 2000, 10**6, 1e-12, images=2)], ids=str)
def test_the_file_holds_what_is_computed(case: Case) -> None:
    assert truth(case).epsilon == pytest.approx(KNOWN[case].truth.epsilon, rel=1e-9)


def test_a_truth_in_forty_digits() -> None:
    case = one(0.25, 400.0, 10**7, 1e-15)
    assert abs(error_in_digits(case, truth(case).epsilon)) < truth(case).error


@pytest.mark.parametrize("joining", [False, True])
@pytest.mark.parametrize("delta", [1e-2, 1e-15])
def test_inversion_agrees_with_the_closed_form(delta: float, joining: bool) -> None:
    case = one(1, 30.0, 1000, delta)
    assert by_inversion(case, joining).epsilon == pytest.approx(truth(case).epsilon, rel=1e-10)


def test_two_releases_by_the_first_answer() -> None:
    """The mean over the first answer of what the second one, in closed form, still tells."""
    q, sigma, delta = 0.01, 0.5, 1e-5
    found = by_inversion(one(q, sigma, 2, delta), joining=False)
    x = np.linspace(-10 * sigma, 1 + 10 * sigma, 20001)
    first = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    left = found.epsilon - first
    threshold = sigma**2 * (np.log(np.maximum(np.expm1(left) / q + 1, 1e-300))) + 0.5
    with_unit = q * ndtr((1 - threshold) / sigma) + (1 - q) * ndtr(-threshold / sigma)
    told = with_unit - np.exp(left) * ndtr(-threshold / sigma)
    weight = (q * np.exp(-((x - 1) ** 2) / (2 * sigma**2)) + (1 - q) * np.exp(-(x**2) / (2 * sigma**2))) / (
        sigma * math.sqrt(2 * math.pi)
    )
    assert np.trapezoid(weight * told, x) == pytest.approx(delta, rel=1e-7)


def test_a_bound_on_the_wrong_side_is_a_violation() -> None:
    known = Known("made up", one(0.5, 1, 2, 1e-5), Truth(1.0, 1e-9))
    assert not judge(known, table.Answer(1.0, 1.0)).violation
    assert judge(known, table.Answer(0.99, 0.999999)).violation == "UPPER BELOW THE TRUTH"
    assert judge(known, table.Answer(1.000001, 1.1)).violation == "LOWER ABOVE THE TRUTH"
    assert "UPPER" in judge(known, table.Answer(0.9, math.nan)).violation
