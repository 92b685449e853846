"""What an evaluation says: how it was made, one estimate, the worst-off group, the groups that are too
small.
"""

import re
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import holm

POLICY_TEXT = {
    "youden_validation": "thresholds: Youden's, chosen on the validation images",
    "youden_test": "thresholds: Youden's, chosen on the test images themselves, which flatters",
    "youden_test_per_draw": "thresholds: Youden's, chosen anew on the test images of every bootstrap "
    "replicate and group (the paper's code)",
    "fixed": "thresholds: fixed beforehand",
}
RESAMPLE_TEXT = {
    "patient": "intervals: 95 %, patients resampled",
    "image": "intervals: 95 %, images resampled (the paper)",
}
SUPPRESSED = "suppressed"
"""Beginning of the note of an estimate that is not given because its group is too small."""


def how(evaluation: pd.DataFrame) -> str:
    """Which thresholds and which bootstrap an evaluation or a comparison rests on."""
    first = evaluation.iloc[0]
    policy = POLICY_TEXT.get(first["threshold_policy"], str(first["threshold_policy"]))
    return f"{policy}; {RESAMPLE_TEXT.get(first['resample'], str(first['resample']))}"


def estimate(
    rows: pd.DataFrame, metric: str, finding: str = "average", group: str = "all"
) -> dict[str, Any] | None:
    """The row of one estimate, or None if it is not there."""
    chosen = rows.loc[(rows["group"] == group) & (rows["finding"] == finding) & (rows["metric"] == metric)]
    return None if chosen.empty else {str(key): value for key, value in chosen.iloc[0].items()}


def worst_off(evaluation: pd.DataFrame, metric: str = "accuracy") -> dict[str, Any] | None:
    """The group, of all single attributes, that is furthest below all others in the average of a metric.

    Args:
        evaluation: table of `evaluate.evaluate`.
        metric: `accuracy` (the paper's parity) or `auroc`.

    Returns:
        `group`, `label`, `difference`, `ci_low`, `ci_high`, `p_value`, `n` and `clear` (the interval leaves
        out zero); `groups`, how many there are to be the worst of, `p_holm`, corrected for that number, and
        `p_least`, the smallest `p_holm` that the bootstrap replicates can show; `note`, over how many
        findings the average is, if not over all. None without groups. The worst of many looks worse than it
        is.
    """
    name = "statistical_parity_difference" if metric == "accuracy" else f"{metric}_vs_rest"
    rows = evaluation.loc[(evaluation["metric"] == name) & (evaluation["finding"] == "average")]
    rows = rows.loc[rows["value"].notna() & ~crossed(rows)]
    if rows.empty:
        return None
    rows = rows.assign(p_holm=holm(np.asarray(rows["p_value"], np.float64)), groups=len(rows))
    worst = rows.loc[rows["value"].idxmin()]
    columns = ["group", "label", "value", "ci_low", "ci_high", "p_value", "p_holm", "n", "groups", "note"]
    found = {"difference" if column == "value" else column: worst[column] for column in columns}
    least = min(1.0, len(rows) * 2 / (worst["redraws"] + 1))
    return found | {"clear": bool(worst["ci_high"] < 0), "p_least": least}


def is_difference(metric: str) -> bool:
    """True for a metric that is a difference, so that it is written with its sign."""
    return metric.endswith(("_difference", "_vs_rest", "_vs_best")) or metric == "calibration_in_the_large"


def crossed(rows: pd.DataFrame) -> pd.Series:
    """True for the rows of groups by several attributes at once."""
    return rows["attribute"].astype(str).str.contains("*", regex=False)


def suppressed(rows: pd.DataFrame) -> tuple[str, ...]:
    """Labels of the groups in an evaluation or a comparison that are too small to be judged."""
    average = rows.loc[(rows["finding"] == "average") & (rows["metric"] == "auroc")]
    return tuple(average.loc[average["note"].astype(str).str.startswith(SUPPRESSED), "label"].unique())


def suppressed_sentence(rows: pd.DataFrame) -> str:
    """How many groups are too small to be judged, and by which rule; empty if none is."""
    small = suppressed(rows)
    if not small:
        return ""
    average = rows.loc[(rows["finding"] == "average") & (rows["metric"] == "auroc")]
    groups = average.loc[average["group"] != "all", "label"].nunique()
    notes = average["note"].astype(str)
    rules = notes[notes.str.startswith(SUPPRESSED)].map(lambda note: re.sub(r"^suppressed:?\s*", "", note))
    rule = f" ({'; '.join(dict.fromkeys(rules))})" if any(rules) else ""
    verb = "is" if len(small) == 1 else "are"
    return (
        f"{len(small)} of {groups} groups {verb} too small to be judged{rule}: nothing is known about "
        f"{'it' if len(small) == 1 else 'them'} here."
    )
