"""Evaluate a predictions file: every estimate with its interval, in the long form of `evaluation.csv`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from jaxcxr.config import EvaluationConfig
from jaxcxr.digests import check
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import p_value, spread_of
from jaxcxr.eval.estimates import FEWEST, NO_INTERVAL, Estimates, measure, policy_of
from jaxcxr.eval.fairness import GAPS
from jaxcxr.eval.predictions import read_predictions as read_predictions
from jaxcxr.eval.strata import within_strata

VALIDATION = "auroc_validation"
"""Metric of the validation images: what a setting may be chosen by, unlike any of the test images."""
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
    "attribute",
    "label",
    "reference",
    "p_value",
    "delong_low",
    "delong_high",
    "note",
    "threshold_policy",
    "resample",
)


def evaluate(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> pd.DataFrame:
    """The evaluation of the rows of split `test`, in the long form of `evaluation.csv`, and at its end the
    AUROC of those of split `valid`, by which settings may be chosen.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings to evaluate.
        config: number of bootstrap replicates, what is resampled, threshold policy, groups and seed.
        groups: name -> mask over the rows of `predictions`, instead of the configuration's groups; `all`,
            everyone, always comes first.
        progress: told 1 after each finding.

    Returns:
        One row per estimate; `group`, `finding` and `metric` together are unique. Five kinds:
        - Every metric (`metrics.METRICS`) of a group, finding and `average` (the mean over the findings that
          are defined), and `no_finding_among_ill` of the finding `any`; `reference` is empty.
        - Differences of a group to all others (`reference` rest; `fairness.rest_name`) and to the best group
          of the same attribute (`<metric>_vs_best`; `reference` is that group).
        - The largest difference between any two groups of an attribute (`fairness.GAPS`): `group` is the
          attribute and `reference` the two groups, 'highest - lowest' ('between' for the average, in which
          findings may have different ones).
        - `auroc_within_strata` of everyone (pooled over strata of view and detector) and of each stratum
          (`strata.within_strata`), where there are several strata.
        - `auroc_validation` of everyone, of each finding and the average, where there are validation images.

        `value` is the point estimate on the test rows; `ci_low` and `ci_high` are the 95 % percentile
        interval (for average precision: Student's on the logit scale; for the expected calibration error:
        shifted to the estimate); `std` (ddof = 1) and `bootstrap_mean` are over the bootstrap replicates,
        `redraws` is the number of replicates in which the metric is defined; `std_paper` is the paper's '±',
        which differs from `std` for the average only (`bootstrap.std_paper`); `n` is the number of labelled
        images and `positives` the positives among them (for the average: images, and empty); `threshold` is
        the one at which `value` was computed (empty for the average, for metrics that need none, and with the
        policy `youden_test_per_draw`); `p_value` is two-sided, for differences other than the largest, not
        corrected for their number; `delong_low` and `delong_high` are the DeLong interval of an AUROC; `note`
        says why there is no value or no interval (where all images, all positives or all negatives are of
        fewer than five resampled patients), or over how many findings an average is, if not over all.

    Raises:
        InputError: no test rows, no validation rows for `youden_validation`, a negative seed, or groups that
            cannot be made.
    """
    parts = [tabulate(measure(predictions, findings, config, groups, progress), config)]
    if (within := within_strata(predictions, findings, config)) is not None:
        parts.append(tabulate(within, config))
    if "valid" in set(predictions["split"]):
        alone = aurocs_of(predictions, findings, config, "valid")
        parts.append(tabulate(alone, config).assign(metric=VALIDATION))
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def aurocs_of(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig, split: str
) -> Estimates:
    """The AUROC of each finding, and on average, on all images of a split, as evaluations judge test images.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings.
        config: how the model is judged; its threshold is named, and not needed.
        split: one that the predictions have.
    """
    images = predictions.loc[predictions["split"] == split].assign(split="test")
    alone = dataclasses.replace(config, threshold="fixed", fixed_thresholds=None, groups=())
    found = measure(images, findings, alone)
    of = (found.rows["metric"] == "auroc") & (found.rows["group"] == "all")
    rows = found.rows.loc[of].reset_index(drop=True)
    return Estimates(rows, found.draws[of.to_numpy()], policy_of(predictions, config))


def tabulate(estimates: Estimates, config: EvaluationConfig) -> pd.DataFrame:
    """Estimates as rows of `evaluation.csv`."""
    metrics = estimates.rows["metric"]
    spreads = [
        spread_of(metric, row, clusters)
        for metric, row, clusters in zip(metrics, estimates.draws, estimates.rows["clusters"], strict=True)
    ]
    few = estimates.rows["few"]
    spreads = [
        dataclasses.replace(s, ci_low=np.nan, ci_high=np.nan, std=np.nan) if too_few else s
        for s, too_few in zip(spreads, few, strict=True)
    ]
    of_few = f"{NO_INTERVAL}all positives or all negatives are of fewer than {FEWEST} {config.resample}s"
    notes = estimates.rows["note"].where(~few | (estimates.rows["note"] != ""), of_few)
    tested = (estimates.rows["reference"] != "") & ~metrics.isin(list(GAPS))
    frame = estimates.rows.assign(
        note=notes,
        value=estimates.draws[:, 0],
        ci_low=[s.ci_low for s in spreads],
        ci_high=[s.ci_high for s in spreads],
        std=[s.std for s in spreads],
        bootstrap_mean=[s.mean for s in spreads],
        redraws=[s.redraws for s in spreads],
        p_value=[
            p_value(row[1:]) if t and not _with_itself(row) else np.nan
            for row, t in zip(estimates.draws, tested & ~few, strict=True)
        ],
        threshold_policy=estimates.policy,
        resample=config.resample,
    )
    return frame.loc[:, list(EVALUATION_COLUMNS)]


def _with_itself(row: np.ndarray) -> bool:
    """Whether the row is the best group minus itself, for which there is nothing to test."""
    return not np.nan_to_num(row).any()


def read_evaluation(path: str | Path) -> pd.DataFrame:
    """The table in an `evaluation.csv`.

    Raises:
        InputError: there is no such file, or it was written by another version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such evaluation; scripts/evaluate.py writes one from a predictions file"
        )
    check(path, "evaluate its predictions again (jaxcxr evaluate RUN)")
    try:
        frame = pd.read_csv(path, dtype={"positives": "Int64"}, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as csv ({' '.join(str(error).split())[:200]})") from error
    missing = [column for column in EVALUATION_COLUMNS if column not in frame]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing; written by another version of jaxcxr: evaluate the "
            "predictions again"
        )
    texts = ["attribute", "label", "reference", "note"]
    return frame.assign(**{column: frame[column].astype(object).fillna("").astype(str) for column in texts})
