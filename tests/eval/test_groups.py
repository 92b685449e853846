import numpy as np
import pandas as pd
import pytest

from jaxcxr.errors import InputError
from jaxcxr.eval.groups import make_groups


def table(**columns):
    frame = pd.DataFrame({"image_id": [f"i{i}" for i in range(6)], **columns})
    frame.attrs["source"] = "images.csv"
    return frame


AGE = [29.9, 30.0, 60.0, 99.9, 100.0, np.nan]
SEX = ["F", "M", "M", "F", None, "unknown"]


def test_the_papers_groups_are_the_default():
    groups = make_groups(table(age=AGE, sex=SEX), None)
    found = {
        group.name: np.flatnonzero(group.rows).tolist() for group in groups if "*" not in group.attribute
    }
    assert found == {
        "age_0_30": [0], "age_30_60": [1], "age_60_70": [2], "age_70_80": [], "age_80_100": [3],
        "sex_F": [0, 3], "sex_M": [1, 2], "sex_unknown": [5],
    }  # fmt: skip
    both = [group for group in groups if group.attribute == "sex*age"]
    assert [group.name for group in both][:2] == ["sex_F*age_0_30", "sex_F*age_30_60"]
    assert len(both) == 15
    assert np.flatnonzero(next(g for g in both if g.name == "sex_M*age_30_60").rows).tolist() == [1]
    assert next(g for g in both if g.name == "sex_M*age_30_60").label == "sex M, age [30, 60)"


def test_the_default_leaves_out_what_is_not_there():
    assert make_groups(table(), None) == ()
    assert make_groups(table(age=[np.nan] * 6), None) == ()
    assert {group.attribute for group in make_groups(table(age=AGE), None)} == {"age"}


def test_whole_numbers_and_open_bins_have_short_names():
    groups = make_groups(table(comorbidities=[0, 1, 1, 2, 3, 7]), None)
    assert [(g.name, g.label, int(g.rows.sum())) for g in groups] == [
        ("comorbidities_0", "comorbidities 0", 1),
        ("comorbidities_1", "comorbidities 1", 2),
        ("comorbidities_2", "comorbidities 2", 1),
        ("comorbidities_3_or_more", "comorbidities ≥ 3", 2),
    ]
    halves = make_groups(table(score=[0.5, 1, 2, 3, 4, 5]), ["score:0,1"])
    assert halves[0].label == "score [0, 1)"


def test_any_column_makes_groups_of_its_values():
    groups = make_groups(table(ward=[2, 10, 2, 2, np.nan, 10]), ["ward"])
    assert [(g.name, np.flatnonzero(g.rows).tolist()) for g in groups] == [
        ("ward_2", [0, 2, 3]),
        ("ward_10", [1, 5]),
    ]


@pytest.mark.parametrize(
    ("columns", "specs", "message"),
    [
        ({}, ["ward"], "images.csv: column 'ward' is missing"),
        ({"ward": [None] * 6}, ["ward"], "column 'ward': expected values to make groups of, found none"),
        ({"age": ["1", "2", "old", "4", "5", "6"]}, ["age:0,9"], r"row 3 \(image_id 'i2'\), column 'age': expected a number, .* found 'old'"),
        ({"age": AGE}, ["age:0"], "at least two rising bin edges .* found 'age:0'"),
        ({"age": AGE}, ["age:30,0"], "rising bin edges"),
        ({"age": AGE}, ["age:0,x"], "rising bin edges"),
        ({"sex": SEX}, ["sex*"], "a column in each part of 'sex\\*'"),
        ({"sex": SEX}, ["sex", "sex"], "names of their own, found 'sex_F' twice"),
    ],
)  # fmt: skip
def test_what_makes_no_groups_is_refused(columns, specs, message):
    with pytest.raises(InputError, match=message):
        make_groups(table(**columns), specs)


def test_a_column_of_ten_thousand_values_is_refused():
    frame = pd.DataFrame({"mrn": [f"p{i}" for i in range(10_000)]})
    with pytest.raises(
        InputError,
        match="column 'mrn': expected at most 50 values to make groups of, found 10000; give bin edges",
    ):
        make_groups(frame, ["mrn"])
