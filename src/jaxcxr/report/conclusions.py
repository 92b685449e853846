"""Sentences on one model that follow from its figures and say no more than they do.

A difference counts as shown if its 95 % interval leaves out zero; otherwise it is said to be not
distinguishable from zero, which is not the same as being zero, and the interval is given. Where one of many
groups or findings is picked out, its p-value is corrected for their number (Holm). Numbers are rounded to
three decimals, and the sentences follow from the unrounded ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.report.evaluation_facts import estimate, worst_off
from jaxcxr.report.verdicts import (
    against_guessing,
    against_start,
    calls_sentences,
    findings_against_guessing,
)
from jaxcxr.report.wording import between, counted, leaves_out_zero, listed, number, p_text, signed

LEVEL = 0.05
"""Of corrected p-values; the intervals are 95 % ones."""
OTHERS: Mapping[str, str] = {"auroc": "auroc_vs_rest", "accuracy": "statistical_parity_difference"}
"""Metric -> its difference of a group to all others."""
NAMES: Mapping[str, str] = {"auroc": "AUROC", "accuracy": "accuracy"}
TOO_FEW = "The bootstrap replicates are too few to tell"


def too_few_replicates(rows: pd.DataFrame) -> bool:
    """True if the replicates cannot show any p-value below `LEVEL` once it is corrected for the number of
    rows.
    """
    return len(rows) * 2 / (float(np.min(rows["redraws"])) + 1) >= LEVEL


def auroc_sentence(evaluation: pd.DataFrame) -> str:
    """How well the model does on average, and over how many findings that is."""
    row = estimate(evaluation, "auroc")
    if row is None or np.isnan(row["value"]):
        return "The average AUROC is not defined: no finding has both positive and negative test images."
    findings = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == "auroc"), "finding"]
    count = int((findings != "average").sum())
    over = str(row["note"]) if str(row["note"]).startswith("over ") else f"over {counted(count, 'finding')}"
    verdict = against_guessing(row)
    verdict = f": {verdict} (0.5), as far as these images show" if verdict else ""
    return (
        f"The average AUROC {over} is {number(row['value'])} (95 % interval "
        f"{between(row['ci_low'], row['ci_high'])}){verdict}. AUROC is the share of pairs of images, one "
        "with the finding and one without, that the model ranks rightly."
    )


def price_sentence(comparison: pd.DataFrame | None, epsilon: float | None = None) -> str:
    """What privacy costs in average AUROC.

    Args:
        comparison: rows of `eval.compare.compare`, the non-private model minus the private one; None if there
            is no such model.
        epsilon: budget to name, if several are spoken of.
    """
    if comparison is None:
        return (
            "No non-private model of the same test images is at hand: what privacy costs here is not known."
        )
    row = estimate(comparison, "auroc")
    at = "" if epsilon is None else f"At ε = {epsilon:g}: "
    if row is None or np.isnan(row["difference"]):
        return f"{at}{'t' if at else 'T'}he difference to the non-private model is not defined."
    low, high = row["ci_low"], row["ci_high"]
    first = f"{at}{'t' if at else 'T'}he non-private model's average AUROC is {number(row['value_a'])}"
    if not leaves_out_zero(low, high):
        return (
            f"{first}; the difference, {signed(row['difference'])} ({between(low, high)}), is not "
            "distinguishable from zero: these images do not show that privacy costs anything, and are "
            f"compatible with a loss of up to {number(max(high, 0))}."
        )
    if low > 0:
        return (
            f"{first}: privacy costs {number(row['difference'])} of it (95 % interval {between(low, high)})."
        )
    return (
        f"{first}: the private model is better by {number(-row['difference'])} (95 % interval "
        f"{between(-high, -low)}), so that "
        "something else than privacy differs between the two."
    )


def findings_sentence(comparison: pd.DataFrame | None) -> str:
    """For which findings the loss of AUROC is shown after correction for their number; empty without a
    comparison.
    """
    if comparison is None:
        return ""
    rows = comparison.loc[(comparison["group"] == "all") & (comparison["metric"] == "auroc")]
    rows = rows.loc[(rows["finding"] != "average") & rows["difference"].notna()]
    if rows.empty:
        return ""
    lost = rows.loc[(rows["p_holm"] < LEVEL) & (rows["difference"] > 0), "finding"]
    won = rows.loc[(rows["p_holm"] < LEVEL) & (rows["difference"] < 0), "finding"]
    many = f"after correction for {counted(len(rows), 'finding')}"
    if too_few_replicates(rows):
        return f"{TOO_FEW}, {many}, for which of them there is a difference to the non-private model."
    if lost.empty and won.empty:
        return (
            "Finding by finding, no difference in AUROC to the non-private model is distinguishable from "
            f"zero {many}."
        )
    parts = [f"a loss of AUROC is shown for {listed(lost)}"] if len(lost) else []
    parts += [f"a gain is shown for {listed(won)}"] if len(won) else []
    rest = len(rows) - len(lost) - len(won)
    parts += [f"for the other {rest} the difference is not distinguishable from zero"] if rest else []
    return f"Finding by finding, {many}, {'; '.join(parts)}."


def worst_off_sentence(evaluation: pd.DataFrame, metric: str) -> str:
    """Which group is furthest below all others, by how much, and whether that is shown; empty without
    groups.
    """
    worst = worst_off(evaluation, metric)
    if worst is None:
        return ""
    name, value = NAMES[metric], float(worst["difference"])
    low, high = float(worst["ci_low"]), float(worst["ci_high"])
    if value >= 0:
        return f"No group is below all others in average {name}."
    over = f", {worst['note']}" if worst["note"] else ""
    first = f"Lowest in average {name} is the group {worst['label']} (n = {worst['n']:,}{over})"
    first += f": {number(-value)} below all others"
    if not leaves_out_zero(low, high):
        return (
            f"{first} (interval of the difference {between(low, high)}), which is not distinguishable from "
            "zero."
        )
    corrected, smallest = float(worst["p_holm"]), float(worst["p_least"])
    first = f"{first} (95 % interval {between(-high, -low)})"
    many = f"{p_text(corrected, smallest)} after correction for {worst['groups']} groups"
    if corrected < LEVEL:
        return f"{first}; {many}. It is the worst of many, which makes it look worse than it is."
    if smallest >= LEVEL:
        return f"{first}; {many}: the bootstrap replicates are too few to tell whether it is chance."
    return f"{first}; but {many}: among so many groups such a difference may be chance."


def widened_sentence(comparison: pd.DataFrame | None, evaluation: pd.DataFrame, metric: str) -> str:
    """Whether the worst-off group is further behind than without privacy; empty if it cannot be said."""
    worst = worst_off(evaluation, metric)
    if comparison is None or worst is None or float(worst["difference"]) >= 0:
        return ""
    row = estimate(comparison, OTHERS[metric], group=str(worst["group"]))
    if row is None or np.isnan(row["difference"]):
        return ""
    was = (
        f"Without privacy the group {worst['label']} stands at {signed(row['value_a'])} in {NAMES[metric]} "
        "against all others"
    )
    low, high = row["ci_low"], row["ci_high"]
    if not leaves_out_zero(low, high):
        return (
            f"{was}; the change, {signed(-row['difference'])} ({between(-high, -low)}), is not "
            "distinguishable from zero."
        )
    how = "further behind" if row["difference"] > 0 else "less far behind"
    change = f"{number(abs(row['difference']))} ({between(*sorted((abs(low), abs(high))))})"
    return f"{was}: with privacy it is {how} by {change}."


def run_conclusions(
    evaluation: pd.DataFrame,
    comparison: pd.DataFrame | None,
    *,
    private: bool,
    start: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """The sentences about one model.

    Args:
        evaluation: table of `evaluate.evaluate`.
        comparison: the non-private model minus this one, if there is one.
        private: whether this model was trained with privacy, so that its price may be asked for.
        start: row of `eval.compare.compare` for the average AUROC of the weights that training started from
            minus this model, if they were evaluated.
    """
    price = [price_sentence(comparison), findings_sentence(comparison)] if private else []
    groups = []
    for metric in NAMES:
        groups.append(worst_off_sentence(evaluation, metric))
        groups.append(widened_sentence(comparison, evaluation, metric) if private else "")
    sentences = [
        auroc_sentence(evaluation),
        against_start(start),
        findings_against_guessing(evaluation),
        *calls_sentences(evaluation),
        *price,
        *groups,
    ]
    return tuple(sentence for sentence in sentences if sentence)
