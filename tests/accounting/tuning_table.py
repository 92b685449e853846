"""What is left for each run of a tuning: `python -m tests.accounting.tuning_table`.

For each budget, mean number of runs and law of that number: the noise multiplier of every run with which the
chosen model, choice included, stays within the budget; that run's own epsilon; the same noise without a choice;
and the total that dp-accounting's own accountant (`RepeatAndSelectDpEvent`, its default orders) gives for it.
The plan is the paper's (N 153,502, batch 128, 150 epochs, delta 6e-6).
"""

import dataclasses
import sys

import tyro
from dp_accounting.dp_event import (
    GaussianDpEvent,
    PoissonSampledDpEvent,
    RepeatAndSelectDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.rdp import RdpAccountant

from jaxcxr import accounting
from jaxcxr.accounting.epsilon import quiet
from jaxcxr.accounting.selection import Repetitions
from jaxcxr.accounting.tuning import PlannedRun, calibrated_choice
from jaxcxr.errors import InputError

SHAPES: dict[Repetitions, float] = {"geometric": 1.0, "poisson": float("inf"), "logarithmic": 0.0}


@dataclasses.dataclass(frozen=True)
class Table:
    """Which rows.

    Attributes:
        n: units.
        batch: expected batch size.
        epochs: of each run.
        delta: of every epsilon.
        budgets: totals, choice included.
        means: of the number of runs.
        laws: of that number.
    """

    n: int = 153_502
    batch: int = 128
    epochs: float = 150.0
    delta: float = 6e-6
    budgets: tuple[float, ...] = (0.54, 1.06, 2.04, 7.89)
    means: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    laws: tuple[Repetitions, ...] = ("geometric", "poisson", "logarithmic")


def main(table: Table) -> None:
    """Print the table, one row as soon as it is found."""
    rate = accounting.sample_rate_of(table.batch, table.n)
    run = PlannedRun(rate, accounting.steps_of_epochs(table.epochs, table.n, table.batch))
    print("total  mean  law          noise  (alone)  one run  total by dp-accounting")
    for budget in table.budgets:
        alone = accounting.calibrated_noise(budget, table.delta, rate, run.steps)
        for mean in table.means:
            for law in table.laws:
                shape = SHAPES[law]
                try:
                    choice, noise = calibrated_choice(budget, table.delta, [run], mean, law)
                except InputError:
                    print(f"{budget:<6g} {mean:<5g} {law:<12} not attainable", flush=True)
                    continue
                sigma = noise[run]
                own = accounting.epsilon_pld(run.spent(sigma), table.delta)
                total = choice.epsilon(table.delta)
                other = by_dp_accounting(run, sigma, (mean, shape), table.delta)
                print(
                    f"{budget:<6g} {mean:<5g} {law:<12} {sigma:<6.4g} ({alone:.4g})  {own:<7.3f}  {other:.4f}",
                    flush=True,
                )
                if total > budget or abs(other - total) > 0.02 * total:  # at other Rényi orders
                    sys.exit(f"the choice costs {total}, by dp-accounting {other}")


def by_dp_accounting(run: PlannedRun, sigma: float, law: tuple[float, float], delta: float) -> float:
    """The total of dp-accounting's own accountant; `law` is the mean and shape of the number of runs."""
    step = PoissonSampledDpEvent(run.sample_rate, GaussianDpEvent(sigma))
    accountant = RdpAccountant()
    with quiet():
        accountant.compose(RepeatAndSelectDpEvent(SelfComposedDpEvent(step, run.steps), *law))
        return float(accountant.get_epsilon(delta))


if __name__ == "__main__":
    main(tyro.cli(Table, description=__doc__))
