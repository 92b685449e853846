"""Evaluations and comparisons as text for the screen, in sentences that follow from the numbers."""

from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import holm
from jaxcxr.report.paper.supplementary_tables import METRIC_NAMES
from jaxcxr.report.paper.supplementary_tables import screen_table as screen_table

POLICY_TEXT = {
    "youden_validation": "thresholds: Youden's, chosen on the validation films",
    "youden_test": "thresholds: Youden's, chosen on the test films themselves, which flatters",
    "youden_test_per_draw": "thresholds: Youden's, chosen anew on the test films of every redraw and group "
    "(the paper's code)",
    "fixed": "thresholds: fixed beforehand",
}
RESAMPLE_TEXT = {
    "patient": "intervals: 95 %, patients redrawn",
    "image": "intervals: 95 %, films redrawn (the paper)",
}


def how(evaluation: pd.DataFrame) -> str:
    """Which thresholds and which redraws an evaluation or a comparison rests on."""
    first = evaluation.iloc[0]
    policy = POLICY_TEXT.get(first["threshold_policy"], str(first["threshold_policy"]))
    return f"{policy}; {RESAMPLE_TEXT.get(first['resample'], str(first['resample']))}"


def worst_off(evaluation: pd.DataFrame, metric: str = "accuracy") -> dict[str, Any] | None:
    """The group, of all single attributes, that is furthest below all others in the average of a metric.

    Args:
        evaluation: table of `evaluate.evaluate`.
        metric: `accuracy` (the paper's parity) or `auroc`.

    Returns:
        `group`, `label`, `difference`, `ci_low`, `ci_high`, `p_value`, `n` and `clear` (the interval leaves
        out zero); `groups`, how many there are to be the worst of, `p_holm`, corrected for that number, and
        `p_least`, the smallest `p_holm` that the redraws can show; `note`, over how many findings the average
        is, if not over all. None without groups. The worst of many looks worse than it is.
    """
    name = "statistical_parity_difference" if metric == "accuracy" else f"{metric}_vs_rest"
    rows = evaluation.loc[(evaluation["metric"] == name) & (evaluation["finding"] == "average")]
    rows = rows.loc[rows["value"].notna() & ~rows["attribute"].astype(str).str.contains("*", regex=False)]
    if rows.empty:
        return None
    rows = rows.assign(p_holm=holm(np.asarray(rows["p_value"], np.float64)), groups=len(rows))
    worst = rows.loc[rows["value"].idxmin()]
    columns = ["group", "label", "value", "ci_low", "ci_high", "p_value", "p_holm", "n", "groups", "note"]
    found = {"difference" if column == "value" else column: worst[column] for column in columns}
    least = min(1.0, len(rows) * 2 / (worst["redraws"] + 1))
    return found | {"clear": bool(worst["ci_high"] < 0), "p_least": least}


def suppressed(evaluation: pd.DataFrame) -> list[str]:
    """Labels of the groups that are too small to be judged, as a whole."""
    rows = evaluation.loc[(evaluation["finding"] == "average") & (evaluation["metric"] == "auroc")]
    return list(rows.loc[rows["note"].astype(str).str.startswith("suppressed"), "label"].unique())


def groups_text(evaluation: pd.DataFrame) -> str:
    """How the evaluation was made, which groups there are and who is worst off."""
    lines = [how(evaluation)]
    for metric, name in (("auroc", "AUROC"), ("accuracy", "accuracy")):
        worst = worst_off(evaluation, metric)
        if worst is not None:
            verdict = "" if worst["clear"] else ": no clear difference"
            if float(worst["difference"]) < 0:
                lines.append(
                    f"lowest average {name} against all others: {worst['label']} (n = {worst['n']}), "
                    f"{worst['difference']:+.3f} [{worst['ci_low']:+.3f}, {worst['ci_high']:+.3f}]{verdict}"
                )
    small = suppressed(evaluation)
    if small:
        lines.append(f"too small to be judged: {'; '.join(small)}")
    return "\n".join(lines)


def comparison_text(comparison: pd.DataFrame) -> str:
    """A comparison for the screen: the average metrics of everyone, then the AUROC finding by finding and
    group by group.
    """
    plain = comparison.loc[comparison["reference"].astype(str) == ""]
    everyone = plain.loc[plain["group"] == "all"]
    parts = [
        _lines(
            everyone.loc[(everyone["finding"] == "average") & everyone["metric"].isin(list(METRIC_NAMES))],
            "metric",
        )
    ]
    auroc = everyone.loc[(everyone["metric"] == "auroc") & (everyone["finding"] != "average")]
    parts.append("AUROC by finding (p after Holm)\n" + _lines(auroc, "finding"))
    groups = plain.loc[
        (plain["metric"] == "auroc") & (plain["finding"] == "average") & (plain["group"] != "all")
    ]
    if not groups.empty:
        parts.append("average AUROC by group\n" + _lines(groups, "label"))
    return "\n\n".join([*parts, how(comparison)])


def _lines(rows: pd.DataFrame, name: str) -> str:
    lines = []
    for row in rows.to_dict("records"):
        line = {name: row[name], "n": row["n"]}
        if np.isnan(row["difference"]):
            line |= {"A": "", "B": "", "A - B": row["note"] or "not defined", "p": ""}
        else:
            p = row["p_value"] if np.isnan(row["p_holm"]) else row["p_holm"]
            interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
            # The redraws cannot show a p-value below this one: what is there is an upper bound.
            bound = "≤ " if row["p_value"] <= 2 / (row["redraws"] + 1) else ""
            line |= {
                "A": f"{row['value_a']:.3f}",
                "B": f"{row['value_b']:.3f}",
                "A - B": interval,
                "p": f"{bound}{p:.3f}",
            }
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False)
