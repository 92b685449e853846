"""`jaxcxr predict`: a folder of images becomes a table; a file that is no image costs nobody else a prediction."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxcxr.cli import predict
from jaxcxr.errors import InputError
from jaxcxr.inference import Model, load_model
from jaxcxr.models.calibration import Calibration
from jaxcxr.models.resnet9 import ResNet9

FINDINGS = ("a", "b")
SIDE = 32


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose scores are simple functions of the prepared image, so that nothing is compiled."""
    known = Calibration(
        FINDINGS, (1.0, None), (0.0, None), (0.5, None), "10 validation images", ("", "too few")
    )
    network = ResNet9(len(FINDINGS), activation="mish", width=32)
    made = Model(FINDINGS, SIDE, network, {"w": np.zeros(7)}, calibration=known)

    def scores(_: Model, images: np.ndarray) -> np.ndarray:
        mean = images.reshape(len(images), -1).mean(axis=1) / 255
        return np.stack([mean, 1 - mean], axis=1).astype(np.float32)

    monkeypatch.setattr(Model, "predict_prepared", scores)
    monkeypatch.setattr("jaxcxr.inference.load_model", lambda _: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    for place in range(35):  # more than a batch
        name = f"deeper/{place:02d}.png" if place % 2 else f"{place:02d}.png"
        Image.fromarray(rng.integers(0, 255, (40, 40)).astype(np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "05_broken.png").write_bytes(b"no image")
    (tmp_path / "images" / "labels.csv").write_text("a,b\n")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["out/table.csv", "table.parquet"])
def test_a_folder_becomes_a_table(
    model: Model, folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main(["runs/any", str(folder), "--out", str(tmp_path / name)])
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    table = read(tmp_path / name)
    assert len(table) == 36
    assert table["image"].is_monotonic_increasing
    columns = [f"{kind}_{f}" for f in FINDINGS for kind in ("p", "threshold", "called")]
    assert list(table.columns) == ["image", *columns, "problem"]
    broken = table["image"].str.endswith("05_broken.png")
    assert table.loc[broken, columns].isna().all().all()
    assert "05_broken.png" in table.loc[broken, "problem"].item()
    good = table.loc[~broken]
    expected = model.predict(list(good["image"])).probabilities
    np.testing.assert_allclose(good[["p_a", "p_b"]].to_numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(good["called_a"], good["p_a"] >= good["threshold_a"])
    assert good["called_b"].isna().all()
    said = capsys.readouterr().out
    assert "calibrated and thresholds chosen on 10 validation images; not calibrated: b (too few)" in said
    assert "1 of 36 files could not be read" in said
    assert said.startswith("Model(2 findings: a, b;")


def test_files_one_by_one_and_what_is_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    two = [str(folder / "00.png"), str(folder / "02.png")]
    predict.main(["runs/any", *two, "--out", str(tmp_path / "two.csv")])
    assert pd.read_csv(tmp_path / "two.csv")["image"].tolist() == two
    (tmp_path / "empty").mkdir()
    for arguments, complaint in (
        ([*two, "--out", str(tmp_path / "two.csv")], "exists already"),
        ([*two, "--out", str(tmp_path / "two.txt")], "ends in .csv or .parquet"),
        (["nowhere", "--out", str(tmp_path / "x.csv")], "nowhere: no such file or folder"),
        ([str(tmp_path / "empty"), "--out", str(tmp_path / "x.csv")], "no image files there"),
    ):
        with pytest.raises(InputError, match=complaint):
            predict.main(["runs/any", *arguments])
    assert not (tmp_path / "x.csv").exists()


def test_the_model_is_read_by_the_public_function() -> None:
    """The tests above replace it."""
    with pytest.raises(InputError, match="no such folder"):
        load_model("nowhere")
