"""AUROC within strata of how images were taken, such as view and detector.

Ill patients are imaged lying down, at another device. A model that has learnt this ranks images of different
strata rightly without knowing the disease. Within one stratum it cannot: the pooled figure is the share of
pairs of a positive and a negative image *of the same stratum* that are ranked rightly, over all strata.
Beside the AUROC over all pairs it says how much of that is the stratum.

Strata with too few images, positives or negatives (as of any group) have no figure of their own, and are left
out of the pooled one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.bootstrap import BLOCK, all_multiplicities, average, clusters
from jaxcxr.eval.counts import counted, sums_of
from jaxcxr.eval.estimates import Estimates, framed, policy_of, too_small
from jaxcxr.eval.groups import Group, make_groups

WITHIN = "auroc_within_strata"
"""Metric of everyone (pooled) and of each stratum."""
_ACQUISITION = re.compile("view|detector|scanner|manufacturer|vendor|device|model|modality|site|hospital")


def strata_spec(predictions: pd.DataFrame, config: EvaluationConfig) -> str:
    """The columns that make the strata, as `evaluation.strata` or their names say; empty for none.

    Args:
        predictions: with the columns that may be asked for.
        config: how models are judged.
    """
    if config.strata is not None:
        return config.strata
    taken = (str(column) for column in predictions.columns)
    named = [
        column for column in taken if not column.startswith(("y_", "p_")) and _ACQUISITION.search(column)
    ]
    return "*".join(column for column in named if predictions[column].nunique() > 1)


def within_strata(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> Estimates | None:
    """The pooled AUROC of each finding and on average within strata of the test images, then every stratum's
    own; None without two strata. Its replicates are those of `estimates.measure`.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings.
        config: its `strata`, bootstrap, and what is too small.

    Raises:
        InputError: the strata name a column that is missing (`groups.make_groups`).
    """
    test = predictions.loc[predictions["split"] == "test"].reset_index(drop=True)
    test.attrs = dict(predictions.attrs)
    spec = strata_spec(test, config)
    strata = [g for g in make_groups(test, (spec,)) if g.rows.any()] if spec else []
    if len(strata) < 2:
        return None
    cluster = clusters(pd.Series(test["patient_id"]), config.resample)
    sampled = all_multiplicities(int(cluster.max()) + 1, config.seed, config.redraws)
    won, pairs = (np.zeros((len(strata), len(findings), 1 + config.redraws)) for _ in range(2))
    notes = np.full((len(strata), len(findings)), "", object)
    lone = np.zeros((len(strata), len(findings)), bool)
    for f, finding in enumerate(findings):
        labels, scores = (test[f"{kind}_{finding}"].to_numpy(np.float64) for kind in "yp")
        for s, stratum in enumerate(strata):
            y = np.where(stratum.rows, labels, np.nan)
            positives, negatives = int((y == 1).sum()), int((y == 0).sum())
            notes[s, f] = too_small(int(stratum.rows.sum()), positives, negatives, config)
            if not notes[s, f]:
                won[s, f], pairs[s, f] = _won_and_pairs(y, scores, cluster, sampled)
                lone[s, f] = min(np.unique(cluster[y == label]).size for label in (0, 1)) == 1
    with np.errstate(invalid="ignore", divide="ignore"):
        own, pooled = won / pairs, won.sum(axis=0) / pairs.sum(axis=0)
    judged = notes == ""
    everyone = Group("all", f"within {spec.replace('*', ', ')}", "", np.ones(len(test), bool))
    alone = [
        bool(judged[:, f].sum() == 1 and (lone[:, f] & judged[:, f]).any()) for f in range(len(findings))
    ]
    left_out = [_left_out(judged[:, f]) for f in range(len(findings))]
    rows = _rows(everyone, test, findings, pooled, left_out, alone)
    for s, stratum in enumerate(strata):
        rows += _rows(stratum, test, findings, own[s], notes[s].tolist(), lone[s].tolist())
    keys, draws = zip(*rows, strict=True)
    return Estimates(framed(keys), np.stack(draws), policy_of(predictions, config))


def _left_out(judged: Bool[np.ndarray, " strata"]) -> str:
    """Note on the strata that a pooled figure is without."""
    if not judged.any():
        return "not defined: every stratum is too small"
    if judged.all():
        return ""
    return f"{int((~judged).sum())} of {len(judged)} strata are too small and left out"


def _won_and_pairs(y: Any, scores: Any, cluster: Any, sampled: Any) -> tuple[Any, Any]:
    """Pairs of a positive and a negative image that are ranked rightly (a tie counts half), and all pairs, in
    every draw.
    """
    sums = sums_of(y, scores, cluster, None)
    won, pairs = [], []
    for first in range(0, sampled.shape[1], BLOCK):
        double = sampled[:, first : first + BLOCK].astype(np.float64, order="C")
        found = counted(sums, double.astype(sums.counts.dtype), double)
        assert found is not None  # both classes are there
        won.append(found.won_twice / 2)
        pairs.append(found.positives * found.negatives)
    return np.concatenate(won), np.concatenate(pairs)


def _rows(
    group: Group,
    test: pd.DataFrame,
    findings: Sequence[str],
    draws: Float[np.ndarray, "findings draws"],
    notes: Sequence[str],
    lone: Sequence[bool],
) -> list[tuple[dict[str, Any], Float[np.ndarray, " draws"]]]:
    base: Mapping[str, Any] = {
        "group": group.name,
        "label": group.label,
        "attribute": "",
        "reference": "",
        "clusters": 0,
    }
    rows = []
    for f, finding in enumerate(findings):
        y = test.loc[group.rows, f"y_{finding}"]
        counts = {"n": int(y.notna().sum()), "positives": int((y == 1).sum()), "note": notes[f]}
        rows.append((dict(base) | counts | {"finding": finding, "metric": WITHIN, "lone": lone[f]}, draws[f]))
    defined = int((~np.isnan(draws[:, 0])).sum())
    over = {len(findings): "", 0: notes[0]}.get(defined, f"over {defined} of {len(findings)} findings")
    counts = {"n": int(group.rows.sum()), "positives": None, "note": over}
    rows.append(
        (dict(base) | counts | {"finding": "average", "metric": WITHIN, "lone": all(lone)}, average(draws))
    )
    return rows
