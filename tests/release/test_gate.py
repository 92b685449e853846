"""Every kind of folder at every door: the same answer."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.digests import DIGESTS, recorded
from jaxcxr.errors import InputError
from jaxcxr.inference import Model, load_model, weights_record
from jaxcxr.models.marks import marks_of
from jaxcxr.models.torch_files import read_metadata, read_state, write_state
from jaxcxr.release.build import build_release
from jaxcxr.release.gate import NO_PRIVACY, passage
from jaxcxr.release.register import REGISTER
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.weights import save_weights
from jaxcxr.workflows import conversion
from jaxcxr.workflows.conversion import Weights, convert, export_model
from tests.conftest import load_script
from tests.release.run_folder import CONFIG, DATA, make_run, network_params
from tests.run_files import write_plain_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

GIVEN = Weights(None, CONFIG.data.findings, ModelConfig("mish", CONFIG.model.width), CONFIG.data.size)
FINDING = {
    "method": "one run; white-box gradient alignment and black-box loss; every step checked", "model": "logistic regression",
    "canaries": 200, "confidence": 0.95, "epsilon_lower": 4.0, "epsilon_claimed": 1.0, "accused": True, "code": "",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """What an exported file gives is for tests/test_inference.py; here it counts who may write one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "predict_prepared", lambda _, images: np.zeros((len(images), 2), np.float32))
        patch.setattr(
            conversion,
            "_probabilities",
            lambda _model, _config, _state, images: np.zeros((len(images), 2), np.float32),
        )
        yield


@pytest.fixture(scope="module")
def params() -> dict:
    return network_params()


def private(folder: Path, params: dict, **changes: object) -> Path:
    return make_run(folder, unit="patient", params=params, **changes)  # type: ignore[arg-type]


def refuted(folder: Path, params: dict) -> Path:
    run = private(folder, params)
    (run / "audit.json").write_text(json.dumps({"card": FINDING, "data": DATA}))
    return run


def plain(folder: Path, params: dict) -> Path:
    run = write_plain_run(folder, CONFIG)
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(5, {"params": params, "optimizer": {"moment": np.ones(3, np.float32)}})
    checkpoints.close()
    return run


def shortened(folder: Path, params: dict) -> Path:
    run = private(folder, params)
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))
    return run


def nameless(folder: Path, params: dict) -> Path:
    run = plain(folder, params)
    (run / "run.json").unlink()
    return run


def overspent(folder: Path, params: dict) -> Path:
    run = private(folder, params, epsilon=0.5)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("epsilon: 3.0", "epsilon: 0.5")
    )
    return run


RUNS: dict[str, tuple[Callable[..., Path], str | None, bool]] = {
    "finished": (private, None, False),
    "seeded": (lambda f, p: private(f, p, seed=3), "training.seed", True),
    "exact label counts": (
        lambda f, p: private(f, p, class_weights="paper"),
        "class weights not covered",
        True,
    ),
    "said not to be for release": (
        lambda f, p: private(f, p, release=False),
        "does not say that the run may be released",
        True,
    ),
    "unfinished": (lambda f, p: private(f, p, steps=3), "stopped after step 3 of 5", True),
    "refuted": (refuted, "the audit refutes the claim", True),
    "overspent": (overspent, "more was spent than the run was allowed", True),
    "without privacy": (plain, NO_PRIVACY, True),
    "cut ledger": (shortened, "lines were lost", False),
    "run.json deleted": (nameless, "no run there", False),
}
"""How a run is made, the reason against it, and whether a watermark helps."""


def outcome(script: str, *arguments: object) -> str:
    """`written`, or the sentence of the refusal."""
    try:
        load_script(f"{script}.py").main([str(argument) for argument in arguments])
    except InputError as error:
        return str(error)
    return "written"


@pytest.mark.parametrize("kind", RUNS)
def test_release_export_and_conversion_give_the_same_answer(kind: str, params: dict, tmp_path: Path) -> None:
    make, reason, markable = RUNS[kind]
    run = make(tmp_path / "run", params)
    out = tmp_path / "out"
    doors = {
        "release": (run,),
        "export": (run, "--out", out / "m.safetensors"),
        "convert_weights": (run, "--out", out / "weights"),
    }
    said = {door: outcome(door, *arguments) for door, arguments in doors.items()}
    assert len(set(said.values())) == 1, said
    answer = said["release"]
    if reason is None:
        assert answer == "written"
        assert (run / "release").is_dir()
        assert {path.name for path in out.iterdir()} == {"m.safetensors", "weights"}
        assert marks_of(out / "m.safetensors") == ()
        return
    assert reason in answer
    assert (f"{run}: not for release: " in answer) == markable
    assert not out.exists()
    assert not (run / "release").exists()
    marked = {door: outcome(door, *arguments, "--watermark") for door, arguments in doors.items()}
    assert set(marked.values()) == ({"written"} if markable else {answer}), marked
    if markable:
        assert {path.name for path in out.iterdir()} == {
            "m.not-for-release.safetensors",
            "weights.not-for-release",
        }
        assert any(reason in mark for mark in marks_of(out / "m.not-for-release.safetensors"))
        assert (
            any(reason in mark for mark in marks_of(run / "not-for-release" / "model.safetensors"))
            or reason in (run / "not-for-release" / "NOT-FOR-RELEASE.txt").read_text()
        )
        assert list(tmp_path.rglob(REGISTER)) == []
    assert not (run / "release").exists()


@pytest.mark.parametrize("planted", ["weights", "finding"])
def test_what_a_release_is_refused_for_leaves_by_no_other_door(
    planted: str, params: dict, tmp_path: Path
) -> None:
    if planted == "weights":
        spoilt = jax.tree.map(np.copy, params)
        spoilt["params"]["head"]["bias"][0] = np.nan
        run, said = private(tmp_path / "run", spoilt), "not finite"
    else:
        run, said = private(tmp_path / "run", params), "img-0003"
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("- cardiomegaly", "- seen in 3000-GMI"))
    out = tmp_path / "out"
    for door, name in (("release", None), ("export", "m.safetensors"), ("convert_weights", "weights")):
        arguments = (run,) if name is None else (run, "--out", out / name)
        assert said in outcome(door, *arguments), door
    assert not out.exists() or list(out.iterdir()) == []
    assert not (run / "release").exists()
    assert list(tmp_path.rglob(REGISTER)) == []


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, params: dict) -> Path:
    """Public weights, as pretraining writes them."""
    folder = tmp_path_factory.mktemp("public") / "weights"
    save_weights(
        folder,
        jax.tree.map(jax.numpy.asarray, params),
        weights_record("a test", DataConfig("", 32, CONFIG.data.findings), ModelConfig("mish", 32)),
    )
    return folder


def test_public_weights_and_releases_pass_and_spoilt_releases_do_not(
    params: dict, weights: Path, tmp_path: Path
) -> None:
    release = build_release(private(tmp_path / "run", params)).folder
    for source in (weights, release, Path("jaxcxr/weights/synthetic-64")):
        with passage(source) as found:
            assert found.against == ()
            assert found.named(tmp_path / "m.pth") == tmp_path / "m.pth"
    assert "no run, but a weights" in outcome("release", weights)
    assert "no run, but a release" in outcome("release", release)
    state = read_state(export_model(release, tmp_path / "m.safetensors").path)
    np.testing.assert_array_equal(state["fc.bias"], params["params"]["head"]["bias"])
    spoilt = Path(shutil.copytree(release, tmp_path / "spoilt"))
    card = json.loads((spoilt / "privacy_card.json").read_text())
    card["claim"]["epsilon_upper"] = 0.1
    (spoilt / "privacy_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    assert "claim.epsilon_upper" in outcome("export", spoilt, "--out", tmp_path / "s.safetensors")
    (spoilt / "privacy_card.json").unlink()
    assert "privacy_card.json" in outcome("export", spoilt, "--out", tmp_path / "s.safetensors")
    for absent in (tmp_path / "absent", tmp_path):
        assert "expected" in outcome("export", absent, "--out", tmp_path / "s.safetensors")
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.stablehlo"])
def test_a_mark_is_in_the_name_and_inside(params: dict, tmp_path: Path, name: str) -> None:
    if name.endswith("pth"):
        pytest.importorskip("torch")
    run = plain(tmp_path / "run", params)
    if name.endswith("stablehlo"):
        with pytest.MonkeyPatch.context() as patch:  # what is run elsewhere is for tests/test_inference.py
            patch.setattr(
                conversion, "run_stablehlo", lambda _, images: np.zeros((len(images), 2), np.float32)
            )
            found = export_model(run, tmp_path / "out" / name, watermark=True)
        assert jax.export.deserialize(bytearray(found.path.read_bytes())).fun_name == "not_for_release"
        assert marks_of(found.path) == ("not for release",)
    else:
        found = export_model(run, tmp_path / "out" / name, watermark=True)
        assert marks_of(found.path) == (NO_PRIVACY,)
        assert read_metadata(found.path)["watermark"] == "not for release"
        assert set(read_state(found.path)) >= {"fc.weight", "conv1.weight"}
    assert found.against == (NO_PRIVACY,)
    assert found.path.name == name.replace("m.", "m.not-for-release.")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [found.path.name]


def test_a_mark_survives_every_way_on(params: dict, tmp_path: Path) -> None:
    """File to folder to file, renamed on the way: each is refused for the first one's reason, or marked again."""
    marked = export_model(plain(tmp_path / "run", params), tmp_path / "m.safetensors", watermark=True).path
    innocent = marked.rename(tmp_path / "public.safetensors")
    refusal = f"public.safetensors: not for release: {NO_PRIVACY}"
    with pytest.raises(InputError, match=refusal):
        convert(innocent, tmp_path / "weights", GIVEN)
    folder, _ = convert(innocent, tmp_path / "weights", GIVEN, watermark=True)
    record = json.loads((folder / "provenance.json").read_text())
    assert (record["watermark"], record["reasons_against_release"]) == ("not for release", [NO_PRIVACY])
    assert load_model(folder).findings == CONFIG.data.findings
    folder = folder.rename(tmp_path / "public weights")
    with pytest.raises(InputError, match=f"public weights: not for release: {NO_PRIVACY}"):
        export_model(folder, tmp_path / "again.safetensors")
    again = export_model(folder, tmp_path / "again.safetensors", watermark=True)
    assert marks_of(again.path) == (NO_PRIVACY,)
    release = build_release(tmp_path / "run", watermark=True).folder.rename(tmp_path / "release")
    with pytest.raises(InputError, match="release: not for release"):
        export_model(release, tmp_path / "again.pth")
    record.pop("watermark")  # a folder of one's own about the marked file of a release
    (tmp_path / "own").mkdir()
    shutil.copy(release / "model.safetensors", tmp_path / "own")
    (tmp_path / "own" / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="own: not for release"):
        export_model(tmp_path / "own", tmp_path / "again.pth")


def test_an_export_is_registered_once_beside_its_release(params: dict, tmp_path: Path) -> None:
    run = private(tmp_path / "run", params)
    export_model(run, tmp_path / "a.safetensors")
    (path,) = tmp_path.rglob(REGISTER)
    before = path.read_bytes()
    assert before.count(b"\n") == 2
    build_release(run)
    export_model(run, tmp_path / "b.safetensors")
    assert path.read_bytes() == before


def test_an_export_that_differs_is_neither_kept_nor_registered(
    params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = private(tmp_path / "run", params)
    monkeypatch.setattr(
        conversion,
        "_probabilities",
        lambda _model, _config, _state, images: np.ones((len(images), 2), np.float32),
    )
    with pytest.raises(InputError, match="nothing was kept"):
        export_model(run, tmp_path / "a.safetensors")
    assert list(tmp_path.rglob(REGISTER)) == []
    assert list(tmp_path.glob("*a.safetensors*")) == []


def test_a_file_beside_the_checkpoints_is_not_the_runs_model(params: dict, tmp_path: Path) -> None:
    """What passes for a run must be the run's own weights."""
    run = private(tmp_path / "run", params)
    state = read_state(export_model(run, tmp_path / "a.safetensors").path)
    write_state(run / "other.safetensors", {name: array * 2 for name, array in state.items()})
    again = read_state(export_model(run, tmp_path / "b.safetensors").path)
    assert all(np.array_equal(again[name], array) for name, array in state.items())


def test_weights_of_a_private_run_leave_without_hashes_of_its_images(params: dict, tmp_path: Path) -> None:
    """A salted hash of each image's pixels and of each patient's id tells for certain who was in the data."""
    run = private(tmp_path / "run", params)
    folder, _ = convert(run, tmp_path / "weights", GIVEN)
    assert sorted(path.name for path in folder.iterdir()) == [DIGESTS, "params", "provenance.json"]
    assert set(recorded(folder)) <= {"params", "provenance.json", "weights"}
    assert "trained_on" not in json.loads((folder / "provenance.json").read_text())
    stays, _ = convert(plain(tmp_path / "plain", params), tmp_path / "stays", GIVEN, watermark=True)
    assert "watermark" in json.loads((stays / "provenance.json").read_text())
