"""The Gaussian mechanism in closed form: any number of releases without sampling is one release with one mu.

The privacy profile of N(mu, 1) against N(0, 1) is

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)

(Balle & Wang 2018, Theorem 8), and releases with mu_1, mu_2, ... compose to mu = sqrt(mu_1^2 + mu_2^2 + ...)
(Dong, Roth & Su 2022, Corollary 3.3).
"""

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr

_UNIT_ROUNDOFF = 2.0**-53
_HALF_PI_ROOT = math.sqrt(math.pi / 2)


def gaussian_delta(epsilon: Any, mu: Any) -> Any:
    """delta(epsilon) of the Gaussian mechanism with sensitivity over noise `mu`, elementwise.

    The relative error is at most `relative_error(mu)` wherever delta is below a half. Because exp(epsilon)
    times the normal density at b = -epsilon/mu - mu/2 is the density at a = -epsilon/mu + mu/2, delta is that
    density times the difference of two Mills ratios: nothing under- or overflows in the tail.
    """
    epsilon, mu = np.asarray(epsilon, float), np.asarray(mu, float)
    a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    with np.errstate(over="ignore", invalid="ignore"):
        mills = _HALF_PI_ROOT * (erfcx(-np.minimum(a, 0) / math.sqrt(2)) - erfcx(-b / math.sqrt(2)))
        tail = np.exp(-a * a / 2) / math.sqrt(2 * math.pi) * mills
        # Where a is positive, exp(epsilon) Phi(b) is a density times a Mills ratio, at most one half.
        middle = ndtr(a) - np.exp(-a * a / 2) / 2 * erfcx(-b / math.sqrt(2))
    return np.where(a <= 0, tail, middle)


def relative_error(mu: float) -> float:
    """Bound on the relative rounding error of `gaussian_delta`.

    It subtracts two numbers that differ by about a share mu of themselves; each has an error of a few units
    in the last place, from erfcx and from an exponent of at most 700.
    """
    return 4000 * _UNIT_ROUNDOFF * max(1.0, 1 / mu)


def gaussian_epsilon(delta: float, mu: float) -> tuple[float, float]:
    """Lower and upper bound on the epsilon at which the profile falls to `delta`."""
    error = relative_error(mu)
    return _where(delta * (1 + error), mu), _where(delta * (1 - error), mu)


def _where(delta: float, mu: float) -> float:
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + mu
    found: Any = brentq
    root = found(
        lambda epsilon: math.log(max(float(gaussian_delta(epsilon, mu)), 1e-300) / delta),
        0.0,
        high,
        xtol=1e-300,
        rtol=1e-14,
    )
    return float(root)
