import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxcxr
from jaxcxr.config import DataConfig, Experiment, ModelConfig
from jaxcxr.config_files import dump
from jaxcxr.data.images import preprocess
from jaxcxr.digests import seal, unlink, write_json
from jaxcxr.errors import InputError
from jaxcxr.inference import BATCH, Model, load_model, weights_record
from jaxcxr.models.calibration import Calibration
from jaxcxr.models.export import run_stablehlo
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import State, from_torch, torch_shapes
from jaxcxr.run_folder import CALIBRATION as CALIBRATION_FILE
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.weights import save_weights
from jaxcxr.workflows.conversion import Weights, convert, export_model, with_head

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, WIDTH, FINDINGS = 32, 32, ("cardiomegaly", "atelectasis_right", "atelectasis_left")
RNG = np.random.default_rng(0)
FILMS = RNG.integers(0, 256, (3, SIZE, SIZE)).astype(np.uint8)


def state() -> State:
    rng = np.random.default_rng(1)
    return {
        name: (rng.normal(0, 0.1, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in torch_shapes(len(FINDINGS), WIDTH).items()
    }


GIVEN = Weights(None, FINDINGS, ModelConfig("relu", WIDTH), SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "converted"
    params = from_torch(state(), len(FINDINGS), WIDTH)
    data, model = DataConfig("", SIZE, FINDINGS), ModelConfig("relu", WIDTH)
    save_weights(path, params, weights_record("a test", data, model))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return jaxcxr.load_model(folder)


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, jaxcxr; print([m for m in ('jax', 'numpy', 'yaml') if m in sys.modules], 'load_model' in jaxcxr.__all__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[] True"
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        jaxcxr.load_modell  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_predictions_are_the_networks(model: Model) -> None:
    assert (model.findings, model.size, model.network.activation) == (FINDINGS, SIZE, "relu")
    apply = jax.jit(model.network.apply)
    expected = [jax.nn.sigmoid(apply(model.params, jax.numpy.asarray(film))) for film in FILMS]  # type: ignore[arg-type]
    np.testing.assert_allclose(model.predict_prepared(FILMS), np.stack(expected), rtol=1e-5)


CALIBRATION = Calibration(
    FINDINGS,
    (1.0, None, 2.0),
    (-1.5, None, 0.3),
    (0.6, None, 0.4),
    "90 validation images",
    ("", "too few", ""),
)


def test_predictions_have_names_thresholds_and_calibrated_probabilities(model: Model) -> None:
    found = dataclasses.replace(model, calibration=CALIBRATION).predict(FILMS)
    scores = model.predict_prepared(model.prepare(FILMS))
    logit = np.log(scores / (1 - scores))
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_allclose(found.probabilities[:, 0], 1 / (1 + np.exp(1.5 - logit[:, 0])), rtol=1e-4)
    np.testing.assert_array_equal(found.probabilities[:, 1], scores[:, 1])
    assert found.findings == FINDINGS
    assert found.calibrated == (True, False, True)
    assert found.note.endswith("90 validation images; not calibrated: atelectasis_right (too few)")
    np.testing.assert_array_equal(found.called[:, 0], scores[:, 0] >= 0.6)
    np.testing.assert_array_equal(found.called[:, 2], scores[:, 2] >= 0.4)
    assert np.isnan(found.called[:, 1]).all()
    table = found.table(["a", "b", "c"])
    assert list(table.columns[:4]) == [
        "image",
        *(f"{kind}_cardiomegaly" for kind in ("p", "threshold", "called")),
    ]
    assert np.isnan(table["called_atelectasis_right"]).all()
    np.testing.assert_array_equal(table["p_cardiomegaly"], found.probabilities[:, 0])


def test_without_a_calibration_the_scores_are_given_and_it_is_said(model: Model) -> None:
    found = model.predict(FILMS[:2])
    np.testing.assert_array_equal(found, found.scores)
    np.testing.assert_array_equal(found[0], found.scores[0])
    assert (len(found), found.shape, found.calibrated) == (2, (2, 3), (False,) * 3)
    assert np.isnan(found.thresholds).all()
    assert "not calibrated" in found.note


def test_a_model_prints_as_one_line(model: Model) -> None:
    said = repr(model)
    assert said.startswith(
        "Model(3 findings: cardiomegaly, atelectasis_right, atelectasis_left; images 32 x 32; "
    )
    assert said.endswith("; not calibrated)")
    assert len(said) < 160
    assert "calibrated on 90 validation images" in repr(dataclasses.replace(model, calibration=CALIBRATION))


def test_more_films_than_a_batch_and_none(model: Model) -> None:
    many = np.concatenate([FILMS] * 12)[: BATCH + 2]
    found = model.predict_prepared(many)
    assert found.shape == (BATCH + 2, 3)
    np.testing.assert_allclose(found[-2:], model.predict_prepared(many[-2:]), rtol=1e-6)
    assert model.predict([]).shape == (0, 3)


def test_films_are_prepared_as_for_training(model: Model, tmp_path: Path) -> None:
    raw = RNG.integers(0, 4000, (50, 40)).astype(np.uint16)
    Image.fromarray(raw).save(tmp_path / "film.png")
    expected = model.predict_prepared(preprocess(raw, SIZE)[None])
    np.testing.assert_array_equal(model.predict(tmp_path / "film.png"), expected)
    np.testing.assert_array_equal(
        model.predict([str(tmp_path / "film.png"), raw.astype(float)])[1:], expected
    )
    np.testing.assert_array_equal(model.predict(raw), expected)
    assert model.predict(np.stack([raw, raw])).shape == (2, 3)


@pytest.mark.parametrize(
    "films",
    [
        np.zeros((2, 3, 8, 8)),
        [np.full((4, 4), np.nan)],
        [np.zeros((0, 4))],
        ["absent.png"],
        [np.zeros((4, 4), str)],
    ],
)
def test_what_is_no_film(model: Model, films: list[np.ndarray]) -> None:
    with pytest.raises(InputError):
        model.predict(films)


def test_prepared_films_must_be_of_the_models_size(model: Model) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[n, 32, 32\], found uint8 \[1, 16, 16\]"):
        model.predict_prepared(np.zeros((1, 16, 16), np.uint8))


def test_a_run_folder_and_a_release_folder(
    folder: Path, tmp_path: Path, tiny_config: Experiment, model: Model
) -> None:
    config = dataclasses.replace(
        tiny_config, data=DataConfig("", SIZE, FINDINGS), model=ModelConfig("relu", WIDTH)
    )
    for name in ("run", "release"):
        (tmp_path / name).mkdir()
        dump(config, tmp_path / name / "config.yaml")
    with pytest.raises(InputError, match="no weights there"):
        load_model(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    worse = jax.tree.map(lambda leaf: leaf * 0.5, model.params)
    for step, params in ((3, worse), (6, model.params)):
        checkpoints.save(step, {"params": params, "optimizer": {"count": np.zeros((), np.int32)}})
    checkpoints.close()
    write_state(tmp_path / "release" / "weights.safetensors", state())
    for name in ("run", "release"):
        CALIBRATION.write(tmp_path / name)  # a release has none; one that was put there is not taken
    assert load_model(tmp_path / "run").calibration == CALIBRATION
    assert load_model(tmp_path / "release").calibration is None
    (tmp_path / "run" / CALIBRATION_FILE).write_text("{}")
    seal(tmp_path / "run" / CALIBRATION_FILE)
    with pytest.raises(InputError, match=r"calibration\.json: not a calibration"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / CALIBRATION_FILE).unlink()
    with pytest.raises(InputError, match=r"calibration\.json: is missing"):
        load_model(tmp_path / "run")
    unlink(tmp_path / "run" / CALIBRATION_FILE)
    for name in ("run", "release"):
        np.testing.assert_array_equal(
            load_model(tmp_path / name).predict_prepared(FILMS), model.predict_prepared(FILMS)
        )


def test_folders_without_a_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(InputError, match=r"expected config\.yaml or provenance\.json"):
        load_model(tmp_path)
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match=r"provenance\.json: expected a record with config\.data"):
        load_model(tmp_path)
    record = json.loads((folder / "provenance.json").read_text())
    record["config"]["model"]["width"] = 64
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    (tmp_path / "params").symlink_to(folder / "params")
    with pytest.raises(InputError, match="do not fit the network"):
        load_model(tmp_path)


def test_a_torch_file_becomes_a_folder_and_a_file_again(tmp_path: Path) -> None:
    write_state(tmp_path / "w.safetensors", state())
    assert (
        convert(tmp_path / "w.safetensors", tmp_path / "new" / "folder", GIVEN)[0]
        == tmp_path / "new" / "folder"
    )
    record = json.loads((tmp_path / "new" / "folder" / "provenance.json").read_text())
    assert record["source"] == "w.safetensors"
    assert len(record["source_sha256"]) == 64
    convert(tmp_path / "new" / "folder", tmp_path / "b.safetensors", GIVEN, torch_file=True)
    again = read_state(tmp_path / "b.safetensors")
    assert all(np.array_equal(again[name], array) for name, array in state().items())


def test_another_head(tmp_path: Path) -> None:
    write_state(tmp_path / "w.safetensors", state())
    convert(
        tmp_path / "w.safetensors",
        tmp_path / "w",
        GIVEN,
        lambda weights: with_head(weights, ("air", "cardiomegaly"), {"air": "atelectasis_left"}, seed=0),
        head="map",
    )
    found = load_model(tmp_path / "w")
    assert found.findings == ("air", "cardiomegaly")
    np.testing.assert_array_equal(found.params["params"]["head"]["kernel"][:, 0], state()["fc.weight"][2])


def test_a_head_of_another_length_than_the_findings(tmp_path: Path) -> None:
    write_state(tmp_path / "w.safetensors", state())
    with pytest.raises(
        InputError, match=r"the head of these weights has 3 outputs, and 2 findings are named \(a, b\)"
    ):
        convert(tmp_path / "w.safetensors", tmp_path / "w", dataclasses.replace(GIVEN, findings=("a", "b")))
    assert not (tmp_path / "w").exists()


def test_weights_of_another_width_are_refused_at_once(tmp_path: Path) -> None:
    write_state(tmp_path / "w.safetensors", state())
    with pytest.raises(InputError, match=r"w\.safetensors: does not fit the network of width 64"):
        convert(
            tmp_path / "w.safetensors",
            tmp_path / "w",
            dataclasses.replace(GIVEN, model=ModelConfig("relu", 64)),
        )


@pytest.mark.parametrize("name", ["m.stablehlo", "m.safetensors"])
def test_an_exported_model_runs_elsewhere(folder: Path, tmp_path: Path, name: str) -> None:
    found = export_model(folder, tmp_path / "out" / name)
    assert found.difference < 1e-5
    assert found.path == tmp_path / "out" / name
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_an_exported_model_averages_its_views(folder: Path, model: Model, tmp_path: Path) -> None:
    averaging = Path(shutil.copytree(folder, tmp_path / "averaging"))
    record = json.loads((averaging / "provenance.json").read_text())
    record["config"]["model"]["test_time_augmentation"] = "mirrored"
    write_json(averaging / "provenance.json", record)
    found = export_model(averaging, tmp_path / "m.stablehlo")
    assert np.abs(run_stablehlo(found.path, FILMS) - model.predict_prepared(FILMS)).max() > 1e-4
    assert found.difference < 1e-5


def test_an_export_that_gives_other_probabilities_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "jaxcxr.workflows.conversion.run_stablehlo",
        lambda _, films: np.zeros((len(films), len(FINDINGS)), np.float32),
    )
    with pytest.raises(InputError, match="the exported model's probabilities differ by"):
        export_model(folder, tmp_path / "m.stablehlo")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there.pth").touch()
    with pytest.raises(InputError, match="exists already"):
        export_model(folder, tmp_path / "there.pth")


def test_stablehlo_takes_any_number_of_films(folder: Path, tmp_path: Path) -> None:
    export_model(folder, tmp_path / "m.stablehlo")
    code = (
        "import sys, numpy as np, jax.export as e; f = e.deserialize(bytearray(open(sys.argv[1], 'rb').read()));"
        f"print([f.call(np.zeros((n, {SIZE}, {SIZE}), np.uint8)).shape for n in (1, 5)], 'jaxcxr' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.stablehlo"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[(1, 3), (5, 3)] False"
