"""The cost of several models of one cohort: all of them published, or only the best one.

Guarantee: `publish_all` is the composition of everything that was released. `Choice` is the cost of the best
of a random number of runs (Papernot & Steinke 2022, arXiv 2110.03620, Theorems 2 and 6). It holds if that
number was sampled from the stated distribution before any result was seen and stays secret, each run's
settings were sampled independently and uniformly from the candidates, every run is a release of its own
randomness together with its deciding score, and only the best run's model and score are published. If the
best of a fixed list of runs is picked, only `publish_all` holds.

A unit takes part in training or in the score, not in both: the choice costs the training units what their
candidates say, and the units that the score is computed from what the score's own release says, each by a
`Choice` of its own.
"""

import dataclasses
import decimal
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from dp_accounting import rdp
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon
from jaxtyping import Float
from scipy.optimize import brentq

from jaxcxr.accounting.epsilon import Spending, composed, epsilon_bounds, event_of, quiet
from jaxcxr.accounting.loss_distribution import Bounds, require_delta

Repetitions = Literal["geometric", "poisson", "logarithmic"]
CHOICE_ACCOUNTANT = (
    "Rényi divergences (dp-accounting), and the choice among a random number of runs by Theorems 2 and 6 of "
    "Papernot & Steinke 2022 (jaxcxr)"
)
MOST_MEAN = 1000.0
"""Largest mean number of runs."""
_ORDERS = (
    *(1 + x / 4 for x in range(1, 16)),
    *(5 + x / 2 for x in range(12)),
    *range(11, 64),
    *(80, 96, 128, 160, 192, 256, 384, 512, 1024),
)
_MOST_RUNS = 10**6
"""Where the search for a number of runs ends: further out lies less probability than a uniform number has
digits for.
"""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best of a random number of runs, each with settings sampled from candidates.

    Attributes:
        candidates: the spendings of each candidate; equal ones may be left out.
        mean_runs: mean of the number of runs, at least 1.
        repetitions: its distribution. `geometric` and `logarithmic` (the truncated negative binomial of shape
            1 and 0) make at least one run, `poisson` perhaps none.

    Raises:
        ValueError: there is no candidate, or the mean is out of range.
    """

    candidates: tuple[tuple[Spending, ...], ...]
    mean_runs: float
    repetitions: Repetitions

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("candidates: expected at least one")
        if not 1 <= self.mean_runs <= MOST_MEAN:
            raise ValueError(f"mean_runs: expected 1 to {MOST_MEAN:g}, found {self.mean_runs}")

    def epsilon(self, delta: float) -> float:
        """Upper bound on epsilon; infinity if a candidate has no noise."""
        require_delta(delta)
        return _epsilon_of(self.renyi(), delta)

    def renyi(self) -> Float[np.ndarray, "orders"] | None:
        """Upper bounds on the Rényi divergence at the orders of `choice_orders`; None without noise."""
        different = tuple(sorted({tuple(composed(run)) for run in self.candidates}, key=repr))
        if any(s.noise_multiplier == 0 for run in different for s in run):
            return None
        return _repeated(different, self.mean_runs, self.repetitions)

    def covers(self, spent: Sequence[Spending]) -> bool:
        """Whether one of the candidates releases at least what was spent."""
        for run in self.candidates:
            most = {(s.sample_rate, s.noise_multiplier): s.steps for s in run}
            if all(s.steps <= most.get((s.sample_rate, s.noise_multiplier), 0) for s in spent):
                return True
        return False

    def curve(
        self, epsilons: Float[np.ndarray, " points"], also: Sequence[Spending] = ()
    ) -> Float[np.ndarray, " points"]:
        """Upper bound on delta at each epsilon, together with other releases."""
        together = renyi_together([self], also)
        return np.ones(len(epsilons)) if together is None else _deltas(together, epsilons)


def publish_all(runs: Sequence[Sequence[Spending]], delta: float) -> Bounds:
    """Bounds on epsilon of all runs together, on the same data."""
    return epsilon_bounds([spent for run in runs for spent in run], delta)


def choose_best(
    runs: Sequence[Sequence[Spending]],
    delta: float,
    mean_runs: float | None = None,
    repetitions: Repetitions = "poisson",
) -> float:
    """Upper bound on epsilon of publishing the best of a random number of runs, each sampled from `runs`.

    Args:
        runs: the spendings of each candidate.
        delta: of the guarantee.
        mean_runs: expected number of runs, at least 1; the number of candidates if omitted.
        repetitions: distribution of the number of runs.
    """
    mean = float(len(runs)) if mean_runs is None else mean_runs
    return Choice(tuple(tuple(run) for run in runs), mean, repetitions).epsilon(delta)


def renyi_together(
    choices: Sequence[Choice], spent: Sequence[Spending] = ()
) -> Float[np.ndarray, "orders"] | None:
    """Upper bounds on the Rényi divergence of choices and plain releases together; None without noise."""
    total = np.zeros(len(choice_orders()))
    for part in (choice.renyi() for choice in choices):
        if part is None:
            return None
        total = total + part
    plain = tuple(composed(spent))
    if any(s.noise_multiplier == 0 for s in plain):
        return None
    return total + np.asarray(_renyi(plain))


def epsilon_together(choices: Sequence[Choice], spent: Sequence[Spending], delta: float) -> float:
    """Upper bound on epsilon of choices and plain releases together (Rényi divergences add up)."""
    require_delta(delta)
    return _epsilon_of(renyi_together(choices, spent), delta)


def choice_orders() -> Float[np.ndarray, "orders"]:
    """The Rényi orders at which choices are accounted for."""
    return np.array(_ORDERS)


def gamma_of(mean_runs: float, repetitions: Repetitions) -> float:
    """The parameter gamma of a truncated negative binomial with this mean; 1 is always one run."""
    if mean_runs == 1:
        return 1.0
    if repetitions == "geometric":
        return 1 / mean_runs

    def excess(odds: float) -> float:  # mean (1 / gamma - 1) / log(1 / gamma), with odds = log(1 / gamma)
        return math.expm1(odds) / odds - mean_runs

    odds: Any = brentq(excess, 1e-12, 40.0, xtol=1e-14)
    return math.exp(-odds)


def number_of_runs(uniform: decimal.Decimal, mean_runs: float, repetitions: Repetitions) -> int:
    """The number of runs that a uniform number between 0 and 1 stands for: its law's inverse.

    The law is computed in 50 digits, so that the number's distribution is that of the theorem but for the
    digits of `uniform`.
    """
    with decimal.localcontext(prec=50):
        gamma, number = decimal.Decimal(1), 1
        if repetitions == "poisson":
            number, share = 0, (-decimal.Decimal(mean_runs)).exp()
        else:
            gamma = decimal.Decimal(gamma_of(mean_runs, repetitions))
            share = gamma if repetitions == "geometric" or gamma == 1 else (1 - gamma) / -gamma.ln()
        below = share
        while uniform >= below and number < _MOST_RUNS:
            number += 1
            if repetitions == "poisson":
                share *= decimal.Decimal(mean_runs) / number
            else:
                share *= 1 - gamma
                if repetitions == "logarithmic":
                    share *= decimal.Decimal(number - 1) / number
            below += share
    return number


def _epsilon_of(renyi: Float[np.ndarray, "orders"] | None, delta: float) -> float:
    if renyi is None:
        return math.inf
    with quiet():
        return float(compute_epsilon(choice_orders().tolist(), renyi.tolist(), delta)[0])


def _deltas(
    renyi: Float[np.ndarray, "orders"], epsilons: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    orders, values = choice_orders().tolist(), renyi.tolist()
    with quiet():
        return np.array([compute_delta(orders, values, float(epsilon))[0] for epsilon in epsilons])


def _repeated(
    runs: tuple[tuple[Spending, ...], ...], mean: float, repetitions: Repetitions
) -> Float[np.ndarray, "orders"]:
    orders = choice_orders()
    # A run with sampled settings costs, at each Rényi order, at most the most expensive candidate.
    single = np.max([np.asarray(_renyi(run)) for run in runs], axis=0)
    if repetitions == "poisson":  # Theorem 6
        with quiet():
            deltas = [
                compute_delta(orders.tolist(), single.tolist(), math.log1p(1 / (order - 1)))[0]
                for order in orders
            ]
        return _monotone(single + mean * np.array(deltas) + math.log(mean) / (orders - 1))
    shape = 1.0 if repetitions == "geometric" else 0.0  # eta of Theorem 2
    gamma = gamma_of(mean, repetitions)
    if gamma == 1:  # one run: nothing is chosen
        return single
    constant = (1 + shape) * np.min((1 - 1 / orders) * single - math.log(gamma) / orders)
    return _monotone(single + math.log(mean) / (orders - 1) + constant)


def _monotone(renyi: Float[np.ndarray, "orders"]) -> Float[np.ndarray, "orders"]:
    """A Rényi divergence rises with its order, so that a bound at a higher order is one at a lower, too."""
    return np.minimum.accumulate(renyi[::-1])[::-1]


@functools.lru_cache(maxsize=512)
def _renyi(run: tuple[Spending, ...]) -> tuple[float, ...]:
    """A run's Rényi divergence at each order, kept: every distribution of the number of runs asks for it."""
    accountant = rdp.RdpAccountant(list(_ORDERS))
    with quiet():
        for spent in run:
            accountant.compose(event_of(spent))
    return tuple(map(float, accountant._rdp))
