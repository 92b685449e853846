"""Members and non-members swapped at random: how often do intervals of exposure hold zero? `python -m tests.eval.exposure_coverage`.

Patients differ in how often they are accused, whether inside or not, and so do models and groups; nothing tells members from
others. Printed: the share of 2,000 cohorts whose 95 % interval holds zero, of everybody, of a group of a fifth, and of that
group against the others.
"""

import numpy as np

from jaxcxr.audit.membership import halves
from jaxcxr.eval.exposure import Accusations, exposure_by_group
from jaxcxr.eval.groups import Group


def swapped_coverage(
    cohorts: int, seed: int, patients: int = 200, models: int = 32
) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)
    held = np.zeros(3)
    few = np.arange(patients) < patients // 5
    groups = [Group("few", "few", "x", few), Group("many", "many", "x", ~few)]
    for draw in range(cohorts):
        inside = halves(models, patients, rng)
        rate = 0.05 * rng.gamma(0.5, 2.0, patients) * np.where(few, 2.0, 1.0)
        chance = np.clip(rate * rng.gamma(5.0, 0.2, (models, 1)), 0, 1)
        accused = rng.random(inside.shape) < chance
        made = {(np.inf, 0.01): Accusations(accused, inside)}
        table = exposure_by_group(made, groups, 10, 200, seed=draw).table.set_index("group")
        bounds = [("all", "ci"), ("few", "ci"), ("few", "vs_rest")]
        held += [table.loc[g, f"{k}_low"] <= 0 <= table.loc[g, f"{k}_high"] for g, k in bounds]
    whole, own, apart = (held / cohorts).tolist()
    return whole, own, apart


if __name__ == "__main__":
    shares = swapped_coverage(2000, seed=1)
    print("intervals that hold zero, of 2,000:", *(f"{100 * share:.1f} %" for share in shares))
