"""How often the intervals of an evaluation with noise hold what is true of the population.

    python -m tests.eval.noised_coverage

A cohort is drawn anew each time: scores normal in logits, patients with 1 to 6 images that resemble each
other. The truth is that of 100,000 patients of the same kind.
"""

import dataclasses
import functools

import numpy as np
import pandas as pd

from jaxcxr import accounting
from jaxcxr.eval.noised_metrics import noised_evaluation
from jaxcxr.eval.noised_record import nearest_edge
from jaxcxr.privacy.score_counts import Design, HeldOut, noised_counts

THRESHOLD = 0.2


@dataclasses.dataclass(frozen=True)
class Cohort:
    patients: int
    rates: tuple[float, ...]
    alike: float = 0.7
    """Share of the variance of a score, and of being positive, that a patient's images have in common."""


def draw(cohort: Cohort, rng: np.random.Generator) -> HeldOut:
    owner = np.repeat(np.arange(cohort.patients), rng.integers(1, 7, cohort.patients))
    shape = (cohort.patients, len(cohort.rates))
    common, ill = rng.normal(size=shape), rng.random(shape)
    own = rng.random((len(owner), len(cohort.rates))) > cohort.alike
    drawn = np.where(own, rng.random(own.shape), ill[owner])
    labels = (drawn < np.array(cohort.rates)).astype(float)
    logits = (
        (np.sqrt(cohort.alike) * common[owner] + np.sqrt(1 - cohort.alike) * rng.normal(size=labels.shape))
        + 1.5 * labels
        - 2.0
    )
    return HeldOut(1 / (1 + np.exp(-logits)), labels, owner, np.zeros((len(owner), 0), int))


def evaluated(held_out: HeldOut, epsilon: float, key: np.ndarray) -> pd.DataFrame:
    findings = [f"f{i}" for i in range(held_out.labels.shape[1])]
    design = Design(
        (nearest_edge(THRESHOLD),) * len(findings), (THRESHOLD,) * len(findings), (), 1, multiplier(epsilon)
    )
    counts = noised_counts(held_out, design, key)
    return noised_evaluation(counts, design, findings, [], [True] * len(findings))


@functools.cache
def multiplier(epsilon: float) -> float:
    return accounting.calibrated_noise(epsilon, 1e-6, 1.0, 1)


def coverage(cohort: Cohort, epsilon: float, times: int, seed: int = 0) -> pd.DataFrame:
    """Per finding and metric: share of intervals that hold the truth, mean width, and how many were given."""
    rng = np.random.default_rng(seed)
    truth = evaluated(draw(dataclasses.replace(cohort, patients=100_000), rng), 50.0, np.zeros(4, np.uint32))
    found = []
    for _ in range(times):
        key = np.frombuffer(rng.bytes(16), "<u4")
        table = evaluated(draw(cohort, rng), epsilon, key)
        found.append(
            table.assign(
                holds=table["ci_low"].le(truth["value"]) & truth["value"].le(table["ci_high"]),
                width=table["ci_high"] - table["ci_low"],
                given=table["value"].notna(),
            )
        )
    rows = pd.concat(found)
    rows = rows.loc[rows["given"]]
    return rows.groupby(["finding", "metric"], sort=False).agg(
        holds=("holds", "mean"), width=("width", "mean"), given=("given", "size")
    )


if __name__ == "__main__":
    for patients, epsilon in ((500, 3.0), (2000, 1.0), (2000, 3.0), (10_000, 0.5), (10_000, 1.0)):
        print(f"\n{patients} patients, epsilon {epsilon}, 1000 cohorts")
        print(coverage(Cohort(patients, (0.3, 0.1)), epsilon, 1000).round(3).to_string())
