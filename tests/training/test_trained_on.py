"""Would a private run start from its own images: the record that weights carry, and what is refused."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import PyTree
from safetensors.numpy import save_file

from jaxcxr.config import Experiment, ModelConfig
from jaxcxr.config_files import dump, load
from jaxcxr.data import synthetic
from jaxcxr.data.splits import GIVEN
from jaxcxr.data.store import Store, open_store, write_store
from jaxcxr.data.store_checks import RECORDS_FILE
from jaxcxr.digests import write_json
from jaxcxr.errors import InputError
from jaxcxr.training import build, parameters, trained_on
from jaxcxr.training.plan import make_plan
from jaxcxr.training.resume import begin_or_continue
from jaxcxr.training.trained_on import (
    Images,
    Overlap,
    TrainedOn,
    checked_start,
    images_of,
    overlap,
    with_training,
)
from jaxcxr.training.weights import flat_weights, provenance, save_weights, units_of_weights
from jaxcxr.workflows.conversion import Weights, convert, units_of_source
from jaxcxr.workflows.experiment import pretrain, run_experiment
from tests.conftest import FINDINGS, changed
from tests.training.tiny import MAKE_NETWORK, tiny_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[2]
CHEAP = (2, 1, 1)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that scrypt can cost; what the real cost is stands in every record."""
    monkeypatch.setattr(trained_on, "_SCRYPT", CHEAP)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)


Make = Callable[..., Store]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Stores of images of 32 pixels, each image a matter of its number; two images a patient."""

    def make(
        name: str, images: list[int], ids: str = "", valid: list[int] | None = None, **changes: Any
    ) -> Store:
        numbers = [*images, *(valid or [])]
        pixels = [
            np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8) for number in numbers
        ]
        frame = pd.DataFrame(
            {
                "image_id": [f"{ids}image{number}" for number in numbers],
                "patient_id": [f"{ids}patient{number // 2}" for number in numbers],
                "path": [f"{number}.png" for number in numbers],
                "split": ["train"] * len(images) + ["valid"] * (len(numbers) - len(images)),
                "age": 50.0,
                "sex": "F",
                **{finding: [float(number % 4 > 1) for number in numbers] for finding in FINDINGS},
            }
        ).assign(**changes)
        return write_store(
            tmp_path / name, frame, iter(pixels), size=32, findings=FINDINGS, preprocessing={}, split=GIVEN
        )  # fmt: skip

    return make


def private(config: Experiment, store: Store, weights: Path | None) -> Experiment:
    config = changed(config, "data", store=str(store.path))
    return changed(config, "model", weights=None if weights is None else str(weights))


@pytest.fixture
def pretrained(tiny_nonprivate_config: Experiment, tmp_path: Path) -> Callable[..., Path]:
    """Weights that two steps on a store have left."""

    def make(store: Store, name: str = "weights", start: Path | None = None) -> Path:
        config = changed(
            private(tiny_nonprivate_config, store, start), "training", steps=2, augmentation="none"
        )
        pretrain(config, tmp_path / name, say=lambda _: None)
        return tmp_path / name

    return make


def weights_of(params: PyTree, folder: Path, units: TrainedOn | None, **record: object) -> Path:
    save_weights(folder, params, dict(record), units=units)
    return folder


@pytest.fixture
def params(tiny_config: Experiment, tiny_store: Store) -> PyTree:
    return parameters.random_params(tiny_config, bytes(32))


def units_of(store: Store, before: TrainedOn | None = None, from_random: bool = True) -> TrainedOn:
    return with_training(images_of(store, "train"), before, from_random)


def test_weights_trained_on_the_same_images_are_refused_though_the_store_is_another(
    tiny_config: Experiment, made: Make, pretrained: Callable[..., Path], tmp_path: Path
) -> None:
    """Fifty images pretrained without privacy, one image fewer prepared again: another fingerprint, the same people."""
    weights = pretrained(made("all", list(range(50))))
    fewer = made("fewer", list(range(49)))
    config = private(tiny_config, fewer, weights)
    with pytest.raises(InputError) as refusal:
        run_experiment(config, tmp_path / "run", say=lambda _: None)
    for words in (
        "49 images with the same pixels, 49 images with the same image_id and 25 patients with the same patient_id",
        str(fewer.path),
        "pretrain on other images, or start at random",
    ):
        assert words in str(refusal.value)
    assert not (tmp_path / "run").exists()

    others = made("others", list(range(100, 150)))
    plan = make_plan(private(tiny_config, others, weights), others)
    pretrained_params = build.pretrained_params(plan)
    begin_or_continue(plan, pretrained_params, tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["initial_weights_record"] == "recorded"
    assert facts["split_origin"] == "given"
    assert facts["near_duplicates"] is None


def test_a_single_image_or_patient_is_found(made: Make, params: PyTree, tmp_path: Path) -> None:
    known = made("known", list(range(20)))
    weights = weights_of(params, tmp_path / "w", units_of(known))
    for images, ids, changes, found in (
        ([*range(100, 120), 7], "", {}, Overlap(1, 1, 1)),
        ([*range(100, 120), 7], "x", {}, Overlap(1, 0, 0)),
        ([*range(100, 120)], "x", {"image_id": [*(f"i{i}" for i in range(19)), "image3"]}, Overlap(0, 1, 0)),
        (
            [*range(100, 120)],
            "x",
            {"patient_id": [*(f"i{i}" for i in range(18)), "patient0", "patient0"]},
            Overlap(0, 0, 1),
        ),
    ):
        store = made(f"private{found}", images, ids, **changes)
        record = units_of_weights(weights)
        assert record is not None
        assert overlap(record, images_of(store, "train")) == found
        for unrelated in (False, True):
            if unrelated and not found.pixels:
                assert (
                    checked_start(weights, provenance(weights), store, unrelated).known
                    == "ids_declared_unrelated"
                )
                continue
            with pytest.raises(InputError, match="cannot start from these weights") as refusal:
                checked_start(weights, provenance(weights), store, unrelated)
            assert ("weights_ids_unrelated to true" in str(refusal.value)) == (not found.pixels)


def test_equal_ids_of_other_people_have_to_be_declared(
    tiny_config: Experiment, made: Make, params: PyTree, tmp_path: Path
) -> None:
    """'image1' of another hospital: refused by default, and by pixels whatever is declared."""
    weights = weights_of(params, tmp_path / "w", units_of(made("there", list(range(50)))))
    here = made("here", list(range(50, 100)), image_id=[f"image{i}" for i in range(50)])
    config = private(tiny_config, here, weights)
    with pytest.raises(InputError, match="50 images with the same image_id as its training split"):
        build.pretrained_params(make_plan(config, here))
    declared = changed(config, "model", weights_ids_unrelated=True)
    plan = make_plan(declared, here)
    assert build.pretrained_params(plan) is not None
    assert plan.describe().get("initial_weights_record") == "ids_declared_unrelated"
    same = made("same", list(range(50)), "other-")
    with pytest.raises(InputError, match="50 images with the same pixels as its training split, outside"):
        build.pretrained_params(make_plan(private(declared, same, weights), same))


def test_a_record_is_handed_on_through_further_training_and_conversion(
    tiny_config: Experiment, made: Make, pretrained: Callable[..., Path], tmp_path: Path
) -> None:
    first = pretrained(made("a", list(range(30))), "first")
    second = pretrained(made("b", list(range(100, 130))), "second", start=first)
    record = units_of_weights(second)
    assert record is not None
    assert record.complete
    assert len(record.trainings) == 2
    store = made("private", [*range(200, 250), 3])
    with pytest.raises(InputError, match="1 image with the same pixels"):
        checked_start(second, provenance(second), store, ids_unrelated=False)
    third = weights_of(
        parameters.random_params(private(tiny_config, store, None), bytes(32)), tmp_path / "third", None
    )
    fourth = pretrained(made("c", list(range(300, 330))), "fourth", start=third)
    record = units_of_weights(fourth)
    assert record is not None
    assert not record.complete
    assert checked_start(fourth, provenance(fourth), store, ids_unrelated=False).known == "none"
    with pytest.raises(InputError, match="2 images with the same pixels"):
        checked_start(
            fourth, provenance(fourth), made("again", [300, 301, *range(400, 450)]), ids_unrelated=False
        )


def test_converted_weights_keep_the_record_and_a_runs_own_images_become_one(
    tiny_nonprivate_config: Experiment,
    made: Make,
    params: PyTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = made("known", list(range(20)))
    config = private(tiny_nonprivate_config, store, None)
    weights = weights_of(params, tmp_path / "w", units_of(store))
    mapped = Weights(params, FINDINGS, ModelConfig("mish"), 32)
    monkeypatch.setattr("jaxcxr.workflows.conversion._read_weights", lambda *_: mapped)
    convert(weights, tmp_path / "converted", mapped)
    assert units_of_weights(tmp_path / "converted") is not None
    overlapping = made("private", [4, *range(100, 120)])
    with pytest.raises(InputError, match="1 image with the same pixels"):
        checked_start(
            tmp_path / "converted", provenance(tmp_path / "converted"), overlapping, ids_unrelated=False
        )

    # A run has no record of its own: its store says what it was trained on, as long as it is the same one.
    run = tmp_path / "run"
    run.mkdir()
    dump(config, run / "config.yaml")
    for fingerprint, known in ((store.fingerprint, True), ("another", False)):
        (run / "run.json").write_text(json.dumps({"store_fingerprint": fingerprint}))
        found = units_of_source(run)
        assert (
            found is not None and overlap(found, images_of(overlapping, "train")) == Overlap(1, 1, 1)
        ) == known
    assert units_of_source(tmp_path / "absent.pth") is None


def test_weights_without_a_record_are_an_assumption_and_their_own_store_is_refused(
    tiny_config: Experiment, made: Make, params: PyTree, tmp_path: Path
) -> None:
    store = made("private", list(range(50)))
    weights = weights_of(params, tmp_path / "w", None, store_fingerprint="of another store")
    plan = make_plan(private(tiny_config, store, weights), store)
    assert build.pretrained_params(plan) is not None
    assert plan.describe().get("initial_weights_record") == "none"
    unstarted = make_plan(private(tiny_config, store, None), store).describe()
    assert unstarted.get("initial_weights_record", "absent") is None
    assert (
        "initial_weights_record"
        not in make_plan(dataclasses.replace(plan.config, privacy=None), store).describe()
    )
    own = weights_of(params, tmp_path / "own", None, store_fingerprint=store.fingerprint)
    with pytest.raises(InputError, match="trained on that very store"):
        build.pretrained_params(make_plan(private(tiny_config, store, own), store))


@pytest.mark.parametrize("place", ["record", "file", "marked release"])
def test_marked_weights_start_no_private_run_and_no_pretraining(
    place: str,
    tiny_config: Experiment,
    tiny_nonprivate_config: Experiment,
    made: Make,
    params: PyTree,
    tmp_path: Path,
) -> None:
    """Whatever says that weights must not leave: a record that was rewritten does not unmark the file beside it."""
    folder, store = tmp_path / "w", made("private", list(range(50)))
    if place == "record":
        weights_of(params, folder, None, watermark="not for release", reasons_against_release=["no promise"])
    else:
        folder.mkdir()
        marked = {"watermark": "not for release", "reasons_against_release": json.dumps(["no promise"])}
        save_file(flat_weights(params), folder / "model.safetensors", metadata=marked)
        if place == "file":
            (folder / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match=r"w: these weights are marked not for release \(no promise\)"):
        build.pretrained_params(make_plan(private(tiny_config, store, folder), store))
    with pytest.raises(InputError, match=r"pretraining is for public weights.*not for release: no promise"):
        pretrain(private(tiny_nonprivate_config, store, folder), tmp_path / "washed", say=lambda _: None)
    assert not list(tmp_path.glob("washed*"))


def test_held_out_images_that_the_weights_know_are_said_and_not_refused(
    made: Make, params: PyTree, tmp_path: Path
) -> None:
    weights = weights_of(params, tmp_path / "w", units_of(made("known", list(range(20)))))
    start = checked_start(
        weights, provenance(weights), made("private", list(range(100, 120)), valid=[4, 5, 6, 200]), False
    )
    assert start.known == "recorded"
    assert start.held_out is not None
    assert "3 images with the same pixels, 3 images with the same image_id and 2 patients" in start.held_out
    assert "valid: " in start.held_out
    clean = checked_start(
        weights, provenance(weights), made("clean", list(range(100, 120)), valid=[200]), False
    )
    assert clean.held_out is None


def test_a_record_gives_no_id_and_no_digest_away(made: Make, params: PyTree, tmp_path: Path) -> None:
    store = made("known", list(range(20)))
    records = [units_of(store) for _ in range(2)]
    for place, record in enumerate(records):
        content = (weights_of(params, tmp_path / f"w{place}", record) / "trained_on.npz").read_bytes()
        images = images_of(store, "train")
        for text in (*images.image_ids, *images.patient_ids):
            assert text.encode() not in content
            assert hashlib.sha256(text.encode()).digest()[:8] not in content
        assert not any(bytes.fromhex(digest)[:8] in content for digest in images.pixels)
    one, two = (record.trainings[0] for record in records)
    assert one.salt != two.salt
    for kind in ("pixels", "image_ids", "patient_ids"):
        first, second = getattr(one, kind), getattr(two, kind)
        assert len(first) == len(second) == (10 if kind == "patient_ids" else 20)
        assert (np.diff(first.astype(object)) > 0).all()  # sorted: the order of the images is not told
        assert not np.isin(first, second).any()


def test_hashes_are_those_that_are_documented() -> None:
    """Equal ids of another kind are no match, and what is stored is eight bytes of scrypt with the salt of the kind."""
    images = Images(["ab" * 32], ["1"], ["1"])
    (training,) = with_training(images, None, True).trainings
    n, r, p = CHEAP
    for kind, found in ((b"image", training.image_ids), (b"patient", training.patient_ids)):
        expected = hashlib.scrypt(b"1", salt=training.salt + kind, n=n, r=r, p=p, dklen=8)
        assert found.tolist() == [int.from_bytes(expected, "little")]
    assert training.image_ids[0] != training.patient_ids[0]
    assert overlap(TrainedOn((training,), True), Images(["cd" * 32], ["2"], ["3"])) == Overlap(0, 0, 0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_overlap_is_counted_as_sets_would(data: st.DataObject) -> None:
    numbers = st.integers(0, 12)

    def some() -> Images:
        images = data.draw(st.lists(st.tuples(numbers, numbers, numbers), max_size=12))
        return Images(
            [f"{a:064x}" for a, _, _ in images],
            [f"i{b}" for _, b, _ in images],
            [f"{c}" for _, _, c in images],
        )

    trainings, mine = [some() for _ in range(data.draw(st.integers(1, 3)))], some()
    record: TrainedOn | None = None
    for images in trainings:
        record = with_training(images, record, from_random=record is None)
    assert record is not None
    pixels, images, patients = (
        {v for f in trainings for v in kind(f)} for kind in (_pixels, _image_ids_of, _patients)
    )
    expected = (
        sum(value in pixels for value in mine.pixels),
        sum(value in images for value in mine.image_ids),
        len(set(mine.patient_ids) & patients),
    )
    assert overlap(record, mine) == Overlap(*expected)
    assert overlap(record, mine, ids=False) == Overlap(expected[0], 0, 0)


def _pixels(images: Images) -> Any:
    return images.pixels


def _image_ids_of(images: Images) -> Any:
    return images.image_ids


def _patients(images: Images) -> Any:
    return images.patient_ids


@pytest.mark.parametrize("damage", ["missing", "flipped", "of other weights", "costly", "of a later format"])
def test_a_damaged_record_is_refused_and_not_taken_for_none(
    damage: str, made: Make, params: PyTree, tmp_path: Path
) -> None:
    store = made("known", list(range(20)))
    weights = weights_of(params, tmp_path / "w", units_of(store))
    file = weights / "trained_on.npz"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "of other weights":
        shutil.copy(
            weights_of(params, tmp_path / "other", units_of(made("x", [1, 2]))) / "trained_on.npz", file
        )
    else:
        with np.load(file) as arrays:
            changed_arrays = dict(arrays)
        change = {"0_cost": np.array([1 << 30, 8, 1])} if damage == "costly" else {"format": np.array(2)}
        np.savez(file, allow_pickle=False, **changed_arrays | change)
        record = json.loads((weights / "provenance.json").read_text())
        record["trained_on"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        write_json(weights / "provenance.json", record)
    with pytest.raises(InputError, match=r"trained_on\.npz: the record .* is missing or damaged"):
        checked_start(weights, provenance(weights), made("private", [5]), ids_unrelated=False)


def test_an_image_of_one_grey_value_is_nobodys(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["p", "q"], "path": ["1", "2"], "split": "train", "age": 1.0, "sex": "F",
                          FINDINGS[0]: 1.0})  # fmt: skip
    for name, prefix in (("one", "x"), ("two", "y")):
        images = [
            np.full((16, 16), 7, np.uint8),
            np.random.default_rng(len(prefix)).integers(0, 9, (16, 16), dtype=np.uint8),
        ]
        images[1][0, 0] = ord(prefix)
        ids = frame.assign(image_id=prefix + frame["image_id"], patient_id=prefix + frame["patient_id"])
        write_store(tmp_path / name, ids, iter(images), size=16, findings=FINDINGS[:1], preprocessing={})
    one, two = (open_store(tmp_path / name) for name in ("one", "two"))
    assert not overlap(units_of(one), images_of(two, "train"))
    assert overlap(units_of(one), images_of(one, "train")) == Overlap(1, 2, 2)


def test_an_older_store_without_digests_is_read(made: Make) -> None:
    store = made("old", list(range(12)), valid=[40])
    expected = images_of(store, "train")
    (store.path / RECORDS_FILE).unlink()
    assert images_of(store, "train") == expected
    assert len(images_of(store, "valid").pixels) == 1


def test_a_store_whose_digests_are_not_its_images_is_refused(made: Make) -> None:
    store = made("odd", list(range(12)))
    records = pd.read_parquet(store.path / RECORDS_FILE)
    records[:-1].to_parquet(store.path / RECORDS_FILE)
    with pytest.raises(InputError, match="names 11 images, the manifest 12"):
        images_of(store, "train")


def test_the_shipped_weights_name_the_public_cohort_and_nobody_of_the_demos() -> None:
    """By ids, which are drawn without images; some of them, as each costs what the record says."""
    record = units_of_weights("jaxcxr/weights/synthetic-64")
    assert record is not None
    assert record.complete
    (training,) = record.trainings
    assert training.cost == (64, 8, 1)
    recipe = load(Experiment, ROOT / "configs" / "pretrain_synthetic.yaml").data.synthetic
    assert recipe is not None
    public = synthetic.cohort(recipe)
    train = public.loc[public["split"] == "train"]
    assert len(training.pixels) == len(training.image_ids) == len(train)
    assert len(training.patient_ids) == train["patient_id"].nunique()

    def ids(frame: pd.DataFrame) -> Images:
        some = frame.iloc[:: max(1, len(frame) // 40)]
        return Images((), some["image_id"].tolist(), some["patient_id"].tolist())

    mine = ids(train)
    assert overlap(record, mine) == Overlap(0, len(mine.image_ids), len(set(mine.patient_ids)))
    assert not overlap(record, ids(public.loc[public["split"] == "test"]))
    for name in ("demo", "quick"):
        drawn = load(Experiment, ROOT / "configs" / f"{name}.yaml").data.synthetic
        assert drawn is not None
        assert not overlap(record, ids(synthetic.cohort(drawn)))
