"""How often do intervals of exposure, and of one attacked model, hold the truth? `python -m tests.eval.exposure_coverage`.

Exposure: patients differ in how often they are accused, whether inside or not, and so do models and groups; nothing tells
members from others, whom a swap at random would exchange. Counted are cohorts whose 95 % interval holds zero: of everybody,
of a group of a fifth, of that group against the others, and of one budget against no privacy on the same halves.

One model: scores of members are normal, shifted by 0 or 1 against those of the others; the truth is the share of members at
or above the exact threshold. Beside it, the share of p-values at most 5 %. 2,000 draws of each.
"""

import numpy as np
from scipy.stats import norm

from jaxcxr.audit.membership import halves, p_of_members_on_top
from jaxcxr.eval.bootstrap import spread
from jaxcxr.eval.exposure import Accusations, exposure_by_group, rates_of_one_model
from jaxcxr.eval.groups import Group

RATE = 0.01


def swapped_coverage(cohorts: int, seed: int, patients: int = 200, models: int = 32) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    few = np.arange(patients) < patients // 5
    groups = [Group("few", "few", "x", few), Group("many", "many", "x", ~few)]
    bounds = {
        "exposure of everybody": (np.inf, "all", "ci"),
        "exposure of a group of a fifth": (np.inf, "few", "ci"),
        "that group against the others": (np.inf, "few", "vs_rest"),
        "a budget against no privacy": (1.0, "all", "vs_non_private"),
        "the same of the group": (1.0, "few", "vs_non_private"),
    }
    held = dict.fromkeys(bounds, 0)
    for draw in range(cohorts):
        inside = halves(models, patients, rng)
        rate = 0.05 * rng.gamma(0.5, 2.0, patients) * np.where(few, 2.0, 1.0)
        made = {}
        for epsilon in (np.inf, 1.0):
            chance = np.clip(rate * rng.gamma(5.0, 0.2, (models, 1)), 0, 1)
            made[epsilon, RATE] = Accusations(rng.random(inside.shape) < chance, inside)
        table = exposure_by_group(made, groups, 10, 200, seed=draw).table.set_index(["epsilon", "group"])
        for name, (epsilon, group, of) in bounds.items():
            row = table.loc[(epsilon, group)]
            held[name] += bool(row[f"{of}_low"] <= 0 <= row[f"{of}_high"])
    return {name: count / cohorts for name, count in held.items()}


def of_one_model(
    draws: int, seed: int, shift: float, members: int = 2000, others: int = 800
) -> tuple[float, float]:
    """Coverage of the interval of the true-positive rate, and share of p-values at most 5 %."""
    rng = np.random.default_rng(seed)
    truth = norm.sf(norm.isf(RATE) - shift)
    member = np.arange(members + others) < members
    held = small = 0
    for draw in range(draws):
        scores = rng.normal(shift * member)
        of = spread(rates_of_one_model(scores, member, [RATE], 200, draw)[0][1:])
        held += bool(of.ci_low <= truth <= of.ci_high)
        small += p_of_members_on_top(scores, member, RATE) <= 0.05
    return held / draws, small / draws


if __name__ == "__main__":
    print("| interval at 95 % | holds the truth |\n|---|---|")
    for name, share in swapped_coverage(2000, seed=1).items():
        print(f"| {name} | {100 * share:.1f} % |", flush=True)
    for shift in (0.0, 1.0):
        held, small = of_one_model(2000, 2, shift)
        print(f"| one model, members shifted by {shift:g} (p at most 0.05: {100 * small:.1f} %) | {100 * held:.1f} % |", flush=True)  # fmt: skip
