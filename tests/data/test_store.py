import concurrent.futures
import importlib.metadata
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from jaxcxr.data.store import declared, open_store, write_store
from jaxcxr.errors import InputError

SIZE = 16
FINDINGS = ("cardiomegaly", "congestion")


def cohort(count: int = 40, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "image_id": [f"image-{i}" for i in range(count)],
            "patient_id": [f"patient-{i}" for i in range(count)],
            "path": [f"{i}.png" for i in range(count)],
            "split": [("train", "train", "test", "valid")[i % 4] for i in range(count)],
            "age": rng.integers(1, 90, count).astype(float),
            "sex": rng.choice(["F", "M"], count),
            "view": "PA",
            "cardiomegaly": rng.choice([0, 1, np.nan], count),
            "congestion": rng.choice([0, 1], count),
        }
    )
    return frame, rng.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)


def write(path, frame, images, **changes):
    return write_store(
        path,
        frame,
        images,
        **{"size": SIZE, "findings": FINDINGS, "preprocessing": {"resize": "none"}, **changes},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    frame, images = cohort()
    return write(tmp_path_factory.mktemp("stores") / "a", frame, iter(images)), frame, images


def test_notes_that_a_table_carries_do_not_enter_a_store(tmp_path):
    """Pandas writes them into parquet files and reads them back."""
    frame, images = cohort(4)
    frame.attrs = {"who": "DOE^JANE"}
    store = write(tmp_path / "store", frame, images)
    assert declared(frame, FINDINGS).attrs == store.manifest.attrs == {}
    assert frame.attrs


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_a_split_gives_back_its_own_images_and_labels(written, name):
    store, frame, images = written
    rows = (frame["split"] == name).to_numpy()
    split = open_store(store.path).split(name)
    assert len(split) == rows.sum()
    np.testing.assert_array_equal(split.read_all(), images[rows])
    np.testing.assert_array_equal(split.labels, frame.loc[rows, list(FINDINGS)].to_numpy(np.float32))
    assert split.labels.dtype == np.float32
    assert split.frame["image_id"].tolist() == frame.loc[rows, "image_id"].tolist()


def test_reading_is_by_position_and_may_repeat(written):
    store, frame, images = written
    mine = images[(frame["split"] == "train").to_numpy()]
    indices = np.array([7, 0, 7, 19])
    np.testing.assert_array_equal(store.split("train").read(indices), mine[indices])
    assert store.split("train").read(np.array([], dtype=int)).shape == (0, SIZE, SIZE)


@pytest.mark.parametrize("index", [-1, 20])
def test_an_index_outside_is_refused(written, index):
    with pytest.raises(IndexError, match="20"):
        written[0].split("train").read(np.array([0, index]))


def test_findings_are_selected_in_the_asked_order(written):
    store, frame, _ = written
    split = store.split("test", findings=["congestion"])
    assert split.findings == ("congestion",)
    np.testing.assert_array_equal(split.labels[:, 0], frame.loc[frame["split"] == "test", "congestion"])
    both = store.split("test", findings=["congestion", "cardiomegaly"])
    np.testing.assert_array_equal(both.labels, store.split("test").labels[:, ::-1])
    with pytest.raises(InputError, match=r"'pneumonia'.*cardiomegaly"):
        store.split("test", findings=["congestion", "pneumonia"])
    with pytest.raises(InputError, match="'dev'"):
        store.split("dev")


def test_several_threads_may_read(written):
    store, frame, images = written
    mine = images[(frame["split"] == "train").to_numpy()]
    split = open_store(store.path).split("train")

    def right(seed):
        indices = np.random.default_rng(seed).integers(0, len(split), 50)
        return np.array_equal(split.read(indices), mine[indices])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(64)))


def test_tfds_itself_reads_the_store(written):
    store, frame, images = written
    source = tfds.builder_from_directory(store.path).as_data_source("valid")  # pyright: ignore[reportCallIssue]
    rows = np.flatnonzero(frame["split"] == "valid")
    for record, row in zip(source, rows, strict=True):
        np.testing.assert_array_equal(record["image"], images[row])
        assert record["image_id"].decode() == frame["image_id"][row]


def test_a_store_may_be_moved(tmp_path):
    frame, images = cohort()
    store = write(tmp_path / "a", frame, images)
    store.path.rename(tmp_path / "elsewhere")
    moved = open_store(tmp_path / "elsewhere").split("test")
    np.testing.assert_array_equal(moved.read_all(), images[(frame["split"] == "test").to_numpy()])


def test_store_json_says_what_was_done(written):
    store, _, _ = written
    description = json.loads((store.path / "store.json").read_text())
    assert description["counts"] == {"train": 20, "valid": 10, "test": 10}
    assert description["preprocessing"] == {"resize": "none"}
    assert description["size"] == SIZE
    assert tuple(description["findings"]) == FINDINGS
    assert description["fingerprint"] == store.fingerprint
    assert "array_record" in description["versions"]


def test_draw_columns_stay_outside(tmp_path):
    frame, images = cohort()
    store = write(tmp_path / "a", frame.assign(draw_angle=1.0), images)
    assert "draw_angle" not in store.manifest.columns
    assert "draw_angle" not in pd.read_parquet(store.path / "manifest.parquet").columns


def test_a_split_without_images_is_empty(tmp_path):
    frame, images = cohort(4)
    store = write(tmp_path / "a", frame.assign(split="train"), images)
    assert len(store.split("valid")) == 0
    assert store.split("valid").read_all().shape == (0, SIZE, SIZE)
    assert store.split("valid").labels.shape == (0, 2)


def test_none_leaves_its_row_out(tmp_path):
    frame, images = cohort(8)
    some = [None if row in (0, 5) else image for row, image in enumerate(images)]
    store = write(tmp_path / "a", frame, some)
    keep = np.array([row not in (0, 5) for row in range(8)])
    assert store.manifest["image_id"].tolist() == frame.loc[keep, "image_id"].tolist()
    np.testing.assert_array_equal(
        store.split("train").read_all(), images[keep & (frame["split"] == "train").to_numpy()]
    )
    assert store.fingerprint == write(tmp_path / "b", frame[keep], images[keep]).fingerprint
    with pytest.raises(InputError, match="none of the 8 images"):
        write(tmp_path / "c", frame, [None] * 8)


def test_the_fingerprint_follows_the_data_and_nothing_else(tmp_path):
    frame, images = cohort()

    def fingerprint(name, frame=frame, images=images, **changes):
        return write(tmp_path / name, frame, images, **changes).fingerprint

    other_pixel, other_label, other_patient = images.copy(), frame.copy(), frame.copy()
    other_pixel[39, 15, 15] ^= 1
    other_label.loc[0, "congestion"] = 1 - other_label.loc[0, "congestion"]
    other_patient.loc[0, "patient_id"] = "someone"
    unlabelled, negative = frame.copy(), frame.copy()
    unlabelled.loc[0, "congestion"], negative.loc[0, "congestion"] = np.nan, 0
    same = fingerprint("a")
    assert same == fingerprint("b")
    assert same == fingerprint("c", frame.assign(path="elsewhere/" + frame["path"]))
    different = [
        fingerprint("d", images=other_pixel),
        fingerprint("e", other_label),
        fingerprint("f", other_patient),
        fingerprint("g", preprocessing={"resize": "other"}),
        fingerprint("h", frame.assign(split=frame["split"].replace("test", "valid"))),
        fingerprint("i", images=images[::-1]),
    ]
    assert len({same, *different}) == 7
    assert fingerprint("j", unlabelled) != fingerprint("k", negative)


def test_the_fingerprint_follows_the_libraries_that_make_pixels(tmp_path, monkeypatch):
    before = write(tmp_path / "a", *cohort()).fingerprint
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "pillow" else installed(name)
    )
    assert write(tmp_path / "b", *cohort()).fingerprint != before


def test_an_existing_store_is_refused_and_kept(tmp_path):
    frame, images = cohort()
    first = write(tmp_path / "a", frame, images)
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "a", frame, images)
    assert open_store(tmp_path / "a").fingerprint == first.fingerprint


@pytest.mark.parametrize(("count", "words"), [(39, "found 39"), (41, "found more")])
def test_another_number_of_images_is_refused(tmp_path, count, words):
    frame, images = cohort()
    with pytest.raises(InputError, match=rf"expected 40 images.*{words}"):
        write(tmp_path / "a", frame, np.resize(images, (count, SIZE, SIZE)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.zeros((SIZE, SIZE + 1), np.uint8), np.zeros((SIZE, SIZE), np.float32)])
def test_an_image_of_another_kind_is_refused(tmp_path, bad):
    frame, _ = cohort(1)
    with pytest.raises(ValueError, match="image 0: expected UInt8"):
        write(tmp_path / "a", frame, iter([bad]))
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_nothing(tmp_path):
    frame, images = cohort()

    def failing():
        yield from images[:30]
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write(tmp_path / "a", frame, failing())
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "a", frame, images)


def test_nothing_is_written_for_a_bad_manifest(tmp_path):
    frame, images = cohort()
    with pytest.raises(InputError, match="'view'"):
        write(tmp_path / "a", frame.assign(view="LATERAL"), images)
    with pytest.raises(TypeError):
        write(tmp_path / "a", frame, images, preprocessing={"when": object()})
    assert list(tmp_path.iterdir()) == []


def test_memory_is_flat_in_the_number_of_images(tmp_path):
    frame, _ = cohort(200)
    alive: set[int] = set()
    most = 0

    def images():
        nonlocal most
        for row in range(200):
            image = np.full((512, 512), row, dtype=np.uint8)
            alive.add(row)
            weakref.finalize(image, alive.discard, row)
            most = max(most, len(alive))
            yield image

    write(tmp_path / "a", frame, images(), size=512)
    assert most < 40


@pytest.mark.parametrize(
    "name", ["store.json", "manifest.parquet", "dataset_info.json", "films-train.array_record-00000"]
)
def test_an_incomplete_store_is_refused(tmp_path, name):
    frame, images = cohort()
    store = write(tmp_path / "a", frame, images)
    (store.path / name).unlink()
    with pytest.raises(InputError, match="not a complete store"):
        open_store(store.path)


def test_a_damaged_or_foreign_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such store"):
        open_store(tmp_path / "absent")
    frame, images = cohort()
    store = write(tmp_path / "a", frame, images)
    (store.path / "digests.json").unlink()  # as in stores of earlier versions
    text = (store.path / "store.json").read_text()
    (store.path / "store.json").write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(InputError, match="format 99"):
        open_store(store.path)
    (store.path / "store.json").write_text(text.replace('"train": 20', '"train": 21'))
    with pytest.raises(InputError, match="20 rows of split 'train'"):
        open_store(store.path)
    (store.path / "store.json").write_text(text[:50])
    with pytest.raises(InputError, match="not a complete store"):
        open_store(store.path)


def test_writing_and_reading_say_nothing_and_need_no_tensorflow(tmp_path):
    frame, _ = cohort(4)
    frame.to_parquet(tmp_path / "manifest.parquet")
    script = (
        "import sys, numpy as np, pandas as pd\n"
        "from jaxcxr.data.store import open_store, write_store\n"
        "images = np.zeros((4, 16, 16), np.uint8)\n"
        "frame = pd.read_parquet('manifest.parquet')\n"
        "write_store('a', frame, images, size=16, findings=('congestion',), preprocessing={})\n"
        "open_store('a').split('train').read_all()\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'jax', 'flax')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shards_of_other_lengths_than_the_manifest_are_refused(tmp_path):
    store = write(tmp_path / "store", *cohort())
    file = store.path / "dataset_info.json"
    info = json.loads(file.read_text())
    (store.path / "digests.json").unlink()
    info["splits"][0]["shardLengths"][0] = str(int(info["splits"][0]["shardLengths"][0]) + 1)
    file.write_text(json.dumps(info))
    with pytest.raises(InputError, match="the shards hold"):
        open_store(store.path)


def relabelled(path: Path, value: object) -> None:
    frame = pd.read_parquet(path / "manifest.parquet")
    frame.loc[3, "congestion"] = value
    frame.to_parquet(path / "manifest.parquet", index=False)


@pytest.mark.parametrize("sealed", [True, False])
def test_an_edited_label_is_seen_when_the_store_is_opened(tmp_path, sealed):
    store = write(tmp_path / "store", *cohort())
    if not sealed:  # a store of an earlier version: the fingerprint is computed anew
        (store.path / "digests.json").unlink()
        assert open_store(store.path).fingerprint == store.fingerprint
    relabelled(store.path, 1.0 - store.manifest["congestion"][3])
    with pytest.raises(
        InputError, match="cut, changed or exchanged" if sealed else "not those of the fingerprint"
    ):
        open_store(store.path)


def test_a_label_is_1_0_or_empty(tmp_path):
    store = write(tmp_path / "store", *cohort())
    (store.path / "digests.json").unlink()
    (store.path / "records.parquet").unlink()  # nothing to compare with
    relabelled(store.path, 7.0)
    with pytest.raises(InputError, match=r"row 4 .*column 'congestion': expected 1, 0 or empty, found .*7"):
        open_store(store.path)


def test_a_store_without_checksums_is_said_to_be_unchecked(tmp_path, capsys):
    store = write(tmp_path / "store", *cohort())
    for name in ("digests.json", "records.parquet"):
        (store.path / name).unlink()
    assert len(open_store(store.path).split("train").read_all()) == 20
    assert "without checksums; its labels and images are used unchecked" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_changed_bit_of_an_image_is_seen_when_it_is_read(tmp_path, place):
    frame, images = cohort()
    store = write(tmp_path / "store", frame, images)
    shard = store.path / "films-train.array_record-00000"
    content = bytearray(shard.read_bytes())
    position = content.index(images[0].tobytes()) + int(place * images[0].size)
    content[position] ^= 1
    shard.write_bytes(bytes(content))
    opened = open_store(store.path).split("train")
    with pytest.raises(InputError, match=r"films-train.array_record-00000: record \d+ is damaged"):
        opened.read_all()


def test_the_images_of_another_store_are_not_taken_for_its_own(tmp_path):
    """Their file is whole, and ArrayRecord's own checksums agree with it."""
    ours, theirs = (write(tmp_path / str(seed), *cohort(seed=seed)).path for seed in (0, 1))
    shutil.copy(theirs / "films-train.array_record-00000", ours)
    opened = open_store(ours)
    assert len(opened.split("valid").read_all()) == 10
    with pytest.raises(
        InputError, match=r"record 0 is damaged \(its pixels are not those that were written\)"
    ):
        opened.split("train").read_all()
