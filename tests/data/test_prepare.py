import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom.config
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from jaxcxr.data import journal
from jaxcxr.data.build import read_listing
from jaxcxr.data.images import preprocess
from jaxcxr.data.store import open_store
from jaxcxr.data.verify import verify
from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError
from tests.conftest import load_script

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "prepare.py"
RADIOGRAPHS = (REPOSITORY / "../shared/data/radiographs").resolve()
SOURCE = """
columns: {path: path, patient_id: patient, split: split, age: age, sex: sex}
graded:
  congestion: {column: congestion}
"""


@pytest.fixture
def hospital(tmp_path):
    """A folder with 12 images, their table and its column map."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        pixels = rng.integers(0, 256, (50, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        split = ("train", "valid", "test")[index % 3]
        rows.append((f"{index}.png", f"p{index}", split, 40 + index, "F", (index // 3) % 2))
    table = pd.DataFrame(rows, columns=["path", "patient", "split", "age", "sex", "congestion"])
    table.to_csv(tmp_path / "images.csv", index=False)
    (tmp_path / "source.yaml").write_text(SOURCE)
    return tmp_path


def prepare(monkeypatch, folder, *flags):
    paths = [
        "--source",
        folder / "source.yaml",
        "--table",
        folder / "images.csv",
        "--images",
        folder,
        "--out",
        folder / "store",
    ]
    arguments = [str(argument) for argument in (*paths, "--size", 16, "--processes", 1, *flags)]
    monkeypatch.setattr(sys, "argv", ["prepare.py", "csv", *arguments])
    load_script("prepare.py").main()
    return open_store(folder / "store")


def change(folder, row, column, value):
    table = pd.read_csv(folder / "images.csv", dtype=str)
    table.loc[row, column] = value
    table.to_csv(folder / "images.csv", index=False)


def test_a_table_and_its_images_become_a_store(hospital, monkeypatch, capsys):
    store = prepare(monkeypatch, hospital)
    assert store.findings == ("congestion",)
    split = store.split("valid")
    assert split.frame["path"].tolist() == ["1.png", "4.png", "7.png", "10.png"]
    for image, name in zip(split.read_all(), split.frame["path"], strict=True):
        np.testing.assert_array_equal(image, preprocess(np.asarray(Image.open(hospital / name)), 16))
    assert "12 images of 16 x 16 (train 4, valid 4, test 4)" in capsys.readouterr().out
    assert not (store.path / "quarantine.csv").exists()


def test_bad_files_are_left_out_and_named(hospital, monkeypatch, capsys):
    (hospital / "3.png").write_bytes(b"torn")
    (hospital / "7.png").unlink()
    store = prepare(monkeypatch, hospital)
    listing = pd.read_csv(store.path / "quarantine.csv")
    assert listing["path"].tolist() == ["3.png", "7.png"]
    assert listing["reason"].str.contains("cannot be").all()
    assert len(store.manifest) == 10
    assert not {"3.png", "7.png"} & set(store.manifest["path"])
    assert "2 of 12 images could not be used" in capsys.readouterr().out


def test_losing_the_last_positive_to_bad_files_is_said(hospital, monkeypatch, capsys):
    (hospital / "5.png").write_bytes(b"torn")
    (hospital / "11.png").write_bytes(b"torn")
    prepare(monkeypatch, hospital)
    assert "split 'test' has no positive image of 'congestion'" in capsys.readouterr().out


def test_strict_stops_at_the_first_bad_file(hospital, monkeypatch):
    (hospital / "3.png").write_bytes(b"torn")
    (hospital / "7.png").unlink()
    with pytest.raises(InputError, match=r"3\.png"):
        prepare(monkeypatch, hospital, "--strict")
    assert not (hospital / "store").exists()
    assert (hospital / ".store.partial").is_dir()  # what was done before is kept


def test_all_images_missing_is_refused_with_a_reason(hospital, monkeypatch):
    for index in range(12):
        (hospital / f"{index}.png").unlink()
    with pytest.raises(
        InputError, match=r"none of 12 images of the table is in this folder, the first is '0\.png'"
    ):
        prepare(monkeypatch, hospital)
    assert not [path for path in hospital.iterdir() if "store" in path.name]


@pytest.mark.parametrize(
    ("row", "column", "value", "words"),
    [
        (3, "congestion", "2", "row 4, column 'congestion'"),
        (3, "path", "2.png", "'2.png' occurs twice"),
        (3, "patient", "p2", "patient 'p2'"),
        (3, "split", "", "row 4, column 'split'"),
        ([0, 3, 6, 9], "congestion", "0", "split 'train' has no positive"),
    ],
)
def test_a_bad_table_is_refused_before_any_work(hospital, monkeypatch, row, column, value, words):
    change(hospital, row, column, value)
    with pytest.raises(InputError, match=words) as refusal:
        prepare(monkeypatch, hospital)
    assert "images.csv" in str(refusal.value)
    assert not (hospital / "store").exists()


def drawn(hospital, **draw):
    """The column map with splits drawn by patient."""
    given = ", ".join(
        f"{name}: {value}" for name, value in {"train": 0.4, "valid": 0.3, "test": 0.3, **draw}.items()
    )
    text = SOURCE.replace(", split: split", "") + f"draw: {{{given}}}\n"
    (hospital / "source.yaml").write_text(text)


def prepare_drawn(monkeypatch, folder, *flags):
    """As small splits seldom have a positive of everything, that is not asked for here."""
    monkeypatch.setattr("jaxcxr.data.manifest.require_positives", lambda *_: None)
    return prepare(monkeypatch, folder, *flags)


def test_an_interrupted_preparation_goes_on_with_the_splits_that_it_drew(hospital, monkeypatch):
    """The key is in the folder of what is done, then in store.json; with it, the uninterrupted store is the same one."""
    drawn(hospital)
    done = 0

    def killed(path):
        nonlocal done
        done += 1
        if done == 6:
            raise KeyboardInterrupt
        return real(path)

    real = journal.decode_image
    monkeypatch.setattr(journal, "decode_image", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_drawn(monkeypatch, hospital)
    key = json.loads((hospital / ".store.partial" / "plan.json").read_text())["split"]["key"]
    store = prepare_drawn(monkeypatch, hospital)
    assert (
        done == 6 + 12 - 5
    )  # the images that were done are not done again, so that the plan was found to be the same
    assert store.description()["split"] == {
        "method": "keyed hash",
        "key": key,
        "fractions": {"train": 0.4, "valid": 0.3, "test": 0.3},
    }
    assert store.split_origin() == "keyed_hash"
    store.path.rename(hospital / "first")
    drawn(hospital, key=f"'{key}'")
    assert prepare_drawn(monkeypatch, hospital).fingerprint == store.fingerprint
    (hospital / "store").rename(hospital / "second")
    drawn(hospital)
    other = prepare_drawn(monkeypatch, hospital)
    assert other.description()["split"]["key"] != key


def test_a_store_from_a_table_with_splits_says_so_and_one_made_before_says_nothing(hospital, monkeypatch):
    store = prepare(monkeypatch, hospital)
    assert store.split_origin() == "given"
    description = store.description()
    assert description.pop("split") == {"method": "given"}
    (store.path / "store.json").write_text(json.dumps(description))
    (store.path / DIGESTS).unlink()
    again = open_store(store.path)
    assert again.split_origin() == "unknown"
    assert again.fingerprint == store.fingerprint
    assert verify(again) == 12


def test_a_plan_that_cannot_be_read_is_said(hospital, monkeypatch):
    drawn(hospital)
    (hospital / ".store.partial").mkdir()
    for content in ("{", "[]"):
        (hospital / ".store.partial" / "plan.json").write_text(content)
        with pytest.raises(InputError, match=r"plan\.json: expected the plan of an unfinished store"):
            prepare_drawn(monkeypatch, hospital)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--size", "3"), "--size: found 3"),
        (("--processes", "0"), "--processes: found 0"),
        (("--images", "nowhere"), "nowhere: no such folder"),
        (("--table", "nowhere.csv"), "no such table"),
        (("--source", "nowhere.yaml"), "no such configuration"),
    ],
)
def test_a_bad_flag_is_refused(hospital, monkeypatch, flags, words):
    with pytest.raises(InputError, match=words):
        prepare(monkeypatch, hospital, *flags)


def test_an_existing_store_is_refused_before_decoding(hospital, monkeypatch):
    prepare(monkeypatch, hospital)
    (hospital / "0.png").unlink()
    with pytest.raises(InputError, match="exists already"):
        prepare(monkeypatch, hospital, "--strict")


def test_real_radiographs_of_every_kind(tmp_path):
    """The example configuration, on a short table with every DICOM and 16-bit file, by two processes from the command line."""
    if not (RADIOGRAPHS / "metadata.csv").is_file():
        pytest.skip("no development radiographs here")
    table = pd.read_csv(RADIOGRAPHS / "metadata.csv", dtype=str, keep_default_na=False)
    table = pd.concat(
        [table.loc[table["path"].str.startswith(("dicom", "png16"))], table.sample(150, random_state=0)]
    ).drop_duplicates("path")
    table.to_csv(tmp_path / "metadata.csv", index=False)
    # 155 images: four keys of ten leave a split without some finding, which is refused.
    example = (REPOSITORY / "configs" / "prepare_example.yaml").read_text()
    (tmp_path / "source.yaml").write_text(example.replace("  # key: '...' ", f"  key: '{1:032x}' "))
    flags = [
        "--source",
        str(tmp_path / "source.yaml"),
        "--table",
        str(tmp_path / "metadata.csv"),
        "--images",
        str(RADIOGRAPHS),
    ]
    command = [
        sys.executable,
        str(SCRIPT),
        "csv",
        *flags,
        "--out",
        str(tmp_path / "store"),
        "--size",
        "32",
        "--processes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "store")
    listing = pd.read_csv(store.path / "quarantine.csv")
    assert "dicom/udacity_test5.dcm" in set(listing["path"])
    assert len(store.manifest) + len(listing) == len(table) - 1
    assert "dicom/highdicom_dx_image.dcm" not in {*store.manifest["path"], *listing["path"]}
    images = {
        name: image for split in map(store.split, ("train", "valid", "test")) for name, image in named(split)
    }
    turned = images["dicom/gdcm-CR-MONO1-10-chest.dcm"].astype(int).ravel()
    assert np.corrcoef(turned, images["png16/gdcm_cr_chest_10in16.png"].astype(int).ravel())[0, 1] > 0.99
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert again.returncode == 2
    assert (
        again.stderr == f"error: {tmp_path / 'store'}: exists already, expected a new folder for the store\n"
    )


SECRETS = ("DOE", "JANE", "SECRETSTREET", "19501231", "FREETEXT")


def write_image(path, **tags):
    """A DICOM image whose header says all there is to know about its patient; `tags` change it, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pixels = np.add.outer(np.arange(40), np.arange(30) * 2).astype(np.uint8)
    told = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX", "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1, "Rows": 40, "Columns": 30, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
        "PixelRepresentation": 0, "PixelData": pixels.tobytes(), "ViewPosition": "AP", "PatientSex": "F",
        "PatientBirthDate": "19501231", "StudyDate": "20100101", "PatientName": "DOE^JANE", "OtherPatientNames": "JANE",
        "PatientAddress": "SECRETSTREET 1", "PatientComments": "FREETEXT", "ImageComments": "FREETEXT of JANE",
        "StudyDescription": "DOE FREETEXT", "ReferringPhysicianName": "DOE^DOC", "DerivationDescription": "JANE",
    }  # fmt: skip
    with pydicom.config.disable_value_validation():
        for name, value in {**told, **tags}.items():
            if value is not None:
                setattr(dataset, name, value)
        block = dataset.private_block(0x0099, "DOE PRIVATE", create=True)
        block.add_new(1, "LO", "JANE DOE")
        dataset.save_as(path, enforce_file_format=True)
    # pydicom does not write a text where a number belongs.
    path.write_bytes(path.read_bytes().replace(b"97.53579", b"DOE^JANE"))


def dicom_hospital(folder):
    """Twelve good images and one of each kind of bad ones, and a table with columns that nobody declared."""
    images = folder / "images"
    images.mkdir()
    for index in range(12):
        flagged = {"BurnedInAnnotation": "YES", "ConversionType": "WSD"} if index == 5 else {}
        window = {"WindowCenter": "-9000", "WindowWidth": "2"} if index == 6 else {}
        write_image(
            images / f"{index}.dcm", PatientID=f"p{index}", SOPInstanceUID=f"1.{index}", **flagged, **window
        )
    bad = {
        "modality": {"Modality": "DOE^JANE"}, "rows": {"Rows": 4000}, "frames": {"NumberOfFrames": "3"}, "nameless": {"PatientID": ""},
        "pixelless": {"PixelData": None}, "photometry": {"PhotometricInterpretation": "DOE JANE"}, "copy": {"SOPInstanceUID": "1.0", "PatientID": "p0"},
        "window": {"WindowCenter": "97.53579", "WindowWidth": "97.53579"}, "bits": {"BitsStored": 77}, "slope": {"RescaleSlope": "97.53579", "RescaleIntercept": "0"},
        "age": {"PatientAge": "DOE"}, "view": {"ViewPosition": "JANE"}, "rowless": {},
    }  # fmt: skip
    for place, (name, tags) in enumerate(bad.items()):
        write_image(
            images / f"{name}.dcm", **{"PatientID": f"q{place}", "SOPInstanceUID": f"2.{place}", **tags}
        )
    whole = (images / "0.dcm").read_bytes()
    (images / "torn.dcm").write_bytes(whole[: len(whole) // 3])
    (images / "letter.txt").write_text("DOE^JANE, SECRETSTREET, born 19501231")
    keys = [*(f"1.{index}" for index in range(12)), *(f"2.{place}" for place in range(len(bad) - 1)), "9.9"]
    pd.DataFrame(
        {
            "sop_instance_uid": keys,
            "cardiomegaly": [str(place % 2) for place in range(len(keys))],
            "congestion": [str(place % 3 // 2) for place in range(len(keys))],
            "patient": "DOE^JANE",
            "address": "SECRETSTREET",
            "report": "FREETEXT",
            "born": "19501231",
        }
    ).to_csv(folder / "labels.csv", index=False)
    return images


def everything_in(folder):
    """Names and bytes of all files, and the cells of its tables, which parquet compresses."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            parts.append(pd.read_parquet(path).to_csv().encode())
    return b"\n".join(parts).upper()


def test_nothing_undeclared_reaches_store_screen_or_reports(tmp_path, monkeypatch, capfd):
    images = dicom_hospital(tmp_path)
    arguments = [
        "--source",
        REPOSITORY / "configs/prepare_dicom.yaml",
        "--table",
        tmp_path / "labels.csv",
        "--images",
        images,
    ]
    base = [str(a) for a in ("dicom", *arguments, "--size", 16, "--processes", 1, "--verify")]

    def run_script(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        load_script(name).main()

    monkeypatch.setattr(
        "jaxcxr.report.paper.cohort_tables.figures_s", lambda *_: []
    )  # they hold counts alone and take seconds

    run_script("prepare.py", *base, "--out", tmp_path / "out" / "store")
    run_script("describe.py", tmp_path / "out" / "store")
    for place, flags in enumerate((["--strict"], ["--refuse-flagged", "--strict"])):
        with pytest.raises(InputError) as refusal:
            run_script("prepare.py", *base, "--out", tmp_path / f"strict{place}", *flags)
        print(refusal.value, refusal.getrepr(style="short"))
    headless = (tmp_path / "labels.csv").read_text().split("\n", 1)[1]
    (tmp_path / "labels.csv").write_text(headless)
    with pytest.raises(InputError, match="is its first row the header") as refusal:
        run_script("prepare.py", *base, "--out", tmp_path / "never")
    print(refusal.value)

    store = open_store(tmp_path / "out" / "store")
    assert set(store.manifest.columns) == {
        "image_id", "patient_id", "path", "split", "age", "sex", "view", "cardiomegaly", "congestion"
    }  # fmt: skip
    listing = read_listing(store.path / "quarantine.csv")
    assert set(listing["path"]) == {
        "modality.dcm", "rows.dcm", "frames.dcm", "nameless.dcm", "pixelless.dcm", "photometry.dcm", "copy.dcm", "window.dcm",
        "bits.dcm", "slope.dcm", "rowless.dcm", "torn.dcm", "letter.txt",
    }  # fmt: skip
    assert set(read_listing(store.path / "flagged.csv")["path"]) == {"5.dcm", "6.dcm"}
    assert str(tmp_path) not in "".join(listing["reason"])
    said = capfd.readouterr()
    for secret in SECRETS:
        assert secret.encode() not in everything_in(tmp_path / "out"), secret
        assert secret not in (said.out + said.err).upper(), secret


def named(split):
    return zip(split.frame["path"], split.read_all(), strict=True)
