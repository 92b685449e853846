"""From a predictions file to `evaluation.csv`: every metric of every finding, with its interval.

The file may come from any model: it needs `image_id`, `patient_id`, `split`, and for each finding `y_<finding>` (1, 0 or empty)
and `p_<finding>` (a probability). Other columns, such as age and sex, are kept for whoever makes groups of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import ArrayLike

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import average, bootstrap, spread, std_paper
from jaxcxr.eval.metrics import METRICS, choose_thresholds, point_metrics

ID_COLUMNS: tuple[str, ...] = ("image_id", "patient_id", "split")
SPLITS: tuple[str, ...] = ("train", "valid", "test")
EVALUATION_COLUMNS: tuple[str, ...] = (
    "group",
    "finding",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "std",
    "n",
    "positives",
    "bootstrap_mean",
    "std_paper",
    "redraws",
    "threshold",
)


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read and check a predictions file (`.parquet` or `.csv`).

    Returns:
        The table, with text ids and float64 labels and probabilities, and the names of its findings in file order.

    Raises:
        InputError: the file cannot be read; a column is missing; an id is missing or an image is there twice; a split has an
            unknown name or shares patients with another; a label is not 1, 0 or empty; a probability is missing or not in [0,
            1]; or there are no test rows.
    """
    path = Path(path)
    table = _read(path)
    missing = [c for c in ID_COLUMNS if c not in table]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing; expected {', '.join(ID_COLUMNS)}, y_<finding> and p_<finding>"
        )
    findings = tuple(str(c)[2:] for c in table.columns if str(c).startswith("p_"))
    labelled = [str(c)[2:] for c in table.columns if str(c).startswith("y_")]
    if not findings:
        raise InputError(f"{path}: expected at least one column p_<finding>, found none")
    for prefix, unmatched in (("y_", set(findings) - set(labelled)), ("p_", set(labelled) - set(findings))):
        if unmatched:
            raise InputError(f"{path}: column '{prefix}{min(unmatched)}' is missing; each finding needs both y_ and p_")
    if "average" in findings:
        raise InputError(
            f"{path}: column 'p_average': the name 'average' is kept for the mean over findings; rename the finding"
        )

    for column in ID_COLUMNS:
        _refuse(path, table, column, table[column].isna(), "a value")
    _refuse(path, table, "image_id", table["image_id"].duplicated(), "each image once")
    _refuse(path, table, "split", ~table["split"].isin(SPLITS), f"one of {', '.join(SPLITS)}")
    first_split = table.groupby("patient_id")["split"].transform("first")
    _refuse(path, table, "patient_id", table["split"] != first_split, "each patient in one split only")
    if "test" not in set(table["split"]):
        raise InputError(f"{path}: column 'split': expected rows of split 'test', found none")

    numbers = {}
    for finding in findings:
        numbers[f"y_{finding}"] = _numbers(path, table, f"y_{finding}", "1, 0 or empty")
        _refuse(path, table, f"y_{finding}", ~numbers[f"y_{finding}"].isin([0, 1, np.nan]), "1, 0 or empty")
        numbers[f"p_{finding}"] = _numbers(path, table, f"p_{finding}", "a probability in [0, 1]")
        _refuse(path, table, f"p_{finding}", ~numbers[f"p_{finding}"].between(0, 1), "a probability in [0, 1]")
    return table.assign(**numbers).reset_index(drop=True), findings


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such predictions file")
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: expected a file ending in .parquet or .csv, found {path.suffix or 'no ending'!r}")
    ids = ("image_id", "patient_id")
    try:
        csv = path.suffix == ".csv"
        table = pd.read_csv(path, dtype=dict.fromkeys(ids, "string")) if csv else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's and pandas' parsing errors are ValueErrors
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]} ({' '.join(str(error).split())[:200]})") from error
    return table.assign(**{c: table[c].astype("string") for c in ids if c in table})


def _numbers(path: Path, table: pd.DataFrame, column: str, expected: str) -> pd.Series:
    numbers = pd.Series(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
    _refuse(path, table, column, numbers.isna() & ~pd.isna(table[column]), expected)
    return numbers


def _refuse(path: Path, table: pd.DataFrame, column: str, bad: ArrayLike, expected: str) -> None:
    bad = np.asarray(bad, bool)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    found = table[column].iloc[row]
    shown = "nothing" if pd.isna(found) else repr(found.item() if isinstance(found, np.generic) else found)
    where = "" if column == "image_id" else f" (image_id {table['image_id'].iloc[row]!r})"
    raise InputError(f"{path}: row {row + 1}{where}, column '{column}': expected {expected}, found {shown}")


def evaluate(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
) -> pd.DataFrame:
    """Metrics of the rows of split `test`, in the long form of `evaluation.csv`.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings to evaluate.
        config: redraws, what is redrawn, threshold policy and seed.
        groups: further groups as masks over the rows of `predictions`; `all`, everyone, comes first in any case.

    Returns:
        One row a group, finding (and `average`, the mean over the findings that are defined) and metric:
        `value` is the point estimate on the test rows; `ci_low`, `ci_high` the 95 % percentile interval; `std` (ddof = 1) and
        `bootstrap_mean` over the redraws; `redraws` how many of them have the metric; `std_paper` the paper's '±', which
        differs from `std` for the average only (`bootstrap.std_paper`); `n` labelled films and `positives` among them (for the
        average: films with any label, and empty); `threshold` the one `value` was computed at (empty for the AUROC and the
        average). With the policy `youden_test_per_draw` the redraws have thresholds of their own.

    Raises:
        InputError: no test rows, no validation rows for `youden_validation`, or a negative seed.
    """
    everyone = np.ones(len(predictions), bool)
    masks = {"all": everyone, **{name: np.asarray(mask, bool) for name, mask in (groups or {}).items()}}
    return pd.concat(
        [_evaluate_group(predictions, findings, config, name, rows) for name, rows in masks.items()], ignore_index=True
    )


def _evaluate_group(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig, group: str, rows: Bool[np.ndarray, " rows"]
) -> pd.DataFrame:
    draws = bootstrap(
        predictions,
        findings,
        redraws=config.redraws,
        resample=config.resample,
        threshold=config.threshold,
        seed=config.seed,
        rows=rows,
    )
    averages = average(draws)
    thresholds = choose_thresholds(predictions, findings, config.threshold, rows)
    test = predictions.loc[rows & (predictions["split"] == "test").to_numpy()]
    labels = test.loc[:, [f"y_{f}" for f in findings]]
    points = [
        point_metrics(test[f"y_{f}"].to_numpy(), test[f"p_{f}"].to_numpy(), t)
        for f, t in zip(findings, thresholds, strict=True)
    ]

    lines = []
    for index, finding in enumerate(findings):
        y = labels[f"y_{finding}"]
        for m, metric in enumerate(METRICS):
            line = _line(group, finding, metric, points[index][metric], draws[:, index, m], draws[:, index : index + 1, m])
            threshold = np.nan if metric == "auroc" else thresholds[index]
            lines.append(line | {"n": int(y.notna().sum()), "positives": int((y == 1).sum()), "threshold": threshold})
    for m, metric in enumerate(METRICS):
        defined = [point[metric] for point in points if not np.isnan(point[metric])]
        value = float(np.mean(defined)) if defined else np.nan
        line = _line(group, "average", metric, value, averages[:, m], draws[:, :, m])
        lines.append(line | {"n": int(labels.notna().any(axis=1).sum()), "positives": None, "threshold": np.nan})
    return pd.DataFrame(lines, columns=list(EVALUATION_COLUMNS)).astype({"positives": "Int64"})


def _line(group: str, finding: str, metric: str, value: float, draws: np.ndarray, pooled: np.ndarray) -> dict[str, object]:
    s = spread(draws)
    return {
        "group": group,
        "finding": finding,
        "metric": metric,
        "value": value,
        "ci_low": s.ci_low,
        "ci_high": s.ci_high,
        "std": s.std,
        "bootstrap_mean": s.mean,
        "std_paper": std_paper(pooled),
        "redraws": s.redraws,
    }
