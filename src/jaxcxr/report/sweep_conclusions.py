"""Sentences on several models that follow from their figures: a sweep over budgets, or any two models.

What counts as shown is said in `report.conclusions`.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import holm
from jaxcxr.report.conclusions import LEVEL, NAMES, OTHERS, TOO_FEW, price_sentence, too_few_replicates
from jaxcxr.report.evaluation_facts import crossed, estimate, worst_off
from jaxcxr.report.gains import bought_and_paid, gains
from jaxcxr.report.paper.supplementary_tables import title
from jaxcxr.report.verdicts import NO_BETTER, WORSE, against_guessing
from jaxcxr.report.wording import between, counted, leaves_out_zero, number, signed


def sweep_conclusions(
    evaluations: pd.DataFrame,
    comparisons: pd.DataFrame | None,
    correlations: pd.DataFrame | None,
    starts: Mapping[float, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[str, ...]:
    """The sentences about a sweep.

    Args:
        evaluations: table of `supplementary_tables.stack`.
        comparisons: rows of `report.sweep_report.compare_with_non_private`, or None.
        correlations: rows of `eval.correlations.privacy_correlations`, or None.
        starts: by budget, rows of `eval.compare.compare` for the average AUROC of the weights that training
            started from minus the model.
    """
    budgets = sorted((float(e) for e in set(evaluations["epsilon"]) if math.isfinite(e)), reverse=True)
    sentences = [
        *bought_and_paid(gains(starts), comparisons),
        _guessing(evaluations),
        _starts(starts),
        _prices(comparisons, budgets),
        _worst(evaluations, budgets, "auroc"),
        _worst(evaluations, budgets, "accuracy"),
    ]
    sentences += [_widened(comparisons, budgets), _trend(correlations)]
    return tuple(sentence for sentence in sentences if sentence)


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
    many = f"after correction for {counted(len(rows), 'finding')}"
    if len(rows) and too_few_replicates(rows):
        sentences.append(f"{TOO_FEW}, {many}, for which of them there is a difference.")
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
            text, names = f"{TOO_FEW} which of {count} differ between A and B", ""
        sentences.append(f"{text}: {names}." if names else f"{text}.")
    return tuple(sentences)


def _distances(comparison: pd.DataFrame) -> pd.DataFrame:
    """Differences between two models in a group's distance to all others, with `corrected` p-values.

    The family of a correction is the groups of one metric at one budget: the bootstrap replicates could not
    show anything in a larger one.
    """
    rows = comparison.loc[
        (comparison["finding"] == "average") & comparison["metric"].isin(list(OTHERS.values()))
    ]
    rows = rows.loc[rows["difference"].notna() & ~crossed(rows)]
    rows = rows.reset_index(drop=True).assign(corrected=np.nan, too_few=False)
    families = ["metric", "epsilon"] if "epsilon" in rows else ["metric"]
    for _, family in rows.groupby(families, sort=False):
        rows.loc[family.index, "corrected"] = holm(np.asarray(family["p_value"], np.float64))
        rows.loc[family.index, "too_few"] = too_few_replicates(family)
    return rows


def _guessing(evaluations: pd.DataFrame) -> str:
    """Which models are no better than guessing in average AUROC; empty if each of them is."""
    found: dict[str, list[str]] = {NO_BETTER: [], WORSE: []}
    for epsilon in sorted({float(e) for e in evaluations["epsilon"]}, reverse=True):
        verdict = against_guessing(estimate(evaluations.loc[evaluations["epsilon"] == epsilon], "auroc"))
        if verdict:
            found[verdict].append(_model(epsilon))
    parts = [f"{verdict}: {', '.join(models)}" for verdict, models in found.items() if models]
    return f"In average AUROC, as far as these images show, {'; '.join(parts)}." if parts else ""


def _starts(starts: Mapping[float, Mapping[str, Any]]) -> str:
    """What each model gained over the weights it started from, and which lost or show no gain."""
    better, worse, open_ = [], [], []
    for epsilon, row in sorted(starts.items(), reverse=True):
        if np.isnan(row["difference"]):
            continue
        change = f"{signed(-row['difference'])}, {between(-row['ci_high'], -row['ci_low'])}"
        kind = better if row["ci_high"] < 0 else worse if row["ci_low"] > 0 else open_
        kind.append(f"{_model(epsilon)} ({change})")
    parts = [f"better: {'; '.join(better)}"] if better else []
    parts += [f"worse: {'; '.join(worse)}"] if worse else []
    parts += [f"not shown to be better: {'; '.join(open_)}"] if open_ else []
    if not parts:
        return ""
    return f"In average AUROC, against the weights that training started from, {', and '.join(parts)}."


def _model(epsilon: float) -> str:
    return "without privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}"


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
        names = ", ".join(_model(e) for e, _ in where)
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
    """In how many comparisons of a group's distance with and without privacy a change for the worse is shown,
    and whether the group then is behind the others or only less far ahead of them.
    """
    if comparisons is None:
        return ""
    rows = _distances(comparisons)
    if rows.empty:
        return ""
    worse = rows.loc[(rows["corrected"] < LEVEL) & (rows["difference"] > 0)]
    over = f"AUROC and accuracy, {counted(len(budgets), 'budget')}"
    count = f"{len(rows)} comparisons of a group's distance to all others ({over})"
    if rows["too_few"].to_numpy().any():
        return f"{TOO_FEW} which of {count} are more than chance."
    after = "after correction for the number of groups at each budget"
    if worse.empty:
        return f"In none of {count} is it shown, {after}, that a group fares worse with privacy."
    behind = worse["value_b"] < 0
    said = [f"In {len(worse)} of {count} it is shown, {after}, that a group fares worse with privacy."]
    for which, now in (
        (worse.loc[behind], "Then behind all others"),
        (worse.loc[~behind], "Then less far ahead of them"),
    ):
        if len(which):
            said.append(f"{now}: {'; '.join(_places(which))}.")
    return " ".join(said)


def _places(rows: pd.DataFrame) -> list[str]:
    """'sex F at ε = 2, 1': groups with the budgets at which they are named."""
    budgets: dict[str, dict[str, None]] = {}
    for row in rows.to_dict("records"):
        budgets.setdefault(str(row["label"]), {})[f"{row['epsilon']:g}"] = None
    return [f"{label} at ε = {', '.join(at)}" for label, at in budgets.items()]


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
