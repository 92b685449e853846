"""How often each p-value and bound of an audit is wrong on right data: at least 2,000 draws each.

    python -m tests.audit.coverage [DRAWS]

Prints, for a check, the share of draws with a p-value below 5 %, 1 % and 0.1 %; for a bound at 95 %, the share
of draws in which it exceeds the truth. NumPy alone; a right one stays below what is asked of it, but for chance.
"""

import math
import sys
from collections.abc import Callable, Iterator

import numpy as np

from jaxcxr import accounting
from jaxcxr.audit.checks import of_cells, of_dispersion
from jaxcxr.audit.lower_bounds import epsilon_from_scores
from jaxcxr.audit.noise_checks import noise_checks
from jaxcxr.audit.rank_bound import places, roc, simulated_statistics, statistic
from jaxcxr.audit.reference import Leaf
from jaxcxr.audit.released import told_apart
from jaxcxr.audit.sampling_checks import sampling_checks
from jaxcxr.audit.shift_bound import shift_lower

LEAVES = [
    Leaf("kernel", (8, 4), 0),
    Leaf("bias", (4,), 32),
    Leaf("scale", (4,), 36),
    Leaf("head", (6, 3), 40),
]
D = 58
RATE, STEPS, DELTA = 0.1, 64, 1e-5
SIMULATED = 199
"""Simulations of each canary's score; an audit makes more, and the bound holds with any number."""


def noise(rng: np.random.Generator) -> dict[str, float]:
    rows = rng.normal(size=(40, D)).astype(np.float32)
    sums = rng.normal(size=(40, D)).astype(np.float32) * 3
    return {c.name: c.p_value for c in noise_checks(rows, sums, LEAVES, continuous=True, rng=rng)}


def draws(rng: np.random.Generator) -> dict[str, float]:
    runs = [rng.random((32, 40)) < RATE, rng.random((32, 42)) < RATE]
    long = rng.random((400, 40)) < RATE
    return {c.name: c.p_value for c in sampling_checks(runs, long, RATE)}


def fits(rng: np.random.Generator) -> dict[str, float]:
    counts = rng.multinomial(500, [0.81, 0.09, 0.09, 0.01], size=30)
    sizes = rng.binomial(150, RATE, 64)
    return {
        "gamma fit of chi-squares": of_cells(counts, np.array([0.81, 0.09, 0.09, 0.01])),
        "gamma fit of dispersions": of_dispersion(sizes, 150, RATE),
    }


def white_box(
    included: np.ndarray, mu: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each canary's likelihood ratio (log), and per step its score and whether it was drawn, as whoever sees
    every release along orthonormal directions has them; a draw moves a score by `mu`.
    """
    drawn = included & (rng.random((STEPS, len(included))) < RATE)
    seen = rng.normal(size=drawn.shape) + mu * drawn
    return np.log1p(RATE * np.expm1(mu * seen - mu**2 / 2)).sum(axis=0), seen, drawn


def bounds(seed: int = 0) -> Callable[[np.random.Generator], dict[str, bool]]:
    """Whether each bound at 95 % exceeds the truth: white-box scores of the claimed mechanism."""
    sigma = accounting.calibrated_noise(1.0, DELTA, RATE, STEPS)
    mu, m = 1 / sigma, 200
    claim = accounting.Spending(RATE, sigma, STEPS)
    truth = accounting.epsilon_bounds([accounting.Spending(RATE, sigma, STEPS)], DELTA).upper
    curve = roc(RATE, sigma, STEPS, DELTA)
    null = simulated_statistics(curve, m // 2, SIMULATED, np.random.default_rng(seed), 9_999)

    def of(rng: np.random.Generator) -> dict[str, bool]:
        included = rng.random(m) < 0.5
        scores, seen, drawn = white_box(included, mu, rng)
        placed = places(white_box(np.ones(m // 2, bool), mu, rng)[1], claim, SIMULATED, rng)
        p = (1 + (null >= statistic(placed, SIMULATED)).sum()) / 10_000
        # the hardest case for guesses: each right with the probability that epsilon allows, and no more
        right = rng.random(m) < 1 / (1 + math.exp(-1.0))
        guessed = np.where(right, 1.0, -1.0) * (1 + rng.random(m))
        coins = rng.random(m) < 0.5
        return {
            "white-box, every step: shift": shift_lower(seen, drawn, 0.95) > mu,
            "white-box, order of scores": bool(p <= 0.05),
            "white-box, guesses": epsilon_from_scores(scores, included, DELTA, 0.95) > truth,
            "guesses of a mechanism that gives all that epsilon 1 allows": epsilon_from_scores(
                np.where(coins, guessed, -guessed), coins, 0.0, 0.95
            )
            > 1.0,
            "pairs of a release that gives all that epsilon 1 allows": told_apart(
                guessed, 1e-12
            ).epsilon_lower
            > 1.0,
        }

    return of


def rows(count: int) -> Iterator[tuple[str, str]]:
    for simulate in (noise, draws, fits):
        found = [simulate(np.random.default_rng(seed)) for seed in range(count)]
        for name in found[0]:
            p = np.array([row[name] for row in found])
            yield name, ", ".join(f"{np.mean(p < level):.2%}" for level in (0.05, 0.01, 0.001))
    of = bounds()
    wrong = [of(np.random.default_rng(seed)) for seed in range(count)]
    for name in wrong[0]:
        yield name, f"{np.mean([row[name] for row in wrong]):.2%}"


def main(count: int) -> None:
    """Print the table."""
    print(
        "| check: share of p-values below 5, 1, 0.1 %; bound: share above the truth, 5 % asked | |\n|---|---|"
    )
    for name, share in rows(count):
        print(f"| {name} | {share} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
