import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.report.figures.sweep_figures import BESIDE, NON_PRIVATE, PAPER, PRIVATE, figure_2


def summary(budgets, findings=UKA_FINDINGS):
    lines = [
        {
            "epsilon": epsilon,
            "finding": finding,
            "metric": metric,
            "value": 0.8 + 0.01 * i,
            "std": 0.01,
            "ci_low": 0.78 + 0.01 * i,
            "ci_high": 0.82 + 0.01 * i,
        }
        for epsilon in budgets
        for finding in (*findings, "average")
        for i, metric in enumerate(["auroc", "accuracy", "sensitivity", "specificity"])
    ]
    return pd.DataFrame(lines)


def texts(svg):
    return [
        "".join(element.itertext()).strip()
        for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_figure_has_four_labelled_panels_and_all_series(tmp_path):
    png, svg = figure_2(summary([np.inf, 7.89, 1.06]), tmp_path / "figures")
    assert (png.name, svg.name) == ("figure_2.png", "figure_2.svg")
    found = texts(svg)
    for expected in [
        "(A) AUROC",
        "(B) Accuracy",
        "(C) Specificity",
        "(D) Sensitivity",
        "average AUROC",
        "average sensitivity",
    ]:
        assert found.count(expected) == 1
    assert found.count("privacy budget ε") == 4
    for budget in ["7.89", "4.71", "2.04", "1.06", "0.54", "0.29"]:
        assert found.count(budget) == 4
    legend = [
        "private (95 % interval)",
        "non-private (95 % interval)",
        "paper, private",
        "paper, non-private",
    ]
    assert [text for text in found if text in legend] == legend
    drawn = svg.read_text().lower()
    assert all(colour.lower() in drawn for colour in (PRIVATE, NON_PRIVATE, PAPER))
    with Image.open(png) as image:
        assert image.size == (2160, 1680)


@pytest.mark.parametrize(
    ("budgets", "present", "absent"),
    [([1.06], PRIVATE, NON_PRIVATE), ([np.inf], NON_PRIVATE, PRIVATE)],
)
def test_one_model_is_enough(tmp_path, budgets, present, absent):
    _, svg = figure_2(summary(budgets), tmp_path, stem="one")
    assert present.lower() in svg.read_text().lower()
    assert absent.lower() not in svg.read_text().lower()


@pytest.mark.parametrize("budgets", [[3.0, 1.0, np.inf], [np.inf]])
def test_other_findings_are_not_drawn_beside_the_paper(tmp_path, budgets):
    _, svg = figure_2(summary(budgets, findings=("hernia",)), tmp_path)
    assert not any("paper" in text for text in texts(svg))
    assert "4.71" not in texts(svg)


def test_intervals_are_drawn_where_there_are_any(tmp_path):
    table = summary([np.inf, 1.06], findings=("hernia",))
    _, with_intervals = figure_2(table, tmp_path, stem="with")
    _, without = figure_2(table.drop(columns=["ci_low", "ci_high"]), tmp_path, stem="without")

    def count(svg, kind):
        return len(re.findall(rf'id="{kind}', svg.read_text()))

    assert count(with_intervals, "LineCollection") - count(without, "LineCollection") == 4


def test_another_sweep_is_drawn_beside(tmp_path):
    table, other = summary([np.inf, 1.06], findings=("hernia",)), summary([np.inf, 3.0], findings=("hernia",))
    _, alone = figure_2(table, tmp_path, stem="alone")
    _, both = figure_2(table, tmp_path, stem="both", beside=("first", other))
    assert {"first, private", "first, non-private"} == set(texts(both)) - set(texts(alone)) - {"3"} - numbers(
        both
    )
    assert texts(both).count("3") == 4  # its budgets are on the axes too
    assert BESIDE.lower() in both.read_text().lower()
    assert BESIDE.lower() not in alone.read_text().lower()


def numbers(svg):
    """The labels of the upright axes."""
    return {text for text in texts(svg) if re.fullmatch(r"0\.\d+", text)}


def test_budgets_too_close_to_be_read_share_a_tick(tmp_path):
    _, svg = figure_2(summary([8.0, 1.0]), tmp_path)
    assert texts(svg).count("8") == 4
    assert "7.89" not in texts(svg)


def test_same_figure_same_file_and_no_settings_left_behind(tmp_path):
    before = dict(mpl.rcParams)
    first, second = (figure_2(summary([7.89]), tmp_path / name)[1].read_bytes() for name in "ab")
    assert first == second
    assert dict(mpl.rcParams) == before
