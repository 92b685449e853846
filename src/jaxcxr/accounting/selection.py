"""The cost of several models of one cohort: all of them published, or only the best one.

Guarantee: `publish_all` is the composition of everything that was released. `choose_best` holds if the number
of runs was itself sampled from a Poisson or geometric distribution before any result was seen, each run's
settings were sampled independently from the candidates, and only the best run's model is published (Papernot
& Steinke 2022, Theorems 6 and 2); the deciding score must be computed inside the run or from other people's
images. If the best of a fixed list of runs is picked, only `publish_all` holds.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon

from jaxcxr.accounting.epsilon import Spending, composed, epsilon_bounds, quiet, rdp_accountant
from jaxcxr.accounting.loss_distribution import Bounds

Repetitions = Literal["poisson", "geometric"]


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
    if mean < 1:
        raise ValueError(f"mean_runs: expected at least 1, found {mean}")
    different = {tuple(composed(run)) for run in runs}
    if any(s.noise_multiplier == 0 for run in different for s in run):
        return math.inf
    with quiet():
        costs = [_renyi(run) for run in different]
        # A run with sampled settings costs, at each Rényi order, at most the most expensive candidate.
        orders = np.asarray(costs[0][0])
        single = np.max([np.asarray(cost) for _, cost in costs], axis=0)
        used = orders > 1
        orders, single = orders[used], single[used]
        if repetitions == "poisson":
            deltas = np.array(
                [
                    compute_delta(orders.tolist(), single.tolist(), math.log1p(1 / (order - 1)))[0]
                    for order in orders
                ]
            )
            repeated = single + mean * deltas + math.log(mean) / (orders - 1)
        else:
            # Geometric: the truncated negative binomial of shape 1, with gamma = 1 / mean.
            constant = 2 * np.min((1 - 1 / orders) * single + math.log(mean) / orders)
            repeated = single + math.log(mean) / (orders - 1) + constant
        return float(compute_epsilon(orders.tolist(), repeated.tolist(), delta)[0])


@functools.lru_cache(maxsize=256)
def _renyi(run: tuple[Spending, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rényi orders and a run's cost at each, kept: both distributions of the number of runs ask for them."""
    accountant = rdp_accountant(run)
    return tuple(map(float, accountant._orders)), tuple(map(float, accountant._rdp))
