import numpy as np
import pandas as pd
import pytest

from jaxcxr.data.manifest import check_manifest, read_manifest, read_table, require_positives
from jaxcxr.errors import InputError

FINDINGS = ("cardiomegaly", "congestion")


def table(**changes) -> pd.DataFrame:
    columns = {
        "image_id": ["007", "008", "009", "010"],
        "patient_id": ["p1", "p1", "p2", "p3"],
        "path": ["1.png", "2.png", "3.png", "4.png"],
        "split": ["train", "train", "valid", "test"],
        "age": ["63", "64.5", "", "0"],
        "sex": ["F", "F", "M", ""],
        "view": ["PA", "AP", "", "unknown"],
        "cardiomegaly": ["1", "0", "", "1.0"],
        "congestion": ["0", "1", "1", ""],
    }
    return pd.DataFrame({**columns, **changes})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_is_typed_and_keeps_its_order(tmp_path, suffix):
    path = tmp_path / f"manifest{suffix}"
    table().to_csv(path, index=False) if suffix == ".csv" else table().to_parquet(path)
    frame = read_manifest(path, FINDINGS)
    assert frame["image_id"].tolist() == ["007", "008", "009", "010"]
    assert frame["sex"].tolist() == ["F", "F", "M", "unknown"]
    assert frame["view"].tolist() == ["PA", "AP", "unknown", "unknown"]
    np.testing.assert_array_equal(frame["age"].to_numpy(), [63, 64.5, np.nan, 0])
    np.testing.assert_array_equal(frame["cardiomegaly"].to_numpy(), np.array([1, 0, np.nan, 1], np.float32))
    assert frame["cardiomegaly"].dtype == np.float32


def test_a_missing_view_is_unknown_and_the_input_is_untouched():
    given_frame = table().drop(columns="view")
    before = given_frame.copy()
    assert set(check_manifest(given_frame, FINDINGS, "m")["view"]) == {"unknown"}
    pd.testing.assert_frame_equal(given_frame, before)


def test_comorbidities_are_whole_numbers():
    frame = check_manifest(table(comorbidities=["0", "3", "", "2.0"]), FINDINGS, "m")
    assert frame["comorbidities"].tolist()[:2] == [0, 3]
    assert frame["comorbidities"].isna().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cardiomegaly": ["1", "0", "2", ""]}, ["row 3", "'cardiomegaly'", "'2'"]),
        ({"congestion": ["1", "0", "yes", ""]}, ["row 3", "'congestion'", "'yes'"]),
        ({"congestion": ["1", "0", "0.5", ""]}, ["row 3", "'0.5'"]),
        ({"congestion": ["1", "-1", "0", ""]}, ["row 2", "'-1'"]),
        (
            {"split": ["train", "train", "validate", "test"]},
            ["row 3", "'split'", "'validate'", "train, valid, test"],
        ),
        ({"split": ["train", "train", "", "test"]}, ["row 3", "'split'"]),
        ({"age": ["63", "-1", "", "0"]}, ["row 2", "'age'", "'-1'"]),
        ({"age": ["63", "inf", "", "0"]}, ["row 2", "'age'", "'inf'"]),
        ({"age": ["63", "063Y", "", "0"]}, ["row 2", "'age'", "'063Y'"]),
        ({"sex": ["F", "F", "m", ""]}, ["row 3", "'sex'", "'m'"]),
        ({"view": ["PA", "LATERAL", "", ""]}, ["row 2", "'view'", "'LATERAL'"]),
        ({"image_id": ["1", "2", "3", "2"]}, ["rows 2 and 4", "'image_id'", "'2'"]),
        (
            {"path": ["1.png", "2.png", "1.png", "4.png"]},
            ["rows 1 and 3", "'path'", "'1.png'", "one row per image"],
        ),
        ({"patient_id": ["p1", "p1", "", "p3"]}, ["row 3", "'patient_id'"]),
        ({"patient_id": ["p1", "p1", "p1", "p3"]}, ["'p1'", "'train'", "'valid'"]),
        ({"comorbidities": ["1", "1.5", "", "0"]}, ["row 2", "'comorbidities'", "'1.5'"]),
        ({"comorbidities": ["1", "-2", "", "0"]}, ["row 2", "'comorbidities'", "'-2'"]),
    ],
)
def test_a_bad_cell_is_refused_with_its_place(changes, words):
    with pytest.raises(InputError) as refusal:
        check_manifest(table(**changes), FINDINGS, "images.csv")
    for word in ["images.csv", *words]:
        assert word in str(refusal.value)


@pytest.mark.parametrize("column", ["image_id", "patient_id", "path", "split", "age", "sex", "congestion"])
def test_a_missing_column_is_named(column):
    with pytest.raises(InputError, match=f"'{column}' is missing"):
        check_manifest(table().drop(columns=column), FINDINGS, "images.csv")


def test_a_missing_column_is_likened_to_those_there_but_no_patient_is_shown():
    with pytest.raises(
        InputError, match=r"'patient_id' is missing among the 2 of the table; did you mean 'Patient ID'\?"
    ):
        check_manifest(pd.DataFrame(columns=["image_id", "Patient ID"]), FINDINGS, "images.csv")
    headless = pd.DataFrame(columns=["DOE^JANE", "1950-01-02", "F", "1.png"])
    with pytest.raises(InputError, match="is its first row the header") as refusal:
        check_manifest(headless, FINDINGS, "images.csv")
    assert not {"DOE", "1950"} & set(str(refusal.value).replace("^", " ").replace("-", " ").split())
    with pytest.raises(InputError, match="separated by commas"):
        check_manifest(pd.DataFrame(columns=["image_id;patient_id;path"]), FINDINGS, "images.csv")


def test_a_comma_at_the_end_of_each_row_moves_no_column(tmp_path):
    (tmp_path / "images.csv").write_text("path,patient,sex\n1.png,007,F,\n2.png,2,M,\n")
    assert read_table(tmp_path / "images.csv").to_dict("list") == {
        "path": ["1.png", "2.png"],
        "patient": ["007", "2"],
        "sex": ["F", "M"],
    }


@pytest.mark.parametrize(
    "rows", ["1.png,7,F,x\n2.png,2,M,\n", "1.png,7,F\n2.png,2,M,x\n", "1.png,7,F,,\n2.png,2,M,,\n"]
)
def test_cells_beyond_the_header_are_refused(tmp_path, rows):
    (tmp_path / "images.csv").write_text("path,patient,sex\n" + rows)
    with pytest.raises(InputError, match=r"more cells than the 3|Expected 3 fields in line 3, saw 4"):
        read_table(tmp_path / "images.csv")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "images.csv").write_text("path,edema, edema,,\n1.png,0,1,,\n")
    with pytest.raises(InputError, match="columns 2 and 3 of the header have the same name"):
        read_table(tmp_path / "images.csv")


def test_a_row_is_named_as_in_the_table_it_came_from():
    frame = table(age=["63", "64", "1", "old"])
    with pytest.raises(InputError, match="row 4,"):
        check_manifest(frame.iloc[2:], FINDINGS, "images.csv")


def test_an_empty_table_is_refused():
    with pytest.raises(InputError, match="no rows"):
        check_manifest(table().iloc[:0], FINDINGS, "images.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.csv", None, "no such table"),
        ("images.xlsx", b"x", "expected a .parquet or .csv"),
        ("images.csv", b"", "cannot be read"),
        ("images.csv", b"a,b\n\xff\xfe,1\n", "cannot be read"),
        ("images.parquet", b"not parquet", "cannot be read"),
    ],
)
def test_an_unreadable_table_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path / name, FINDINGS)


@pytest.mark.parametrize(
    ("labels", "kind"), [(["1", "0", "0", "0"], "positive"), (["1", "0", "1", "1"], "negative")]
)
def test_a_split_without_positives_or_negatives_is_refused(labels, kind):
    frame = table(
        split=["train", "train", "test", "test"],
        patient_id=["p1", "p1", "p2", "p3"],
        cardiomegaly=labels,
        congestion=["0", "1"] * 2,
    )
    with pytest.raises(InputError, match=f"split 'test' has no {kind} image of 'cardiomegaly'"):
        require_positives(check_manifest(frame, FINDINGS, "m"), FINDINGS)
    frame = frame.assign(cardiomegaly=["1", "0", "1", "0"])
    require_positives(check_manifest(frame, FINDINGS, "m"), FINDINGS)
