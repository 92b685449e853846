"""What private training bought and cost, and what the runs of a sweep differ in beside privacy."""

import dataclasses
import math

import pandas as pd
import pytest

from jaxcxr.report.gains import bought_and_paid, gains
from jaxcxr.report.how_trained import differences
from jaxcxr.report.run_facts import Facts

STARTS = {
    0.5: {"value_a": 0.80, "value_b": 0.83, "difference": -0.03, "ci_low": -0.05, "ci_high": -0.01},
    2.0: {"value_a": 0.80, "value_b": 0.84, "difference": -0.04, "ci_low": -0.05, "ci_high": -0.03},
    8.0: {"value_a": 0.80, "value_b": 0.79, "difference": 0.01, "ci_low": -0.02, "ci_high": 0.04},
    math.inf: {"value_a": 0.80, "value_b": 0.90, "difference": -0.1, "ci_low": -0.2, "ci_high": -0.05},
}


def prices(**by_budget: tuple[float, float, float]) -> pd.DataFrame:
    rows = [
        {"epsilon": float(name[1:].replace("_", ".")), "difference": d, "ci_low": low, "ci_high": high}
        for name, (d, low, high) in by_budget.items()
    ]
    return pd.DataFrame(rows).assign(group="all", reference="", finding="average", metric="auroc")


def test_a_gain_is_the_model_minus_its_start() -> None:
    table = gains(STARTS)
    assert list(table["epsilon"]) == [math.inf, 8.0, 2.0, 0.5]
    assert table.iloc[-1][["before", "after", "gain", "ci_low", "ci_high"]].tolist() == [
        0.80, 0.83, 0.03, 0.01, 0.05,
    ]  # fmt: skip
    assert gains({}).empty


def test_the_smallest_and_the_largest_budget_say_what_they_bought_and_cost() -> None:
    said = bought_and_paid(gains(STARTS), prices(e0_5=(0.07, 0.05, 0.09), e8=(0.02, -0.01, 0.05)))
    assert said == [
        "At ε = 0.5, in average AUROC, private training bought +0.030 (95 % interval 0.010 to 0.050) over the "
        "weights that it started from, and privacy cost +0.070 (95 % interval 0.050 to 0.090) against training "
        "without it.",
        "At ε = 8, in average AUROC, private training bought −0.010 (95 % interval −0.040 to 0.020, not "
        "distinguishable from zero) over the weights that it started from, and privacy cost +0.020 (95 % "
        "interval −0.010 to 0.050, not distinguishable from zero) against training without it.",
    ]


def test_what_was_not_measured_is_not_said() -> None:
    (said,) = bought_and_paid(gains({0.5: STARTS[0.5]}), None)
    assert said.endswith("over the weights that it started from.")
    assert bought_and_paid(gains({math.inf: STARTS[math.inf]}), None) == []
    undefined = {0.5: dict.fromkeys(STARTS[0.5], math.nan)}
    assert bought_and_paid(gains(undefined), None) == []


RUN = Facts(
    "run",
    {"training": {"scope": "all", "expected_batch_size": 128}, "model": {"test_time_augmentation": "one"}},
    {"steps": 100},
    None,
)


def differing(part: str, **values: object) -> Facts:
    if part == "run":
        return dataclasses.replace(RUN, run={**RUN.run, **values})
    return dataclasses.replace(RUN, config={**RUN.config, part: {**RUN.config[part], **values}})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            differing("run", steps=50),
            "ε = 1: trained the whole network in 50 steps of 128 expected images (6,400 passes); ε = 8 and "
            "without privacy: trained the whole network in 100 steps of 128 expected images (12,800 passes)",
        ),
        (differing("training", scope="head_on_features"), "ε = 1: trained the head alone in 100 steps"),
        (differing("training", expected_batch_size=64), "(6,400 passes)"),
        (
            differing("model", test_time_augmentation="mirrored"),
            "ε = 1: predicted by the mean over mirrored views; ε = 8 and without privacy: predicted by each image as it is.",
        ),
    ],
)
def test_runs_that_differ_in_more_than_their_budget_are_named(other: Facts, told: str) -> None:
    assert told in differences({math.inf: RUN, 8.0: RUN, 1.0: other})


def test_runs_that_differ_in_their_budget_alone_are_not_remarked_upon() -> None:
    assert differences({math.inf: RUN, 8.0: RUN, 1.0: dataclasses.replace(RUN, name="other")}) == ""
    assert differences({}) == ""
