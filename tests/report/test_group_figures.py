import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.eval.evaluate import EVALUATION_COLUMNS
from jaxcxr.report.figures.heat_map import draw_heat_map, heat_map
from jaxcxr.report.figures.model_curves import calibration_figure, roc_figure
from jaxcxr.report.figures.sweep_figures import PALETTE, figure_3, figure_4
from jaxcxr.report.paper.supplementary_tables import METRIC_NAMES


def evaluations(budgets=(np.inf, 7.89, 1.06), undefined="sex_unknown"):
    lines = []
    for epsilon in budgets:
        for i, finding in enumerate([*UKA_FINDINGS, "average"]):
            lines.append((epsilon, "all", "", "", finding, "auroc", 0.9 - 0.01 * i - 0.02 / epsilon))
        for i, group in enumerate(["sex_F", "sex_M", "sex_unknown"]):
            for metric in [*METRIC_NAMES, "underdiagnosis_rate"]:
                value = np.nan if group == undefined else 0.8 + 0.01 * i - 0.01 / epsilon
                lines.append((epsilon, group, "sex", "", "average", metric, value))
            value = np.nan if group == undefined else 0.004
            lines.append((epsilon, group, "sex", "rest", "average", "statistical_parity_difference", value))
        lines.append((epsilon, "sex_F*age_0_30", "sex*age", "", "average", "auroc", 0.7))
    names = ["epsilon", "group", "attribute", "reference", "finding", "metric", "value"]
    frame = pd.DataFrame(lines, columns=names)
    frame = frame.assign(
        label=frame["group"].str.replace("_", " "),
        ci_low=frame["value"] - 0.01,
        ci_high=frame["value"] + 0.01,
    )
    return frame.reindex(columns=["epsilon", *EVALUATION_COLUMNS])


def files_of(written: tuple[Path, Path] | None) -> tuple[Path, Path]:
    assert written is not None
    return written


def texts(svg):
    return [
        "".join(element.itertext()).strip()
        for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_figure_4_draws_each_group_that_is_defined(tmp_path):
    png, svg = files_of(figure_4(evaluations(), tmp_path))
    found = texts(svg)
    assert {"(A) AUROC", "(B) Accuracy", "(C) Specificity", "(D) Sensitivity", "sex F", "sex M"} <= set(found)
    assert "sex unknown" not in found
    drawn = svg.read_text().lower()
    assert PALETTE[0].lower() in drawn
    assert PALETTE[1].lower() in drawn
    assert "non-private, in the same colours" in found
    with Image.open(png) as image:
        assert image.size == (2160, 1680)
    assert figure_4(evaluations(), tmp_path, "age") is None


def test_figure_3_has_a_dot_a_finding_and_the_correlation(tmp_path):
    samples = pd.Series({f: 100.0 * (i + 1) for i, f in enumerate(UKA_FINDINGS)})
    _, svg = files_of(figure_3(evaluations(), samples, 7.89, tmp_path))
    found = " ".join(texts(svg))
    assert "n = 8 findings" in found
    assert "Pearson's r −1.00" in found
    assert "8 Atelectasis Left: 0.00" in found
    own = pd.DataFrame(
        {
            "epsilon": [7.89],
            "group": "all",
            "metric": "auroc",
            "finding": "congestion",
            "difference": 0.05,
            "ci_low": -0.01,
            "ci_high": 0.1,
        }
    )
    _, svg = files_of(figure_3(evaluations(), samples, 7.89, tmp_path, own, stem="paired"))
    assert "2 Congestion: 0.05 [−0.01, 0.10]" in " ".join(texts(svg))
    assert figure_3(evaluations(budgets=(7.89,)), samples, 7.89, tmp_path) is None
    assert figure_3(evaluations(), samples.iloc[:0], 7.89, tmp_path) is None


def test_heat_map_has_a_cell_a_group_and_budget(tmp_path):
    _, svg = files_of(heat_map(evaluations(), tmp_path))
    found = texts(svg)
    assert found.count("+0.004") == 2 * 3
    assert {"all", "sex F", "sex M", "non-private", "7.89", "1.06"} <= set(found)
    assert "sex F*age 0 30" not in found
    assert "sex unknown" not in found  # no value at any budget
    assert "0.79, 0.81" in found
    assert heat_map(evaluations().query("group == 'all'"), tmp_path) is None


@pytest.mark.parametrize(
    "budgets", [(1.0,), (np.inf, 7.89, 1.06), (np.inf, 7.89, 4.71, 2.04, 1.06, 0.54, 0.29)]
)
@pytest.mark.parametrize("label", ["sex F", "comorbidities of the thorax [10, 12)"])
def test_labels_of_the_heat_map_never_overlap(budgets, label):
    """Everything that is written, measured where it was drawn; the widest numbers that a cell can hold."""
    table = evaluations(budgets).replace({"label": {"sex F": label}})
    low = table["metric"] == "statistical_parity_difference"
    table.loc[low, ["value", "ci_low", "ci_high"]] = [-0.888, -0.989, -0.887]
    table = table.assign(note="over 3 of 8 findings")
    figure = draw_heat_map(table)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]
    assert label in [text for text, _ in boxes]
    whole = figure.bbox
    for text, box in boxes:
        inside = whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        assert inside, f"{text!r} is cut off"
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
        assert apart, f"{first!r} overlaps {second!r}"


def predictions(n=400):
    rng = np.random.default_rng(0)
    table = {"patient_id": np.arange(n) // 2, "split": np.where(np.arange(n) % 4 == 0, "valid", "test")}
    for finding in ("heart", "lung", "rib"):
        table[f"y_{finding}"] = (rng.random(n) < 0.3).astype(float) if finding != "rib" else np.zeros(n)
        table[f"p_{finding}"] = np.clip(0.3 + 0.3 * table[f"y_{finding}"] + 0.15 * rng.normal(size=n), 0, 1)
    return pd.DataFrame(table)


def test_curves_have_a_panel_a_finding_and_one_class_is_said(tmp_path):
    table = predictions()
    _, svg = roc_figure(table, ["heart", "lung", "rib"], tmp_path)
    found = texts(svg)
    assert {"Heart", "Lung", "Rib", "not defined"} <= set(found)
    assert sum(text.startswith("AUROC 0.") for text in found) == 2
    _, svg = calibration_figure(table, ["heart", "lung", "rib"], tmp_path)
    assert sum(text.startswith("ECE 0.") for text in texts(svg)) == 3 - 1
    groups = {"first": np.arange(len(table)) < 200, "second": np.arange(len(table)) >= 200}
    _, svg = roc_figure(table, ["heart"], tmp_path, groups=groups, stem="groups")
    assert sum(text.startswith(("first: AUROC", "second: AUROC")) for text in texts(svg)) == 2
