"""How much of a claimed epsilon each bound proves, given the scores of an attacker who sees every release.

    python -m tests.audit.ideal_attacker [DRAWS] [CANARIES ...]

Scores are drawn as the claimed mechanism makes them along orthonormal directions: rate 0.1, 64 steps, delta
1e-5. Prints a table of mean shares, each with the smallest and the largest of the draws. NumPy alone.
"""

import sys
from collections.abc import Sequence

import numpy as np

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.audit.attacks import CONFIDENCE, SHARES, SHIFT
from jaxcxr.audit.lower_bounds import epsilon_from_scores
from jaxcxr.audit.rank_bound import rank_epsilon
from jaxcxr.audit.shift_bound import epsilon_from_shift, shift_lower
from tests.audit.coverage import DELTA, RATE, STEPS, white_box

CLAIMS = 1.0, 4.0, 8.0


def proved(claim: float, canaries: int, seed: int) -> dict[str, float]:
    """Share of `claim` that each bound proves: in an audit, two runs of `canaries`; alone at 95 %, one run, in
    which half of the canaries are included, or all of them.
    """
    rng = np.random.default_rng((seed, canaries))
    sigma = accounting.calibrated_noise(claim, DELTA, RATE, STEPS)
    spent = Spending(RATE, sigma, STEPS)
    included = np.arange(2 * canaries) % 2 == 0
    rng.shuffle(included)
    likelihoods, seen, drawn = white_box(included, 1 / sigma, rng)
    one = slice(canaries)
    shift = shift_lower(seen, drawn, 1 - (1 - CONFIDENCE) * SHARES[SHIFT])
    bounds = {
        "every step, two runs, at its share of 95 %": epsilon_from_shift(shift, RATE, STEPS, DELTA),
        "order of scores, one run, at 95 %": rank_epsilon(
            seen[:, one][:, included[one]], spent, DELTA, CONFIDENCE, seed=seed
        ),
        "order of scores, one run of all canaries, at 95 %": rank_epsilon(
            white_box(np.ones(canaries, bool), 1 / sigma, rng)[1], spent, DELTA, CONFIDENCE, seed=seed
        ),
        "guesses, one run, at 95 %": epsilon_from_scores(likelihoods[one], included[one], DELTA, CONFIDENCE),
    }
    return {name: bound / claim for name, bound in bounds.items()}


def main(draws: int, sizes: Sequence[int]) -> None:
    """Print the table."""
    print("| bound | canaries |", *(f" epsilon {claim:g} |" for claim in CLAIMS), sep="")
    print("|---|---|" + "---|" * len(CLAIMS))
    for canaries in sizes:
        found = [[proved(claim, canaries, seed) for seed in range(draws)] for claim in CLAIMS]
        for name in found[0][0]:
            shares = [[draw[name] for draw in of_claim] for of_claim in found]
            cells = (f" {np.mean(s):.2f} ({min(s):.2f} to {max(s):.2f}) |" for s in shares)
            print(f"| {name} | {canaries:,} |", *cells, sep="", flush=True)


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]]
    main(asked[0] if asked else 8, asked[1:] or (400, 1_000, 10_000))
