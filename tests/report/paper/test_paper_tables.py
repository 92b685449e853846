from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import PAPER_BUDGETS
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.errors import InputError
from jaxcxr.eval.evaluate import EVALUATION_COLUMNS
from jaxcxr.report.evaluated_runs import Run
from jaxcxr.report.paper.paper_tables import sample_sizes, table_2, table_3, write_paper_tables
from jaxcxr.report.paper.supplementary_tables import paper_results, stack

# Rows of the paper's Tables 2 and 3 as printed.
CONGESTION = [
    "0.81 ± 0.00",
    "0.81 ± 0.00",
    "0.80 ± 0.00",
    "0.80 ± 0.00",
    "0.79 ± 0.00",
    "0.78 ± 0.00",
    "0.85 ± 0.00",
    "0.04",
]
AT_1_06 = [
    "0.88 ± 0.03",
    "0.07",
    "0.87 ± 0.04",
    "0.03",
    "0.85 ± 0.04",
    "0.00",
    "0.84 ± 0.05",
    "-0.02",
    "0.83 ± 0.04",
    "-0.03",
]


def line(group, finding, metric, value, attribute="", reference="", note=""):
    row = dict.fromkeys(EVALUATION_COLUMNS, np.nan)
    given = {
        "group": group,
        "finding": finding,
        "metric": metric,
        "value": value,
        "bootstrap_mean": value,
        "std": 0.011,
    }
    interval = {"ci_low": value - 0.02, "ci_high": value + 0.02, "n": 100}
    return (
        row
        | given
        | interval
        | {"attribute": attribute, "label": group, "reference": reference, "note": note}
    )


def evaluations(findings=UKA_FINDINGS, budgets=(np.inf, *PAPER_BUDGETS), small="age_0_30"):
    runs = []
    groups = {
        "age_0_30": "age",
        "age_30_60": "age",
        "age_60_70": "age",
        "age_70_80": "age",
        "age_80_100": "age",
    }
    groups |= {"sex_F": "sex", "sex_M": "sex", "sex_F*age_0_30": "sex*age"}
    for epsilon in budgets:
        loss = 0.0 if np.isinf(epsilon) else 0.1 / (1 + epsilon)
        lines = [line("all", f, "auroc", 0.8 + 0.01 * i - loss) for i, f in enumerate([*findings, "average"])]
        for group, attribute in groups.items():
            note = "suppressed: fewer than 30 images" if group == small else ""
            value = np.nan if note else 0.85 - loss
            lines.append(line(group, "average", "auroc", value, attribute, note=note))
            parity = np.nan if note else -0.001
            lines.append(
                line(group, "average", "statistical_parity_difference", parity, attribute, "rest", note)
            )
        runs.append(Run(pd.DataFrame(lines, columns=list(EVALUATION_COLUMNS)), epsilon))
    return stack(runs)


def test_table_2_has_the_papers_own_beside_ours():
    table = table_2(evaluations())
    paper = [c for c in table.columns if c.endswith("(paper)")]
    assert table.loc["Congestion", paper].tolist() == CONGESTION
    assert paper[0] == "DP with ε=7.89 (paper)"
    assert paper[-2:] == ["Non-DP (paper)", "Non-DP - DP with ε=7.89 (paper)"]
    assert table.loc["Cardiomegaly", "Non-DP"] == "0.80 ± 0.01"
    assert table.loc["Cardiomegaly", "Non-DP - DP with ε=7.89"] == "0.01"
    assert table.loc["Average", "Non-DP (paper)"] == "0.90 ± 0.04"


def test_table_2_takes_paired_intervals_where_there_are_any():
    findings = [*UKA_FINDINGS, "average"]
    paired = pd.DataFrame(
        {
            "epsilon": 7.89,
            "group": "all",
            "metric": "auroc",
            "finding": findings,
            "difference": 0.031,
            "ci_low": -0.004,
            "ci_high": 0.05,
        }
    )
    table = table_2(evaluations(), pd.concat([paired.assign(group="sex_F", difference=9.0), paired]))
    assert table.loc["Average", "Non-DP - DP with ε=7.89"] == "0.03 [0.00, 0.05]"


def test_other_findings_have_no_column_of_the_paper():
    table = table_2(evaluations(findings=("hernia",)))
    assert [c for c in table.columns if "paper" in c] == []
    assert [c for c in table_3(evaluations(findings=("hernia",))).columns if "paper" in c] == []


def test_one_model_is_enough():
    assert list(table_2(evaluations(budgets=(3.0,))).columns) == ["DP with ε=3"]
    assert list(table_2(evaluations(budgets=(np.inf,), findings=("hernia",))).columns) == ["Non-DP"]


def test_table_3_has_the_papers_own_beside_ours():
    table = table_3(evaluations())
    ages = [c for c in table.columns if c.startswith("age") and c.endswith("(paper)")]
    assert table.loc["DP with ε=1.06", ages].tolist() == AT_1_06
    assert table.loc["DP with ε=4.71", "sex_F parity (paper)"] == "0.02"
    assert table.loc["DP with ε=0.29", "sex_F AUROC (paper)"] == "0.84 ± 0.04"
    assert table.loc["Non-DP", "sex_M AUROC"] == "0.85 ± 0.01"
    assert table.loc["Non-DP", "sex_M parity"] == "0.00 [-0.02, 0.02]"
    assert table.loc["Non-DP", "age_0_30 AUROC"] == "too small"
    assert table.loc["Non-DP", "age_0_30 parity"] == ""
    assert not any("*" in column for column in table.columns)
    assert list(table.index) == ["Non-DP", *(f"DP with ε={e:g}" for e in PAPER_BUDGETS)]


def films():
    frame = pd.DataFrame(
        {
            "split": ["train", "train", "train", "test", "test"],
            "patient_id": list("aabcc"),
            "view": "AP",
            "sex": ["F", "M", "M", "F", "unknown"],
            "age": [29.0, 30.0, 50.0, 85.0, np.nan],
        }
    )
    for finding in UKA_FINDINGS:
        frame[finding] = [1.0, 0.0, np.nan, 1.0, 1.0]
    return frame


def test_sample_sizes_are_those_of_the_training_films():
    assert sample_sizes(films(), ["congestion"]).to_dict() == {"congestion": 1.0}
    assert sample_sizes(
        films().rename(columns={"congestion": "y_congestion"}), ["congestion"], "test"
    ).to_dict() == {"congestion": 2.0}


def test_tables_are_written_in_three_kinds(tmp_path):
    written = write_paper_tables(tmp_path, evaluations(), films=films(), findings=UKA_FINDINGS)
    assert [path.name for path in written] == [
        f"table_{i}{e}" for i in (1, 2, 3) for e in (".md", ".tex", ".csv")
    ]
    read = pd.read_csv(tmp_path / "table_3.csv", index_col="Model", keep_default_na=False, dtype=str)
    pd.testing.assert_frame_equal(read, table_3(evaluations()), check_dtype=False)
    assert "$\\varepsilon$=7.89" in Path(written[4]).read_text()


def test_an_evaluation_without_groups_is_refused():
    old = pd.DataFrame({"group": ["all"], "finding": ["a"], "metric": ["auroc"], "value": [0.5]})
    with pytest.raises(
        InputError, match="epsilon 1: column 'attribute' is missing; written by another version"
    ):
        stack([Run(old, 1.0)])


def test_stacked_evaluations_survive_their_file(tmp_path):
    evaluations().to_csv(tmp_path / "e.csv", index=False)
    read = stack(
        [
            Run(part.drop(columns=["epsilon", "delta"]), part["epsilon"].iloc[0])
            for _, part in pd.read_csv(tmp_path / "e.csv").groupby("epsilon")
        ]
    )
    pd.testing.assert_frame_equal(table_3(read), table_3(evaluations()))
    assert len(paper_results()) == 252
