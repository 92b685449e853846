import gzip
import io
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxcxr.errors import InputError
from jaxcxr.release.build import build_release
from jaxcxr.release.check import check_release
from jaxcxr.report.card import make_card
from jaxcxr.training.checkpoint import load_weights
from tests.release.run_folder import MANIFEST, PARAMS, make_run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(make_run(tmp_path_factory.mktemp("release") / "run"), MANIFEST)


@pytest.fixture
def release(built: Path, tmp_path: Path) -> Path:
    """A copy of a clean release, to be spoilt."""
    return Path(shutil.copytree(built, tmp_path / "release"))


def test_a_release_holds_the_weights_and_what_is_promised(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {
        "model.safetensors", "orbax", "config.yaml", "privacy_card.json", "privacy_card.html",
    }  # fmt: skip
    weights = load_file(built / "model.safetensors")
    np.testing.assert_array_equal(weights["params/conv1/kernel"], PARAMS["params"]["conv1"]["kernel"])
    np.testing.assert_array_equal(weights["params/head/bias"], PARAMS["params"]["head"]["bias"])
    again = load_weights(built / "orbax", PARAMS)
    np.testing.assert_array_equal(again["params"]["conv1"]["kernel"], PARAMS["params"]["conv1"]["kernel"])


def test_nothing_of_the_house_comes_along(built: Path) -> None:
    content = b"".join(path.read_bytes() for path in built.rglob("*") if path.is_file())
    for private in (b"hospital", b"images_per_second", b'"loss"', bytes(32) * 2, str(built.parent).encode()):
        assert private not in content
    config = yaml.safe_load((built / "config.yaml").read_text())
    assert config["data"]["store"] == config["model"]["weights"] == "not released"
    assert config["training"]["learning_rate"] == 1e-3
    assert check_release(built, MANIFEST) == check_release(built, None) == []


def text(value: str) -> bytes:
    return f"remark: film {value} was hard\n".encode()


def zipped(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", text(value) * 50)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def tarred(value: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo(f"{value}.txt")
        archive.addfile(info, io.BytesIO(b""))
    return stream.getvalue()


# An HDF5 file keeps an attribute as its bytes (fixed-length string) and a compressed data set as zlib streams.
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4
IDS = (
    "IMG-0003",
    "Müller^Anna",
    "p-77",
    "1.2.840.113619.2",
    "483920",
    "x9",
    "0042",
    "88241907",
    "scan004",
    "films/ward3/scan005.dcm",
)

FILES: dict[str, Callable[[str], bytes]] = {
    "notes.txt": text,
    "data.h5": lambda value: HDF5 + value.encode() + b"\x00" + HDF5,
    "chunks.h5": lambda value: HDF5 + zlib.compress(text(value) * 9) + HDF5,
    "names.npz": lambda value: npz(rows=np.array([value, "other"])),
    "bytes.npz": lambda value: npz(rows=np.array([value.encode("utf-8")])),
    "archive.zip": zipped,
    "log.gz": lambda value: gzip.compress(text(value)),
    "all.tgz": tarred,
    "page.html": lambda value: b"<p>" + value.encode("utf-16-le") + b"</p>",
    "image.png": lambda value: b"\x89PNG\r\n\x1a\n\x00tEXtComment\x00" + value.encode() + b"\x00\xff\xfe",
    "nested.zip": lambda value: zipped("") + b"" if not value else _nested(value),
}


def _nested(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inner.gz", gzip.compress(zipped(value)))
    return stream.getvalue()


def holds(wrong: list[str], value: str) -> bool:
    return any(
        value.lower() in sentence.split(": ", 1)[1].lower() for sentence in wrong if "no part of a release" not in sentence
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("value", IDS)
def test_an_identifier_in_any_file_is_found(release: Path, name: str, value: str) -> None:
    (release / name).write_bytes(FILES[name](value))
    wrong = check_release(release, MANIFEST)
    assert f"{name}: no part of a release" in wrong
    if name == "bytes.npz" and value == "Müller^Anna":
        return  # refused as a file that does not belong there
    assert holds(wrong, value), wrong


@pytest.mark.parametrize("value", IDS)
@pytest.mark.parametrize("where", ["file", "folder", "orbax"])
def test_an_identifier_in_a_name_is_found(release: Path, value: str, where: str) -> None:
    flat = value.replace("/", "_")
    target = {"file": release / f"{flat}.txt", "folder": release / flat / "x.txt", "orbax": release / "orbax" / f"{flat}_0"}[
        where
    ]
    target.parent.mkdir(exist_ok=True)
    target.write_text("")
    wrong = check_release(release, MANIFEST)
    assert any("its name holds" in sentence for sentence in wrong) or "/" in value
    assert any("no part of a release" in sentence for sentence in wrong)


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def metadata(path: Path, value: str) -> None:
    save_file(load_file(path), path, metadata={"patient": value})


def extra_tensor(path: Path, value: str) -> None:
    save_file({**load_file(path), f"params/{value}": np.zeros(2, np.float32)}, path)


def append(path: Path, value: str) -> None:
    path.write_bytes(path.read_bytes() + value.encode())


PLANTED_IN_PLACE: dict[str, Callable[[Path, str], None]] = {
    "weights metadata": lambda folder, value: metadata(folder / "model.safetensors", value),
    "weights tail": lambda folder, value: append(folder / "model.safetensors", value),
    "parameter name": lambda folder, value: extra_tensor(folder / "model.safetensors", value),
    "card text": lambda folder, value: edit_json(folder / "privacy_card.json", lambda v: v["assumptions"].append(f"Not {value}.")),
    "card field": lambda folder, value: edit_json(folder / "privacy_card.json", lambda v: v.update(patient=value)),
    "page": lambda folder, value: append(folder / "privacy_card.html", f"<!-- {value} -->"),
    "config value": lambda folder, value: _edit_yaml(folder / "config.yaml", value),
    "config comment": lambda folder, value: append(folder / "config.yaml", f"# {value}\n"),
    "orbax metadata": lambda folder, value: edit_json(folder / "orbax" / "params" / "_METADATA", lambda v: v.update(custom=f"is {value}")),
    "orbax number": lambda folder, _: edit_json(folder / "orbax" / "params" / "_METADATA", lambda v: v.update(custom={"n": 483920})),
    "provenance": lambda folder, value: edit_json(folder / "orbax" / "provenance.json", lambda v: v.update(by=value)),
}  # fmt: skip


def _edit_yaml(path: Path, value: str) -> None:
    values = yaml.safe_load(path.read_text())
    values["data"]["findings"][0] = f"seen in {value}"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))


@pytest.mark.parametrize("place", PLANTED_IN_PLACE)
@pytest.mark.parametrize("value", IDS)
def test_an_identifier_in_the_releases_own_files_is_refused(release: Path, place: str, value: str) -> None:
    PLANTED_IN_PLACE[place](release, value)
    wrong = check_release(release, MANIFEST)
    assert wrong
    if place not in ("page", "orbax number"):  # a card and a page that agree do not help
        assert wrong != ["privacy_card.html: is not the page that privacy_card.json gives"]


def test_numbers_of_the_training_are_no_ids(built: Path) -> None:
    manifest = pd.DataFrame({"image_id": ["32", "1000", "200"], "patient_id": ["5", "10", "0.05"], "path": ["1", "2", "3"]})
    assert check_release(built, manifest) == []


@pytest.mark.parametrize(("changes", "reason"), [({"seed": 1}, "training.seed"), ({"class_weights": "paper"}, "class weights")])
def test_a_run_that_must_stay_is_refused_or_marked_everywhere(tmp_path: Path, changes: dict, reason: str) -> None:
    run = make_run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=f"not for release.*{reason}"):
        build_release(run, MANIFEST)
    assert not (run / "release").exists()
    folder = build_release(run, MANIFEST, watermark=True)
    assert folder.name == "not-for-release"
    for name in ("model.safetensors", "privacy_card.json", "orbax/provenance.json"):
        assert b"not for release" in (folder / name).read_bytes()
    assert (folder / "NOT-FOR-RELEASE.txt").exists()
    assert check_release(folder, MANIFEST)


def test_an_unfinished_run_is_not_released(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3)
    with pytest.raises(InputError, match="stopped after step 3 of 5"):
        build_release(run, MANIFEST)


def test_a_release_with_an_identifier_is_not_built(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spoilt = pd.concat([MANIFEST, pd.DataFrame({"image_id": ["cardiomegaly"], "patient_id": ["pp11"], "path": ["a.dcm"]})])
    with pytest.raises(InputError, match="holds the image_id 'cardiomegaly'"):
        build_release(run, spoilt)
    assert [path.name for path in run.iterdir() if "release" in path.name] == []


def test_the_house_card_does_not_pass(release: Path) -> None:
    card = make_card(release.parent / "run") if (release.parent / "run").exists() else None
    assert card is None
    edit_json(release / "privacy_card.json", lambda v: v["patients"][0].update(patient="maximum"))
    assert any("films a patient" in sentence for sentence in check_release(release, None))


def test_a_link_is_refused(release: Path, tmp_path: Path) -> None:
    (release / "orbax" / "link").symlink_to(tmp_path)
    assert "orbax/link: is a link" in check_release(release, None)
