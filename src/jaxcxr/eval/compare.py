"""Compare two models on the same images: differences by group, with paired intervals and p-values.

Both models are evaluated on the same bootstrap replicates, so the effect of an easy or difficult replicate on
both cancels out. Each model keeps its own thresholds, chosen by the same policy.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import clusters, holm, p_value, spread
from jaxcxr.eval.delong import delong
from jaxcxr.eval.estimates import Estimates, measure
from jaxcxr.eval.fairness import GAPS
from jaxcxr.eval.groups import make_groups
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.run_folder import PREDICTIONS

COMPARISON_COLUMNS: tuple[str, ...] = (
    "group",
    "finding",
    "metric",
    "value_a",
    "value_b",
    "difference",
    "ci_low",
    "ci_high",
    "std",
    "p_value",
    "p_holm",
    "delong_p",
    "n",
    "positives",
    "redraws",
    "attribute",
    "label",
    "reference",
    "note",
    "threshold_policy",
    "resample",
)


def read_pair(a: str | Path, b: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Two predictions tables, read from files or run folders, with the second's rows in the first's order.

    Returns:
        Both tables, and the findings that both predict, in the first's order.

    Raises:
        InputError: a file is refused (`predictions.read_predictions`), the files share no finding or have
            different test images, or they disagree about an image's patient, split or labels.
    """
    path_a, path_b = _file(a), _file(b)
    (first, findings_a), (second, findings_b) = read_predictions(path_a), read_predictions(path_b)
    findings = tuple(f for f in findings_a if f in findings_b)
    if not findings:
        raise InputError(
            f"{path_b}: expected a finding of {path_a} ({', '.join(findings_a)}), found "
            f"{', '.join(findings_b)}"
        )
    return first, align(first, second, findings), findings


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / PREDICTIONS if path.is_dir() else path


def align(a: pd.DataFrame, b: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The rows of `b` in the order of the rows of `a`; validation images may differ.

    Raises:
        InputError: the test images are not the same, or differ in patient or label.
    """
    source_a, source_b = (str(t.attrs.get("source", name)) for t, name in ((a, "first"), (b, "second")))
    tests = [t.loc[t["split"] == "test"].set_index("image_id") for t in (a, b)]
    for here, there, names in ((*tests, (source_b, source_a)), (*tests[::-1], (source_a, source_b))):
        missing = here.index.difference(there.index, sort=False)
        if len(missing):
            raise InputError(
                f"{names[0]}: test image {missing[0]!r} of {names[1]} is missing; expected the same test "
                f"images, found {len(missing)} fewer"
            )
    first, second = tests[0], tests[1].loc[tests[0].index]
    for column in ("patient_id", *(f"y_{f}" for f in findings)):
        differs = ~((first[column] == second[column]) | (first[column].isna() & second[column].isna()))
        if differs.any():
            image = differs.to_numpy().argmax()
            expected, found = (f"{t[column].iloc[image]!s}" for t in (first, second))
            raise InputError(
                f"{source_b}: image_id {first.index[image]!r}, column {column!r}: expected {expected} as in "
                f"{source_a}, found {found}"
            )
    others = b.loc[b["split"] != "test"]
    aligned = pd.concat([second.reset_index(), others], ignore_index=True)
    aligned.attrs["source"] = source_b
    return aligned


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    estimates_of_a: Estimates | None = None,
) -> pd.DataFrame:
    """Model a minus model b in every estimate, on the images of split `test`.

    Args:
        a: predictions of the first model; its columns make the groups.
        b: predictions of the second on the same test images in the same order (`read_pair`, `align`).
        findings: names of the findings to compare.
        config: how each is judged; the seed determines the replicates that both share.
        estimates_of_a: the result of `measure(a, findings, config)`, if it is at hand.

    Returns:
        One row per estimate, with the columns `COMPARISON_COLUMNS`: `value_a`, `value_b` and their
        `difference`, positive where a is larger; its 95 % percentile interval, standard deviation and
        two-sided bootstrap `p_value` over paired replicates; `p_holm`, corrected over the findings of the
        same group and metric; `delong_p` for an AUROC, clustered by patient if patients are resampled. The
        rows are those of `evaluate.evaluate` (so the models' difference in a `statistical_parity_difference`,
        for example, is included), except differences to the best group and between the groups furthest apart,
        which may be different groups in the two models.
    """
    groups = {group.name: group for group in make_groups(a, config.groups)}
    estimates = [_common(estimates_of_a or measure(a, findings, config))]
    estimates.append(_common(measure(_with_groups(a, b), findings, config)))
    rows = estimates[0].rows
    draws = estimates[0].draws - estimates[1].draws
    spreads = [spread(row[1:]) for row in draws]
    frame = rows.assign(
        value_a=estimates[0].draws[:, 0],
        value_b=estimates[1].draws[:, 0],
        difference=draws[:, 0],
        ci_low=[s.ci_low for s in spreads],
        ci_high=[s.ci_high for s in spreads],
        std=[s.std for s in spreads],
        redraws=[s.redraws for s in spreads],
        p_value=[p_value(row[1:]) for row in draws],
        threshold_policy=estimates[0].policy,
        resample=config.resample,
    )
    frame["p_holm"] = np.nan
    single = ~frame["finding"].isin(["average", "any"])
    for _, family in frame[single].groupby(["group", "metric"], sort=False):
        frame.loc[family.index, "p_holm"] = holm(np.asarray(family["p_value"], np.float64))

    test_a, test_b = (t.loc[t["split"] == "test"] for t in (a, b))
    cluster = clusters(pd.Series(test_a["patient_id"]), config.resample)
    is_test = (a["split"] == "test").to_numpy()
    frame["delong_p"] = np.nan
    asked = frame.loc[
        single & (frame["metric"] == "auroc") & frame["difference"].notna(), ["group", "finding"]
    ]
    for index, group, finding in asked.itertuples(name=None):
        member = np.ones(len(test_a), bool) if group == "all" else groups[str(group)].rows[is_test]
        y = np.where(member, test_a[f"y_{finding}"].to_numpy(np.float64), np.nan)
        scores = np.stack([t[f"p_{finding}"].to_numpy(np.float64) for t in (test_a, test_b)])
        frame.loc[index, "delong_p"] = delong(y, scores, cluster).p_value()
    return frame.loc[:, list(COMPARISON_COLUMNS)]


def _with_groups(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """`b` with the group columns of `a`, so that both models are judged on the same groups."""
    kept = b[["image_id", "patient_id", "split", *(c for c in b.columns if str(c).startswith(("y_", "p_")))]]
    columns = [c for c in a.columns if c not in kept.columns]
    merged = kept.merge(a[["image_id", *columns]], on="image_id", how="left", sort=False)
    merged.attrs["source"] = a.attrs.get("source", "predictions")
    return merged


def _common(estimates: Estimates) -> Estimates:
    """The estimates that two models share, in one order: those without groups chosen by the results."""
    kept = ~estimates.rows["metric"].str.endswith("_vs_best") & ~estimates.rows["metric"].isin(list(GAPS))
    return Estimates(
        estimates.rows.loc[kept].reset_index(drop=True), estimates.draws[kept.to_numpy()], estimates.policy
    )
