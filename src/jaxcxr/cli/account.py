"""Answer what a private run costs: noise, epsilon, steps, patients, sweeps.

Examples:
  jaxcxr account --n 153502 --batch 128 --epochs 150 --delta 6e-6 --eps 0.29     noise for a budget
  jaxcxr account --n 153502 --batch 128 --epochs 150 --delta 6e-6 --noise 4.311  epsilon of a plan
  jaxcxr account --n 153502 --batch 128 --delta 6e-6 --noise 4.311 --eps 0.29    steps that a budget buys
  ... --films 2 4 10               also for patients with so many images
  ... --counts-noise 50            with noised class counts, paid from the same budget
  ... --bands 8                    with noise correlated over 8 steps, 8 groups of units taking turns
  jaxcxr account --run runs/demo             what a run has spent so far
  jaxcxr account --sweep runs/sweep-demo     all models of a sweep together

Adjacency: add or remove one unit (--replace-one: one unit replaced by another). Sampling: Poisson, each unit
joins a step with probability batch / n. Epsilon is an upper bound (epsilon_pld), with a lower bound beside
it; gdp_mu is the mu of Gaussian differential privacy that covers the whole curve from --delta on. --json
prints JSON.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxcxr.errors import InputError

ADJACENCY = {"adjacency": "add_remove"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A plan, a run or a sweep to account for.

    Attributes:
        n: units in the training set (N).
        batch: expected batch size.
        delta: of the guarantee; less than 1/N.
        eps: budgets: to find the noise multiplier for or, with noise, the steps.
        noise: noise multipliers to find epsilon for.
        epochs, steps: length of the run, exactly one of them.
        films: also say what the plan or run costs a patient with so many images, the unit being the image.
        counts_noise: noise multiplier of class counts that the same budget pays for.
        bands: over how many steps noise is correlated; the sample rate is then that of a step of one's group.
        replace_one: neighbouring data sets differ by replacing one unit, not by adding or removing it.
        run: folder of a run: what its ledger says was spent.
        sweep: folder of a sweep: what its models cost together.
        json: print JSON instead of a table (a list if several answers are asked for).
    """

    n: int | None = None
    batch: int | None = None
    delta: float | None = None
    eps: Annotated[tuple[float, ...], tyro.conf.arg(name="eps")] = ()
    noise: tuple[float, ...] = ()
    epochs: float | None = None
    steps: int | None = None
    films: tuple[int, ...] = ()
    counts_noise: float | None = None
    bands: int = 1
    replace_one: bool = False
    run: Path | None = None
    sweep: Path | None = None
    json: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    rows = rows_of(arguments)
    if arguments.json:
        print(json.dumps(_plain(rows[0] if len(rows) == 1 else rows), indent=2))
    else:
        import pandas as pd

        print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.5g}"))


def rows_of(a: Arguments) -> list[dict[str, Any]]:
    """The answers, one per row.

    Raises:
        InputError: a number is out of range, or the question is incomplete.
    """
    for films in a.films:
        if films < 1 or (a.n is not None and films > a.n):
            most = "" if a.n is None else f" and at most --n ({a.n})"
            raise InputError(f"--films: expected at least 1{most}, found {films}")
    if a.run is not None:
        return [_of_run(a.run, a)]
    return _of_sweep(a.sweep) if a.sweep is not None else _of_plan(a)


def _plain(value: Any) -> Any:
    """Infinity as text: JSON has no such number."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _of_plan(a: Arguments) -> list[dict[str, Any]]:
    from jaxcxr import accounting
    from jaxcxr.accounting import banded

    rate, delta, n, batch = _checked(a)
    already = [] if a.counts_noise is None else [accounting.Spending(1.0, a.counts_noise, 1)]
    if a.eps and a.noise:
        if a.epochs is not None or a.steps is not None:
            raise InputError("--eps with --noise asks for the steps: expected neither --epochs nor --steps")
        rows = []
        for eps, sigma in itertools.product(a.eps, a.noise):
            rounds = _most_steps(already, rate, sigma, eps, delta)
            steps = rounds * a.bands
            row = {"epsilon": eps, "noise_multiplier": sigma, "sample_rate": rate, "delta": delta}
            row |= {"steps": steps, "epochs": steps * batch / n} | ADJACENCY
            rows.append(row | _besides([*already, accounting.Spending(rate, sigma, rounds)], delta, a))
        return rows
    if (a.epochs is None) == (a.steps is None):
        raise InputError(
            f"expected --epochs or --steps, exactly one; found epochs {a.epochs}, steps {a.steps}"
        )
    if a.steps is not None and not 0 < a.steps <= accounting.MOST_STEPS:
        raise InputError(f"--steps: expected 1 to {accounting.MOST_STEPS:,}, found {a.steps}")
    if not a.eps and not a.noise:
        raise InputError("expected --eps or --noise, one of them or both")
    steps = a.steps if a.steps is not None else accounting.steps_of_epochs(a.epochs or 0, n, batch)
    if a.bands > steps:
        raise InputError(f"--bands: expected at most the {steps} steps of the run, found {a.bands}")
    rounds, rows = banded.rounds(steps, a.bands), []
    for value in a.eps or a.noise:
        try:
            sigma = accounting.calibrated_noise(value, delta, rate, rounds, already) if a.eps else value
        except InputError as error:
            raise InputError(f"--eps {value:g}: {error}") from error
        found, spent = accounting.plan(sigma, delta, rate, rounds, already), [*already]
        spent.append(accounting.Spending(rate, sigma, rounds))
        row = ({"epsilon": value} if a.eps else {}) | dataclasses.asdict(found) | {"steps": steps}
        if a.bands > 1:
            column = banded.coefficients(a.bands, steps)
            row |= {"bands": a.bands, "noise_of_prefix_sums": sigma * banded.prefix_error(column, steps)}
        row |= {"gdp_mu": accounting.gdp_mu(spent, delta)} | ADJACENCY
        rows.append(row | _besides(spent, delta, a))
    return rows


def _checked(a: Arguments) -> tuple[float, float, int, int]:
    from jaxcxr import accounting
    from jaxcxr.accounting.loss_distribution import LEAST_DELTA

    if a.n is None or a.batch is None or a.delta is None:
        raise InputError("expected --n, --batch and --delta, or --run or --sweep")
    if a.n < 1:
        raise InputError(f"--n: expected at least 1, found {a.n}")
    if not 0 < a.batch <= a.n:
        raise InputError(f"--batch: expected 1 to --n ({a.n}), found {a.batch}")
    if not LEAST_DELTA <= a.delta < 1 / a.n:
        raise InputError(
            f"--delta: expected at least {LEAST_DELTA:g} and less than 1/N = {1 / a.n:.3g}, found {a.delta:g}"
        )
    named = {
        "eps": a.eps,
        "noise": a.noise,
        "counts-noise": () if a.counts_noise is None else (a.counts_noise,),
    }
    for name, values in named.items():
        for value in values:
            if not 0 < value < math.inf:
                raise InputError(f"--{name}: expected a positive number, found {value}")
    if a.bands < 1 or a.bands * a.batch > a.n:
        raise InputError(
            f"--bands: expected 1 to {a.n // a.batch}, groups that can hold a batch each, found {a.bands}"
        )
    return accounting.sample_rate_of(a.batch * a.bands, a.n), a.delta, a.n, a.batch


def _most_steps(already: list[Any], rate: float, sigma: float, epsilon: float, delta: float) -> int:
    from jaxcxr import accounting

    wanted = 1024
    while (found := accounting.affordable_steps(already, rate, sigma, epsilon, delta, wanted)) == wanted:
        if wanted == accounting.MOST_STEPS:
            raise InputError(
                f"--eps {epsilon:g} with --noise {sigma:g}: the budget affords more than {wanted:,} steps, "
                "the most that are counted; there is no number to give"
            )
        wanted = min(4 * wanted, accounting.MOST_STEPS)
    return found


def _besides(spendings: Any, delta: float, a: Arguments) -> dict[str, float]:
    """What was asked besides: the same under replace-one adjacency, and for patients."""
    from jaxcxr import accounting
    from jaxcxr.accounting.group_privacy import patient_bounds

    row = {}
    if a.replace_one:
        bounds = accounting.epsilon_bounds(spendings, delta, "replace_one")
        row = {"epsilon_replace_one": bounds.upper, "epsilon_replace_one_lower": bounds.lower}
    return row | {f"epsilon_of_{k}_films": patient_bounds(spendings, delta, k).upper for k in a.films}


def _of_run(folder: Path, a: Arguments) -> dict[str, Any]:
    from jaxcxr import accounting
    from jaxcxr.accounting.banded import affordable
    from jaxcxr.records.spent import spent_of

    spent = spent_of(folder)
    if spent is None:
        raise InputError(f"{folder}: trained without privacy: its epsilon is infinite")
    if a.films and spent.terms.unit != "image":
        raise InputError(
            f"--films: the unit of {folder} is the {spent.terms.unit} already; its epsilon is the patient's"
        )
    if spent.tuning is not None:
        return _of_tuned(folder, spent, a)
    bounds, spendings, done = spent.bounds(), spent.spendings, spent.steps
    step = accounting.Spending(spent.sample_rate, spent.noise_multiplier, 1)
    steps = (done, spent.steps_planned)
    more = affordable(spendings, step, (spent.budget, spent.delta), steps, spent.bands) - done
    return {
        "unit": spent.terms.unit,
        "delta": spent.delta,
        "budget": spent.budget,
        "epsilon_pld": bounds.upper,
        "epsilon_lower": bounds.lower,
        "epsilon_rdp": accounting.epsilon_rdp(spendings, spent.delta),
        "gdp_mu": accounting.gdp_mu(spendings, spent.delta),
        "steps_done": done,
        "steps_left": more,
        "adjacency": spent.terms.adjacency,
        **({"bands": spent.bands} if spent.bands > 1 else {}),
    } | _besides(spendings, spent.delta, a)


def _of_tuned(folder: Path, spent: Any, a: Arguments) -> dict[str, Any]:
    """What a run costs that was chosen among several; of one that was not, nothing is promised.

    Raises:
        InputError: it was not chosen, or not yet.
    """
    terms, standing = spent.tuning.terms, spent.tuning.standing
    if standing != "chosen":
        said = "it was not chosen" if standing == "not chosen" else "none is chosen yet"
        raise InputError(
            f"{folder}: is one run of a tuning, and {said}: the cost of the choice pays for the chosen run "
            "alone, so that there is no epsilon to give"
        )
    promised = spent.guarantee
    row = {
        "unit": spent.terms.unit,
        "delta": spent.delta,
        "budget": spent.budget,
        "epsilon": promised.bounds(spent.delta).upper,
        "mean_runs": terms.mean_runs,
        "repetitions": terms.repetitions,
        "candidates": len(terms.settings),
        "steps_done": spent.steps,
        "adjacency": spent.terms.adjacency,
    }
    if a.replace_one:
        from jaxcxr.accounting.guarantee import together

        row["epsilon_replace_one"] = together([promised], spent.delta, replaced=True)
    return row | {f"epsilon_of_{k}_films": promised.bounds(spent.delta, k).upper for k in a.films}


def _of_sweep(folder: Path) -> list[dict[str, Any]]:
    from jaxcxr.report.sweep_privacy import sweep_cost

    cost = sweep_cost(folder)
    rows: list[dict[str, Any]] = [{"what": f"model {run.name}", "epsilon": run.epsilon} for run in cost.runs]
    rows.append(
        {
            "what": "all of these models",
            "epsilon": cost.publish_all.upper,
            "epsilon_lower": cost.publish_all.lower,
        }
    )
    drawn = (
        f"the best of them, if their number was drawn beforehand ({cost.repetitions}, mean {len(cost.runs)})"
    )
    rows.append({"what": drawn, "epsilon": cost.choose_best})
    rows += [
        {"what": f"model {name}", "epsilon": math.inf, "epsilon_lower": math.inf} for name in cost.unprotected
    ]
    return [row | {"delta": cost.delta, "unit": cost.unit} for row in rows]
