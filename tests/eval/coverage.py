"""How often 95 % intervals hold the truth, over synthetic data sets whose truth is known. Run by hand, it takes minutes:

python tests/eval/coverage.py          500 data sets

Patients have one to five images whose probabilities share a patient's part, so that images of a patient are alike. The truth is
that of a cohort of a hundred thousand patients.
"""

import sys

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import bootstrap, clusters, spread, spread_of
from jaxcxr.eval.delong import delong
from jaxcxr.eval.metrics import METRICS, point_metrics

THRESHOLD = 0.5
SHOWN = (
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "f1",
    "brier",
)
SHOWN = (*SHOWN, "calibration_in_the_large", "selection_rate")


def cohort(patients: int, rng: np.random.Generator) -> pd.DataFrame:
    """Two groups of patients, the second harder to judge."""
    images = rng.integers(1, 6, patients)
    patient = np.repeat(np.arange(patients), images)
    group = rng.random(patients)[patient] < 0.4
    ill = rng.normal(size=patients)[patient] + rng.normal(size=len(patient)) > 1.2
    signal = (
        np.where(group, 1.0, 1.6) * ill
        + 0.7 * rng.normal(size=patients)[patient]
        + 0.7 * rng.normal(size=len(patient))
    )
    p = 1 / (1 + np.exp(-(signal - 0.8)))
    return pd.DataFrame({"patient_id": patient, "group": group, "y_a": ill.astype(float), "p_a": p})


def main(data_sets: int = 500, patients: int = 250, redraws: int = 500) -> None:
    """Print the share of intervals that hold the truth, and below and above of it."""
    everyone = cohort(100_000, np.random.default_rng(1))
    truths = [
        point_metrics(part["y_a"].to_numpy(), part["p_a"].to_numpy(), THRESHOLD)
        for part in (everyone, everyone.loc[everyone["group"]], everyone.loc[~everyone["group"]])
    ]
    names = [f"{resample} {metric}" for resample in ("patient", "image") for metric in SHOWN]
    names += ["patient accuracy of a group minus the rest", "delong auroc by patient"]
    held = dict.fromkeys(names, 0)
    for seed in range(data_sets):
        table = cohort(patients, np.random.default_rng([2, seed]))
        group = table["group"].to_numpy()
        ill = {
            "patient": table.loc[table["y_a"] == 1, "patient_id"].nunique(),
            "image": int(table["y_a"].to_numpy().sum()),
        }
        for resample in ("patient", "image"):
            masks = [np.ones(len(table), bool), group, ~group]
            how = {
                "thresholds": np.array([THRESHOLD]),
                "redraws": redraws,
                "resample": resample,
                "seed": seed,
            }
            draws = bootstrap(table, ["a"], masks, **how).metrics[:, 0]
            for metric in SHOWN:
                s = spread_of(metric, draws[0, METRICS.index(metric)], ill[resample])
                held[f"{resample} {metric}"] += s.ci_low <= truths[0][metric] <= s.ci_high
            if resample == "patient":
                m = METRICS.index("accuracy")
                s = spread(draws[1, m, 1:] - draws[2, m, 1:])
                truth = truths[1]["accuracy"] - truths[2]["accuracy"]
                held["patient accuracy of a group minus the rest"] += s.ci_low <= truth <= s.ci_high
        cluster = clusters(table.loc[:, "patient_id"], "patient")
        low, high = delong(table["y_a"].to_numpy(), table["p_a"].to_numpy()[None], cluster).interval()
        held["delong auroc by patient"] += low <= truths[0]["auroc"] <= high
    for name, count in held.items():
        print(f"{name:45s} {100 * count / data_sets:5.1f} %")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
