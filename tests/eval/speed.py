"""Time and memory of the bootstrap at the paper's size. Run by hand:

python tests/eval/speed.py
"""

import resource
import time

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.bootstrap import bootstrap
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.eval.metrics import choose_thresholds

FILMS, PATIENTS = 39_809, 15_000
PREVALENCES = (0.4675, 0.0822, 0.0822, 0.0653, 0.1217, 0.0894, 0.0984, 0.0795)


def images() -> pd.DataFrame:
    """As many test images and positives as the paper has."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, PATIENTS, FILMS)
    table = {"image_id": np.arange(FILMS).astype(str), "patient_id": patient.astype(str), "split": "test"}
    table |= {"age": np.clip(rng.normal(66, 15, PATIENTS), 16, 99)[patient]}
    table |= {"sex": rng.choice(["F", "M"], PATIENTS, p=[0.36, 0.64])[patient]}
    table |= {"comorbidities": rng.poisson(1.1, PATIENTS)[patient]}
    for i, prevalence in enumerate(PREVALENCES):
        y = (rng.random(FILMS) < prevalence).astype(float)
        table |= {f"y_f{i}": y, f"p_f{i}": 1 / (1 + np.exp(1 - rng.normal(size=FILMS) - 1.8 * y))}
    return pd.DataFrame(table)


def main() -> None:
    """Print seconds and the peak memory so far, in GB, of each way to redraw and then of a whole evaluation with its groups."""
    table, findings = images(), [f"f{i}" for i in range(len(PREVALENCES))]
    everyone = [np.ones(len(table), bool)]
    for resample in ("patient", "image"):
        for policy in ("youden_test_per_draw", "youden_test"):
            start, busy = time.perf_counter(), time.process_time()
            cuts = None if policy == "youden_test_per_draw" else choose_thresholds(table, findings, policy)
            bootstrap(table, findings, everyone, thresholds=cuts, redraws=1000, resample=resample, seed=0)
            _say(f"{resample}, {policy}", start, busy)
    start, busy = time.perf_counter(), time.process_time()
    rows = len(evaluate(table, findings, EvaluationConfig()))
    _say(f"evaluation with groups, {rows} rows", start, busy)


def _say(what: str, start: float, busy: float) -> None:
    seconds, processor = time.perf_counter() - start, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:45s} {seconds:6.1f} s ({processor:.1f} s of processor), {memory:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
