"""Sentences for people that follow from the figures and say no more than they do.

A difference counts as shown if its 95 % interval leaves out zero; otherwise it is said to be not
distinguishable from zero, which is not the same as being zero, and the interval is given. Where one of many
groups or findings is picked out, its p-value is corrected for their number (Holm). Numbers are rounded to
three decimals, and the sentences follow from the unrounded ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import holm
from jaxcxr.report.paper.supplementary_tables import title
from jaxcxr.report.screen import suppressed, worst_off

LEVEL = 0.05
"""Of corrected p-values; the intervals are 95 % ones."""

OTHERS: Mapping[str, str] = {"auroc": "auroc_vs_rest", "accuracy": "statistical_parity_difference"}
NAMES: Mapping[str, str] = {"auroc": "AUROC", "accuracy": "accuracy"}


def number(value: float, digits: int = 3) -> str:
    """A number with a proper minus sign, and never a minus zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """The same with its sign."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


def between(low: float, high: float, digits: int = 3) -> str:
    """An interval in words."""
    return f"{number(low, digits)} to {number(high, digits)}"


def leaves_out_zero(low: float, high: float) -> bool:
    """True if an interval is known and on one side of zero; one that touches it is not."""
    return bool(low > 0 or high < 0)


def p_text(p: float, smallest: float = 0.0) -> str:
    """A p-value; `smallest` is the least one that the redraws can show, at which it is an upper bound only."""
    if p <= smallest * (1 + 1e-9):
        return f"p ≤ {max(smallest, 0.001):.3f}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def too_few_redraws(rows: pd.DataFrame) -> bool:
    """True if the redraws cannot show any p-value below `LEVEL` once it is corrected for the number of rows."""
    return len(rows) * 2 / (float(np.min(rows["redraws"])) + 1) >= LEVEL


def estimate(
    rows: pd.DataFrame, metric: str, finding: str = "average", group: str = "all"
) -> dict[str, Any] | None:
    """The row of one estimate of a group itself, or None if it is not there."""
    chosen = rows.loc[(rows["group"] == group) & (rows["finding"] == finding) & (rows["metric"] == metric)]
    return None if chosen.empty else {str(key): value for key, value in chosen.iloc[0].items()}


def auroc_sentence(evaluation: pd.DataFrame) -> str:
    """How well the model does on average, and over how many findings that is."""
    row = estimate(evaluation, "auroc")
    if row is None or np.isnan(row["value"]):
        return "The average AUROC is not defined: no finding has both positive and negative test films."
    findings = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == "auroc"), "finding"]
    count = int((findings != "average").sum())
    over = (
        str(row["note"])
        if str(row["note"]).startswith("over ")
        else f"over {count} finding{'s' * (count != 1)}"
    )
    return (
        f"The average AUROC {over} is {number(row['value'])} (95 % interval "
        f"{between(row['ci_low'], row['ci_high'])}): the "
        "share of pairs of films, one with the finding and one without, that the model ranks rightly."
    )


def price_sentence(comparison: pd.DataFrame | None, epsilon: float | None = None) -> str:
    """What privacy costs in average AUROC.

    Args:
        comparison: rows of `eval.compare.compare`, the non-private model minus the private one; None if there
            is no such model.
        epsilon: budget to name, if several are spoken of.
    """
    if comparison is None:
        return "No non-private model of the same test films is at hand, so that what privacy costs here is not known."
    row = estimate(comparison, "auroc")
    at = "" if epsilon is None else f"At ε = {epsilon:g}: "
    if row is None or np.isnan(row["difference"]):
        return f"{at}{'t' if at else 'T'}he difference to the non-private model is not defined."
    low, high = row["ci_low"], row["ci_high"]
    first = f"{at}{'t' if at else 'T'}he non-private model's average AUROC is {number(row['value_a'])}"
    if not leaves_out_zero(low, high):
        return (
            f"{first}; the difference, {signed(row['difference'])} ({between(low, high)}), is not "
            "distinguishable from zero: "
            "these films do not show that privacy costs anything, and are compatible with a loss of up to "
            f"{number(max(high, 0))}."
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
    many = f"after correction for {len(rows)} findings"
    if too_few_redraws(rows):
        return f"The redraws are too few to tell, {many}, for which of them there is a difference to the non-private model."
    if lost.empty and won.empty:
        return f"Finding by finding, no difference in AUROC to the non-private model is distinguishable from zero {many}."
    parts = [f"a loss of AUROC is shown for {_listed(lost)}"] if len(lost) else []
    parts += [f"a gain is shown for {_listed(won)}"] if len(won) else []
    rest = len(rows) - len(lost) - len(won)
    parts += [f"for the other {rest} the difference is not distinguishable from zero"] if rest else []
    return f"Finding by finding, {many}, {'; '.join(parts)}."


def worst_off_sentence(evaluation: pd.DataFrame, metric: str) -> str:
    """Which group is furthest below all others, by how much, and whether that is shown; empty without groups."""
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
        return f"{first} (interval of the difference {between(low, high)}), which is not distinguishable from zero."
    corrected, smallest = float(worst["p_holm"]), float(worst["p_least"])
    first = f"{first} (95 % interval {between(-high, -low)})"
    many = f"{p_text(corrected, smallest)} after correction for {worst['groups']} groups"
    if corrected < LEVEL:
        return f"{first}; {many}. It is the worst of many, which makes it look worse than it is."
    if smallest >= LEVEL:
        return f"{first}; {many}: the redraws are too few to tell whether it is chance."
    return f"{first}; but {many}: among so many groups such a difference may be chance."


def widened_sentence(comparison: pd.DataFrame | None, evaluation: pd.DataFrame, metric: str) -> str:
    """Whether the worst-off group is further behind than without privacy; empty if it cannot be said."""
    worst = worst_off(evaluation, metric)
    if comparison is None or worst is None or float(worst["difference"]) >= 0:
        return ""
    row = estimate(comparison, OTHERS[metric], group=str(worst["group"]))
    if row is None or np.isnan(row["difference"]):
        return ""
    was = f"Without privacy the group {worst['label']} stands at {signed(row['value_a'])} in {NAMES[metric]} against all others"
    low, high = row["ci_low"], row["ci_high"]
    if not leaves_out_zero(low, high):
        return f"{was}; the change, {signed(-row['difference'])} ({between(-high, -low)}), is not distinguishable from zero."
    how = "further behind" if row["difference"] > 0 else "less far behind"
    return f"{was}: with privacy it is {how} by {number(abs(row['difference']))} ({between(*sorted((abs(low), abs(high))))})."


def small_sentence(evaluation: pd.DataFrame) -> str:
    """Which groups are too small to be judged; empty if none is."""
    small = suppressed(evaluation)
    return (
        f"Too small to be judged, so that nothing is known about them here: {'; '.join(small)}."
        if small
        else ""
    )


def run_conclusions(
    evaluation: pd.DataFrame, comparison: pd.DataFrame | None, *, private: bool
) -> tuple[str, ...]:
    """The sentences about one model.

    Args:
        evaluation: table of `evaluate.evaluate`.
        comparison: the non-private model minus this one, if there is one.
        private: whether this model was trained with privacy, so that its price may be asked for.
    """
    asked = [price_sentence(comparison), findings_sentence(comparison)] if private else []
    groups = [worst_off_sentence(evaluation, "auroc"), worst_off_sentence(evaluation, "accuracy")]
    changed = (
        [widened_sentence(comparison, evaluation, metric) for metric in ("auroc", "accuracy")]
        if private
        else []
    )
    order = [groups[0], *changed[:1], groups[1], *changed[1:]]
    return tuple(s for s in (auroc_sentence(evaluation), *asked, *order, small_sentence(evaluation)) if s)


def sweep_conclusions(
    evaluations: pd.DataFrame, comparisons: pd.DataFrame | None, correlations: pd.DataFrame | None
) -> tuple[str, ...]:
    """The sentences about a sweep.

    Args:
        evaluations: table of `tables.stack`.
        comparisons: rows of `report.sweep_report.compare_with_non_private`, or None.
        correlations: rows of `eval.correlations.privacy_correlations`, or None.
    """
    budgets = sorted((float(e) for e in set(evaluations["epsilon"]) if math.isfinite(e)), reverse=True)
    sentences = [
        _prices(comparisons, budgets),
        _worst(evaluations, budgets, "auroc"),
        _worst(evaluations, budgets, "accuracy"),
    ]
    sentences += [_widened(comparisons, budgets), _trend(correlations)]
    first = evaluations.loc[evaluations["epsilon"] == evaluations["epsilon"].max()]
    return tuple(s for s in (*sentences, small_sentence(first)) if s)


def comparison_conclusions(comparison: pd.DataFrame) -> tuple[str, ...]:
    """The sentences about any two models A and B (rows of `eval.compare.compare`)."""
    row = estimate(comparison, "auroc")
    if row is None or np.isnan(row["difference"]):
        return ("The difference in average AUROC is not defined.",)
    low, high = row["ci_low"], row["ci_high"]
    text = f"A has an average AUROC of {number(row['value_a'])}, B of {number(row['value_b'])}; A minus B is "
    text += f"{signed(row['difference'])} (95 % interval {between(low, high)})"
    verdict = (
        f": {'A' if low > 0 else 'B'} is better"
        if leaves_out_zero(low, high)
        else ", not distinguishable from zero"
    )
    sentences = [f"{text}{verdict}."]
    rows = comparison.loc[(comparison["group"] == "all") & (comparison["metric"] == "auroc")]
    rows = rows.loc[(rows["finding"] != "average") & rows["difference"].notna()]
    shown = rows.loc[rows["p_holm"] < LEVEL]
    many = f"after correction for {len(rows)} finding{'s' * (len(rows) != 1)}"
    if len(rows) and too_few_redraws(rows):
        sentences.append(f"The redraws are too few to tell, {many}, for which of them there is a difference.")
    elif shown.empty:
        sentences.append(f"Finding by finding, no difference in AUROC is distinguishable from zero {many}.")
    else:
        better = [
            f"{title(str(r['finding']))} ({'A' if r['difference'] > 0 else 'B'} is better)"
            for r in shown.to_dict("records")
        ]
        sentences.append(
            f"Finding by finding, {many}, a difference in AUROC is shown for {', '.join(better)}."
        )
    distances = _distances(comparison)
    if len(distances):
        changed = distances.loc[distances["corrected"] < LEVEL]
        count = f"{len(distances)} distances of a group to all others (AUROC and accuracy)"
        names = ", ".join(dict.fromkeys(changed["label"].astype(str)))
        text = f"Of {count}, {len(changed)} differ between A and B after correction for the number of groups"
        if distances["too_few"].to_numpy().any():
            text, names = f"The redraws are too few to tell which of {count} differ between A and B", ""
        sentences.append(f"{text}: {names}." if names else f"{text}.")
    return tuple(sentences)


def _distances(comparison: pd.DataFrame) -> pd.DataFrame:
    """Differences between two models in a group's distance to all others, with `corrected` p-values.

    The family of a correction is the groups of one metric at one budget: the redraws could not show anything
    in a larger one.
    """
    rows = comparison.loc[
        (comparison["finding"] == "average") & comparison["metric"].isin(list(OTHERS.values()))
    ]
    rows = rows.loc[
        rows["difference"].notna() & ~rows["attribute"].astype(str).str.contains("*", regex=False)
    ]
    rows = rows.reset_index(drop=True).assign(corrected=np.nan, too_few=False)
    families = ["metric", "epsilon"] if "epsilon" in rows else ["metric"]
    for _, family in rows.groupby(families, sort=False):
        rows.loc[family.index, "corrected"] = holm(np.asarray(family["p_value"], np.float64))
        rows.loc[family.index, "too_few"] = too_few_redraws(family)
    return rows


def _prices(comparisons: pd.DataFrame | None, budgets: Sequence[float]) -> str:
    if comparisons is None:
        return price_sentence(None)
    shown, open_, gained = [], [], []
    for epsilon in budgets:
        row = estimate(comparisons.loc[comparisons["epsilon"] == epsilon], "auroc")
        if row is None or np.isnan(row["difference"]):
            continue
        said = f"ε = {epsilon:g}: {signed(row['difference'])} ({between(row['ci_low'], row['ci_high'])})"
        kind = (
            open_
            if not leaves_out_zero(row["ci_low"], row["ci_high"])
            else shown
            if row["difference"] > 0
            else gained
        )
        kind.append(said)
    parts = []
    if shown:
        parts.append(
            "Privacy costs average AUROC, non-private minus private with its 95 % interval, at "
            f"{'; '.join(shown)}."
        )
    if open_:
        parts.append(f"Not distinguishable from zero is the difference at {'; '.join(open_)}.")
    if gained:
        parts.append(
            "The private model is better, so that something else than privacy differs, at "
            f"{'; '.join(gained)}."
        )
    return " ".join(parts)


def _worst(evaluations: pd.DataFrame, budgets: Sequence[float], metric: str) -> str:
    """Which group is last in the models, and in how many of them that is shown."""
    models = [*budgets, *([math.inf] if np.isinf(evaluations["epsilon"]).any() else [])]
    found: dict[str, list[tuple[float, bool]]] = {}
    for epsilon in models:
        worst = worst_off(evaluations.loc[evaluations["epsilon"] == epsilon], metric)
        if worst is not None and float(worst["difference"]) < 0:
            shown = bool(worst["clear"]) and float(worst["p_holm"]) < LEVEL
            found.setdefault(str(worst["label"]), []).append((epsilon, shown))
    if not found:
        return ""
    parts = []
    for label, where in sorted(found.items(), key=lambda item: -len(item[1])):
        shown = sum(is_shown for _, is_shown in where)
        names = ", ".join("without privacy" if math.isinf(e) else f"ε = {e:g}" for e, _ in where)
        verdict = (
            "shown in each of them"
            if shown == len(where)
            else f"shown in {shown}"
            if shown
            else "in none of them shown"
        )
        if len(where) == 1:
            verdict = "shown" if shown else "not shown"
        names = "" if len(where) == len(models) else f"{names}; "
        parts.append(
            f"{label} in {len(where)} of {len(models)} models ({names}{verdict} after correction for all "
            "groups)"
        )
    return f"Furthest below all others in average {NAMES[metric]}: {'; '.join(parts)}."


def _widened(comparisons: pd.DataFrame | None, budgets: Sequence[float]) -> str:
    """In how many comparisons of a group's distance with and without privacy a change for the worse is shown."""
    if comparisons is None:
        return ""
    rows = _distances(comparisons)
    if rows.empty:
        return ""
    worse = rows.loc[(rows["corrected"] < LEVEL) & (rows["difference"] > 0)]
    over = f"AUROC and accuracy, {len(budgets)} budget{'s' * (len(budgets) != 1)}"
    count = f"{len(rows)} comparisons of a group's distance to all others ({over})"
    if rows["too_few"].to_numpy().any():
        return f"The redraws are too few to tell which of {count} are more than chance."
    after = "after correction for the number of groups at each budget"
    if worse.empty:
        return f"In none of {count} is it shown, {after}, that privacy puts the group further behind."
    named = dict.fromkeys(f"{row['label']} at ε = {row['epsilon']:g}" for row in worse.to_dict("records"))
    return f"In {len(worse)} of {count} it is shown, {after}, that privacy puts the group further behind: {', '.join(named)}."


def _trend(correlations: pd.DataFrame | None) -> str:
    if correlations is None:
        return ""
    rows = correlations.loc[correlations["analysis"] == "log epsilon and parity, all groups"]
    if rows.empty or np.isnan(rows.iloc[0]["r"]):
        return ""
    row = rows.to_dict("records")[0]
    said = f"Parity against log ε over groups and budgets: Pearson's r = {number(row['r'], 2)}"
    if np.isnan(row["ci_low"]):
        return f"{said} over {row['n']} points, too few for an interval."
    interval = f"({between(row['ci_low'], row['ci_high'], 2)}, n = {row['n']})"
    if leaves_out_zero(row["ci_low"], row["ci_high"]):
        return f"{said} {interval}."
    return f"{said} {interval}, not distinguishable from zero: no trend with the budget is shown."


def _listed(findings: pd.Series) -> str:
    names = [title(str(f)) for f in findings]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
