import json

import pandas as pd
import pytest

from jaxcxr.data.manifest import check_manifest, read_table
from jaxcxr.data.sources import rsna
from jaxcxr.data.sources.dicom import view_of
from jaxcxr.data.sources.identities import folded, remarks, with_one_id
from jaxcxr.data.sources.published import Options, require_images
from jaxcxr.errors import InputError
from jaxcxr.yaml_files import read_yaml
from tests.data.odd_files import TWELVE, dicom

ROWS = [("f0.png", "007", "45,5"), ("f1.png", "008", "3")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, encoding, separator):
    lines = [separator.join(row) for row in [("path", "patient", "äge"), *ROWS]]
    for start in ("", f"sep={separator}\n"):
        (tmp_path / "t.csv").write_bytes((start + "\r\n".join(lines)).encode(encoding))
        table = read_table(tmp_path / "t.csv")
        assert table.columns.tolist() == ["path", "patient", "äge"]
        assert list(table.itertuples(index=False, name=None)) == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path;patient\nf.png;Müller\n".encode("cp1252"), "line 2 is not UTF-8 text"),
        (b"Export of today\n\npath,patient\nf.png,1\n", "a title stands above the header"),
        (b"path,patient\nf.png,\x001\n", "NUL"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / "t.csv")


def test_commas_stay_where_both_marks_occur(tmp_path):
    (tmp_path / "t.csv").write_text("path,labels;all\nf.png,a;b\ng.png,c\n")
    assert read_table(tmp_path / "t.csv")["labels;all"].tolist() == ["a;b", "c"]


def test_a_chain_of_aliases_ends_at_one_id_and_circles_are_refused():
    assert with_one_id(["A", "B", "C", "D"], {"A ": "B", "B": " C"}) == ["C", "C", "C", "D"]
    for circle in ({"A": "A"}, {"A": "B", "B": "C", "C": "A"}, {"A": "B", "A ": "C"}, {"": "B"}):
        with pytest.raises(InputError, match="same_patient"):
            with_one_id(["A"], circle)


@pytest.mark.parametrize(
    ("one", "other"),
    [("007", "7"), ("P007", "p7"), ("7", "7.0"), ("Mu\u0308ller", "M\u00fcller"), ("A\u200b1", "a1"), ("００7", "7")],
)  # fmt: skip
def test_ids_that_look_like_one_persons_are_named_and_not_joined(one, other):
    assert folded(one) == folded(other)
    (said,) = remarks([one, other, "100", "10"], {})
    assert said.startswith("1 sets of patient ids look like one person's each")
    assert repr(one) in said
    assert with_one_id([one, other], {}) == [one, other]
    assert remarks([one, other], {one: other}) == ()


@pytest.mark.parametrize(("one", "other"), [("10", "100"), ("A-1", "A1")])
def test_ids_of_two_persons_are_left_alone(one, other):
    assert remarks([one, other], {}) == ()


def test_aliases_that_name_nobody_are_named():
    assert remarks(["A", "B"], {"A": "B"}) == ()
    assert remarks(["A", "B"], {"X": "B"}) == ("same_patient: 1 of 1 aliases are the id of no image: 'X'",)


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"), ("pa", "PA"), ("postero-anterior", "PA"), ("Chest PA view", "PA"), ("AP SUPINE", "AP"),
        ("antero posterior", "AP"), ("PA LLD", "other"), ("PARASAGITTAL", "other"), ("APICAL", "other"),
        ("AP AXIAL", "other"), ("AP\\PA", "other"), ("left lateral", "lateral"), ("LL", "lateral"), ("", ""),
    ],
)  # fmt: skip
def test_a_view_is_frontal_only_by_whole_words(text, view):
    assert view_of(text) == view


def test_a_finding_may_not_take_a_column_and_a_path_not_another_spelling():
    rows = pd.DataFrame(
        {"image_id": ["a", "b"], "patient_id": ["1", "2"], "path": ["f.png", "./f.png"], "split": "train", "age": 1, "sex": "F", "x": 1}
    )  # fmt: skip
    with pytest.raises(InputError, match="one row per image"):
        check_manifest(rows, ["x"], "t")
    for findings in (["age"], ["view"], ["x", "x"]):
        with pytest.raises(InputError, match="expected a name that no other"):
            check_manifest(rows, findings, "t")


def test_a_wrong_folder_of_images_is_told_from_the_right_one(tmp_path):
    (tmp_path / "right" / "sub").mkdir(parents=True)
    (tmp_path / "right" / "sub" / "f.png").touch()
    require_images(tmp_path / "right", ["no.png", "sub/f.png"])
    for folder, name, words in ((tmp_path, "sub/f.png", "right"), (tmp_path / "right" / "sub", "sub/f.png", "give the folder above|lies in"), (tmp_path, "x" * 300, "start from")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            require_images(folder, [name])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("00123: x", {"00123": "x"}), ("12:30: x", {"12:30": "x"}), ("1_2: x", {"1_2": "x"}), ("null: x", {"null": "x"}),
        ("2020-01-01: 2020-01-02", {"2020-01-01": "2020-01-02"}), ("no: 0100", {"no": "0100"}), ("a: 1_000", {"a": 1000}),
        ("a: -1.5e-3", {"a": -0.0015}), ("<<: {x: 1}\ny: 2", {"x": 1, "y": 2}),
    ],
)  # fmt: skip
def test_yaml_is_the_text_that_stands_there(tmp_path, text, found):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml", "a.yaml") == found


def test_rsna_images_are_of_the_patients_that_the_mapping_names(tmp_path):
    folder = tmp_path / "stage_2_train_images"
    folder.mkdir()
    classes = ["Lung Opacity", "Normal", "No Lung Opacity / Not Normal", "Normal"] * 3
    for index in range(12):
        dicom(folder / f"i{index}.dcm", TWELVE, {"PatientAge": "058Y", "PatientSex": "F"})
    rows = [f"i{index},{name}" for index, name in enumerate(classes)]
    text = "\n".join(["patientId,class", *rows, rows[0]])  # one row per box
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(text)
    alone = rsna.read(tmp_path, tmp_path, Options())
    assert "names an image" in alone.remarks[-1]
    mapping = [{"subset_img_id": f"i{index}", "img_id": f"{index // 2:08d}_000.png"} for index in range(12)]
    (tmp_path / rsna.MAPPINGS[0]).write_text(json.dumps(mapping))
    cohort = rsna.read(tmp_path, tmp_path, Options())
    assert cohort.remarks == ()
    frame = cohort.manifest.set_index("image_id")
    assert len(set(frame["patient_id"])) == 6
    assert frame.loc["i0", ["lung_opacity", "abnormal"]].tolist() == [1, 1]
    assert frame.loc["i2", ["lung_opacity", "abnormal"]].tolist() == [0, 1]
    assert frame.loc["i0", ["age", "sex", "view"]].tolist() == [58, "F", "PA"]
