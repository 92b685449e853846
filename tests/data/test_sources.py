"""Adapters of published sets, on small tables made up with the quirks of the real ones."""

import contextlib
import dataclasses
import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pydicom.config
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from jaxcxr.config_files import load
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.manifest import check_manifest, read_table
from jaxcxr.data.sources import chexpert, mimic, nih, padchest, uka, vindr
from jaxcxr.data.sources import dicom as folder_of_dicom
from jaxcxr.data.sources.published import Cohort, Options
from jaxcxr.data.sources.table import Columns, Listed, TableSource, to_manifest
from jaxcxr.errors import InputError

REPOSITORY = Path(__file__).parents[2]
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = [
    ("00000001_000.png", "Cardiomegaly|Effusion", "0", "1", "058Y", "M", "PA"),
    ("00000001_001.png", "No Finding", "1", "1", "059Y", "M", "PA"),
    ("00000002_000.png", "No Finding", "0", "2", "414Y", "F", "AP"),
    ("00000003_000.png", "Infiltration|Edema", "0", "3", "018M", "F", "PA"),
    ("00000004_000.png", "Hernia", "0", "4", "013D", "M", "PA"),
    ("00000005_000.png", "Pneumonia|Atelectasis", "0", "5", "81", "M", "AP"),
]
DRAWN = Options(split="drawn")
by_id = "image_id"


def nih_folder(folder, old: bool):
    rest = ",2682,2749,0.143,0.143" + ("," if old else "")
    name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    header = NIH_HEADER + ("," if old else "")
    (folder / name).write_text("\n".join([header, *(",".join(row) + rest for row in NIH_ROWS)]) + "\n")
    (folder / "train_val_list.txt").write_text("\n".join(row[0] for row in NIH_ROWS[:4]))
    (folder / "test_list.txt").write_text("\n".join(row[0] for row in NIH_ROWS[4:]) + "\n")


def test_two_ids_of_one_patient_are_joined_and_may_not_stand_on_two_sides(tmp_path):
    nih_folder(tmp_path, old=True)
    one = nih.read(tmp_path, tmp_path, Options(split="drawn", same_patient={"5": "1"})).manifest
    assert one["patient_id"].tolist() == ["1", "1", "2", "3", "4", "1"]
    assert one.loc[one["patient_id"] == "1", "split"].nunique() == 1
    with pytest.raises(InputError, match="patient '1' has images in splits 'train' and 'test'"):
        nih.read(tmp_path, tmp_path, Options(valid_fraction=0.0, same_patient={"5": "1"}))


@pytest.mark.parametrize("old", [True, False])
def test_nih_is_read_in_both_versions(tmp_path, old):
    nih_folder(tmp_path, old)
    frame = nih.read(tmp_path, tmp_path, Options(valid_fraction=0.0)).manifest.set_index(by_id)
    assert frame["split"].tolist() == ["train"] * 4 + ["test"] * 2
    np.testing.assert_allclose(frame["age"], [58, 59, np.nan, 1.5, 13 / 365.25, 81])
    assert frame["sex"].tolist() == ["M", "M", "F", "F", "M", "M"]
    assert frame["view"].tolist() == ["PA", "PA", "AP", "PA", "PA", "AP"]
    assert frame["patient_id"].tolist() == ["1", "1", "2", "3", "4", "5"]
    assert frame.loc["00000001_000.png", ["cardiomegaly", "effusion", "hernia"]].tolist() == [1, 1, 0]
    assert frame["hernia"].tolist() == [0, 0, 0, 0, 1, 0]


def test_nih_without_a_comma_at_the_end_of_its_header(tmp_path):
    nih_folder(tmp_path, old=False)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line + "," for line in lines[1:])]))
    frame = nih.read(tmp_path, tmp_path, DRAWN).manifest
    assert frame["image_id"].tolist() == [row[0] for row in NIH_ROWS]


@pytest.mark.parametrize("extra", [",x", ",,", ",,x"])
def test_cells_beyond_the_header_are_never_cut_in_silence(tmp_path, extra):
    nih_folder(tmp_path, old=False)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line + extra for line in lines[1:])]))
    with pytest.raises(InputError, match="more cells than the 11 of the header"):
        nih.read(tmp_path, tmp_path, DRAWN)


def test_nih_as_the_papers_findings_leaves_sides_unknown(tmp_path):
    nih_folder(tmp_path, old=False)
    frame = nih.read(tmp_path, tmp_path, Options(labels="paper", split="drawn")).manifest
    assert [column for column in frame.columns if column in UKA_FINDINGS] == list(UKA_FINDINGS)
    assert frame["cardiomegaly"].tolist() == [1, 0, 0, 0, 0, 0]
    assert frame["congestion"].tolist() == [0, 0, 0, 1, 0, 0]
    for side in ("right", "left"):
        np.testing.assert_array_equal(frame[f"pleural_effusion_{side}"], [np.nan, 0, 0, 0, 0, 0])
        np.testing.assert_array_equal(frame[f"pneumonic_infiltrates_{side}"], [0, 0, 0, np.nan, 0, np.nan])


def test_nih_images_are_found_wherever_they_lie(tmp_path):
    nih_folder(tmp_path, old=False)
    images = tmp_path / "download" / "images_002" / "images"
    images.mkdir(parents=True)
    (images / NIH_ROWS[0][0]).touch()
    frame = nih.read(tmp_path, tmp_path, DRAWN).manifest
    assert frame.loc[0, "path"] == f"download/images_002/images/{NIH_ROWS[0][0]}"
    assert frame.loc[1, "path"] == f"images/{NIH_ROWS[1][0]}"


CHEXPERT_HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS]


def chexpert_folder(folder, cells=("1.0", "0.0", "-1.0", "", "1.0")):
    rows = []
    for index, cell in enumerate(cells):
        lateral = index == 4
        path = f"CheXpert-v1.0-small/train/patient{index:05d}/study1/view1_{'lateral' if lateral else 'frontal'}.jpg"
        labels = [
            cell if label in ("Edema", "Atelectasis", "Pleural Effusion") else "" for label in chexpert.LABELS
        ]
        rows.append([path, "Unknown" if index == 3 else "Male", str(60 + index), "Lateral" if lateral else "Frontal",
                     "" if lateral else "AP", *labels])  # fmt: skip
    pd.DataFrame(rows, columns=CHEXPERT_HEADER).to_csv(folder / "train.csv", index=False)


@pytest.mark.parametrize(("policy", "label"), [("unknown", np.nan), ("negative", 0), ("positive", 1)])
def test_chexpert_uncertain_labels_follow_the_policy_of_their_finding(tmp_path, policy, label):
    chexpert_folder(tmp_path)
    options = Options(split="drawn", uncertain={"default": "unknown", "Edema": policy})
    cohort = chexpert.read(tmp_path, tmp_path, options)
    np.testing.assert_array_equal(cohort.manifest["edema"], [1, 0, label, np.nan])
    np.testing.assert_array_equal(cohort.manifest["atelectasis"], [1, 0, np.nan, np.nan])
    assert cohort.excluded == {"view lateral": 1}
    assert cohort.manifest.loc[0, "path"] == "train/patient00000/study1/view1_frontal.jpg"
    assert cohort.manifest["patient_id"].tolist() == [f"patient{i:05d}" for i in range(4)]
    assert cohort.manifest["sex"].tolist() == ["M", "M", "M", "unknown"]


def test_chexpert_unmentioned_may_be_negative_and_policies_must_name_findings(tmp_path):
    chexpert_folder(tmp_path)
    frame = chexpert.read(tmp_path, tmp_path, Options(split="drawn", unmentioned="negative")).manifest
    np.testing.assert_array_equal(frame["edema"], [1, 0, np.nan, 0])
    with pytest.raises(InputError, match="no finding 'Oedema'"):
        chexpert.read(tmp_path, tmp_path, Options(split="drawn", uncertain={"Oedema": "positive"}))


def test_chexpert_as_the_papers_findings(tmp_path):
    chexpert_folder(tmp_path, cells=("",) * 5)
    table = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    for row, label in enumerate(("Cardiomegaly", "Edema", "Pneumonia", "Atelectasis")):
        table[label] = np.where(np.arange(5) == row, "1.0", "0.0")
    table["Pleural Effusion"] = "0.0"
    table.to_csv(tmp_path / "train.csv", index=False)
    frame = chexpert.read(tmp_path, tmp_path, Options(labels="paper", split="drawn")).manifest
    expected = {"cardiomegaly": [1, 0, 0, 0], "congestion": [0, 1, 0, 0]}
    for side in ("right", "left"):
        expected |= {
            f"pneumonic_infiltrates_{side}": [0, 0, np.nan, 0],
            f"atelectasis_{side}": [0, 0, 0, np.nan],
        }
        expected[f"pleural_effusion_{side}"] = [0, 0, 0, 0]
    for finding, labels in expected.items():
        np.testing.assert_array_equal(frame[finding], labels)


def test_a_lower_highest_age_makes_more_ages_unknown(tmp_path):
    chexpert_folder(tmp_path)
    ages = chexpert.read(tmp_path, tmp_path, Options(split="drawn", max_age=61.0)).manifest["age"]
    np.testing.assert_array_equal(ages, [60, 61, np.nan, np.nan])


def test_chexpert_official_splits(tmp_path):
    chexpert_folder(tmp_path)
    table = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    for split in ("valid", "test"):
        table.assign(Path=table["Path"].str.replace("train/patient", f"{split}/patient9" + split[0])).to_csv(
            tmp_path / f"{split}.csv", index=False
        )
    frame = chexpert.read(tmp_path, tmp_path, Options()).manifest
    assert frame["split"].value_counts().to_dict() == {"train": 4, "valid": 4, "test": 4}


def mimic_folder(folder, suffix=""):
    images = pd.DataFrame(
        {
            "dicom_id": [f"d{i}" for i in range(6)],
            "subject_id": ["10000001", "10000001", "10000002", "10000003", "10000004", "10000005"],
            "study_id": ["51", "51", "52", "53", "54", "55"],
            "ViewPosition": ["AP", "LATERAL", "PA", "LL", "", "AP"],
            "StudyDate": ["21800506"] * 6,
        }
    )
    splits = images[["dicom_id", "study_id", "subject_id"]].assign(
        split=["train", "train", "validate", "test", "test", "test"]
    )
    studies = pd.DataFrame(
        {"subject_id": ["10000001", "10000002", "10000003"], "study_id": ["51", "52", "53"]}
    ).assign(**{label: ["1.0", "-1.0", "0.0"] for label in chexpert.LABELS})
    people = pd.DataFrame(
        {
            "subject_id": ["10000001", "10000002"],
            "gender": ["F", "M"],
            "anchor_age": ["52", "91"],
            "anchor_year": ["2178", "2180"],
        }
    )
    for kind, table in (("metadata", images), ("split", splits), ("chexpert", studies)):
        text = table.to_csv(index=False)
        path = folder / f"mimic-cxr-2.0.0-{kind}.csv{suffix}"
        path.write_bytes(gzip.compress(text.encode())) if suffix else path.write_text(text)
    people.to_csv(folder / "patients.csv", index=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mimic_joins_its_tables(tmp_path, suffix):
    mimic_folder(tmp_path, suffix)
    cohort = mimic.read(tmp_path, tmp_path, mimic.MimicOptions())
    frame = cohort.manifest.set_index(by_id)
    assert frame.index.tolist() == ["d0", "d2", "d5"]
    assert frame.loc["d0", "path"] == "files/p10/p10000001/s51/d0.jpg"
    assert frame["split"].tolist() == ["train", "valid", "test"]
    np.testing.assert_array_equal(frame["age"], [54, 91, np.nan])
    assert frame["sex"].tolist() == ["F", "M", "unknown"]
    np.testing.assert_array_equal(frame["edema"], [1, np.nan, np.nan])
    assert cohort.excluded == {"view lateral": 2, "view unknown": 1}


def test_mimic_without_a_split_of_an_image_is_refused(tmp_path):
    mimic_folder(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"row 6: image 'd5' has no split"):
        mimic.read(tmp_path, tmp_path, mimic.MimicOptions())


PADCHEST = [
    # projection, birth, sex, labels, sentences
    ("PA", "1930.0", "F", "['normal']", "[['normal']]"),
    (
        "PA",
        "1909",
        "M",
        "['pleural effusion', 'cardiomegaly']",
        "[['pleural effusion', 'loc pleural', 'loc right costophrenic angle'], ['cardiomegaly', 'loc left']]",
    ),
    ("AP_horizontal", "nan", "nan", "['pneumonia']", "[['pneumonia', 'loc basal bilateral']]"),
    ("L", "1950", "M", "['normal']", "[['normal']]"),
    ("PA", "1950", "M", "['unchanged']", "[['unchanged']]"),
    ("PA", "1950", "O", "['normal', ' exclude']", "[['exclude']]"),
    ("AP", "", "", "[' laminar atelectasis ', '']", "[['laminar atelectasis', 'loc basal']]"),
    ("PA", "1950", "M", "nan", "nan"),
    (
        "PA",
        "1960",
        "M",
        "['infiltrates']",
        "[nan, ['infiltrates', 'loc left'], [], ['normal', 'loc right'], nan]",
    ),
    ("PA", "1970", "F", "['pleural effusion']", "[['pleural effusion both sides', 'loc pleural']]"),
    (
        "PA",
        "1970",
        "F",
        "['pleural effusion', 'pneumonia']",
        "['NSG tube', 'loc right', 'pleural effusion', 'loc left', 'loc pleural', 'infiltrates', 'pneumonia', 'loc right']",
    ),
]


def padchest_folder(folder, rows=PADCHEST):
    pd.DataFrame(
        [
            (f"{i}.png", str(i % 3), "20140915", f"9{i}", birth, sex, view, labels, sentences)
            for i, (view, birth, sex, labels, sentences) in enumerate(rows)
        ],
        columns=["ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels",
                 "LabelsLocalizationsBySentence"],
    ).to_csv(folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")  # fmt: skip


def test_padchest_sides_come_from_its_sentences(tmp_path):
    padchest_folder(tmp_path)
    cohort = padchest.read(tmp_path, tmp_path, Options(labels="paper"))
    frame = cohort.manifest.set_index(by_id)
    assert frame.index.tolist() == [
        "0.png",
        "1.png",
        "2.png",
        "4.png",
        "6.png",
        "7.png",
        "8.png",
        "9.png",
        "10.png",
    ]
    assert cohort.excluded == {"labelled 'exclude'": 1, "view lateral": 1}
    columns = ["pleural_effusion_right", "pleural_effusion_left", "pneumonic_infiltrates_right", "pneumonic_infiltrates_left",
               "atelectasis_right", "cardiomegaly"]  # fmt: skip
    nan = np.nan
    expected = [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 1],
        [0, 0, 1, 1, 0, 0],
        [nan] * 6,
        [0, 0, 0, 0, nan, 0],
        [nan] * 6,
        [0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
    ]
    np.testing.assert_array_equal(frame[columns].to_numpy(float), expected)
    np.testing.assert_array_equal(frame["age"], [84, 105, nan, 64, nan, 64, 54, 44, 44])
    assert frame["sex"].tolist() == ["F", "M", "unknown", "M", "unknown", "M", "M", "F", "F"]
    assert frame.loc["1.png", "path"] == "1/1.png"


def test_padchest_native_findings_gather_their_labels(tmp_path):
    padchest_folder(tmp_path)
    frame = padchest.read(tmp_path, tmp_path, Options()).manifest.set_index(by_id)
    assert frame.loc["6.png", "atelectasis"] == 1
    assert frame.loc["0.png", "atelectasis"] == 0
    assert np.isnan(frame["atelectasis"]["4.png"])


@pytest.mark.parametrize("labels", ["['normal'", "__import__('os')", "3", "[[1]]"])
def test_padchest_labels_of_another_form_are_refused(tmp_path, labels):
    padchest_folder(tmp_path, [*PADCHEST[:2], ("PA", "1950", "M", labels, "[]")])
    with pytest.raises(InputError, match="row 3, column 'Labels'"):
        padchest.read(tmp_path, tmp_path, Options())


def vindr_folder(folder):
    votes = {"a": (1, 1, 0), "b": (0, 1, 0), "c": (1, 1, 1), "d": (0, 0, 0)}
    rows = [
        (image, f"R{i}", vote, 1 - vote)
        for image, given_votes in votes.items()
        for i, vote in enumerate(given_votes)
    ]
    (folder / "annotations").mkdir()
    pd.DataFrame(rows, columns=["image_id", "rad_id", "Pleural effusion", "Other disease(s)"]).to_csv(
        folder / "annotations" / "image_labels_train.csv", index=False
    )
    pd.DataFrame([("e", 1, 0)], columns=["image_id", "Pleural effusion", "Other diseases"]).to_csv(
        folder / "annotations" / "image_labels_test.csv", index=False
    )


@pytest.mark.parametrize(
    ("agreement", "expected"), [("majority", [1, 0, 1, 0]), ("any", [1, 1, 1, 0]), ("all", [0, 0, 1, 0])]
)
def test_vindr_readers_vote(tmp_path, agreement, expected):
    vindr_folder(tmp_path)
    cohort = vindr.read(tmp_path, tmp_path, vindr.VindrOptions(agreement=agreement, valid_fraction=0.0))
    assert cohort.findings == ("pleural_effusion", "other_diseases")
    assert cohort.manifest["pleural_effusion"].tolist() == [*expected, 1]
    assert cohort.manifest["split"].tolist() == ["train"] * 4 + ["test"]
    assert cohort.manifest["path"].tolist() == [*(f"train/{image}.dicom" for image in "abcd"), "test/e.dicom"]


def test_vindr_ages_come_from_the_files(tmp_path):
    vindr_folder(tmp_path)
    (tmp_path / "train").mkdir()
    write_dicom(tmp_path / "train" / "a.dicom", PatientAge="061Y", PatientSex="F")
    write_dicom(tmp_path / "train" / "b.dicom", PatientAge="junk", PatientSex="M")
    (tmp_path / "train" / "c.dicom").write_bytes(b"no dicom")
    frame = vindr.read(tmp_path, tmp_path, vindr.VindrOptions(valid_fraction=0.0)).manifest
    np.testing.assert_array_equal(frame["age"], [61] + [np.nan] * 4)
    assert frame["sex"].tolist() == ["F", "M", "unknown", "unknown", "unknown"]


def test_vindr_of_the_challenge_has_one_row_a_box(tmp_path):
    rows = [
        ("a", "Cardiomegaly", "R1"),
        ("a", "Cardiomegaly", "R1"),
        ("a", "Cardiomegaly", "R2"),
        ("a", "No finding", "R3"),
    ]
    rows += [("b", "Cardiomegaly", "R1"), ("b", "No finding", "R2"), ("b", "No finding", "R3")]
    pd.DataFrame(rows, columns=["image_id", "class_name", "rad_id"]).to_csv(
        tmp_path / "train.csv", index=False
    )
    frame = vindr.read(tmp_path, tmp_path, vindr.VindrOptions(split="drawn")).manifest.set_index(by_id)
    assert frame["cardiomegaly"].to_dict() == {"a": 1, "b": 0}
    with pytest.raises(InputError, match="no test images"):
        vindr.read(tmp_path, tmp_path, vindr.VindrOptions())


def uka_folder(folder, **changes):
    table = pd.DataFrame(
        {
            "image_id": ["100", "101", "102"],
            "split": ["train", "valid", "test"],
            "subset": ["p0", "p0", "p1"],
            "subject_id": ["7", "8", "9"],
            "patient_sex": ["M", "F", "O"],
            "birth_date": ["1940-03-05", "19400305", ""],
            "examination_date": ["2010-03-05", "20100305", "2010"],
            **{finding: ["negative", "mild", ""] for finding in UKA_FINDINGS},
            "cardiomegaly": ["borderline", "uncertain", "massively enlarged"],
            **changes,
        }
    )
    table.to_csv(folder / "master_list.csv", index=False)


def test_uka_grades_dates_and_comorbidities(tmp_path):
    uka_folder(tmp_path)
    frame = uka.read(tmp_path, tmp_path, uka.UkaOptions()).manifest
    assert frame["path"].tolist() == ["p0/100.jpg", "p0/101.jpg", "p1/102.jpg"]
    assert frame["cardiomegaly"].tolist() == [1, 0, 1]
    np.testing.assert_array_equal(frame["congestion"], [0, 1, np.nan])
    np.testing.assert_allclose(frame["age"], [70, 70, np.nan], atol=0.01)
    assert frame["sex"].tolist() == ["M", "F", "unknown"]
    assert frame["comorbidities"].tolist()[:2] == [1, 7]
    assert pd.isna(frame.loc[2, "comorbidities"])


def test_uka_codes_have_to_be_named(tmp_path):
    uka_folder(tmp_path, cardiomegaly=["0", "1", "2"])
    with pytest.raises(InputError, match="row 1, column 'cardiomegaly': found '0'"):
        uka.read(tmp_path, tmp_path, uka.UkaOptions())
    options = uka.UkaOptions(grades={**uka.UkaOptions().grades, "0": 0, "1": 0, "2": 1})
    assert uka.read(tmp_path, tmp_path, options).manifest["cardiomegaly"].tolist() == [0, 0, 1]


def write_dicom(path, **tags):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.Modality = "DX"
    with pydicom.config.disable_value_validation():
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)


def dicom_folder(folder):
    images = folder / "images"
    (images / "deep" / "er").mkdir(parents=True)
    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    person = {"PatientName": "DOE^JANE", "PatientSex": "F"}
    write_dicom(
        images / "a", PatientID="1", SOPInstanceUID="1.1", ViewPosition="AP", PatientAge="058Y", **person
    )
    write_dicom(images / "deep" / "b.dcm", PatientID="2", SOPInstanceUID="1.2", ViewCodeSequence=[code], PatientBirthDate="1940.03.05",
                StudyDate="20100305", **person)  # fmt: skip
    write_dicom(
        images / "deep" / "er" / "c.dcm",
        PatientID="3",
        SOPInstanceUID="1.3",
        ViewPosition="LL",
        PatientAge="58",
        **person,
    )
    write_dicom(images / "d.dcm", PatientID="4", SOPInstanceUID="1.4", Modality="CT", **person)
    write_dicom(images / "e.dcm", PatientID="1", SOPInstanceUID="1.1", **person)
    write_dicom(images / "f.dcm", PatientID="", SOPInstanceUID="1.5", **person)
    write_dicom(images / "g.dcm", PatientID="7", SOPInstanceUID="1.6", PatientAge="155Y", **person)
    write_dicom(images / "h.dcm", PatientID="8", SOPInstanceUID="1.7", **person)
    (images / "notes.txt").write_text("DOE^JANE was here")
    (images / "DICOMDIR").write_bytes(b"x")
    pd.DataFrame(
        {
            "sop_instance_uid": ["1.1", "1.2", "1.3", "1.6", "9.9"],
            "cardiomegaly": ["1", "0", "1", "0", "0"],
            "congestion": ["1", "0", "1", "", "0"],
        }
    ).to_csv(folder / "labels.csv", index=False)
    return images


def test_a_folder_of_dicom_files_joins_its_table(tmp_path):
    images = dicom_folder(tmp_path)
    config = load(folder_of_dicom.DicomSource, REPOSITORY / "configs/prepare_dicom.yaml")
    cohort = folder_of_dicom.read(images, tmp_path / "labels.csv", config)
    frame = cohort.manifest.set_index(by_id)
    assert frame["path"].to_dict() == {"1.1": "a", "1.2": "deep/b.dcm", "1.6": "g.dcm"}
    assert frame["view"].tolist() == ["AP", "PA", "unknown"]
    np.testing.assert_allclose(frame["age"], [58, 70, np.nan], atol=0.01)
    np.testing.assert_array_equal(frame["congestion"], [1, 0, np.nan])
    reasons = dict(cohort.refused)
    assert set(reasons) == {"d.dcm", "e.dcm", "f.dcm", "h.dcm", "notes.txt"}
    assert "second copy of an instance, the first is a" in reasons["e.dcm"]
    assert "without a PatientID" in reasons["f.dcm"]
    assert "no row of the table" in reasons["h.dcm"]
    assert "not a DICOM file" in reasons["notes.txt"]
    assert "DOE" not in str(reasons) + str(cohort.manifest.to_dict())
    assert cohort.excluded == {"rows left out by the column map": 1, "rows of the table without a file": 1}


def test_what_a_folder_hides_or_cannot_show_is_named_not_lost(tmp_path):
    images = dicom_folder(tmp_path)
    odd = (
        images / os.fsdecode(b"M\xfcller.dcm"),
        images / ".store.partial" / "x.dcm",
        tmp_path / "z" / "y.dcm",
    )
    for place, path in enumerate(odd):
        path.parent.mkdir(exist_ok=True)
        write_dicom(path, PatientID=f"9{place}", SOPInstanceUID=f"7.{place}")
    (images / "linked").symlink_to(tmp_path / "z")
    frame, refused = folder_of_dicom.scan(images)
    assert frame["path"].tolist() == ["a", "deep/b.dcm", "deep/er/c.dcm", "g.dcm", "h.dcm"]
    reasons = dict(refused)
    assert set(reasons) == {"d.dcm", "e.dcm", "f.dcm", "notes.txt", "linked", "M\ufffdller.dcm"}
    assert "not followed" in reasons["linked"]
    assert "not UTF-8" in reasons["M\ufffdller.dcm"]


def test_a_folder_whose_name_no_table_can_hold_is_passed_over(tmp_path):
    nih_folder(tmp_path, old=False)
    for folder, row in ((os.fsdecode(b"f\xfcr"), NIH_ROWS[0]), ("elsewhere", NIH_ROWS[1])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / row[0]).write_bytes(b"")
    paths = nih.read(tmp_path, tmp_path, Options(valid_fraction=0.0)).manifest["path"].tolist()
    assert paths[:2] == ["images/00000001_000.png", "elsewhere/00000001_001.png"]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    images = dicom_folder(tmp_path)
    real = os.scandir

    def scandir(path):
        if Path(path).name == "er":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    reasons = dict(folder_of_dicom.scan(images)[1])
    assert reasons["deep/er"] == "folder that cannot be listed (Permission denied)"


def test_a_file_without_the_tag_does_not_belong_to_a_row_without_a_key(tmp_path):
    images = dicom_folder(tmp_path)
    config = load(folder_of_dicom.DicomSource, REPOSITORY / "configs/prepare_dicom.yaml")
    config = dataclasses.replace(config, join=folder_of_dicom.Join("AccessionNumber", "accession"))
    write_dicom(
        images / "i.dcm", PatientID="9", SOPInstanceUID="1.9", ViewPosition="AP", AccessionNumber="A1"
    )
    frame = pd.DataFrame({"accession": ["", "A1"], "cardiomegaly": ["1", "0"], "congestion": ["1", "0"]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    cohort = folder_of_dicom.read(images, tmp_path / "labels.csv", config)
    assert cohort.manifest["path"].tolist() == ["i.dcm"]
    assert dict(cohort.refused)["a"] == "no row of the table belongs to it"


def test_a_pseudonym_of_the_table_is_not_replaced_by_the_files_patient_id(tmp_path):
    images = dicom_folder(tmp_path)
    config = load(folder_of_dicom.DicomSource, REPOSITORY / "configs/prepare_dicom.yaml")
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str, keep_default_na=False)
    table.assign(patient_id=[f"pseudonym{i}" for i in range(5)]).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="column 'patient_id' comes from the files"):
        folder_of_dicom.read(images, tmp_path / "labels.csv", config)


def test_a_key_that_stands_twice_or_joins_nothing_is_refused(tmp_path):
    images = dicom_folder(tmp_path)
    config = load(folder_of_dicom.DicomSource, REPOSITORY / "configs/prepare_dicom.yaml")
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str, keep_default_na=False)
    pd.concat([table, table[:1]]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(InputError, match=r"row 6, column 'sop_instance_uid': the key '1.1' occurs twice"):
        folder_of_dicom.read(images, tmp_path / "twice.csv", config)
    table.assign(sop_instance_uid=[f"8.{i}" for i in range(5)]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(InputError, match="no row belongs"):
        folder_of_dicom.read(images, tmp_path / "other.csv", config)


@pytest.mark.parametrize(
    ("read", "options", "columns", "write"),
    [
        (
            nih.read,
            DRAWN,
            ["Image Index", "Finding Labels", "Patient Age"],
            lambda f: nih_folder(f, old=False),
        ),
        (chexpert.read, DRAWN, ["Path", "Sex", "Edema"], chexpert_folder),
        (mimic.read, mimic.MimicOptions(), ["dicom_id"], mimic_folder),
        (padchest.read, DRAWN, ["Labels", "Projection"], padchest_folder),
        (uka.read, uka.UkaOptions(), ["subject_id", "congestion"], uka_folder),
    ],
    ids=["nih", "chexpert", "mimic", "padchest", "uka"],
)
def test_a_missing_table_or_column_is_named(tmp_path, read, options, columns, write):
    with pytest.raises(InputError, match="expected the table"):
        read(tmp_path, tmp_path, options)
    for column in columns:
        write(tmp_path)
        table = next(
            path
            for path in sorted(tmp_path.iterdir())
            if path.suffix == ".csv" and column in path.read_text().split("\n")[0]
        )
        table.write_text(table.read_text().replace(column, "renamed", 1))
        with pytest.raises(InputError, match=column):
            read(tmp_path, tmp_path, options)


TABLE_MAP = TableSource(
    Columns("path", "patient", age="age", sex="sex", view="view", split="split"),
    listed=Listed("finding", {"mass": ("Mass",), "effusion": ("Effusion",)}, other=("No Finding",)),
    groups={"scanner": "scanner"},
)


def table_folder(folder):
    rows = [
        (
            f"{place}.png",
            f"p{place}",
            f"{place * 9:03d}Y",
            "FM"[place % 2],
            "PA",
            ("train", "test")[place % 2],
            "Mass|Effusion",
            "A, b",
        )
        for place in range(6)
    ]
    columns = ["path", "patient", "age", "sex", "view", "split", "finding", "scanner"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "images.csv", index=False)


def table_cohort(path):
    manifest = to_manifest(read_table(path), TABLE_MAP, "images.csv")
    return Cohort(manifest, TABLE_MAP.findings, TABLE_MAP.provenance)


WRITERS = {
    "nih": (lambda f: nih_folder(f, old=True), lambda f: nih.read(f, f, DRAWN)),
    "chexpert": (chexpert_folder, lambda f: chexpert.read(f, f, DRAWN)),
    "mimic": (mimic_folder, lambda f: mimic.read(f, f, mimic.MimicOptions())),
    "padchest": (padchest_folder, lambda f: padchest.read(f, f, Options(labels="paper"))),
    "vindr": (vindr_folder, lambda f: vindr.read(f, f, vindr.VindrOptions(read_tags=False))),
    "uka": (uka_folder, lambda f: uka.read(f, f, uka.UkaOptions())),
    "csv": (table_folder, lambda f: table_cohort(f / "images.csv")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_adapter_gives_a_checked_manifest_of_its_findings(tmp_path, name):
    write, read = WRITERS[name]
    write(tmp_path)
    cohort = read(tmp_path)
    again = check_manifest(cohort.manifest, cohort.findings, name)
    pd.testing.assert_frame_equal(again, cohort.manifest)
    assert all(
        str(part) for part in (cohort.provenance.licence, cohort.provenance.access, cohort.provenance.origin)
    )


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=int(os.environ.get("JAXCXR_FUZZ", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_table_gives_a_cohort_or_one_clear_sentence(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("fuzz")
    write, read = WRITERS[name]
    write(folder)
    tables = sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".txt"))
    path = data.draw(st.sampled_from(tables))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 6))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b",", b'"', b"\n", b"nan", b"-1", b"[", b"'"])
        )
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert isinstance(read(folder), Cohort)


@pytest.mark.parametrize("name", ["chexpert", "mimic", "nih", "padchest", "uka", "vindr"])
def test_the_configurations_of_the_repository_are_valid(name):
    kinds = {"mimic": mimic.MimicOptions, "uka": uka.UkaOptions, "vindr": vindr.VindrOptions}
    assert load(kinds.get(name, Options), REPOSITORY / f"configs/prepare_{name}.yaml")
