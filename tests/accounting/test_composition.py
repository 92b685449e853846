"""The composition of a discrete loss against exact integer arithmetic, at any tilt."""

import functools
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from jaxcxr.accounting.composition import Curve, composed_curve
from jaxcxr.accounting.discretisation import GridLoss
from jaxcxr.accounting.dominating_pair import Side

GRID = 0.25
COUNTS = {-2: 300, -1: 2000, 0: 1500, 1: 290, 5: 6}
"""How often, of 4096, the loss is each multiple of the grid: these probabilities are floats without rounding."""
DOUBLINGS = 6
STEPS = 2**DOUBLINGS


@functools.cache
def exact_law() -> list[tuple[Any, Any]]:
    """Losses of all steps and their probabilities, by multiplying polynomials of whole numbers."""
    mp.mp.dps = 60
    power = np.array([COUNTS.get(place, 0) for place in range(-2, 6)], dtype=object)
    for _ in range(DOUBLINGS):
        power = np.convolve(power, power)
    scale = mp.mpf(4096) ** STEPS
    return [
        ((index - 2 * STEPS) * mp.mpf(GRID), mp.mpf(int(count)) / scale)
        for index, count in enumerate(power)
        if count
    ]


def exact_delta(epsilon: float) -> Any:
    return mp.fsum(p * (1 - mp.e ** (epsilon - loss)) for loss, p in exact_law() if loss > epsilon)


def curve(tilt: float, side: Side) -> Curve:
    places = np.arange(-2, 6)
    probabilities = np.array([COUNTS.get(int(k), 0) / 4096 for k in places])
    loss = GridLoss(-2, probabilities, offsets=np.zeros(len(places)) if side == "lower" else None)
    return composed_curve([(loss, STEPS)], GRID, tilt, side, failure_probability=1e-40)


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize("tilt", [1e-9, 0.5, 2.7, 6.0])  # 2.7: the window fills the transform's length
def test_bounds_enclose_the_exact_profile_at_every_tilt(tilt: float, side: Side) -> None:
    """Far from where the tilt is precise, rounding errors and what the circular transform brings in from beyond the window's
    ends exceed the probabilities: only the allowances for both keep these bounds.
    """
    found = curve(tilt, side)
    for place in (*range(0, len(found.deltas), 5), len(found.deltas) - 1):
        truth, bound = exact_delta(found.first + place * found.spacing), found.deltas[place]
        assert truth <= bound if side == "upper" else bound <= truth


def test_the_right_tilt_gives_digits_of_the_smallest_deltas() -> None:
    upper, lower = curve(4.0, "upper"), curve(4.0, "lower")
    epsilon = 9.0
    truth = float(exact_delta(epsilon))
    assert truth < 1e-15
    assert upper.epsilon(truth) == pytest.approx(epsilon, abs=1e-3)
    assert lower.epsilon(truth) == pytest.approx(epsilon, abs=1e-3)
    assert lower.epsilon(truth) <= epsilon <= upper.epsilon(truth)
