"""The paper's Tables 2 and 3 from our numbers, with the paper's own beside them where the cohort allows a
comparison; Table 1 is `cohort.table_1`.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from jaxcxr.digests import sealed
from jaxcxr.report.paper.cohort_tables import table_1
from jaxcxr.report.paper.supplementary_tables import (
    latex,
    markdown,
    paper_results,
    same_findings_as_paper,
    title,
)

SEXES: Mapping[str, str] = MappingProxyType({"F": "female", "M": "male"})
PAPER_LARGEST = 7.89
"""The budget whose loss the paper's Table 2 prints: 0.04 for congestion and 0.02 for every other finding and
the average.
"""


def _paper(name: str) -> pd.DataFrame:
    with resources.files("jaxcxr.report").joinpath(f"paper/{name}").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def sample_sizes(films: pd.DataFrame, findings: Sequence[str], split: str = "train") -> pd.Series:
    """Number of images with each finding in one split of a manifest or of a predictions table."""
    rows = films.loc[films["split"] == split]
    return pd.Series(
        {
            f: float((rows[f if f in rows.columns else f"y_{f}"].to_numpy(np.float64) == 1).sum())
            for f in findings
        },
        dtype=np.float64,
    )


def budget(epsilon: float) -> str:
    """Name of a model by its budget."""
    return "Non-DP" if np.isinf(epsilon) else f"DP with ε={epsilon:g}"


def table_2(evaluations: pd.DataFrame, comparisons: pd.DataFrame | None = None) -> pd.DataFrame:
    """AUROC of each finding at each budget (the paper's Table 2).

    Args:
        evaluations: table of `tables.stack`.
        comparisons: rows of `eval.compare.compare` of the non-private model against private ones, with a
            column `epsilon`; the difference then has its paired interval.

    Returns:
        Index: findings and Average. Columns: a text 'mean ± std' over bootstrap replicates for each budget,
        falling, and for Non-DP, each followed by the paper's where it has that budget; then the loss at the
        largest budget, from the point estimates. Empty where not defined.
    """
    rows = evaluations.loc[(evaluations["group"] == "all") & (evaluations["metric"] == "auroc")]
    findings = [f for f in dict.fromkeys(rows["finding"]) if f != "average"] + ["average"]
    paper = paper_results()
    paper = paper.loc[(paper["metric"] == "auroc") & paper["finding"].isin(findings)]
    if not same_findings_as_paper(rows):
        paper = paper.loc[paper["finding"] != "average"]
    budgets = sorted(set(rows["epsilon"]) - {np.inf}, reverse=True)
    columns: dict[str, list[str]] = {}
    for epsilon in [*budgets, *([np.inf] if np.isinf(rows["epsilon"]).any() else [])]:
        ours = rows.loc[rows["epsilon"] == epsilon].set_index("finding")
        columns[budget(epsilon)] = [_mean_std(ours, f, "bootstrap_mean") for f in findings]
        theirs = paper.loc[paper["epsilon"] == epsilon].set_index("finding")
        if len(theirs):
            columns[f"{budget(epsilon)} (paper)"] = [_mean_std(theirs, f, "bootstrap_mean") for f in findings]
    if budgets and np.isinf(rows["epsilon"]).any():
        largest, name = budgets[0], f"Non-DP - {budget(budgets[0])}"
        value = rows.pivot_table(index="finding", columns="epsilon", values="value", dropna=False)
        columns[name] = [_number((value[np.inf] - value[largest]).get(f, np.nan)) for f in findings]
        if comparisons is not None:
            paired = comparisons.loc[(comparisons["epsilon"] == largest) & (comparisons["group"] == "all")]
            paired = paired.loc[paired["metric"] == "auroc"].set_index("finding")
            columns[name] = [_interval(paired, f, "difference") for f in findings]
        if largest == PAPER_LARGEST and not paper.empty:
            printed = {f: 0.04 if f == "congestion" else 0.02 for f in paper["finding"]}
            columns[f"{name} (paper)"] = [_number(printed.get(f, np.nan)) for f in findings]
    return pd.DataFrame(columns, index=pd.Index([title(f) for f in findings], name="Finding"))


def table_3(evaluations: pd.DataFrame, attributes: Sequence[str] = ("age", "sex")) -> pd.DataFrame:
    """Average AUROC and parity of each group at each budget (the paper's Table 3).

    Args:
        evaluations: table of `tables.stack`.
        attributes: whose groups to show.

    Returns:
        Index: the budgets, Non-DP first. Columns for each group: AUROC as 'mean ± std' over bootstrap
        replicates and parity (the paper's statistical parity difference: accuracy of the group minus that of
        all others) with its 95 % interval, each followed by the paper's where it has that budget, group and
        our findings. A group that is too small says so.
    """
    rows = evaluations.loc[
        (evaluations["finding"] == "average") & evaluations["attribute"].isin(list(attributes))
    ]
    paper = _paper("table_3.csv")
    paper["group"] = paper["group"].replace({f"sex_{name}": f"sex_{code}" for code, name in SEXES.items()})
    if not same_findings_as_paper(
        evaluations.loc[(evaluations["group"] == "all") & (evaluations["metric"] == "auroc")]
    ):
        paper = paper.iloc[:0]
    groups = rows.loc[rows["reference"] == "rest"].drop_duplicates("group")
    budgets = sorted(set(rows["epsilon"]), reverse=True)
    columns: dict[str, list[str]] = {}
    for name, label in zip(groups["group"], groups["label"], strict=True):
        ours = rows.loc[rows["group"] == name]
        auroc = ours.loc[ours["metric"] == "auroc"].set_index("epsilon")
        parity = ours.loc[ours["metric"] == "statistical_parity_difference"].set_index("epsilon")
        theirs = paper.loc[paper["group"] == name].set_index("epsilon")
        columns[f"{label} AUROC"] = [_mean_std(auroc, e, "bootstrap_mean") for e in budgets]
        if len(theirs.index.intersection(budgets)):
            columns[f"{label} AUROC (paper)"] = [
                _mean_std(theirs, e, "auroc_mean", "auroc_std") for e in budgets
            ]
        columns[f"{label} parity"] = [_interval(parity, e, "value") for e in budgets]
        if len(theirs.index.intersection(budgets)):
            difference = theirs["statistical_parity_difference"]
            columns[f"{label} parity (paper)"] = [_number(difference.get(e, np.nan)) for e in budgets]
    return pd.DataFrame(columns, index=pd.Index([budget(e) for e in budgets], name="Model"))


def _mean_std(table: pd.DataFrame, key: object, mean: str, std: str = "std") -> str:
    if key not in table.index:
        return ""
    row = table.loc[key]
    if np.isnan(row[mean]):
        return "too small" if str(row.get("note", "")).startswith("suppressed") else "not defined"
    return f"{row[mean]:.2f} ± {row[std]:.2f}{_fewer(row)}"


def _interval(table: pd.DataFrame, key: object, value: str) -> str:
    if key not in table.index or np.isnan(table.loc[key, value]):
        return ""
    row = table.loc[key]
    return f"{_number(row[value])} [{_number(row['ci_low'])}, {_number(row['ci_high'])}]{_fewer(row)}"


def _fewer(row: pd.Series) -> str:
    """Of how many findings an average is, where a group is too small for some."""
    note = str(row.get("note", ""))
    return f" ({note.removeprefix('over ').removesuffix(' findings')})" if note.startswith("over ") else ""


def _number(value: float) -> str:
    # Adding zero turns a rounded -0.0 into 0.0.
    return "" if np.isnan(value) else f"{round(float(value), 2) + 0.0:.2f}"


CAPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "table_1": "Numbers of images, their patients' ages and sexes, and their findings; the last columns "
        "are the paper's.",
        "table_2": "AUROC with and without differentially private training, as the paper prints it: mean ± "
        "standard deviation over bootstrap replicates, for the average that of the average itself. The mean "
        "over replicates can differ a little from the estimate, which stands everywhere else. The last "
        "column is the loss, the difference of the two estimates, with its paired 95 % interval where there "
        "is one.",
        "table_3": "Average AUROC as the paper prints it (mean ± standard deviation over bootstrap "
        "replicates, not the estimate; the paper's ± is taken over replicates and findings together) and "
        "parity (accuracy of the group minus accuracy of all others, averaged over findings, with its 95 % "
        "interval) by group. An interval that holds 0 is compatible with no difference. '(3 of 8)': over so "
        "many findings, as the group is too small for the others.",
    }
)


def write_paper_tables(
    out_dir: str | Path,
    evaluations: pd.DataFrame,
    comparisons: pd.DataFrame | None = None,
    films: pd.DataFrame | None = None,
    findings: Sequence[str] = (),
) -> list[Path]:
    """Write Tables 2 and 3, and Table 1 if `films` are given, as Markdown, LaTeX and CSV.

    Args:
        out_dir: folder, made if it does not exist.
        evaluations: table of `tables.stack`.
        comparisons: as in `table_2`.
        films: manifest, for `cohort.table_1`.
        findings: of `films`.

    Returns:
        The files written. A table without a column, such as Table 3 of images without ages and sexes, is not
        written.
    """
    tables = {"table_2": table_2(evaluations, comparisons), "table_3": table_3(evaluations)}
    if films is not None:
        tables["table_1"] = table_1(films, findings).set_index("statistic")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, table in sorted(tables.items()):
        if table.shape[1]:
            text = CAPTIONS[stem]
            for ending, content in (
                (".md", markdown(table, text)),
                (".tex", latex(table, text)),
                (".csv", table.to_csv()),
            ):
                written.append(out_dir / f"{stem}{ending}")
                with sealed(written[-1]) as part:
                    part.write_text(content, encoding="utf-8")
    return written
