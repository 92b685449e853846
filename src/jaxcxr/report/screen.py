"""Evaluations, comparisons and sweeps as text for the screen, in sentences that follow from the numbers."""

import math

import numpy as np
import pandas as pd

from jaxcxr.eval.evaluate import VALIDATION
from jaxcxr.eval.start import BEFORE, GAIN
from jaxcxr.eval.strata import WITHIN
from jaxcxr.report.evaluation_facts import SUPPRESSED, estimate, how, suppressed_sentence, worst_off
from jaxcxr.report.paper.supplementary_tables import METRIC_NAMES, paper_results, same_findings_as_paper
from jaxcxr.report.paper.supplementary_tables import screen_table as screen_table
from jaxcxr.report.verdicts import against_guessing, calls_sentences, findings_against_guessing


def groups_text(evaluation: pd.DataFrame) -> str:
    """How the evaluation was made, verdicts on the model, and which group is worst off."""
    lines = [how(evaluation)]
    verdict = against_guessing(estimate(evaluation, "auroc"))
    if verdict:
        lines.append(f"average AUROC: {verdict} (0.5), as far as these images show")
    lines += [findings_against_guessing(evaluation), *calls_sentences(evaluation)]
    for metric, name in (("auroc", "AUROC"), ("accuracy", "accuracy")):
        worst = worst_off(evaluation, metric)
        if worst is not None:
            verdict = "" if worst["clear"] else ": no clear difference"
            if float(worst["difference"]) < 0:
                lines.append(
                    f"lowest average {name} against all others: {worst['label']} (n = {worst['n']}), "
                    f"{worst['difference']:+.3f} [{worst['ci_low']:+.3f}, {worst['ci_high']:+.3f}]{verdict}"
                )
    lines += [suppressed_sentence(evaluation), strata_text(evaluation)]
    return "\n".join(line for line in lines if line)


def validation_text(evaluation: pd.DataFrame) -> str:
    """The average AUROC of the validation images in a sentence; empty without them."""
    row = estimate(evaluation, VALIDATION)
    if row is None or np.isnan(row["value"]):
        return ""
    return (
        f"average AUROC on the {row['n']:,} validation images: {row['value']:.3f} [{row['ci_low']:.3f}, "
        f"{row['ci_high']:.3f}]; choose settings by this one, not by that of the test images"
    )


def start_text(evaluation: pd.DataFrame) -> str:
    """What the weights before training have, what training gained over them, and whether it did harm; empty
    where they were not evaluated.
    """
    before, gain = (estimate(evaluation, f"auroc{ending}") for ending in (BEFORE, GAIN))
    if before is None or gain is None or np.isnan(gain["value"]):
        return ""
    on_validation = estimate(evaluation, VALIDATION + BEFORE)
    beside = "" if on_validation is None else f", {on_validation['value']:.3f} on the validation images"
    span = f"{gain['value']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]"
    if gain["ci_high"] < 0:
        verdict = f"WARNING: training did harm, {span}: the weights before it are better, and cost no privacy"
    elif gain["ci_low"] > 0:
        verdict = f"training gained {span}"
    else:
        verdict = f"training is not shown to have gained anything, {span}"
    return f"average AUROC before training: {before['value']:.3f} on the test images{beside}; {verdict}"


def strata_text(evaluation: pd.DataFrame) -> str:
    """The pooled AUROC within strata beside that over all pairs, in a sentence; empty without strata."""
    row, plain = estimate(evaluation, WITHIN), estimate(evaluation, "auroc")
    if row is None or plain is None or np.isnan(row["value"]):
        return ""
    return (
        f"average AUROC {row['label']}: {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}], over "
        f"all pairs {plain['value']:.3f}, which count those of images that were taken differently, too"
    )


def noised_text(table: pd.DataFrame) -> str:
    """An evaluation with noise for the screen: everybody by finding, then each group's average."""
    lines = [f"{'':32} " + " ".join(f"{METRIC_NAMES[metric]:>20}" for metric in METRIC_NAMES)]
    keys = table[["group", "label", "finding"]].drop_duplicates()
    for group, label, finding in keys.itertuples(index=False):
        if group != "all" and finding != "average":
            continue
        own = table.loc[(table["group"] == group) & (table["finding"] == finding)].set_index("metric")
        cells = []
        for metric in METRIC_NAMES:
            row = own.loc[metric] if metric in own.index else None
            given = row is not None and not pd.isna(row["value"])
            cells.append(
                f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
                if row is not None and given
                else "-"
            )
        lines.append(
            f"{finding if group == 'all' else label:32} " + " ".join(f"{cell:>20}" for cell in cells)
        )
    notes = table.loc[table["note"].str.startswith("not defined"), "note"].value_counts()
    lines += [f"{count} figures are {note}" for note, count in notes.items()]
    return "\n".join(lines)


def comparison_text(comparison: pd.DataFrame) -> str:
    """A comparison for the screen: the average metrics of everyone, then the AUROC finding by finding and
    group by group. Groups that are too small are counted.
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
    judged = groups.loc[~groups["note"].astype(str).str.startswith(SUPPRESSED)]
    if not judged.empty:
        parts.append("average AUROC by group\n" + _lines(judged, "label"))
    return "\n\n".join(part for part in [*parts, suppressed_sentence(groups), how(comparison)] if part)


def _lines(rows: pd.DataFrame, name: str) -> str:
    lines = []
    for row in rows.to_dict("records"):
        line = {name: row[name], "n": row["n"]}
        if np.isnan(row["difference"]):
            line |= {"A": "", "B": "", "A - B": row["note"] or "not defined", "p": ""}
        else:
            p = row["p_value"] if np.isnan(row["p_holm"]) else row["p_holm"]
            interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
            # The replicates cannot show a p-value below this one: what is there is an upper bound.
            bound = "≤ " if row["p_value"] <= 2 / (row["redraws"] + 1) else ""
            line |= {
                "A": f"{row['value_a']:.3f}",
                "B": f"{row['value_b']:.3f}",
                "A - B": interval,
                "p": f"{bound}{p:.3f}",
            }
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False)


def sweep_text(summary: pd.DataFrame, untouched: pd.DataFrame | None) -> str:
    """Average AUROC of each budget, beside the paper's and above that of the weights before training.

    Args:
        summary: table of `supplementary_tables.summarise`.
        untouched: evaluation of the weights that training started from; None if they were random.
    """
    paper = paper_results() if same_findings_as_paper(summary) else paper_results().iloc[:0]
    paper = paper.loc[(paper["finding"] == "average") & (paper["metric"] == "auroc")].set_index("epsilon")
    rows = summary.loc[(summary["finding"] == "average") & (summary["metric"] == "auroc")]
    lines = [
        _sweep_line(
            f"{row['epsilon']:g}" if math.isfinite(row["epsilon"]) else "no privacy",
            f"{row['noise_multiplier']:.4g}" if math.isfinite(row["epsilon"]) else "",
            row,
            f"{paper['bootstrap_mean'][row['epsilon']]:.2f}" if row["epsilon"] in paper.index else "",
        )
        for row in rows.to_dict("records")
    ]
    start = None if untouched is None else estimate(untouched, "auroc")
    if start is not None:
        lines.append(_sweep_line("before training", "", start, ""))
    return pd.DataFrame(lines).to_string(index=False)


def _sweep_line(epsilon: str, noise: str, row: dict, paper: str) -> dict[str, str]:
    return {
        "epsilon": epsilon,
        "noise multiplier": noise,
        "average AUROC": f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
        "verdict": against_guessing(row),
        "paper (another cohort)": paper,
    }
