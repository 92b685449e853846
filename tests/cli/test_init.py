"""Somebody's table becomes files that the strict loader takes, with every guess marked; bad tables get one sentence."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.cli import init
from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.data.manifest import read_table
from jaxcxr.data.sources import table as source
from jaxcxr.errors import InputError

N = 400


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hospital's folder: 400 images of 200 patients (empty files do: init looks for them and reads none)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for place in range(N):
        (tmp_path / "images" / f"{place}.dcm").touch()
    return tmp_path


def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "Study": [f"S{i}" for i in range(N)],
            "Datei": [f"{i}.dcm" for i in range(N)],
            "MRN": [f"{i // 2:05d}" for i in range(N)],
            "Patient Age": rng.integers(20, 90, N),
            "Gender": rng.choice(["female", "male", "divers", ""], N),
            "ViewPosition": rng.choice(["AP", "PA", "LL"], N),
            "Cardiomegaly": rng.choice(["1.0", "0.0", "-1.0", ""], N),
            "Pleural Effusion": rng.choice(["none", "mild", "severe", "uncertain"], N),
            "Pneumothorax": ["1"] * 5 + [""] * (N - 5),
            "ventilated": rng.choice(["0", "1"], N),
            "Scanner": rng.choice(["A", "B"], N),
        }
    )


def proposed(home: Path, *arguments: str) -> source.TableSource:
    init.main(["table.csv", "--images", "images", "--name", "mine", *arguments])
    return load(source.TableSource, home / "mine_map.yaml")


def test_a_table_with_a_column_per_finding(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows().to_csv(home / "table.csv", index=False)
    found = proposed(home, "--size", "256")
    assert (found.columns.path, found.columns.patient_id, found.columns.age) == (
        "Datei",
        "MRN",
        "Patient Age",
    )
    assert (found.columns.sex, found.columns.view, found.columns.split) == ("Gender", "ViewPosition", None)
    assert found.sex == {"female": "F", "male": "M", "divers": "unknown"}
    assert found.view == {"AP": "AP", "PA": "PA"}
    assert found.keep == {"ViewPosition": ("AP", "PA", "")}
    assert found.graded is not None
    assert found.graded["cardiomegaly"].grades == {"1": 1, "0": 0, "-1": None}
    assert found.graded["pleural_effusion"].grades == {"none": 0, "mild": 1, "severe": 1, "uncertain": None}
    assert list(found.graded) == ["cardiomegaly", "pleural_effusion"]
    said = capsys.readouterr().out
    for remark in (
        "'Pneumothorax' is not used",
        "'ventilated' could be a finding",
        "'Scanner' could be kept",
    ):
        assert remark in said

    cohort = source.read(home / "table.csv", found)
    raw = read_table(home / "table.csv")
    kept = raw.loc[raw["ViewPosition"] != "LL"].reset_index(drop=True)
    assert len(cohort.manifest) == len(kept)
    expected = kept["Cardiomegaly"].map({"1.0": 1.0, "0.0": 0.0}).to_numpy(np.float64)
    np.testing.assert_array_equal(cohort.manifest["cardiomegaly"].to_numpy(np.float64), expected)
    assert f"jaxcxr prepare csv --source {Path('mine_map.yaml')} --table table.csv --images images" in said


def test_the_experiment_has_safe_defaults_and_marks_its_guesses(home: Path) -> None:
    rows().to_csv(home / "table.csv", index=False)
    proposed(home, "--size", "256")
    config = load(Experiment, home / "mine.yaml")
    assert config.privacy is not None
    assert (config.data.store, config.data.size) == ("stores/mine", 256)
    assert config.data.findings == ("cardiomegaly", "pleural_effusion")
    assert (config.privacy.unit, config.privacy.dataset_size) == (
        "patient",
        130,
    )  # 65 % of 200 patients, rounded
    assert config.privacy.delta <= 0.1 / 130
    assert config.training.class_weights == "noised"
    assert config.training.seed is None
    assert (config.evaluation.resample, config.evaluation.threshold) == ("patient", "youden_validation")
    other = load(Experiment, home / "mine_nonprivate.yaml")
    assert (other.privacy, other.data) == (None, config.data)
    for field in ("epsilon", "delta", "dataset_size", "weights", "expected_batch_size", "steps"):
        assert any(
            line.strip().startswith(f"{field}:") and "# GUESS: " in line for line in lines(home / "mine.yaml")
        )
    for column in ("path", "patient_id", "age", "sex", "view"):
        assert any(
            line.startswith(f"  {column}: ") and "# GUESS: " in line for line in lines(home / "mine_map.yaml")
        )


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_hand_written_twin_makes_the_same_promises() -> None:
    twin = load(Experiment, "configs/your_data.yaml")
    assert twin.privacy is not None
    assert twin.privacy.unit == "patient"
    assert twin.privacy.dataset_size is not None
    assert twin.privacy.delta <= 0.1 / twin.privacy.dataset_size
    assert (twin.training.class_weights, twin.training.seed) == ("noised", None)
    assert (twin.evaluation.resample, twin.evaluation.threshold) == ("patient", "youden_validation")


def test_a_table_with_one_column_of_labels_and_a_split(home: Path) -> None:
    table = rows()[["Datei", "MRN"]]
    labels = ["Cardiomegaly|Effusion", "No Finding", "Effusion", "Cardiomegaly|Odd", "unlabelled"]
    table["Finding Labels"] = [labels[i % 5] for i in range(N)]
    table["subset"] = np.repeat(["Train", "val", "TEST"], [200, 80, 120])
    table.to_parquet(home / "table.parquet")
    init.main(["table.parquet", "--images", "images", "--name", "mine"])
    found = load(source.TableSource, home / "mine_map.yaml")
    assert found.listed is not None
    assert found.listed.findings == {"effusion": ("Effusion",), "cardiomegaly": ("Cardiomegaly",)}
    assert set(found.listed.other) == {"No Finding", "Odd"}
    assert found.listed.unlabelled == ("unlabelled",)
    assert (found.columns.split, found.draw) == ("subset", None)
    assert found.split == {"TEST": "test", "Train": "train", "val": "valid"}
    manifest = source.read(home / "table.parquet", found).manifest
    assert manifest["split"].value_counts().to_dict() == {"train": 200, "valid": 80, "test": 120}
    assert manifest.loc[4, ["effusion", "cardiomegaly"]].isna().all()
    config = load(Experiment, home / "mine.yaml").privacy
    assert config is not None
    assert config.dataset_size == 100  # patients of the table's own training split


def test_a_split_with_patients_on_two_sides_is_not_taken(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows()
    table["split"] = ["train", "test"] * (N // 2)
    table.to_csv(home / "table.csv", index=False)
    found = proposed(home)
    assert found.columns.split is None
    assert found.draw is not None
    assert "column 'split' is not used: it has patients on two sides" in capsys.readouterr().out


def test_a_table_that_the_map_does_not_read_is_said_to_be_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows()
    table.loc[7, "Datei"] = "6.dcm"
    table.loc[6:7, "ViewPosition"] = "AP"
    table.to_csv(home / "table.csv", index=False)
    proposed(home)
    assert "the map does not read the table yet" in capsys.readouterr().out


def test_nothing_is_overwritten(home: Path) -> None:
    rows().to_csv(home / "table.csv", index=False)
    (home / "mine_nonprivate.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"mine_nonprivate\.yaml: exists already"):
        proposed(home)
    assert (home / "mine_nonprivate.yaml").read_text() == "mine"
    assert not (home / "mine.yaml").exists()
    assert not (home / "mine_map.yaml").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "complaint"),
    [
        (
            lambda t: t.drop(columns="MRN"),
            [],
            "no column looks like the patient's id; name it with --patient",
        ),
        (lambda t: t.assign(Datei="nowhere/" + t["Datei"]), [], "no column names files below images"),
        (lambda t: t.iloc[:, :6], [], "no column looks like a finding"),
        (lambda t: t.head(0), [], "has no rows"),
        (lambda t: t, ["--patient", "PatID"], "has no column 'PatID'; it has Study, Datei"),
        (lambda t: t, ["--path", "Study", "--size", "8"], "--size: found 8"),
    ],
)
def test_what_init_refuses(home: Path, change, arguments: list[str], complaint: str) -> None:
    change(rows()).to_csv(home / "table.csv", index=False)
    with pytest.raises(InputError) as refusal:
        proposed(home, *arguments)
    assert complaint in str(refusal.value)
    assert not list(home.glob("mine*"))
