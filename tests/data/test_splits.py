"""A patient's split is a matter of that patient's id and the key: of nobody else, in no source."""

import dataclasses
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.sources import chexpert, dicom, mimic, nih, padchest, table, uka, vindr
from jaxcxr.data.sources.cohort import Cohort
from jaxcxr.data.sources.identities import with_one_id
from jaxcxr.data.sources.published import Options
from jaxcxr.data.splits import SplitDraw, key_of_seed, split_by_patient, valid_from_train
from jaxcxr.errors import InputError
from tests.data.test_sources import NIH_HEADER, write_dicom

KEY = "000102030405060708090a0b0c0d0e0f"
DRAW = SplitDraw(0.5, 0.2, 0.3, key=KEY)
EXAMPLES = int(os.environ.get("JAXCXR_FUZZ", "5"))

ids = st.lists(
    st.text(min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, max_size=40, unique=True
)


def images(patients: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": patients, "image_id": [f"f{i}" for i in range(len(patients))]})


def side_of(frame: pd.DataFrame) -> dict[str, str]:
    assert set(frame.groupby("patient_id")["split"].nunique()) == {1}
    return dict(zip(frame["patient_id"], frame["split"], strict=True))


@settings(max_examples=30, deadline=None)
@given(patients=ids, data=st.data())
def test_a_patient_more_or_less_and_another_order_change_nobody_elses_split(patients, data):
    key = data.draw(st.binary(min_size=16, max_size=40)).hex()
    cuts = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    draw = SplitDraw(cuts[0], cuts[1] - cuts[0], 1 - cuts[1], key=key)
    everybody = side_of(split_by_patient(images(patients), draw))
    shuffled = data.draw(st.permutations(patients))
    some = shuffled[: data.draw(st.integers(1, len(patients)))]
    fewer = side_of(split_by_patient(images([*some, *some]).assign(age=1.0, rare=1.0), draw))
    assert fewer == {patient: everybody[patient] for patient in some}
    frame = images(shuffled).assign(split=[data.draw(st.sampled_from(["train", "test"])) for _ in shuffled])
    valid = side_of(valid_from_train(frame, 0.4, draw))
    alone = [side_of(valid_from_train(frame.iloc[[row]], 0.4, draw)) for row in range(len(frame))]
    assert valid == {patient: side for one in alone for patient, side in one.items()}
    assert all(
        side == "test"
        for patient, side in side_of(frame).items()
        if side == "test" and valid[patient] != "test"
    )


def test_the_place_of_a_patient_is_the_hash_that_is_documented():
    """By hand, and with fractions whose cumulative sums are no round numbers."""
    key = hmac.digest(bytes.fromhex(KEY), b"train, valid or test", "sha256")
    for patient in map(str, range(300)):
        place = int.from_bytes(hmac.digest(key, patient.encode(), "sha256")[:8]) / 2**64
        expected = "train" if place < 0.5 else "valid" if place < 0.7 else "test"
        assert split_by_patient(images([patient]), DRAW)["split"].tolist() == [expected]


def test_shares_hold_in_expectation_and_for_the_rare_too():
    """Of n patients, a fraction f, give or take 4 standard deviations of a binomial; nobody where the fraction is 0."""
    count = 20_000
    frame = split_by_patient(images([f"p{i}" for i in range(count)]), DRAW)
    for rows in (frame, frame.iloc[::100], frame.iloc[:2000]):
        shares = rows["split"].value_counts(normalize=True)
        for split, fraction in DRAW.fractions().items():
            assert abs(shares[split] - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(rows))
    none = split_by_patient(frame, SplitDraw(0.5, 0.0, 0.5, key=KEY))["split"]
    assert set(none) == {"train", "test"}
    assert set(split_by_patient(frame, SplitDraw(0.0, 0.0, 1.0, key=KEY))["split"]) == {"test"}


def test_the_two_draws_of_one_key_are_independent():
    """Whoever lies low in one draw must not lie low in the other: of a drawn training half, a half becomes valid."""
    frame = split_by_patient(images([f"p{i}" for i in range(8000)]), SplitDraw(0.5, 0.0, 0.5, key=KEY))
    valid = (valid_from_train(frame, 0.5, DRAW)["split"] == "valid").sum()
    assert abs(valid - 2000) < 4 * np.sqrt(8000 * 0.25 * 0.75)
    assert "valid" not in set(valid_from_train(frame, 0.0, DRAW)["split"])


def test_keys_are_the_stores_own_unless_one_is_given():
    draws = [SplitDraw(0.5, 0.2, 0.3).keyed() for _ in range(3)]
    assert len({draw.key for draw in draws}) == 3
    assert all(len(bytes.fromhex(draw.key)) == 16 for draw in draws if draw.key)
    assert SplitDraw(0.5, 0.2, 0.3).keyed(begun=KEY).key == KEY
    assert SplitDraw(0.5, 0.2, 0.3, key="AB" * 16).keyed(begun=KEY).key == "ab" * 16
    seeded = [SplitDraw(0.5, 0.2, 0.3, seed=seed).keyed(begun=KEY) for seed in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert seeded[0].key == key_of_seed(0) == hashlib.sha256(b"jaxcxr split key of seed 0").hexdigest()[:32]
    assert seeded[0].keyed() == seeded[0]
    assert KEY not in repr(DRAW)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "00" * 15}, "at least 32 hexadecimal digits"),
        ({"key": "zz" * 16}, "at least 32 hexadecimal digits"),
        ({"key": "00 " * 16}, "at least 32 hexadecimal digits"),
        ({"key": ""}, "at least 32 hexadecimal digits"),
        ({"seed": 1}, "expected key or seed, found both"),
        ({"stratified": True}, "draw.stratified: .* remove the line"),
        ({"test": 0.4}, "sum to 1"),
        ({"train": 1.5, "test": -0.7}, r"in \[0, 1\]"),
        ({"train": float("nan")}, r"in \[0, 1\]"),
    ],
)
def test_an_impossible_draw_is_refused_and_no_key_repeated(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words) as refusal:
        dataclasses.replace(DRAW, **changes).keyed()
    assert not changes.get("key") or changes["key"] not in str(refusal.value)


def test_a_draw_without_its_key_is_a_programming_error():
    with pytest.raises(ValueError, match="without its key"):
        split_by_patient(images(["a"]), SplitDraw(0.5, 0.2, 0.3))


# ---- Every source, through its own `read`, of tables with an image or two of each patient.

Write = Callable[[Path, list[int]], None]


def two_each(patients: list[int]) -> list[tuple[int, int]]:
    """(patient, image) of one or two images; a patient's labels and images follow from the patient alone."""
    return [(patient, image) for patient in patients for image in range(1 + patient % 2)]


def write_table(folder: Path, patients: list[int]) -> None:
    rows = [(f"{p}_{f}.png", f"p{p}", 20 + p, "FM"[p % 2], int(p % 5 == 0)) for p, f in two_each(patients)]
    pd.DataFrame(rows, columns=["path", "patient", "age", "sex", "rare"]).to_csv(
        folder / "images.csv", index=False
    )


SOURCE = table.TableSource(
    table.Columns("path", "patient", age="age", sex="sex"), graded={"rare": table.Graded("rare")}, draw=DRAW
)


def write_dicoms(folder: Path, patients: list[int]) -> None:
    (folder / "images").mkdir()
    rows = two_each(patients)
    for patient, image in rows:
        name = f"{patient}_{image}"
        write_dicom(
            folder / "images" / f"{name}.dcm", PatientID=f"p{patient}", SOPInstanceUID=f"1.{patient}.{image}"
        )
    columns = {"uid": [f"1.{p}.{f}" for p, f in rows], "rare": [p % 5 == 0 for p, _ in rows]}
    pd.DataFrame(columns).astype({"rare": int}).to_csv(folder / "labels.csv", index=False)


def read_dicoms(folder: Path, draw: SplitDraw) -> Cohort:
    columns = table.Columns("path", "patient_id", image_id="image_id")
    source = dataclasses.replace(SOURCE, columns=columns, draw=draw)
    join = dicom.Join("SOPInstanceUID", "uid")
    return dicom.read(folder / "images", folder / "labels.csv", dicom.DicomSource(join, source))


def write_nih(folder: Path, patients: list[int]) -> None:
    files = [(p, f"{p:08d}_{f:03d}.png") for p, f in two_each(patients)]
    lines = [f"{file},{'Hernia' if p % 5 == 0 else 'No Finding'},0,{p},50,M,PA,1,1,1,1" for p, file in files]
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join([NIH_HEADER, *lines]) + "\n")
    for name, test in (("train_val_list.txt", False), ("test_list.txt", True)):
        (folder / name).write_text("\n".join(file for p, file in files if (p % 4 == 0) == test))


def write_chexpert(folder: Path, patients: list[int]) -> None:
    columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS]
    rows = [
        [
            f"CheXpert-v1.0/train/patient{p:05d}/study1/view{f}_frontal.jpg",
            "Male",
            "60",
            "Frontal",
            "AP",
            *[str(p % 2)] * 14,
        ]
        for p, f in two_each(patients)
    ]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)


def write_mimic(folder: Path, patients: list[int]) -> None:
    rows = [(f"d{p}_{f}", str(10_000_000 + p), f"{p}{f}", "AP", "2180") for p, f in two_each(patients)]
    images = pd.DataFrame(rows, columns=["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate"])
    sides = [("train", "validate", "test")[p % 7 % 3] for p, _ in two_each(patients)]
    labels = dict.fromkeys(chexpert.LABELS, "1.0")
    for kind, frame in (
        ("metadata", images),
        ("split", images.assign(split=sides)),
        ("chexpert", images.assign(**labels)),
    ):
        frame.to_csv(folder / f"mimic-cxr-2.0.0-{kind}.csv", index=False)


def write_padchest(folder: Path, patients: list[int]) -> None:
    rows = [
        (
            f"{p}_{f}.png",
            "0",
            "20140915",
            f"9{p}",
            "1950",
            "M",
            "PA",
            "['hiatal hernia']" if p % 5 == 0 else "['normal']",
            "[]",
        )
        for p, f in two_each(patients)
    ]
    columns = ["ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels",
               "LabelsLocalizationsBySentence"]  # fmt: skip
    pd.DataFrame(rows, columns=columns).to_csv(
        folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    )


def write_vindr(folder: Path, patients: list[int]) -> None:
    for split, mine in (
        ("train", [p for p in patients if p % 4]),
        ("test", [p for p in patients if p % 4 == 0]),
    ):
        rows = [(f"v{p}", "R1", int(p % 5 == 0)) for p in mine]
        pd.DataFrame(rows, columns=["image_id", "rad_id", "Mass"]).to_csv(
            folder / f"image_labels_{split}.csv", index=False
        )


def write_uka(folder: Path, patients: list[int]) -> None:
    """One patient is in `valid`: whether that one is there must not decide for the rest."""
    rows = [
        (
            f"{p}_{f}",
            "valid" if p == 3 else "train" if p % 4 else "test",
            "p0",
            str(p),
            "M",
            "50",
            *["negative"] * 8,
        )
        for p, f in two_each(patients)
    ]
    columns = ["image_id", "split", "subset", "subject_id", "patient_sex", "age", *UKA_FINDINGS]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "master_list.csv", index=False)


SOURCES: dict[str, tuple[Write, Callable[[Path, SplitDraw], Cohort]]] = {
    "csv": (
        write_table,
        lambda f, draw: table.read(f / "images.csv", dataclasses.replace(SOURCE, draw=draw)),
    ),
    "dicom": (write_dicoms, read_dicoms),
    "nih, drawn": (write_nih, lambda f, draw: nih.read(f, f, Options(split="drawn", draw=draw))),
    "nih, valid from train": (
        write_nih,
        lambda f, draw: nih.read(f, f, Options(valid_fraction=0.4, draw=draw)),
    ),
    "chexpert": (write_chexpert, lambda f, draw: chexpert.read(f, f, Options(split="drawn", draw=draw))),
    "chexpert, valid from train": (
        write_chexpert,
        lambda f, draw: chexpert.read(f, f, Options(valid_fraction=0.4, draw=draw)),
    ),
    "mimic": (write_mimic, lambda f, draw: mimic.read(f, f, mimic.MimicOptions(draw=draw))),
    "mimic, drawn": (
        write_mimic,
        lambda f, draw: mimic.read(f, f, mimic.MimicOptions(split="drawn", draw=draw)),
    ),
    "padchest": (write_padchest, lambda f, draw: padchest.read(f, f, Options(draw=draw))),
    "vindr, drawn": (
        write_vindr,
        lambda f, draw: vindr.read(f, f, vindr.VindrOptions(split="drawn", draw=draw)),
    ),
    "vindr, valid from train": (
        write_vindr,
        lambda f, draw: vindr.read(f, f, vindr.VindrOptions(valid_fraction=0.4, draw=draw)),
    ),
    "uka": (write_uka, lambda f, draw: uka.read(f, f, uka.UkaOptions(draw=draw))),
    "uka, drawn": (write_uka, lambda f, draw: uka.read(f, f, uka.UkaOptions(split="drawn", draw=draw))),
}


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_a_source_says_of_a_patient_does_not_depend_on_the_others(tmp_path_factory, name, data):
    """Not the split, and nothing else either: each remaining image's whole row is the same, in whatever order the rows come."""
    write, read = SOURCES[name]
    folder, smaller = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("fewer")
    everybody = sorted(data.draw(st.sets(st.integers(0, 40), min_size=4, max_size=12)) | {0, 3})
    write(folder, everybody)
    whole = read(folder, DRAW).manifest.set_index("image_id")
    gone = data.draw(st.sets(st.sampled_from([p for p in everybody if p != 0]), min_size=1, max_size=3))
    kept = data.draw(st.permutations([p for p in everybody if p not in gone]))
    if name.startswith("vindr") and not any(p % 4 for p in kept):
        return  # its training table would be empty, and one without rows has no readers
    write(smaller, kept)
    rest = read(smaller, DRAW).manifest.set_index("image_id")
    assert set(rest.index) < set(whole.index)
    pd.testing.assert_frame_equal(rest.sort_index(), whole.loc[rest.index].sort_index())


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_says_how_its_splits_came_about(tmp_path, name):
    write, read = SOURCES[name]
    write(tmp_path, list(range(12)))
    cohort = read(tmp_path, DRAW)
    if name in ("mimic", "uka"):
        assert cohort.split == {"method": "given"}
    else:
        assert cohort.split["method"] == "keyed hash"
        assert cohort.split["key"] == KEY
        assert ("of" in cohort.split) == ("valid from train" in name)
    json.dumps(cohort.split)
    assert KEY not in repr(cohort)
    drawn = [read(tmp_path, SplitDraw(0.5, 0.2, 0.3)) for _ in range(2)]
    if cohort.split["method"] == "keyed hash":
        assert drawn[0].split["key"] != drawn[1].split["key"]


def test_a_published_list_that_names_valid_patients_keeps_them(tmp_path):
    write_uka(tmp_path, list(range(8)))
    assert uka.read(tmp_path, tmp_path, uka.UkaOptions()).manifest["split"].tolist().count("valid") == 2
    with pytest.raises(
        InputError, match=r"valid_fraction: found 0\.1, but the list names validation patients"
    ):
        uka.read(tmp_path, tmp_path, uka.UkaOptions(valid_fraction=0.1))
    write_uka(tmp_path, [1, 2, 4, *range(5, 60)])
    cohort = uka.read(tmp_path, tmp_path, uka.UkaOptions(valid_fraction=0.3, draw=DRAW))
    assert set(cohort.manifest["split"]) == {"train", "valid", "test"}
    assert cohort.split["method"] == "keyed hash"


def test_one_patient_in_valid_does_not_decide_for_the_others(tmp_path):
    """Nor does one whose only image is a lateral: a published split may be empty."""
    options = mimic.MimicOptions(valid_fraction=0.4, draw=DRAW)
    manifests = []
    for place, patients in enumerate(([0, 3, 6, 7, 10, 13, 2, 1], [0, 3, 6, 7, 10, 13, 2])):
        (tmp_path / str(place)).mkdir()
        write_mimic(tmp_path / str(place), patients)
        manifests.append(mimic.read(tmp_path / str(place), tmp_path, options).manifest)
    assert side_of(manifests[0]) == side_of(manifests[1]) | {"10000001": "valid"}
    write_chexpert(tmp_path, [1, 2, 3, 5, 6, 7, 8, 9])
    table = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)[:1]
    table.assign(
        **{"Path": "CheXpert-v1.0/valid/patient9/study1/view1.jpg", "Frontal/Lateral": "Lateral"}
    ).to_csv(tmp_path / "valid.csv", index=False)
    assert set(
        chexpert.read(tmp_path, tmp_path, Options(valid_fraction=0.4, draw=DRAW)).manifest["split"]
    ) == {"train"}


def test_a_file_is_found_elsewhere_whether_or_not_the_others_lie_in_their_place(tmp_path):
    """Among many, one of which lies elsewhere: what is looked up for it must not hang on a sample of the others."""
    write_nih(tmp_path, list(range(1, 60)))
    names = [f"{p:08d}_{f:03d}.png" for p, f in two_each(list(range(1, 60)))]
    for place in ("images", "b", "a"):
        (tmp_path / place).mkdir()
    for name in names:
        (tmp_path / "images" / name).touch()
    moved = names[41]
    for place in ("b", "a"):
        (tmp_path / "images" / moved).rename(tmp_path / place / moved) if place == "b" else (
            tmp_path / place / moved
        ).touch()
    paths = nih.read(tmp_path, tmp_path, Options(valid_fraction=0.0)).manifest["path"].tolist()
    assert paths == [f"a/{moved}" if name == moved else f"images/{name}" for name in names]


def test_an_instance_of_two_patients_is_refused_and_of_one_taken_once(tmp_path):
    write_dicoms(tmp_path, [1, 2])
    write_dicom(tmp_path / "images" / "copy.dcm", PatientID="p1", SOPInstanceUID="1.1.0")
    assert [reason for path, reason in read_dicoms(tmp_path, DRAW).refused if path == "copy.dcm"] == [
        "no row of the table belongs to it"
    ] or dict(read_dicoms(tmp_path, DRAW).refused)["copy.dcm"].startswith("second copy of an instance")
    write_dicom(tmp_path / "images" / "other.dcm", PatientID="p2", SOPInstanceUID="1.1.0")
    with pytest.raises(InputError, match=r"and other\.dcm are of two patients and have one SOPInstanceUID"):
        read_dicoms(tmp_path, DRAW)


def test_aliases_are_followed_to_the_end_and_circles_refused():
    aliases = {"a": "b", "b": "c", "x": "y"}
    assert with_one_id(["a", "b", "c", "x", "y", "z"], aliases) == ["c", "c", "c", "y", "y", "z"]
    for circle in ({"a": "a"}, {"a": "b", "b": "a"}, {"q": "a", "a": "b", "b": "c", "c": "a"}):
        with pytest.raises(InputError, match="leads back"):
            with_one_id(["a"], circle)
