"""The paper's supplementary tables (S1-S7), our numbers beside the paper's, and the summary of a sweep they
are made from.
"""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError
from jaxcxr.report.evaluated_runs import Run

SUMMARY_COLUMNS: tuple[str, ...] = (
    "epsilon",
    "delta",
    "noise_multiplier",
    "sample_rate",
    "steps",
    "finding",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "bootstrap_mean",
    "std",
    "std_paper",
)
METRIC_NAMES: Mapping[str, str] = MappingProxyType(
    {"auroc": "AUROC", "accuracy": "Accuracy", "specificity": "Specificity", "sensitivity": "Sensitivity"}
)
"""Metrics in the order of the paper's tables, with their names there."""

TEXT_COLUMNS: tuple[str, ...] = ("attribute", "label", "reference", "note")

PAPER_DELTA = 6e-6


def summarise(runs: Iterable[Run], group: str = "all") -> pd.DataFrame:
    """Rows of `summary.csv`: the non-private model first, then falling budgets, as the paper's tables are
    ordered.

    `value` is the point estimate with its 95 % interval; `bootstrap_mean` and `std` are mean and standard
    deviation over the bootstrap replicates, which the paper's tables print. For the average over findings,
    `std` is the standard deviation of that average and `std_paper` the paper's, taken over replicates and
    findings together.
    """
    tables = []
    for run in sorted(runs, key=lambda run: -run.epsilon):
        rows = run.evaluation.loc[
            (run.evaluation["group"] == group) & run.evaluation["metric"].isin(list(METRIC_NAMES))
        ]
        tables.append(
            rows.assign(
                epsilon=run.epsilon,
                delta=_number(run.delta),
                noise_multiplier=_number(run.noise_multiplier),
                sample_rate=_number(run.sample_rate),
                steps=pd.array([run.steps] * len(rows), dtype="Int64"),
            )[list(SUMMARY_COLUMNS)]
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(SUMMARY_COLUMNS))


def stack(runs: Iterable[Run]) -> pd.DataFrame:
    """The whole evaluations of several models, one under the other, with `epsilon` and `delta` in front.

    The non-private model (epsilon infinity) comes first, then falling budgets. Tables and figures of groups
    are made from it.

    Raises:
        InputError: an evaluation was written before there were groups.
    """
    tables = []
    for run in sorted(runs, key=lambda run: -run.epsilon):
        missing = [column for column in TEXT_COLUMNS if column not in run.evaluation]
        if missing:
            raise InputError(
                f"evaluation of epsilon {run.epsilon:g}: column {missing[0]!r} is missing; written by "
                "another version of jaxcxr: evaluate the predictions again"
            )
        # A file does not tell an empty text from a missing one.
        texts = {
            column: run.evaluation[column].astype(object).fillna("").astype(str) for column in TEXT_COLUMNS
        }
        table = run.evaluation.assign(**texts)
        table.insert(0, "epsilon", float(run.epsilon))
        table.insert(1, "delta", _number(run.delta))
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["epsilon", "delta"])


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def paper_results() -> pd.DataFrame:
    """The paper's Tables S1-S7 in the form of a summary: epsilon, delta, finding (our names), metric,
    bootstrap_mean, std.

    Both are as printed: means and standard deviations over bootstrap replicates. For `average`, `std` is what
    we call `std_paper`. The paper prints no point estimates.
    """
    with resources.files("jaxcxr.report").joinpath("paper/tables_s1_s7.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file).rename(columns={"mean": "bootstrap_mean"})
    finding = table["label"].str.replace("pneumonic_infiltration_", "pneumonic_infiltrates_")
    delta = np.where(np.isinf(table["epsilon"]), np.nan, PAPER_DELTA)
    return table.assign(finding=finding, delta=delta).loc[
        :, ["epsilon", "delta", "finding", "metric", "bootstrap_mean", "std"]
    ]


def same_findings_as_paper(summary: pd.DataFrame) -> bool:
    """True if the summary is about the paper's eight findings, so that the two averages can stand side by
    side.
    """
    return set(summary["finding"]) - {"average"} == set(UKA_FINDINGS)


def supplementary_table(summary: pd.DataFrame, epsilon: float) -> pd.DataFrame:
    """One budget in the layout of the paper's Tables S1-S7.

    Args:
        summary: table in the form of `summary.csv`.
        epsilon: the budget; infinity is the non-private model.

    Returns:
        Index: findings and `Average` as titles. Columns: AUROC, Accuracy, Specificity, Sensitivity, each a
        text 'mean ± std' with two decimals, followed by '<metric> (paper)' if the paper reports that budget
        for any of the findings. The paper's average is left empty if the findings are not the paper's eight.

    Raises:
        InputError: the summary has no such budget.
    """
    ours = summary.loc[np.isclose(summary["epsilon"], epsilon)]
    if ours.empty:
        budgets = ", ".join(f"{e:g}" for e in sorted(set(summary["epsilon"]), reverse=True))
        raise InputError(f"summary: expected rows of epsilon {epsilon:g}, found budgets {budgets or 'none'}")
    paper = paper_results()
    paper = paper.loc[np.isclose(paper["epsilon"], epsilon) & paper["finding"].isin(list(ours["finding"]))]
    if not same_findings_as_paper(ours):
        paper = paper.loc[paper["finding"] != "average"]

    order = [f for f in dict.fromkeys(ours["finding"]) if f != "average"] + ["average"]
    columns = {}
    for metric, name in METRIC_NAMES.items():
        columns[name] = _cells(ours, metric, order)
        if not paper.empty:
            columns[f"{name} (paper)"] = _cells(paper, metric, order)
    return pd.DataFrame(columns, index=pd.Index([title(f) for f in order], name="Finding"))


def _cells(table: pd.DataFrame, metric: str, order: list[str]) -> list[str]:
    rows = table.loc[table["metric"] == metric].set_index("finding")
    return [_cell(rows["bootstrap_mean"].get(f, np.nan), rows["std"].get(f, np.nan)) for f in order]


def _cell(mean: float, std: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def title(finding: str) -> str:
    """Name of a finding as it stands in a table: 'Pleural Effusion Right' for `pleural_effusion_right`."""
    return finding.replace("_", " ").title()


def caption(summary: pd.DataFrame, epsilon: float) -> str:
    """What a reader of `supplementary_table` must know: the budget, what '±' is, and where ours and the
    paper's differ.
    """
    ours = summary.loc[np.isclose(summary["epsilon"], epsilon)]
    delta = ours["delta"].dropna().unique() if "delta" in ours else []
    budget = "training without DP" if np.isinf(epsilon) else f"DP training with ε = {epsilon:g}"
    if len(delta) and not np.isinf(epsilon):
        budget += f", δ = {delta[0]:g}"
    sentences = [f"Evaluation results of {budget}: mean ± standard deviation over bootstrap replicates."]
    has_paper = any(column.endswith("(paper)") for column in supplementary_table(summary, epsilon))
    if has_paper and not np.isinf(epsilon):
        sentences.append(f"The paper's columns are for the same ε at δ = {PAPER_DELTA:g}.")
    average = ours.loc[ours["finding"] == "average"]
    if "std_paper" in average and average["std_paper"].notna().any():
        pooled = average.set_index("metric")
        values = ", ".join(
            f"{name} {_cell(pooled['bootstrap_mean'][m], pooled['std_paper'][m])}"
            for m, name in METRIC_NAMES.items()
            if m in pooled.index
        )
        sentences.append(
            "The ± of the average is that of the average itself; the paper takes it over replicates and "
            f"findings together, which for this model gives {values}."
        )
    return " ".join(sentences)


def write_tables(summary: pd.DataFrame, out_dir: str | Path) -> list[Path]:
    """Write every budget's table as Markdown, LaTeX and CSV: `table_non_private.*`,
    `table_epsilon_<budget>.*`.

    Returns:
        The files written.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for epsilon in sorted(set(summary["epsilon"]), reverse=True):
        table, text = supplementary_table(summary, epsilon), caption(summary, epsilon)
        stem = "table_non_private" if np.isinf(epsilon) else f"table_epsilon_{epsilon:g}"
        for ending, content in (
            (".md", markdown(table, text)),
            (".tex", latex(table, text)),
            (".csv", table.to_csv()),
        ):
            written.append(out_dir / f"{stem}{ending}")
            with sealed(written[-1]) as part:
                part.write_text(content, encoding="utf-8")
    return written


def markdown(table: pd.DataFrame, text: str) -> str:
    """A table of texts as Markdown, `text` above it."""
    lines = [[str(table.index.name), *table.columns], ["---"] + [":---:"] * table.shape[1]]
    lines += [[str(name), *cells] for name, cells in zip(table.index, table.to_numpy(), strict=True)]
    return f"{text}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(table: pd.DataFrame, text: str) -> str:
    """A table of texts as a LaTeX `table` that needs no package, `text` as its caption."""
    lines = [[str(table.index.name), *table.columns]]
    lines += [[str(name), *cells] for name, cells in zip(table.index, table.to_numpy(), strict=True)]
    rows = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(text)}}}",
            rf"\begin{{tabular}}{{l{'c' * table.shape[1]}}}",
            r"\hline",
            rows[0],
            r"\hline",
            *rows[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    escapes = {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "_": r"\_",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
    }
    symbols = {
        "±": r"$\pm$",
        "ε": r"$\varepsilon$",
        "δ": r"$\delta$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    return "".join((escapes | symbols).get(character, character) for character in text)


def screen_table(evaluation: pd.DataFrame, group: str = "all") -> str:
    """An evaluation as text for the screen: one row per finding, each metric as 'value [interval]', with the
    numbers of images and positives.
    """
    rows = evaluation.loc[(evaluation["group"] == group) & evaluation["metric"].isin(list(METRIC_NAMES))]
    lines = []
    for finding, its in rows.groupby("finding", sort=False):
        metric = its.set_index("metric")
        first = its.iloc[0]
        line = {
            "finding": finding,
            "positives": "" if pd.isna(first["positives"]) else f"{first['positives']}",
            "n": f"{first['n']}",
        }
        for name, heading in METRIC_NAMES.items():
            value, low, high = metric.loc[name, ["value", "ci_low", "ci_high"]].astype(float)
            line[heading] = "not defined" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False)
