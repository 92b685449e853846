"""The true epsilon of composed Poisson-subsampled Gaussian releases: a second opinion on the accountant, which it does not import.

    delta(epsilon) = E_P[(1 - exp(epsilon - L))+] = 1 / (2 pi i) * integral of exp(g(z) - z epsilon) / (z (z + 1)) dz

along any line Re z = contour > 0, where L is the loss summed over all releases and g(z) = sum of steps * log E_P[exp(z L_1)]. The
loss is never put on a grid. E_P is the trapezoidal rule on the normal laws, and the line is summed by the trapezoidal rule as
well; both converge exponentially for analytic integrands (Trefethen & Weideman 2014). The line goes through the saddle point
(Lugannani & Rice 1980), so that nothing cancels however small delta is, and log E_P[exp(z L)] is computed from exp(z L) - 1, so
that ten million releases do not multiply its rounding. Where a unit is always drawn, or releases once, there is a closed form.

Every inversion is made twice, on other lines, with other steps, other windows and in another precision; what they differ by is the
stated error.
"""

import functools
import math
from typing import Any, NamedTuple

import mpmath
import numpy as np
from scipy.optimize import brentq
from scipy.special import erfc

from tests.accounting.truth.mechanism import Case, Law, Releases, laws


class Truth(NamedTuple):
    """The least epsilon that holds, and by how much it may be off."""

    epsilon: float
    error: float


class Setting(NamedTuple):
    """How an inversion is made: a real type, finer steps than needed by a factor, and the line as a multiple of the saddle point."""

    real: type
    fineness: float
    line: float
    window: float


SETTINGS = Setting(np.float64, 1.0, 1.0, 6.0), Setting(np.longdouble, 1.37, 0.87, 7.0)
FEW_STEPS = 1000
"""They multiply rounding so little that both inversions are made in double precision, which is ten times as fast."""
NEGLIGIBLE = 32.0
"""Minus the logarithm of what is left out, beside what is kept, of a sum."""
FEW = 100.0
"""Where log E_P[exp(z L_1)] is about as large, few releases are composed: it is computed as it is, without overflow."""
MOST_WORK = 2e8
"""Terms of a double sum, about a minute."""
TOLERANCE = 1e-9
"""Of log delta, in each inversion."""


def truth(case: Case) -> Truth:
    """The least epsilon >= 0 with delta(epsilon) <= delta, in the worse of the two directions."""
    if all(r.sample_rate == 1 for r in case.releases):
        shift = case.images * (2 if case.adjacency == "replace_one" else 1)
        mu = mpmath.sqrt(
            sum(r.steps * mpmath.mpf(shift) ** 2 / mpmath.mpf(r.noise_multiplier) ** 2 for r in case.releases)
        )
        return _of_gaussian(mu, case.delta)
    if len(case.releases) == 1 and case.releases[0].steps == 1:
        return max(_of_one_release(case, joining) for joining in (False, True))
    if _chance_of_being_drawn(case) <= case.delta:
        return Truth(0.0, 0.0)
    leaving = by_inversion(case, joining=False)
    # Replacing looks the same from both sides. So does delta(0), the total variation.
    if (
        case.adjacency == "replace_one"
        or leaving.epsilon == 0
        or not _joining_may_exceed(case, leaving.epsilon)
    ):
        return leaving
    return max(leaving, by_inversion(case, joining=True))


def _chance_of_being_drawn(case: Case) -> float:
    """Of any image of the unit in any release; no test can tell the two laws apart better than that."""
    if any(r.sample_rate == 1 for r in case.releases):
        return 1.0
    return -math.expm1(sum(r.steps * case.images * math.log1p(-r.sample_rate) for r in case.releases))


# Closed forms, in 45 digits.


def _of_gaussian(mu: Any, delta: float) -> Truth:
    """Balle & Wang 2018, Theorem 8."""

    def delta_at(epsilon: Any) -> Any:
        return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)

    with mpmath.workdps(45):
        if delta_at(mpmath.mpf(0)) <= delta:
            return Truth(0.0, 0.0)
        return _rounded(_root(lambda e: delta_at(e) - delta, mpmath.mpf(0), mu**2 / 2 + 20 * mu))


def _of_one_release(case: Case, joining: bool) -> Truth:
    """The loss rises or falls with the answer x, so that epsilon is the loss at the x beyond which P's and Q's tails give delta."""
    (release,) = case.releases
    with mpmath.workdps(45):
        p, q = (_exact(law) for law in laws(release, case.images, case.adjacency, joining))
        sigma = mpmath.mpf(release.noise_multiplier)

        def density(law: list[tuple[Any, Any]], x: Any) -> Any:
            return sum(w * mpmath.exp((2 * m * x - m * m) / (2 * sigma**2)) for m, w in law)

        def tail(law: list[tuple[Any, Any]], x: Any) -> Any:
            return sum(w * mpmath.ncdf((x - m if joining else m - x) / sigma) for m, w in law)

        def excess(x: Any) -> Any:
            delta = tail(p, x) - density(p, x) / density(q, x) * tail(q, x)
            return delta - case.delta

        reach = case.images + 40 * sigma
        least, most = (reach, -reach) if joining else (-reach, reach)
        if excess(least) <= 0:
            return Truth(0.0, 0.0)
        x = _root(excess, least, most)
        epsilon = mpmath.log(density(p, x) / density(q, x))
        return _rounded(epsilon) if epsilon > 0 else Truth(0.0, 0.0)


def _exact(law: Law) -> list[tuple[Any, Any]]:
    weights = [mpmath.mpf(w) for w in law.weights]
    return [(mpmath.mpf(m), w / sum(weights)) for m, w in zip(law.means, weights, strict=True)]


def _root(falling: Any, low: Any, high: Any) -> Any:
    """By bisection: `falling` is above 0 at `low`, and not at `high`, which may be the smaller one."""
    for _ in range(110):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


def _rounded(epsilon: Any) -> Truth:
    return Truth(float(epsilon), 1e-15 * float(epsilon))


# Inversion.


def by_inversion(case: Case, joining: bool) -> Truth:
    first, second = SETTINGS
    if sum(r.steps for r in case.releases) <= FEW_STEPS:
        second = second._replace(real=np.float64)
    one, other = (_inverted(case, joining, setting) for setting in (first, second))
    return Truth(other.epsilon, 3 * abs(one.epsilon - other.epsilon) + 3 * other.error)


def _inverted(case: Case, joining: bool, setting: Setting) -> Truth:
    """Epsilon at the case's delta in one direction, and what `TOLERANCE` means for it."""
    loss = Loss(case, joining, setting)
    target = math.log(case.delta)
    if math.sqrt(loss.divergence() / 2) <= case.delta:
        return Truth(0.0, 0.0)  # Pinsker: it bounds delta(0)
    at = loss.saddle(lambda saddle: saddle.log_delta - target)
    if at.epsilon < 1 / at.contour:
        at_zero = loss.saddle(lambda saddle: -saddle.epsilon)
        line = Line(loss, at_zero, setting)
        if line.log_delta(0.0)[0] <= target:
            return Truth(0.0, 0.0)
    line = Line(loss, at, setting)
    epsilon = at.epsilon
    for _ in range(50):
        log_delta, slope = line.log_delta(epsilon)
        step = (target - log_delta) / slope
        epsilon += step
        if abs(step * slope) < TOLERANCE:
            return Truth(max(0.0, epsilon), TOLERANCE / abs(slope))
    raise ArithmeticError(f"{case}: epsilon did not settle")


def _joining_may_exceed(case: Case, epsilon: float) -> bool:
    """For a unit that joins, whether delta(epsilon) may exceed the case's delta: Chernoff's bound, then the inversion itself."""
    loss = Loss(case, True, SETTINGS[0])
    if epsilon >= loss.most:
        return False
    at = loss.saddle(lambda saddle: epsilon - saddle.epsilon)
    if loss.g(at.contour) - at.contour * epsilon < math.log(case.delta):
        return False
    return Line(loss, at, SETTINGS[0]).log_delta(epsilon)[0] > math.log(case.delta) - 1e-3


class Saddle(NamedTuple):
    """A point of the real line, the epsilon for which the integrand is least there, and about what log delta is at that epsilon."""

    contour: float
    epsilon: float
    log_delta: float
    curvature: float


class Loss:
    """The summed loss of a case in one direction, as its cumulant function g(z) under P."""

    def __init__(self, case: Case, joining: bool, setting: Setting) -> None:
        self.case = case
        self.parts = [
            _Part(r, *laws(r, case.images, case.adjacency, joining), setting) for r in case.releases
        ]
        self.most = math.inf
        if joining and case.adjacency == "add_remove":
            self.most = -sum(
                r.steps * case.images * math.log1p(-r.sample_rate) for r in case.releases if r.sample_rate < 1
            )
            self.most = math.inf if any(r.sample_rate == 1 for r in case.releases) else self.most

    def g(self, contour: float) -> float:
        return float(sum(p.steps * p.log_moment(contour, np.zeros(1))[0].real for p in self.parts))

    def divergence(self) -> float:
        """No less than the Kullback-Leibler divergence, the loss's mean, and hardly more."""
        return sum(p.cumulants(1e-3)[1] for p in self.parts)

    def on_line(self, contour: float, heights: np.ndarray) -> np.ndarray:
        """g(contour + i heights), its imaginary part up to multiples of 2 pi."""
        return np.asarray(sum(p.steps * p.log_moment(contour, heights) for p in self.parts))

    def effort(self, contour: float, height: float) -> int:
        return sum(len(p._nodes(contour, height)[0]) for p in self.parts)

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def at(self, contour: float) -> Saddle:
        g, first, second = (
            float(sum(c)) for c in zip(*(p.cumulants(contour) for p in self.parts), strict=True)
        )
        epsilon = first - 1 / contour - 1 / (1 + contour)
        curvature = second + 1 / contour**2 + 1 / (1 + contour) ** 2
        log_delta = (
            g
            - contour * epsilon
            - math.log(contour)
            - math.log1p(contour)
            - 0.5 * math.log(2 * math.pi * curvature)
        )
        return Saddle(contour, epsilon, log_delta, curvature)

    def saddle(self, falling: Any) -> Saddle:
        """Where a function of the saddle, falling in `contour`, is zero."""

        def of_log(log_contour: float) -> float:
            return falling(self.at(math.exp(log_contour)))

        low = high = 0.0
        while of_log(high) > 0:
            high += 0.5
        while of_log(low) < 0:
            low -= 0.5
        root: Any = brentq(of_log, low, high, xtol=1e-6) if low < high else low
        return self.at(math.exp(root))


class _Part:
    """Equal releases. Nodes are answers x = sigma u, at which P has the density exp(log_p) and the loss is `loss`."""

    def __init__(self, releases: Releases, p: Law, q: Law, setting: Setting) -> None:
        self.steps, self.sigma, self.p, self.q, self.setting = (
            releases.steps,
            releases.noise_multiplier,
            p,
            q,
            setting,
        )
        self.slope = (
            max(p.means + q.means) - min(p.means + q.means)
        ) / self.sigma  # the loss changes at most so fast with u
        self.rising = 1 if max(p.means) > max(q.means) else -1

    def _over_standard(self, law: Law, u: np.ndarray) -> np.ndarray:
        """log of the density over that of N(0, sigma^2), precise where it is close to 0."""
        real = self.setting.real
        sigma = real(self.sigma)
        rises = [
            (real(w), (2 * real(m) * u * sigma - real(m) ** 2) / (2 * sigma**2))
            for m, w in zip(*law, strict=True)
            if w > 0
        ]
        largest = functools.reduce(lambda a, b: np.where(a.real < b.real, b, a), (a for _, a in rises))
        near = largest.real < 40
        excess = sum(w * np.expm1(np.where(near, a, 0)) for w, a in rises)
        near &= np.abs(excess) < 0.5
        scaled = largest + np.log(sum(w * np.exp(a - largest) for w, a in rises))
        return np.where(near, _log1p(np.where(near, excess, 0)), scaled)

    def _at(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        above = self._over_standard(self.p, u)
        log_p = -u * u / 2 - np.log(self.setting.real(2 * np.pi)) / 2 + above
        return log_p, above - self._over_standard(self.q, u)

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def _range(self, contour: float) -> tuple[float, float]:
        """Outside of it nothing counts in E_P[exp(z loss) - 1] on this line."""
        far = (1 + contour) * self.slope + 12
        if far > 3e4:
            raise ArithmeticError(f"the line at {contour:g} is too far out")
        u = np.linspace(-far, far, 2 * math.ceil(4 * far) + 1).astype(self.setting.real)
        log_p, loss = self._at(u)
        size = log_p + np.maximum(contour * loss, np.log(np.minimum(1, contour * np.abs(loss)) + 1e-300))
        kept = u[size > size.max() - 2 * NEGLIGIBLE]
        return float(kept[0]) - 1, float(kept[-1]) + 1

    def _nodes(self, contour: float, height: float) -> tuple[np.ndarray, np.ndarray]:
        """Spaced so that exp(i height loss) is resolved; the loss has branch points pi sigma from the real axis.

        Great heights need many nodes on the real axis. Beside it exp(i height loss) dies out where it would turn fast, which the
        rule need not resolve: its error is that of the real axis, divided by exp(2 pi shift / spacing).
        """
        low, high = self._range(contour)
        fall = 1.5 * NEGLIGIBLE
        bandwidth = height * self.slope + max(10.0, fall / (math.pi * self.sigma)) + 1
        shift = min(1.5, 0.45 * math.pi / self.slope)  # the loss's imaginary part stays below pi
        if bandwidth > fall / shift:
            bandwidth = fall / shift
        else:
            shift = 0.0
        spacing = min(0.5, 2 * math.pi / bandwidth) / self.setting.fineness
        u = low + self.setting.real(spacing) * np.arange(math.ceil((high - low) / spacing) + 1)
        log_p, loss = self._at(u + 1j * self.setting.real(self.rising * shift) if shift else u)
        return log_p + np.log(self.setting.real(spacing)), loss

    def cumulants(self, contour: float) -> tuple[float, float, float]:
        """log E_P[exp(contour loss)] and its first two derivatives, times `steps`."""
        log_weight, loss = self._nodes(contour, 0.0)
        tilted = log_weight + contour * loss
        top = tilted.max()
        share = np.exp(tilted - top)
        mean = (share @ loss) / share.sum()
        if top < FEW:
            excess = _tilted_less_plain(log_weight, contour * loss, contour * loss > 1)
            log_moment = np.log1p(excess.sum())
            mean = (excess @ loss + np.exp(log_weight) @ loss) / (1 + excess.sum())
        else:
            log_moment = top + np.log(share.sum())
        variance = (share @ (loss - mean) ** 2) / share.sum()
        return float(self.steps * log_moment), float(self.steps * mean), float(self.steps * variance)

    def log_moment(self, contour: float, heights: np.ndarray) -> np.ndarray:
        """log E_P[exp(z loss)] at z = contour + i heights."""
        found = []
        for block in np.array_split(heights, math.ceil(len(heights) / 64)):
            log_weight, loss = self._nodes(contour, float(block.max()))
            top = (log_weight + contour * loss).real.max()
            z = contour + 1j * block.astype(self.setting.real)
            for each in np.array_split(z, math.ceil(len(z) * len(loss) / 1e6)):
                exponent = each[:, None] * loss
                if top < FEW:
                    found.append(
                        _log1p(_tilted_less_plain(log_weight, exponent, contour * np.real(loss) > 1).sum(1))
                    )
                else:
                    found.append(top + np.log(np.exp(exponent + (log_weight - top)).sum(1)))
        return np.concatenate(found)


def _tilted_less_plain(log_weight: np.ndarray, exponent: np.ndarray, large: np.ndarray) -> np.ndarray:
    """weight * (exp(exponent) - 1) over the last axis, precise for small exponents, without overflow for the large ones."""
    terms = np.empty(exponent.shape, np.result_type(exponent, log_weight))
    terms[..., ~large] = np.exp(log_weight[~large]) * np.expm1(exponent[..., ~large])
    terms[..., large] = np.exp(log_weight[large] + exponent[..., large]) - np.exp(log_weight[large])
    return terms


def _log1p(m: np.ndarray) -> np.ndarray:
    """log(1 + m), precise for small m, unlike numpy's, and finite."""
    if np.isrealobj(m):
        return np.log1p(m)
    size = np.abs(1 + m)
    real, imaginary = np.real(m), np.imag(m)
    small = np.log1p(np.maximum(real * (2 + real) + imaginary**2, -0.9)) / 2
    return np.where(size > 0.5, small, np.log(np.maximum(size, 1e-300))) + 1j * np.arctan2(
        imaginary, 1 + real
    )


class Line:
    """The line Re z = contour through a saddle point, or beside it, with its nodes."""

    def __init__(self, loss: Loss, at: Saddle, setting: Setting) -> None:
        self.loss, self.setting = loss, setting
        self.contour = at.contour * setting.line
        self.g = loss.g(self.contour)
        self.spacing = self._spacing(at) / setting.fineness
        self.values = np.zeros(0, complex)

    def _spacing(self, at: Saddle) -> float:
        """So that the neighbours delta(epsilon +- 2 pi / spacing), which the trapezoidal rule adds (tilted), do not count.

        The left one is at most 1; the right one is bounded by Chernoff at lines further to the right.
        """
        left = (NEGLIGIBLE - at.log_delta) / self.contour
        further = [self.contour * factor for factor in (1.02, 1.05, 1.1, 1.2, 1.5, 2, 4, 9)]
        chernoff = (
            (self.loss.g(c) - c * at.epsilon - at.log_delta + NEGLIGIBLE) / (c - self.contour)
            for c in further
        )
        return 2 * math.pi / max(left, *[min(chernoff)])

    def _extended(self, count: int) -> np.ndarray:
        known = len(self.values)
        if count > known:
            heights = self.spacing * np.arange(known, count).astype(self.setting.real)
            self.values = np.concatenate(
                [self.values, np.exp(self.loss.on_line(self.contour, heights) - self.g)]
            )
        return self.values[:count]

    def log_delta(self, epsilon: float) -> tuple[float, float]:
        """Of the summed loss at epsilon, and its derivative in epsilon.

        The line is cut off by a smooth window, that is, (1 - exp(epsilon - L))+ is smoothed; the window grows until that makes no
        difference.
        """
        before, cut = math.nan, 32
        while True:
            count = 2 * cut
            n = np.arange(count).astype(self.setting.real)
            values = self._extended(count)
            z = self.contour + 1j * self.spacing * n
            window = (erfc(self.setting.window * (n - cut).astype(float) / cut) / 2).astype(self.setting.real)
            window[0] = window[0] / 2
            terms = window * values * np.exp(-1j * self.spacing * n * epsilon) / (z * (z + 1))
            total, slope = terms.sum().real, -(terms * z).sum().real
            scale = self.g - self.contour * epsilon + math.log(self.spacing / math.pi)
            now = float(np.log(total)) + scale if total > 0 else math.nan
            if abs(now - before) < TOLERANCE:
                return now, float(slope / total)
            if (
                count > 1 << 16
                or self.loss.effort(self.contour, 2 * count * self.spacing) * count > MOST_WORK
            ):
                raise ArithmeticError(
                    f"{self.loss.case}: {count} nodes on the line do not suffice, and more would take too long"
                )
            before, cut = now, count
