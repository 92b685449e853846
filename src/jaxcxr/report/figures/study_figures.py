"""What a study found, as tables and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcxr.report.figures.sweep_figures import MARKERS, PALETTE, save


def with_other_questions(found: pd.DataFrame, path: Path, questions: Sequence[str]) -> pd.DataFrame:
    """Rows found for some questions, among those that a table at `path` has of the others already.

    Args:
        found: of `jaxcxr.workflows.study.results` or `comparisons`.
        path: table that `write_study` wrote before; it need not exist.
        questions: all of the study, in their order; rows of no others are kept.
    """
    if not path.exists():
        return found
    before = pd.read_csv(path, dtype={"question": str, "arm": str, "reference": str})
    kept = before.loc[before["question"].isin(questions) & ~before["question"].isin(found["question"])]
    return pd.concat([kept, found]).sort_values(
        "question", key=lambda names: names.map(list(questions).index), kind="stable"
    )


def write_study(
    results: pd.DataFrame, comparisons: pd.DataFrame, asked: Mapping[str, str], out: Path
) -> None:
    """Write `results.csv`, `comparisons.csv`, `ablations.md` and the figures into a folder.

    Args:
        results: of `jaxcxr.workflows.study.results`.
        comparisons: of `jaxcxr.workflows.study.comparisons`.
        asked: what each question asks, by its name.
        out: folder, made if it does not exist.
    """
    out.mkdir(parents=True, exist_ok=True)
    results.to_csv(out / "results.csv", index=False, float_format="%.6g")
    comparisons.to_csv(out / "comparisons.csv", index=False, float_format="%.6g")
    parts = [
        f"## {name.replace('_', ' ')}\n\n{asked[name]}\n\n{_table(rows, results)}"
        for name, rows in _by_question(comparisons)
    ]
    (out / "ablations.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if not comparisons["difference"].dropna().empty:
        study_figure(comparisons, out)
    budgets_figure(comparisons, out)


def _by_question(comparisons: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), rows) for name, rows in comparisons.groupby("question", sort=False)]


def _table(rows: pd.DataFrame, results: pd.DataFrame) -> str:
    lines = [
        "| epsilon | arm | batch x steps | AUROC | difference [95 % CI] | age gap, difference | sex gap, "
        "difference | seeds |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for key, of_arm in rows.groupby(["epsilon", "arm"], sort=False):
        epsilon, arm = key  # type: ignore[misc]
        of = of_arm.set_index("estimate")
        is_it = (
            (results["question"] == of["question"].iloc[0])
            & (results["arm"] == arm)
            & (results["epsilon"] == epsilon)
        )
        run = results.loc[is_it].iloc[0]
        gaps = [
            f"{of.loc[g, 'value']:.3f}{_difference(of.loc[g], ', ')}"
            for g in ("auroc_gap_age", "auroc_gap_sex")
        ]
        shape = f"{run['expected_batch_size']} x {run['steps']}"
        difference = _difference(of.loc["auroc"]) or "reference"
        lines.append(
            f"| {epsilon:g} | {arm} | {shape} | {of.loc['auroc', 'value']:.3f} | {difference} | {gaps[0]} | "
            f"{gaps[1]} "
            f"| {of.loc['auroc', 'seeds']} |"
        )
    return "\n".join(lines)


def _difference(row: pd.Series, before: str = "") -> str:
    if np.isnan(row.to_dict().get("difference", np.nan)):
        return ""
    if np.isnan(row["ci_low"]):
        return f"{before}{row['difference']:+.3f} (one seed)"
    return f"{before}{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"


def study_figure(comparisons: pd.DataFrame, out_dir: Path, stem: str = "ablations") -> tuple[Path, Path]:
    """Difference of average AUROC of each arm to its reference, a panel a question, a colour a budget, with
    95 % intervals.
    """
    auroc = comparisons.loc[(comparisons["estimate"] == "auroc") & comparisons["difference"].notna()]
    questions = _by_question(auroc)
    budgets = sorted(auroc["epsilon"].unique())
    heights = [0.5 + 0.38 * len(set(rows["arm"])) for _, rows in questions]
    figure = Figure(figsize=(7.2, sum(heights) + 0.9 * len(questions)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(questions), 1, height_ratios=heights, sharex=True))
    for panel, (name, rows) in zip(panels, questions, strict=True):
        arms = list(dict.fromkeys(rows["arm"]))
        for place, epsilon in enumerate(budgets):
            of = rows.loc[rows["epsilon"] == epsilon]
            at = [arms.index(arm) + 0.16 * (place - (len(budgets) - 1) / 2) for arm in of["arm"]]
            reach = np.abs(of[["ci_low", "ci_high"]].to_numpy().T - of["difference"].to_numpy())
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            panel.errorbar(
                of["difference"],
                at,
                xerr=np.nan_to_num(reach),
                fmt=marker,
                ms=4,
                lw=1.2,
                color=colour,
                label=f"ε = {epsilon:g}",
            )
        panel.axvline(0, color="#8C8C8C", lw=0.8)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_title(
            f"{name.replace('_', ' ')}: against {rows['reference'].iloc[0]}", fontsize=9, loc="left"
        )
        panel.grid(axis="x", lw=0.3)
    panels[-1].set_xlabel("difference of average AUROC (95 % interval over patients and seeds)")
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return save(figure, out_dir, stem)


def budgets_figure(
    comparisons: pd.DataFrame, out_dir: Path, stem: str = "budgets"
) -> tuple[Path, Path] | None:
    """Average AUROC against the budget, an arm a line with 95 % intervals, a panel a question of two budgets
    or more; None if there is no such question.
    """
    auroc = comparisons.loc[comparisons["estimate"] == "auroc"]
    questions = [(name, rows) for name, rows in _by_question(auroc) if len(set(rows["epsilon"])) > 1]
    if not questions:
        return None
    budgets = sorted({epsilon for _, rows in questions for epsilon in rows["epsilon"]})
    figure = Figure(figsize=(7.2, 2.7 * len(questions)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(questions), 1, sharex=True))
    for panel, (name, rows) in zip(panels, questions, strict=True):
        for place, (arm, of) in enumerate(rows.groupby("arm", sort=False)):
            of = of.sort_values("epsilon")
            reach = np.abs(of[["value_low", "value_high"]].to_numpy().T - of["value"].to_numpy())
            panel.errorbar(
                of["epsilon"] * 1.02**place,  # beside one another, or the intervals would hide each other
                of["value"],
                yerr=np.nan_to_num(reach),
                marker=MARKERS[place % len(MARKERS)],
                color=PALETTE[place % len(PALETTE)],
                ms=4,
                lw=1.2,
                capsize=2,
                label=str(arm).replace("_", " "),
            )
        panel.set_xscale("log")
        panel.set_xticks(budgets, [f"{epsilon:g}" for epsilon in budgets])
        panel.minorticks_off()
        panel.set_title(name.replace("_", " "), fontsize=9, loc="left")
        panel.set_ylabel("average AUROC")
        panel.legend(frameon=False, fontsize=8)
        panel.grid(lw=0.3)
    panels[-1].set_xlabel("privacy budget ε (95 % interval over patients and seeds)")
    return save(figure, out_dir, stem)
