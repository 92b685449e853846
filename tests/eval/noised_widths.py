"""Widths of the intervals of an evaluation with noise, beside those of the exact one.

    python -m tests.eval.noised_widths RUN

takes a finished run with its store, evaluates it ten times at each budget on a copy of the store, so that nothing
is recorded in the hospital's ledger, and prints the mean width for the commonest finding and for the others, and
in how many releases there was a figure. The threshold is 0.5 and there are no groups: both cost noise.
"""

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from jaxcxr.eval.evaluate import evaluate
from jaxcxr.run_folder import read_config
from jaxcxr.workflows.noised_evaluation import Allowance, evaluate_with_noise

EPSILONS = (0.5, 1.0, 3.0, 8.0)
RELEASES = 10
METRICS = ("auroc", "accuracy", "sensitivity", "specificity")


def widths(run: Path, work: Path) -> pd.DataFrame:
    """Row per metric and kind of finding; a column for each budget, and one for the exact evaluation."""
    config = read_config(run)
    judged = dataclasses.replace(
        config.evaluation, threshold="fixed", fixed_thresholds=(0.5,) * len(config.data.findings), groups=()
    )
    store = work / "store"
    shutil.copytree(config.data.store, store)
    predictions = pd.read_parquet(run / "predictions.parquet")
    test = predictions.loc[predictions["split"] == "test"]
    commonest = max(config.data.findings, key=lambda finding: test[f"y_{finding}"].mean())
    exact = evaluate(predictions, config.data.findings, judged)
    columns = {}
    for epsilon in EPSILONS:
        allowance = Allowance(epsilon, 6e-6, test["patient_id"].nunique(), budget=1e3)
        tables = [
            evaluate_with_noise(run, work / f"{epsilon:g}-{n}", judged, allowance, store).table
            for n in range(RELEASES)
        ]
        columns[f"epsilon {epsilon:g}"] = summary(pd.concat(tables), commonest)
    return pd.DataFrame(columns | {"exact": summary(exact, commonest)})


def summary(table: pd.DataFrame, commonest: str) -> pd.Series:
    """Mean width, with the share of figures that were given at all."""
    table = table.loc[
        table["group"].eq("all") & table["metric"].isin(METRICS) & table["finding"].ne("average")
    ]
    table = table.assign(
        width=table["ci_high"] - table["ci_low"],
        of=table["finding"].where(table["finding"].eq(commonest), "the others"),
    )
    found = table.groupby(["of", "metric"], sort=False)["width"].agg(["mean", "count", "size"])
    shown = [f"{mean:.3f} ({count / size:.0%})" for mean, count, size in found.to_numpy()]
    return pd.Series(shown, found.index)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(widths(Path(sys.argv[1]), Path(folder)).to_string())
