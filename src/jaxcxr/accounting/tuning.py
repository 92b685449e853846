"""Plan a tuning: the noise of every candidate with which the choice among runs stays within one budget.

Guarantee: the upper bound on epsilon of `calibrated_choice` and `calibrated_score` is at most the budget, by
the theorems of `selection`, whichever settings are chosen.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from scipy.optimize import brentq

from jaxcxr.accounting.calibration import CALIBRATION_TOLERANCE, LEAST_NOISE, MOST_NOISE, require_epsilon
from jaxcxr.accounting.epsilon import Spending
from jaxcxr.accounting.selection import Choice, Repetitions
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A candidate before its noise is known: equal ones have the same cost.

    Attributes:
        sample_rate, steps: of its training.
        already: what else the same run releases, such as noised class counts.
    """

    sample_rate: float
    steps: int
    already: tuple[Spending, ...] = ()

    def spent(self, noise_multiplier: float) -> tuple[Spending, ...]:
        """Everything that a run with this noise releases."""
        return (*self.already, Spending(self.sample_rate, noise_multiplier, self.steps))


def calibrated_choice(
    budget: float, delta: float, runs: Sequence[PlannedRun], mean_runs: float, repetitions: Repetitions
) -> tuple[Choice, dict[PlannedRun, float]]:
    """The choice among `runs` that costs the budget, or a little less, and each one's noise multiplier.

    The noise of each is first found as if all candidates were like it; then that of all is raised by a common
    factor until the choice among them is within the budget.

    Args:
        budget: epsilon of the choice as a whole, at most 500.
        delta: of the same.
        runs: the candidates.
        mean_runs: mean of the number of runs.
        repetitions: distribution of that number.

    Raises:
        InputError: no noise keeps the choice within the budget: it is spent before the first run.
    """
    require_epsilon(budget)

    def choice(noise: dict[PlannedRun, float], factor: float = 1.0) -> Choice:
        return Choice(
            tuple(run.spent(sigma * factor) for run, sigma in noise.items()), mean_runs, repetitions
        )

    def cost(found: Choice) -> float:
        return found.epsilon(delta)

    noise = {
        run: _least(lambda sigma, run=run: cost(choice({run: sigma})), budget, LEAST_NOISE)
        for run in dict.fromkeys(runs)
    }
    if any(math.isinf(sigma) for sigma in noise.values()):
        least = cost(choice(dict.fromkeys(noise, MOST_NOISE)))
        raise InputError(
            f"--budget {budget:g}: is spent before the first run: choosing the best of {mean_runs:g} runs on "
            f"average ({repetitions}) costs epsilon {least:.4g} at delta {delta:g} by itself, whatever the "
            "noise of the runs; give a larger budget, or a smaller mean_runs"
        )
    factor = 1.0
    if len(noise) > 1:
        factor = _least(lambda factor: cost(choice(noise, factor)), budget, 1.0)
    noise = {run: _rounded_up(sigma * factor) for run, sigma in noise.items()}
    found = choice(noise)
    if not cost(found) <= budget:
        raise ArithmeticError(f"the choice costs {cost(found)}, more than its budget {budget}")
    return found, noise


def calibrated_score(budget: float, delta: float, mean_runs: float, repetitions: Repetitions) -> Choice:
    """The same for a score that is one Gaussian release of other units than those that were trained on."""
    return calibrated_choice(budget, delta, [PlannedRun(1.0, 1)], mean_runs, repetitions)[0]


def _rounded_up(noise_multiplier: float) -> float:
    """In four digits: it stands in a configuration that may be released."""
    unit = 10.0 ** (math.floor(math.log10(noise_multiplier)) - 3)
    rounded = float(f"{noise_multiplier:.4g}")
    return rounded if rounded >= noise_multiplier else float(f"{rounded + unit:.4g}")


def _least(cost: Callable[[float], float], budget: float, least: float) -> float:
    """The least value, at least `least`, whose falling cost is within the budget; infinity if none is."""
    kept = functools.cache(cost)
    if kept(least) <= budget:
        return least
    if kept(MOST_NOISE) > budget:
        return math.inf

    def excess(log: float) -> float:
        return math.log(min(max(kept(math.exp(log)), 1e-9), 1e6) / (budget * (1 - CALIBRATION_TOLERANCE / 2)))

    found = float(brentq(excess, math.log(least), math.log(MOST_NOISE), xtol=1e-5))  # type: ignore[arg-type]
    while kept(math.exp(found)) > budget:
        found += 1e-4
    return math.exp(found)
