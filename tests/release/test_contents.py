"""What a release says of itself: statement, licence, README, thresholds, the files that its card names, its day."""

import datetime
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxcxr.config_files import PACKAGED
from jaxcxr.errors import InputError
from jaxcxr.inference import NOT_CALIBRATED, load_model
from jaxcxr.models.calibration import read_thresholds
from jaxcxr.release import contents, register, released_weights
from jaxcxr.release.build import build_release
from jaxcxr.release.check import check_registered, check_release
from jaxcxr.report.card.card_schema import read_card, read_identity
from jaxcxr.report.card.statement import Statement, read_statement
from jaxcxr.training.weights import flat_weights
from tests.release.run_folder import MANIFEST, PARAMS, make_run, network_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

DAY, LATER = datetime.date(2026, 3, 1), datetime.date(2026, 4, 24)
STATED = Statement(
    name="Chest model of Example Hospital", version="1.0", curator="Example Hospital", curator_type="Nonprofit",
    contact="ai@example.org", intended_use="Research on second readings | in intensive care.\nNot for care.",
    licence="CC-BY-4.0", licence_text="You may share it,\n\nif you name us.", region="Germany", sector="Healthcare",
    registry_authors=("A. Author",),
)  # fmt: skip
OF_THE_NETWORK = released_weights.network_shapes


@pytest.fixture(autouse=True)
def day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases are made on one day, of the tiny network."""
    monkeypatch.setattr(register, "today", lambda: DAY)
    monkeypatch.setattr(released_weights, "network_shapes", tiny)


def tiny(_: object) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in flat_weights(PARAMS).items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "today", lambda: DAY)
        patch.setattr(released_weights, "network_shapes", tiny)
        run = make_run(tmp_path_factory.mktemp("contents") / "run", unit="patient")
        yield build_release(run, MANIFEST, statement=STATED, record=True).folder


@pytest.fixture
def release(built: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(built, tmp_path / "release"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_what_its_module_says(built: Path) -> None:
    there = {path.name for path in built.iterdir()}
    assert there == {*contents.ALWAYS, contents.ORBAX, contents.REGISTRY}
    assert check_release(built, MANIFEST).wrong == ()
    readme = (built / "README.md").read_text()
    assert {name for name in there if f"`{name}" in readme} == there - {"README.md"}


def test_the_card_names_every_file_that_does_not_follow_from_it(built: Path) -> None:
    card = read_card(built / "privacy_card.json")
    named = {file.name: file.sha256 for file in card.files}
    there = bytes_of(built)
    assert set(there) - set(named) == set(contents.FROM_CARD)
    assert named == {name: hashlib.sha256(there[name]).hexdigest() for name in named}
    page = (built / "privacy_card.html").read_text()
    assert all(digest in page for digest in named.values())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A release of the real network, with thresholds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "today", lambda: DAY)
        patch.setattr(released_weights, "network_shapes", OF_THE_NETWORK)
        run = make_run(tmp_path_factory.mktemp("real") / "run", unit="patient", params=network_params())
        values = {"cardiomegaly": 0.3, "congestion": 0.7}
        stated = {"values": values, "chosen_on": "validation images", "protection": "none"}
        yield build_release(run, MANIFEST, statement=Statement(thresholds=stated)).folder  # type: ignore[arg-type]


def test_three_lines_load_the_model_and_predict(
    real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (real / "README.md").read_text(), re.S)
    assert len(code.strip().splitlines()) == 3
    shade = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    Image.fromarray(shade).save(real.parent / "image.png")
    monkeypatch.chdir(real.parent)
    exec(compile(code, "README.md", "exec"), {})  # what a reader types
    said = capsys.readouterr().out
    for row in ("p_cardiomegaly", "threshold_cardiomegaly", "p_congestion", "called_congestion"):
        assert row in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "more.txt").write_text("x"), "more.txt: is not part of a release"),
        (lambda f: (f / "LICENCE").unlink(), "LICENCE: is missing"),
        (lambda f: (f / "README.md").unlink(), "README.md: is missing"),
        (lambda f: (f / "orbax/params/params.head.bias/0").unlink(), "orbax/params/params.head.bias/0: is missing"),
        (lambda f: (f / "thresholds.json").write_text("{}"), "thresholds.json: is not part of a release"),
        (lambda f: (f / "LICENCE").write_text("Everything is permitted.\n"), "LICENCE: is not the file that privacy_card.json names by its SHA-256"),
        (lambda f: (f / "README.md").write_text("# Safe\n"), "README.md: is not the file that"),
        (lambda f: (f / "registry.yaml").write_text("url_slug: x\n"), "registry.yaml: is not the file that"),
    ],
    ids=["one more", "no licence", "no README", "an array less", "thresholds nobody stated", "another licence", "another README", "another record"],
)  # fmt: skip
def test_a_file_more_or_less_or_another_is_refused(
    release: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(release)
    assert any(sentence.startswith(said) for sentence in check_release(release, None).wrong)


@pytest.mark.parametrize(
    "taken", ["model.safetensors", "privacy_card.json", "privacy_card.html", "config.yaml"]
)
def test_a_file_of_another_release_is_refused(release: Path, tmp_path: Path, taken: str) -> None:
    """The other release is in order itself: same network and settings, other weights."""
    other = make_run(
        tmp_path / "other", unit="patient", secret=bytes(range(1, 33)),
        params={"params": {**PARAMS["params"], "head": {"bias": np.array([0.5, 2.0], np.float32)}}},
    )  # fmt: skip
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["training"]["learning_rate"] = 2e-3
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    theirs = build_release(other, MANIFEST, statement=STATED, record=True).folder
    assert check_release(theirs, None).wrong == ()
    shutil.copyfile(theirs / taken, release / taken)
    wrong = check_release(release, None).wrong
    named = {"privacy_card.json": "model.safetensors", "privacy_card.html": None}.get(taken, taken)
    if named is None:
        assert any(sentence.startswith("privacy_card.html: is not the file that") for sentence in wrong)
    else:
        assert f"{named}: is not the file that privacy_card.json names by its SHA-256" in wrong


def test_a_card_that_names_no_files_is_no_card_of_a_release(release: Path) -> None:
    path = release / "privacy_card.json"
    card = json.loads(path.read_text()) | {"files": []}
    path.write_text(json.dumps(card))
    assert any(
        "names no files" in sentence or "bound_to" in sentence
        for sentence in check_release(release, None).wrong
    )


def test_what_the_hospital_states_is_on_card_readme_and_licence(built: Path) -> None:
    card = read_card(built / "privacy_card.json")
    assert card.statement == STATED
    page, readme = (built / "privacy_card.html").read_text(), (built / "README.md").read_text()
    assert "<h1>Privacy card of Chest model of Example Hospital, version 1.0</h1>" in page
    assert readme.startswith("# Chest model of Example Hospital, version 1.0\n")
    assert "Research on second readings \\| in intensive care. Not for care." in readme
    licence = (built / "LICENCE").read_text()
    assert licence.startswith(
        "Licence of the weights in this folder: CC-BY-4.0\nReleased by: Example Hospital\n"
    )
    assert licence.endswith("You may share it,\n\nif you name us.\n")
    for sentence in (*card.promised, *card.to_whom, *card.how_strong, *card.not_promised):
        assert f"- {sentence}\n" in readme
    assert readme.count("not stated") == 2  # intended users, not to be used for


def test_nothing_stated_is_said_so(tmp_path: Path) -> None:
    folder = build_release(make_run(tmp_path / "run", unit="patient"), MANIFEST).folder
    page = (folder / "privacy_card.html").read_text()
    assert page.count('<span class="absent">not stated</span>') == 4 + 28  # first page, then every field
    assert (folder / "LICENCE").read_text().startswith("No licence was stated.")
    assert not (folder / "registry.yaml").exists()
    assert check_release(folder, MANIFEST).wrong == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nmae: x\n", "nmae: unknown key"),
        ("name: 3\n", "name: expected a valid string, found 3"),
        ("name: |\n  two\n  lines\n", "name: expected one line"),
        ("name: \"x\\u200by\"\n", "invisible characters such as U\\+200B"),
        ("curator_type: Hospital\n", "curator_type: expected 'Government', 'Industry' or 'Nonprofit'"),
        ("publication_date: 30.11.2026\n", "publication_date: expected a valid date"),
        ("utility: AUROC 0.9\n", "utility"),
        ("utility: {text: AUROC 0.9}\n", "utility.protection: missing"),
        ("utility: {text: AUROC 0.9, protection: noised}\n", "utility: expected epsilon and delta"),
        ("utility: {text: AUROC 0.9, protection: none, epsilon: 1, delta: 1.0e-5}\n", "utility: expected epsilon and delta"),
        ("name: x\nname: y\n", "key 'name' stands on line 1 already"),
        ("- name\n", "expected a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_statement_is_refused_and_its_field_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "release.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_statement(tmp_path / "release.yaml")


def test_the_form_has_every_field_and_states_nothing_but_the_sector() -> None:
    form = PACKAGED / "release.yaml"
    assert read_statement(form) == Statement(sector="Healthcare")
    assert list(yaml.safe_load(form.read_text())) != []
    assert set(yaml.safe_load(form.read_text())) == set(Statement.model_fields)


def test_an_identifier_in_the_statement_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unit="patient")
    with pytest.raises(InputError, match="img-0003"):
        build_release(run, MANIFEST, statement=Statement(residual_risks="Image IMG-0003 was hard."))
    assert not (run / "release").exists()


def test_thresholds_are_released_and_used(real: Path, tmp_path: Path) -> None:
    model = load_model(real)
    found = model.judge(np.array([[0.4, 0.4]], np.float32))
    np.testing.assert_allclose(found.thresholds, [0.3, 0.7])
    np.testing.assert_array_equal(found.called, [[1, 0]])
    assert found.note == f"thresholds chosen on validation images; {NOT_CALIBRATED}"
    assert "not calibrated" in repr(model)
    said = read_card(real / "privacy_card.json").not_covered
    assert "the thresholds: they were chosen on patients' images without noise" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"thresholds": {"a": 0.3}, "chosen_on": null}', "expected one threshold between 0 and 1 for each of a, b"),
        ('{"thresholds": {"a": 0.3, "b": 1.2}, "chosen_on": null}', "expected one threshold between 0 and 1"),
        ("{}", "no thresholds"),
        ("[", "no thresholds"),
    ],
)  # fmt: skip
def test_damaged_thresholds_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_thresholds(tmp_path, ("a", "b"))


def test_thresholds_of_other_findings_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unit="patient")
    stated = Statement(thresholds={"values": {"cardiomegaly": 0.3}, "protection": "none"})  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"thresholds: expected one for each finding.*congestion\), found cardiomegaly"
    ):
        build_release(run, MANIFEST, statement=stated)


def test_a_release_that_is_built_anew_has_the_same_bytes_on_a_later_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", unit="patient")
    first = bytes_of(build_release(run, MANIFEST, statement=STATED).folder)
    shutil.rmtree(run / "release")
    monkeypatch.setattr(register, "today", lambda: LATER)
    assert bytes_of(build_release(run, MANIFEST, statement=STATED).folder) == first
    assert read_card(run / "release" / "privacy_card.json").released == DAY
    assert b"registered as released on 2026-03-01" in first["privacy_card.html"]


def test_another_day_than_was_registered_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unit="patient")
    folder = build_release(run, MANIFEST).folder
    assert check_registered(folder, None).wrong == ()
    path = folder / "privacy_card.json"
    path.write_text(path.read_text().replace('"released": "2026-03-01"', '"released": "2026-02-28"'))
    (wrong,) = check_registered(folder, None).wrong
    assert wrong.endswith("its card gives 2026-02-28 as the day, registered was 2026-03-01")


def as_schema_2(path: Path) -> None:
    """The card as the version before wrote it: what the register compares is the same."""
    card = json.loads(path.read_text())
    claim = card["claim"]
    claim["films_a_step"] = claim.pop("images_per_step")
    for name in ("findings", "statement", "released", "files", "profile", "scale", "tried", "clipping"):
        del card[name]
    path.write_text(json.dumps(card | {"schema_version": 2}))


def test_a_card_of_the_schema_before_is_named_and_its_register_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unit="patient")
    folder = build_release(run, MANIFEST).folder
    lines = (tmp_path / "hospital of run" / "store" / register.REGISTER).read_text()
    assert '"date": "2026-03-01"' in lines
    as_schema_2(folder / "privacy_card.json")
    wrong = check_release(folder, None).wrong
    assert any("schema_version: found 2, expected 3; check the folder with the version of jaxcxr that built it" in said for said in wrong)  # fmt: skip
    assert read_identity(folder / "privacy_card.json").claim.unit == "patient"
    (odd,) = check_registered(
        folder, None
    ).wrong  # everything agrees but the day, which such cards do not give
    assert "as the day" in odd
    (folder / "privacy_card.json").write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match="schema_version: found 1, expected one of"):
        read_identity(folder / "privacy_card.json")


def test_a_marked_folder_is_marked_in_its_words_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unit="patient", seed=3)
    thresholds = {"values": {"cardiomegaly": 0.3, "congestion": 0.7}, "protection": "none"}
    stated = STATED.model_copy(update={"thresholds": Statement(thresholds=thresholds).thresholds})  # type: ignore[arg-type]
    folder = build_release(run, MANIFEST, watermark=True, statement=stated).folder
    for name in ("README.md", "LICENCE", "thresholds.json", "privacy_card.html"):
        assert "not for release" in (folder / name).read_text().lower(), name
    assert "To nobody." in (folder / "README.md").read_text()
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"registry.yaml: the record needs .*a model that is for release"):
        build_release(run, MANIFEST, watermark=True, statement=stated, record=True)


def test_other_weights_under_the_same_names_are_another_release(release: Path) -> None:
    weights = load_file(release / "model.safetensors")
    save_file({name: array + 1 for name, array in weights.items()}, release / "model.safetensors")
    assert "model.safetensors: is not the file that privacy_card.json names by its SHA-256" in check_release(release, None).wrong  # fmt: skip
