import numpy as np
import pandas as pd
import pytest

from jaxcxr.config_files import load
from jaxcxr.data.manifest import read_table
from jaxcxr.data.sources.table import TableSource, to_manifest
from jaxcxr.errors import InputError

GRADED = """
columns: {path: file, patient_id: pid, age: years, sex: gender, view: position, split: part}
sex: {'1': M, '2': F}
view: {posterior: PA, bed: AP}
split: {Training: train, Testing: test}
keep: {position: [posterior, bed, '']}
drop: {file: [dog.png]}
same_patient: {p9: p1}
graded:
  cardiomegaly:
    column: heart
    grades: {normal: 0, borderline: 1, unsure: null}
  congestion: {column: water}
"""
GRADED_CSV = """file,pid,years,gender,position,part,heart,water
lateral.png,p0,nonsense,X,side,Training,x,9
1.png,p1,63,1,posterior,Training,normal,1.0
2.png,p9,64,2.0,bed,Training,borderline,0
dog.png,p5,5,,,Training,normal,1
3.png,p3,,,,Testing,unsure,
4.png,p4,70,1,bed,Testing,,1
"""
LISTED = """
columns: {path: file, patient_id: pid}
listed:
  column: finding
  findings: {pneumonia: [Pneumonia, Lobar Pneumonia], effusion: [Effusion]}
  unlabelled: [unlabelled, COVID-19]
  other: [No Finding, Mass]
draw: {train: 0.5, valid: 0.0, test: 0.5, seed: 1}
"""
LISTED_CSV = """file,pid,finding
1.png,p1,No Finding
2.png,p2,Effusion|Mass
3.png,p3,Lobar Pneumonia | Effusion
4.png,p4,unlabelled
5.png,p5,COVID-19|Pneumonia
6.png,p6,
"""


def manifest(tmp_path, yaml, csv):
    (tmp_path / "source.yaml").write_text(yaml)
    (tmp_path / "images.csv").write_text(csv)
    source = load(TableSource, tmp_path / "source.yaml")
    return to_manifest(read_table(tmp_path / "images.csv"), source, "images.csv")


def test_graded_findings_become_a_manifest(tmp_path):
    frame = manifest(tmp_path, GRADED, GRADED_CSV)
    assert frame["path"].tolist() == frame["image_id"].tolist() == ["1.png", "2.png", "3.png", "4.png"]
    assert frame["patient_id"].tolist() == ["p1", "p1", "p3", "p4"]
    assert frame["sex"].tolist() == ["M", "F", "unknown", "M"]
    assert frame["view"].tolist() == ["PA", "AP", "unknown", "AP"]
    assert frame["split"].tolist() == ["train", "train", "test", "test"]
    np.testing.assert_array_equal(frame["age"], [63, 64, np.nan, 70])
    np.testing.assert_array_equal(frame["cardiomegaly"], [0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(frame["congestion"], [1, 0, np.nan, 1])


def test_listed_findings_become_a_manifest(tmp_path):
    frame = manifest(tmp_path, LISTED, LISTED_CSV)
    nan = np.nan
    np.testing.assert_array_equal(frame["pneumonia"], [0, 0, 1, nan, 1, nan])
    np.testing.assert_array_equal(frame["effusion"], [0, 1, 1, nan, nan, nan])
    alone = [
        manifest(tmp_path, LISTED, "\n".join([LISTED_CSV.splitlines()[0], row]))["split"][0]
        for row in LISTED_CSV.splitlines()[1:]
    ]
    assert frame["split"].tolist() == alone
    assert set(frame["sex"]) == set(frame["view"]) == {"unknown"}
    assert np.isnan(frame["age"]).all()


@pytest.mark.parametrize(("unit", "years"), [("years", 24.0), ("months", 2.0), ("days", 24 / 365.25)])
def test_ages_are_turned_into_years(tmp_path, unit, years):
    csv = "file,pid,finding,age\n1.png,p1,Mass,24\n2.png,p2,Mass,\n"
    frame = manifest(tmp_path, LISTED.replace("pid}", "pid, age: age}") + f"age_unit: {unit}\n", csv)
    np.testing.assert_allclose(frame["age"], [years, np.nan])


def test_an_image_id_and_comorbidities_may_have_columns(tmp_path):
    yaml = LISTED.replace("pid}", "pid, image_id: uid, comorbidities: sick}")
    frame = manifest(tmp_path, yaml, "file,pid,uid,sick,finding\n1.png,p1,u1,3,Mass\n2.png,p2,u2,,Mass\n")
    assert frame["image_id"].tolist() == ["u1", "u2"]
    assert frame["comorbidities"].tolist()[0] == 3


def test_an_empty_cell_can_be_given_a_label(tmp_path):
    frame = manifest(
        tmp_path, GRADED.replace("column: water}", "column: water, grades: {1: 1, 0: 0, '': 0}}"), GRADED_CSV
    )
    np.testing.assert_array_equal(frame["congestion"], [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("borderline", "huge", ["row 3", "'heart'", "'huge'", "'normal', 'borderline', 'unsure'"]),
        ("normal,1.0", "normal,2", ["row 2", "'water'", "'2'", "'0', '1'"]),
        ("63,1,", "63,3,", ["row 2", "'gender'", "'3'", "'1', '2'"]),
        ("64,2.0,bed,Training", "64,2.0,bed,Learning", ["row 3", "'part'", "'Learning'", "'Training'"]),
        ("64,", "sixty,", ["row 3", "'years'", "'sixty'"]),
        ("64,", "-64,", ["row 3", "'years'", "'-64'"]),
        ("64,", "inf,", ["row 3", "'years'", "'inf'"]),
        ("p3,", ",", ["row 5", "'patient_id'"]),
        ("3.png", "1.png", ["rows 2 and 5", "'image_id'", "'1.png'"]),
        ("p3,", "p9,", ["'p1'", "'train'", "'test'"]),
        ("heart", "cor", ["'heart'", "is missing"]),
        ("position", "posture", ["'position'", "is missing"]),
    ],
)
def test_a_bad_cell_or_column_is_refused_with_its_place(tmp_path, old, new, words):
    with pytest.raises(InputError) as refusal:
        manifest(
            tmp_path,
            GRADED,
            GRADED_CSV.replace(old, new, 1) if old != "heart" else GRADED_CSV.replace("heart", "cor"),
        )
    for word in ["images.csv", *words]:
        assert word in str(refusal.value)


def test_a_label_nobody_declared_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"row 2, column 'finding': found 'Efusion', expected one of 'Pneumonia'.*'Mass'"
    ):
        manifest(tmp_path, LISTED, LISTED_CSV.replace("Effusion|Mass", "Efusion|Mass"))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        (LISTED + "graded: {a: {column: finding}}\n", "exactly one of 'graded' and 'listed'"),
        (
            "columns: {path: file, patient_id: pid}\ndraw: {train: 1.0, valid: 0.0, test: 0.0}\n",
            "exactly one of 'graded'",
        ),
        (LISTED.replace("pid}", "pid, split: finding}"), "exactly one of 'columns.split' and 'draw'"),
        (LISTED.replace("train: 0.5", "train: 0.9"), "sum to 1"),
        (LISTED + "keep: {pid: [nobody]}\n", "none of its 6 rows"),
        (LISTED + "keeps: {pid: [p1]}\n", "keeps: unknown key"),
        (GRADED.replace("borderline: 1", "borderline: 2"), "borderline"),
        (GRADED.replace("'1': M", "'1': male"), "male"),
    ],
)
def test_an_impossible_column_map_is_refused(tmp_path, yaml, words):
    with pytest.raises(InputError, match=words):
        manifest(tmp_path, yaml, LISTED_CSV)


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of its 0 rows"):
        manifest(tmp_path, LISTED, "file,pid,finding\n")


def test_a_parquet_table_gives_the_same_manifest(tmp_path):
    frame = manifest(tmp_path, GRADED, GRADED_CSV)
    pd.read_csv(tmp_path / "images.csv").to_parquet(tmp_path / "images.parquet")
    source = load(TableSource, tmp_path / "source.yaml")
    pd.testing.assert_frame_equal(
        to_manifest(read_table(tmp_path / "images.parquet"), source, "images"), frame
    )
