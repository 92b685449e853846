"""How well one finding is predicted: AUROC, and accuracy, sensitivity and specificity at a threshold.

Labels are 1, 0 or NaN (unknown, left out). A film is called positive if its probability is at least the threshold, as in
scikit-learn's `roc_curve`. A finding of which only one class is labelled has none of the four metrics: they are NaN, 'not
defined'. Source: the paper's Quantitative Evaluation and Statistical Analysis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from jaxcxr.errors import InputError

METRICS: tuple[str, ...] = ("auroc", "accuracy", "sensitivity", "specificity")
"""The metrics, in the order of every array of them."""

ThresholdPolicy = Literal["youden_test_per_draw", "youden_test", "youden_validation"]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The films of one finding, sorted by probability, and the thresholds at which Youden's index can be largest.

    Going down from the highest probability, Youden's index rises over positives and falls over negatives, so that the last of
    each run of positives is candidate enough, whatever the multiplicities of the films.

    Attributes:
        positives, negatives: rows with that label, most probable first.
        positive_scores, negative_scores: their probabilities.
        thresholds: the candidates, highest first.
        positives_at, negatives_at: how many have a probability of at least each threshold.
        negatives_above: how many negatives lie strictly above each threshold. Every positive between a threshold and the one
            before it has these negatives above itself and `negatives_at` at or above itself.
    """

    positives: Int[np.ndarray, " p"]
    negatives: Int[np.ndarray, " q"]
    positive_scores: Float[np.ndarray, " p"]
    negative_scores: Float[np.ndarray, " q"]
    thresholds: Float[np.ndarray, " k"]
    positives_at: Int[np.ndarray, " k"]
    negatives_at: Int[np.ndarray, " k"]
    negatives_above: Int[np.ndarray, " k"]

    @property
    def one_class(self) -> bool:
        """True if positives or negatives are missing, so that nothing is defined."""
        return not (self.positives.size and self.negatives.size)

    def called(self, threshold: float) -> tuple[int, int]:
        """How many positives and negatives are called positive at `threshold`."""
        at = np.array([threshold])
        return int(_count_at_least(self.positive_scores, at)[0]), int(_count_at_least(self.negative_scores, at)[0])


def _count_at_least(descending: Float[np.ndarray, " n"], thresholds: Float[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    return np.searchsorted(-descending, -thresholds, side="right")


def rank(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> Ranking:
    """Sort the labelled films of a finding by probability; films of the same probability stay tied."""
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    order = np.argsort(-p, kind="stable")
    positives, negatives = order[y[order] == 1], order[y[order] == 0]
    thresholds = np.unique(p[positives])[::-1]
    negatives_at = _count_at_least(p[negatives], thresholds)
    negatives_above = np.searchsorted(-p[negatives], -thresholds, side="left")
    last = np.ones(thresholds.size, bool)
    last[:-1] = (negatives_above[:-1] != negatives_at[:-1]) | (negatives_at[:-1] != negatives_at[1:])
    thresholds = thresholds[last]
    return Ranking(
        positives=positives,
        negatives=negatives,
        positive_scores=p[positives],
        negative_scores=p[negatives],
        thresholds=thresholds,
        positives_at=_count_at_least(p[positives], thresholds),
        negatives_at=negatives_at[last],
        negatives_above=negatives_above[last],
    )


def youden_threshold(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> float:
    """Threshold with the largest true positive rate minus false positive rate (the paper's criterion).

    The rates are compared as whole numbers, without rounding. Among equally good thresholds the highest is taken, and among the
    values between two neighbouring probabilities the upper one: a probability that a positive film has.

    Args:
        y: labels 1, 0 or NaN.
        p: probabilities.

    Returns:
        The threshold; infinity, which calls no film positive, if no threshold beats chance; NaN if only one class is labelled.
    """
    ranking = rank(y, p)
    if ranking.one_class:
        return np.nan
    index = ranking.positives_at * ranking.negatives.size - ranking.negatives_at * ranking.positives.size
    best = int(np.argmax(index))
    return float(ranking.thresholds[best]) if index[best] > 0 else np.inf


def auroc(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> float:
    """Area under the receiver operating characteristic; a tie between a positive and a negative counts one half."""
    y, p, defined = _labelled(y, p)
    return float(roc_auc_score(y, p)) if defined else np.nan


def accuracy(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float) -> float:
    """Share of the labelled films that are called rightly at `threshold`."""
    y, p, defined = _labelled(y, p)
    return _share((p >= threshold) == (y == 1), defined, threshold)


def sensitivity(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float) -> float:
    """Share of the positive films that are called positive at `threshold`."""
    y, p, defined = _labelled(y, p)
    return _share(p[y == 1] >= threshold, defined, threshold)


def specificity(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float) -> float:
    """Share of the negative films that are called negative at `threshold`."""
    y, p, defined = _labelled(y, p)
    return _share(p[y == 0] < threshold, defined, threshold)


def point_metrics(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"], threshold: float) -> dict[str, float]:
    """The four metrics of one finding by name; a NaN threshold leaves all but the AUROC undefined."""
    return {
        "auroc": auroc(y, p),
        "accuracy": accuracy(y, p, threshold),
        "sensitivity": sensitivity(y, p, threshold),
        "specificity": specificity(y, p, threshold),
    }


def _labelled(y: Float[np.ndarray, " n"], p: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, bool]:
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    known = ~np.isnan(y)
    return y[known], p[known], bool((y == 1).any() and (y == 0).any())


def _share(right: Bool[np.ndarray, " n"], defined: bool, threshold: float) -> float:
    return float(right.mean()) if defined and not np.isnan(threshold) else np.nan


def choose_thresholds(
    predictions: pd.DataFrame, findings: Sequence[str], policy: ThresholdPolicy, rows: Bool[np.ndarray, " rows"] | None = None
) -> Float[np.ndarray, " findings"]:
    """One threshold a finding for the point estimates, as the policy says.

    Args:
        predictions: table with `split`, `y_<finding>` and `p_<finding>`.
        findings: names of the findings.
        policy: `youden_validation` chooses on the rows of split `valid`, `youden_test` on those of split `test`;
            `youden_test_per_draw` on the test rows too (the redraws choose anew).
        rows: the group that is evaluated. Only `youden_test_per_draw` heeds it: a group is then judged as a test set of its
            own, with its own threshold. The other policies have one threshold for everybody, as a deployed classifier has.

    Raises:
        InputError: `youden_validation` without validation rows.
    """
    chosen = (predictions["split"] == ("valid" if policy == "youden_validation" else "test")).to_numpy()
    if policy == "youden_validation" and not chosen.any():
        raise InputError(
            "predictions: threshold 'youden_validation' needs rows whose split is 'valid', found none; "
            "add them, or choose the threshold 'youden_test'"
        )
    if policy == "youden_test_per_draw" and rows is not None:
        chosen = chosen & rows
    table = predictions.loc[chosen]
    return np.array([youden_threshold(table[f"y_{f}"].to_numpy(), table[f"p_{f}"].to_numpy()) for f in findings], np.float64)
