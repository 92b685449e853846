"""The noise that a privacy budget asks for, and what the run then costs by two accountants.

python scripts/account.py --eps 0.29 --n 153502 --batch 128 --epochs 150 --delta 6e-6

Adjacency: add or remove one film. Sampling: Poisson, each film joins a step with probability batch / n. With --noise
instead of --eps the cost of a given noise multiplier is answered.
"""

import dataclasses
import json
from typing import Annotated

import pandas as pd
import tyro

from jaxcxr.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A plan to account for.

    Attributes:
        n: films in the training set (N).
        batch: expected batch size.
        delta: of the guarantee; less than 1/N.
        eps: budgets to find the noise multiplier for.
        noise: noise multipliers to find epsilon for.
        epochs, steps: length of the run, exactly one of them.
        json: print JSON instead of a table (a list if several budgets are asked for).
    """

    n: int
    batch: int
    delta: float
    eps: Annotated[tuple[float, ...], tyro.conf.arg(name="eps")] = ()
    noise: tuple[float, ...] = ()
    epochs: float | None = None
    steps: int | None = None
    json: bool = False


def main() -> None:
    a = tyro.cli(Arguments, description=__doc__)
    from jaxcxr.privacy import accounting

    if (a.epochs is None) == (a.steps is None) or (a.epochs or a.steps or 0) <= 0:
        raise InputError(f"expected a positive --epochs or --steps, exactly one; found epochs {a.epochs}, steps {a.steps}")
    if bool(a.eps) == bool(a.noise):
        raise InputError("expected --eps or --noise, exactly one of them")
    if not 0 < a.batch <= a.n:
        raise InputError(f"--batch: expected 1 to --n ({a.n}), found {a.batch}")
    if not 0 < a.delta < 1 / a.n:
        raise InputError(f"--delta: expected more than 0 and less than 1/N = {1 / a.n:.3g}, found {a.delta:g}")
    rate = accounting.sample_rate_of(a.batch, a.n)
    steps = a.steps if a.steps is not None else accounting.steps_of_epochs(a.epochs or 0, a.n, a.batch)
    plans = []
    for value in a.eps or a.noise:
        if not 0 < value < float("inf"):
            raise InputError(f"--{'eps' if a.eps else 'noise'}: expected a positive number, found {value}")
        try:
            found = accounting.calibrate(value, a.delta, rate, steps) if a.eps else accounting.plan(value, a.delta, rate, steps)
        except ValueError as error:
            raise InputError(f"--eps {value:g}: {error}") from error
        plans.append(({"epsilon": value} if a.eps else {}) | dataclasses.asdict(found))
    if a.json:
        print(json.dumps(plans[0] if len(plans) == 1 else plans, indent=2))
    else:
        print(pd.DataFrame(plans).to_string(index=False, float_format=lambda value: f"{value:.5g}"))


if __name__ == "__main__":
    run(main)
