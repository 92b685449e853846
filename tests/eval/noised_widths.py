"""Widths of the intervals of an evaluation with noise, beside those of the exact one.

    python -m tests.eval.noised_widths RUN

takes a finished run with its store, evaluates it at three budgets on a copy of the store, so that nothing is
recorded in the hospital's ledger, and prints the median width over the findings and how many were given.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from jaxcxr.run_folder import EVALUATION, read_config
from jaxcxr.workflows.noised_evaluation import Allowance, evaluate_with_noise

EPSILONS = (0.5, 1.0, 3.0)
METRICS = ("auroc", "accuracy", "sensitivity", "specificity")


def widths(run: Path, work: Path) -> pd.DataFrame:
    """Row per group and metric that both have; a column for the exact evaluation and for each budget."""
    config = read_config(run)
    store = work / "store"
    shutil.copytree(config.data.store, store, ignore=shutil.ignore_patterns("evaluations.jsonl"))
    predictions = pd.read_parquet(run / "predictions.parquet")
    patients = len(set(predictions.loc[predictions["split"] == "test", "patient_id"]))
    columns = {"exact": _summary(pd.read_csv(run / EVALUATION))}
    for epsilon in EPSILONS:
        allowance = Allowance(epsilon, 1e-6, patients, budget=100.0)
        out = work / f"{epsilon:g}"
        noised = evaluate_with_noise(run, out, config.evaluation, allowance, store)
        columns[f"epsilon {epsilon:g}"] = _summary(noised.table)
    return pd.DataFrame(columns).dropna()


def _summary(table: pd.DataFrame) -> pd.Series:
    table = table.loc[table["metric"].isin(METRICS) & table["finding"].ne("average")]
    table = table.assign(width=table["ci_high"] - table["ci_low"])
    found = table.groupby(["group", "metric"], sort=False)["width"].agg(["median", "count"])
    return pd.Series([f"{median:.3f} ({count})" for median, count in found.to_numpy()], found.index)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(widths(Path(sys.argv[1]), Path(folder)).to_string())
