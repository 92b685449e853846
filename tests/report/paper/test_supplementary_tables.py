from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import PAPER_BUDGETS
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.errors import InputError
from jaxcxr.report.paper.supplementary_tables import (
    SUMMARY_COLUMNS,
    Run,
    caption,
    latex,
    markdown,
    paper_results,
    screen_table,
    summarise,
    supplementary_table,
    write_tables,
)

SHARED = (Path(__file__).parents[3] / "../shared/paper").resolve()

# Table S2 as printed (epsilon 7.89): AUROC, accuracy, specificity, sensitivity.
TABLE_S2 = {
    "Cardiomegaly": ["0.82 ± 0.00", "0.73 ± 0.00", "0.71 ± 0.02", "0.76 ± 0.02"],
    "Congestion": ["0.81 ± 0.00", "0.72 ± 0.02", "0.71 ± 0.03", "0.76 ± 0.03"],
    "Pleural Effusion Right": ["0.92 ± 0.00", "0.82 ± 0.01", "0.82 ± 0.01", "0.88 ± 0.01"],
    "Pleural Effusion Left": ["0.89 ± 0.00", "0.79 ± 0.02", "0.79 ± 0.02", "0.84 ± 0.02"],
    "Pneumonic Infiltrates Right": ["0.91 ± 0.00", "0.84 ± 0.01", "0.83 ± 0.02", "0.81 ± 0.02"],
    "Pneumonic Infiltrates Left": ["0.91 ± 0.00", "0.84 ± 0.01", "0.84 ± 0.01", "0.83 ± 0.01"],
    "Atelectasis Right": ["0.87 ± 0.00", "0.78 ± 0.01", "0.77 ± 0.01", "0.81 ± 0.01"],
    "Atelectasis Left": ["0.85 ± 0.00", "0.76 ± 0.02", "0.76 ± 0.02", "0.79 ± 0.02"],
    "Average": ["0.87 ± 0.04", "0.79 ± 0.04", "0.78 ± 0.05", "0.81 ± 0.04"],
}
HEADINGS = ["AUROC", "Accuracy", "Specificity", "Sensitivity"]


def evaluation(findings, shift=0.0):
    """An evaluation in which every number is a different one."""
    lines = [
        {
            "group": group,
            "finding": finding,
            "metric": metric,
            "value": 0.5 + 0.01 * i + 0.002 * j + shift,
            "ci_low": 0.4,
            "ci_high": 0.95,
            "std": 0.011 + 0.01 * j,
            "n": 100,
            "positives": pd.NA if finding == "average" else 10 + i,
            "bootstrap_mean": 0.6 + 0.01 * i + 0.002 * j + shift,
            "std_paper": 0.05,
            "redraws": 10,
            "threshold": np.nan,
        }
        for group in ("all", "sex_F")
        for i, finding in enumerate([*findings, "average"])
        for j, metric in enumerate(["auroc", "accuracy", "sensitivity", "specificity", "brier"])
    ]
    return pd.DataFrame(lines)


def test_fed_with_the_papers_numbers_the_table_is_the_papers():
    table = supplementary_table(paper_results(), 7.89)
    assert list(table.columns) == [c for h in HEADINGS for c in (h, f"{h} (paper)")]
    assert {
        name: list(cells) for name, cells in zip(table.index, table[HEADINGS].to_numpy(), strict=True)
    } == TABLE_S2
    assert (table[HEADINGS].to_numpy() == table[[f"{h} (paper)" for h in HEADINGS]].to_numpy()).all()


@pytest.mark.parametrize("epsilon", [np.inf, *PAPER_BUDGETS])
def test_every_table_of_the_paper_is_complete(epsilon):
    table = supplementary_table(paper_results(), epsilon)
    assert len(table) == 9
    assert table.map(lambda cell: "±" in cell).all(axis=None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's tables are not beside the repository")
@pytest.mark.parametrize("name", ["table_1.csv", "table_3.csv", "tables_s1_s7.csv"])
def test_packaged_tables_are_the_papers(name):
    packaged = Path(__file__).parents[3] / "src/jaxcxr/report/paper" / name
    assert packaged.read_bytes() == (SHARED / name).read_bytes()


def test_paper_results_have_our_names():
    paper = paper_results()
    assert set(paper["finding"]) == {*UKA_FINDINGS, "average"}
    assert set(paper["epsilon"]) == {np.inf, *PAPER_BUDGETS}
    assert len(paper) == 7 * 9 * 4


def test_summary_takes_the_bootstrap_mean_of_everyone():
    runs = [
        Run(evaluation(["a"]), epsilon=1.06, delta=1e-5, noise_multiplier=1.5, sample_rate=0.01, steps=100),
        Run(evaluation(["a"], shift=0.1)),
        Run(
            evaluation(["a"], shift=0.2),
            epsilon=7.89,
            delta=1e-5,
            noise_multiplier=0.6,
            sample_rate=0.01,
            steps=100,
        ),
    ]
    summary = summarise(runs)
    assert list(summary.columns) == list(SUMMARY_COLUMNS)
    assert list(dict.fromkeys(summary["epsilon"])) == [np.inf, 7.89, 1.06]
    assert len(summary) == 3 * 2 * 4
    first = summary.iloc[0]
    assert (first["finding"], first["metric"], first["bootstrap_mean"]) == ("a", "auroc", pytest.approx(0.7))
    assert (
        summary.loc[np.isinf(summary["epsilon"]), ["delta", "noise_multiplier", "sample_rate", "steps"]]
        .isna()
        .all(axis=None)
    )
    assert (summary.loc[summary["epsilon"] == 1.06, ["noise_multiplier", "steps"]] == [1.5, 100]).all(
        axis=None
    )
    assert summarise(runs, group="sex_F").shape == summary.shape


def test_summary_survives_its_file(tmp_path):
    summary = summarise(
        [Run(evaluation(UKA_FINDINGS)), Run(evaluation(UKA_FINDINGS), 7.89, 1e-6, 0.6, 0.01, 10)]
    )
    summary.to_csv(tmp_path / "summary.csv", index=False)
    text = (tmp_path / "summary.csv").read_text()
    assert text.splitlines()[1].startswith("inf,,,,,cardiomegaly,auroc,")
    read = pd.read_csv(tmp_path / "summary.csv")
    pd.testing.assert_frame_equal(supplementary_table(read, np.inf), supplementary_table(summary, np.inf))


def test_a_budget_the_paper_has_not_gets_no_paper_columns():
    table = supplementary_table(summarise([Run(evaluation(UKA_FINDINGS), epsilon=3.0)]), 3.0)
    assert list(table.columns) == HEADINGS
    assert table.loc["Cardiomegaly"].tolist() == ["0.60 ± 0.01", "0.60 ± 0.02", "0.61 ± 0.04", "0.60 ± 0.03"]


def test_other_findings_are_not_compared_with_the_papers_average():
    table = supplementary_table(summarise([Run(evaluation(["congestion", "hernia"]), epsilon=7.89)]), 7.89)
    assert table.loc["Congestion", "AUROC (paper)"] == "0.81 ± 0.00"
    assert table.loc["Hernia", "AUROC (paper)"] == ""
    assert table.loc["Average", "AUROC (paper)"] == ""
    assert list(supplementary_table(summarise([Run(evaluation(["hernia"]), 7.89)]), 7.89).columns) == HEADINGS


def test_an_undefined_metric_is_an_empty_cell():
    undefined = evaluation(["a"]).assign(bootstrap_mean=np.nan, std=np.nan)
    assert supplementary_table(summarise([Run(undefined)]), np.inf).loc["A", "AUROC"] == ""


def test_unknown_budget_is_refused():
    with pytest.raises(InputError, match=r"epsilon 2, found budgets inf, 7\.89"):
        supplementary_table(paper_results().query("epsilon > 5"), 2.0)


def test_caption_says_what_plus_minus_is():
    summary = summarise([Run(evaluation(UKA_FINDINGS), 7.89, 1e-4, 0.6, 0.01, 10)])
    text = caption(summary, 7.89)
    assert "ε = 7.89, δ = 0.0001" in text
    assert "at δ = 6e-06" in text
    assert "AUROC 0.68 ± 0.05" in text
    assert "without DP" in caption(paper_results(), np.inf)


def test_tables_are_written_in_three_kinds(tmp_path):
    summary = summarise(
        [Run(evaluation(UKA_FINDINGS)), Run(evaluation(UKA_FINDINGS), 7.89, 6e-6, 0.6, 0.01, 10)]
    )
    written = write_tables(summary, tmp_path / "tables")
    assert sorted(path.name for path in written) == sorted(
        f"{stem}{ending}"
        for stem in ("table_non_private", "table_epsilon_7.89")
        for ending in (".md", ".tex", ".csv")
    )
    read = pd.read_csv(tmp_path / "tables" / "table_epsilon_7.89.csv", index_col="Finding")
    pd.testing.assert_frame_equal(read, supplementary_table(summary, 7.89), check_dtype=False)


def test_markdown_and_latex_hold_every_cell():
    table = supplementary_table(paper_results(), 0.29)
    lines = markdown(table, "Text.").splitlines()
    assert lines[0] == "Text."
    assert {line.count("|") for line in lines[2:]} == {10}
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == [
        "Cardiomegaly",
        *table.loc["Cardiomegaly"],
    ]
    rows = [line for line in latex(table, "5 % of a_b & ε").splitlines() if line.endswith(r"\\")]
    assert [row.count(" & ") for row in rows] == [8] * 10
    assert rows[1].startswith(r"Cardiomegaly & 0.79 $\pm$ 0.00 & ")
    assert r"\caption{5 \% of a\_b \& $\varepsilon$}" in latex(table, "5 % of a_b & ε")


def test_screen_table_is_compact():
    undefined = evaluation(["a", "b"])
    undefined.loc[undefined["finding"] == "b", ["value", "ci_low", "ci_high"]] = np.nan
    lines = screen_table(undefined).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:4] == ["a", "10", "100", "0.500"]
    assert "[0.400, 0.950]" in lines[1]
    assert lines[2].count("not defined") == 4
