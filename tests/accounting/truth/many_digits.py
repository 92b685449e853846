"""delta(epsilon) once more, in 40 digits: whether the rounding of the inversions in `composition` is what they say."""

import math
from typing import Any

import mpmath
import numpy as np

from tests.accounting.truth.composition import SETTINGS, Line, Loss
from tests.accounting.truth.mechanism import Case, Releases, laws

DIGITS = 40


def error_in_digits(case: Case, epsilon: float, joining: bool = False) -> float:
    """By how much `epsilon` is off, to first order, as a root of delta(epsilon) = delta in one direction.

    The line Re z = contour and about where its nodes are needed is taken from `composition`; they lie twice as dense here, and
    all that is computed on them is computed anew: exp(z loss) is turned from node to node.
    """
    setting = SETTINGS[0]._replace(fineness=2.0)
    loss = Loss(case, joining, setting)
    line = Line(loss, loss.saddle(lambda saddle: epsilon - saddle.epsilon), setting)
    line.log_delta(epsilon)
    count = len(line.values)
    needed = 1 + int(
        np.flatnonzero(
            np.abs(line.values / (1 + line.spacing * np.arange(count) / line.contour) ** 2) > 1e-18
        )[-1]
    )
    with mpmath.workdps(DIGITS):
        contour, spacing, at = (mpmath.mpf(float(x)) for x in (line.contour, line.spacing, epsilon))
        turned = [
            (
                r.steps,
                _terms(r, case, joining, contour, spacing, *part._range(line.contour), needed * line.spacing),
            )
            for r, part in zip(case.releases, loss.parts, strict=True)
        ]
        delta = slope = mpmath.mpf(0)
        for n in range(needed):
            z = mpmath.mpc(contour, n * spacing)
            moment = mpmath.mpf(1)
            for steps, terms in turned:
                moment *= mpmath.fsum(value for value, _ in terms) ** steps
                terms[:] = [(value * turn, turn) for value, turn in terms]
            window = mpmath.erfc(setting.window * (2 * mpmath.mpf(n) / count - 1)) / 2 / (2 if n == 0 else 1)
            term = window * moment * mpmath.exp(-z * at) / (z * (z + 1))
            delta += term.real
            slope -= (term * z).real
        return float(mpmath.log(delta * spacing / mpmath.pi / case.delta) * delta / slope)


def _terms(
    releases: Releases,
    case: Case,
    joining: bool,
    contour: Any,
    spacing: Any,
    low: float,
    high: float,
    height: float,
) -> list[tuple[Any, Any]]:
    """Of E_P[exp(z loss)] at z = contour, and what each is multiplied by from one node of the line to the next."""
    q, sigma = mpmath.mpf(releases.sample_rate), mpmath.mpf(releases.noise_multiplier)
    p_law, q_law = (
        [(mpmath.mpf(m), mpmath.binomial(case.images, abs(int(m))) * q ** abs(int(m)) * (1 - q) ** (case.images - abs(int(m))) if len(law.means) > 1 else 1) for m in law.means]
        for law in laws(releases, case.images, case.adjacency, joining)
    )  # fmt: skip
    slope = case.images * (2 if case.adjacency == "replace_one" else 1) / releases.noise_multiplier
    step = mpmath.mpf(math.pi / (height * slope + 20 + 20 / releases.noise_multiplier))
    terms = []
    low, high = low - 4, high + 4
    for i in range(math.ceil((high - low) / float(step)) + 1):
        x = (low + i * step) * sigma
        p_density, q_density = (
            sum(w * mpmath.exp(-((x - m) ** 2) / (2 * sigma**2)) for m, w in law) for law in (p_law, q_law)
        )
        loss = mpmath.log(p_density / q_density)
        terms.append(
            (
                step / mpmath.sqrt(2 * mpmath.pi) * p_density * mpmath.exp(contour * loss),
                mpmath.expj(spacing * loss),
            )
        )
    return terms
