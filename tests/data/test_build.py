import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxcxr import atomic
from jaxcxr.data import build, journal
from jaxcxr.data.build import build_store, read_listing
from jaxcxr.data.images import Preprocessing, preprocess, read_image
from jaxcxr.data.journal import commit_shard, make_shard
from jaxcxr.data.shards import ShardWriter, encode, shard_name
from jaxcxr.data.store import open_store
from jaxcxr.data.verify import verify
from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError

COUNT = 40


@pytest.fixture
def hospital(tmp_path):
    """Forty images and their manifest; two cannot be read."""
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 30), dtype=np.uint8)).save(images / f"{index}.png")
    (images / "3.png").write_bytes(b"torn")
    (images / "17.png").unlink()
    frame = pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(COUNT)],
            "patient_id": [f"p{i}" for i in range(COUNT)],
            "path": [f"{i}.png" for i in range(COUNT)],
            "split": [("train", "train", "valid", "test")[i % 4] for i in range(COUNT)],
            "age": 50.0,
            "sex": "F",
            "congestion": [float(i % 2) for i in range(COUNT)],
            "name": "DOE^JANE",
        }
    )
    return tmp_path, frame


def made(folder, frame, name="store", **changes):
    options = {"size": 16, "findings": ["congestion"], "shards": 6, **changes}
    return build_store(folder / name, frame, folder / "images", **options)


def test_a_store_is_made_from_files(hospital):
    folder, frame = hospital
    counted = []
    store = made(folder, frame, progress=counted.append)
    assert sum(counted) == COUNT
    listing = read_listing(store.path / "quarantine.csv")
    assert listing["path"].tolist() == ["3.png", "17.png"]
    assert (
        listing.loc[0, "reason"]
        == "cannot be read as PNG, JPEG, TIFF or DICOM (the image cannot be identified)"
    )
    assert str(folder) not in "".join(listing["reason"])
    for name in ("train", "valid", "test"):
        split = store.split(name)
        for image, path in zip(split.read_all(), split.frame["path"], strict=True):
            np.testing.assert_array_equal(image, preprocess(read_image(folder / "images" / path), 16))
    assert sum(len(lengths) for lengths in store.shards.values()) > 3
    checked = []
    assert verify(store, checked.append) == sum(checked) == COUNT - 2
    assert sorted(p.name for p in folder.iterdir()) == ["images", "store"]
    assert not [p for p in store.path.iterdir() if "shard-" in p.name or p.name in ("lock", "plan.json")]


def test_only_declared_columns_enter_the_store(hospital):
    folder, frame = hospital
    assert "name" not in made(folder, frame).manifest.columns
    kept = made(folder, frame.assign(scanner="A"), "other", groups=["scanner"]).manifest
    assert set(kept["scanner"]) == {"A"}


def test_processes_shards_and_interruptions_do_not_change_the_fingerprint(hospital):
    folder, frame = hospital
    one = made(folder, frame)
    two = made(folder, frame, "two", shards=1, processes=2)
    assert one.fingerprint == two.fingerprint

    class Killed(BaseException):
        pass

    for after in (1, 7, 22, 39):
        done = 0

        def die(images, after=after):
            nonlocal done
            done += images
            if done >= after:
                raise Killed

        with pytest.raises(Killed):
            made(folder, frame, "three", progress=die)
    decoded = []
    real = journal.decode_image
    try:
        journal.decode_image = lambda path: (decoded.append(path), real(path))[1]
        three = made(folder, frame, "three")
    finally:
        journal.decode_image = real
    assert three.fingerprint == one.fingerprint
    assert len(decoded) <= 1  # all but the image under way were kept
    np.testing.assert_array_equal(three.split("train").read_all(), one.split("train").read_all())


@pytest.mark.parametrize("damage", ["journal_torn", "raw_torn", "raw_changed", "journal_lies"])
def test_a_torn_journal_is_believed_as_far_as_it_is_true(hospital, monkeypatch, damage):
    """And what is done after the damage is kept through another kill."""
    folder, frame = hospital
    whole = made(folder, frame)

    class Killed(BaseException):
        pass

    def make_until(images):
        def die(done):
            nonlocal images
            images -= done
            if images <= 0:
                raise Killed

        with pytest.raises(Killed):
            made(folder, frame, "other", progress=die)

    make_until(5)
    building = folder / ".other.partial"
    raw, notes = building / "shard-00000.raw", building / "shard-00000.journal"
    if damage == "journal_torn":
        notes.write_bytes(notes.read_bytes()[:-9])
    elif damage == "raw_torn":
        raw.write_bytes(raw.read_bytes()[:-100])
    elif damage == "raw_changed":
        content = bytearray(raw.read_bytes())
        content[300] ^= 1
        raw.write_bytes(content)
    else:
        notes.write_bytes(notes.read_bytes() + b'{"row": 39, "reason": "of another image"}\n[1]\n')
    make_until(6)
    decoded, real = [], journal.decode_image
    monkeypatch.setattr(journal, "decode_image", lambda path: (decoded.append(path), real(path))[1])
    store = made(folder, frame, "other")
    assert len(decoded) == COUNT - 6
    assert store.fingerprint == whole.fingerprint
    assert verify(store) == COUNT - 2


def test_killed_processes_at_random_and_resumed(hospital):
    """SIGKILL to the whole run at random moments, workers left to themselves; the store is the same."""
    folder, frame = hospital
    whole = made(folder, frame)
    frame.to_parquet(folder / "frame.parquet")
    program = (
        "import sys, time, pandas as pd\nfrom pathlib import Path\nfrom jaxcxr.data import build\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    build.build_store(folder / 'killed', pd.read_parquet(folder / 'frame.parquet'), folder / 'images', size=16,"
        " findings=['congestion'], shards=6, processes=2, progress=lambda n: print(n, flush=True))\n"
    )
    (folder / "program.py").write_text(program)
    command = [sys.executable, str(folder / "program.py"), str(folder)]
    for images in (1, 9):
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seen = 0
        assert run.stdout is not None
        for line in run.stdout:
            seen += int(line)
            if seen >= images:
                break
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    if not (folder / "killed").exists():
        subprocess.run(command, check=True, capture_output=True)
    store = open_store(folder / "killed")
    assert store.fingerprint == whole.fingerprint
    assert verify(store) == COUNT - 2


def test_an_unfinished_store_of_another_kind_is_not_continued(hospital, monkeypatch):
    folder, frame = hospital

    def die(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(folder, frame, progress=die)
    changes: dict[str, Any]
    for changes in (
        {"size": 32},
        {"how": Preprocessing(normalisation="none")},
        {"shards": 3},
        {"refuse_flagged": True},
    ):
        with pytest.raises(InputError, match=r"unfinished store of another kind lies in \.store\.partial"):
            made(folder, frame, **changes)
    for other in (frame.assign(congestion=1.0), frame.assign(path=frame["path"].to_numpy()[::-1])):
        with pytest.raises(InputError, match="manifest differ"):
            made(folder, other)
    with monkeypatch.context() as patched:
        patched.setattr(build, "versions_of", lambda: {"pillow": "1"})
        with pytest.raises(InputError, match="its versions differ"):
            made(folder, frame)
    made(folder, frame)


@pytest.mark.parametrize(("processes", "limit"), [(1, 1000), (1, 3000), (2, 3000)])
def test_a_full_disk_is_said_and_what_is_done_is_kept(hospital, processes, limit):
    """RLIMIT_FSIZE stands for the disk: a write beyond it fails, of an image or of a whole shard, in this process and in those
    it starts.
    """
    folder, frame = hospital
    whole = made(folder, frame)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            InputError, match=r"full: cannot be written \(.*File too large.*kept in \.full\.partial"
        ):
            made(folder, frame, "full", processes=processes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert made(folder, frame, "full").fingerprint == whole.fingerprint


def test_a_folder_that_may_not_be_written_is_said(hospital):
    folder, frame = hospital
    with pytest.raises(InputError, match=r"store: cannot be written \(Not a directory\)"):
        made(folder, frame, "images/3.png/store")


def test_a_finished_store_that_was_not_yet_named_is_not_given_to_another_manifest(hospital, monkeypatch):
    folder, frame = hospital

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            made(folder, frame)
    with pytest.raises(InputError, match="manifest differ"):
        made(folder, frame.assign(congestion=1.0))
    assert len(made(folder, frame).manifest) == COUNT - 2
    assert not [p for p in (folder / "store").iterdir() if p.name in ("lock", "plan.json")]


@pytest.mark.parametrize("step", ["finish", "publish"])
def test_a_kill_after_the_last_image_costs_no_image(hospital, monkeypatch, step):
    """Between the first shard's new name and the store's: what was named stays, and no file is read again."""
    folder, frame = hospital
    whole = made(folder, frame)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, step, killed)
        with pytest.raises(KeyboardInterrupt):
            made(folder, frame, "other")
    monkeypatch.setattr(journal, "decode_image", killed)
    store = made(folder, frame, "other")
    assert store.fingerprint == whole.fingerprint
    assert verify(store) == COUNT - 2


def test_a_run_that_goes_on_strictly_does_not_pass_over_what_was_given_up(hospital, monkeypatch):
    folder, frame = hospital

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            made(folder, frame)
    with pytest.raises(InputError, match=r"images/3\.png: cannot be"):
        made(folder, frame, strict=True)
    assert len(made(folder, frame).manifest) == COUNT - 2


def test_two_at_once_are_refused(hospital):
    folder, frame = hospital
    with (
        atomic.exclusive_lock(folder / "lock", "x"),
        pytest.raises(InputError, match="busy"),
        atomic.exclusive_lock(folder / "lock", "busy"),
    ):
        pass

    def again(images):
        with pytest.raises(InputError, match="another process is making"):
            made(folder, frame)

    made(folder, frame, progress=again)


def crashing(folder, monkeypatch, when):
    """Worker processes end when a condition holds, of an `event` and its `args`, or of the images that each has `opened`."""
    (folder / "sitecustomize.py").write_text(
        "import sys, os\nopened = []\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('.png'): opened.append(os.path.basename(args[0]))\n"
        f"    if {when}: os._exit(139)\n"
        "sys.addaudithook(hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_files_that_end_their_process_are_given_up_and_no_others(hospital, monkeypatch):
    """Two of them in one shard."""
    folder, frame = hospital
    crashing(folder, monkeypatch, "'20.png' in opened or '21.png' in opened")
    store = made(folder, frame, processes=2)
    listing = read_listing(store.path / "quarantine.csv")
    assert listing["path"].tolist() == ["3.png", "17.png", "20.png", "21.png"]
    assert "crashed" in listing["reason"][2]
    assert "crashed" in listing["reason"][3]
    assert len(store.manifest) == COUNT - 4


def test_a_file_that_ends_its_process_stops_a_strict_run(hospital, monkeypatch):
    folder, frame = hospital
    crashing(folder, monkeypatch, "'21.png' in opened")
    sound = frame[~frame["path"].isin(["3.png", "17.png"])].reset_index(drop=True)
    with pytest.raises(InputError, match=r"images/21\.png: the decoder crashed on it"):
        made(folder, sound, processes=2, strict=True)
    assert not (folder / "store").exists()


def test_processes_that_cannot_even_start_are_not_started_for_ever(hospital, monkeypatch):
    folder, frame = hospital
    crashing(folder, monkeypatch, "event == 'import' and args[0] == 'jaxcxr.data.build'")
    with pytest.raises(InputError, match="its worker processes died twice before any had prepared an image"):
        made(folder, frame, processes=2)
    monkeypatch.delenv("PYTHONPATH")
    assert len(made(folder, frame, processes=2).manifest) == COUNT - 2


def test_processes_that_end_again_and_again_go_on_as_long_as_they_do_images(hospital, monkeypatch):
    """As where each takes more and more memory: no image is to blame, and each process does three."""
    folder, frame = hospital
    crashing(folder, monkeypatch, "len(opened) > 3")
    nine = frame.iloc[20:29].assign(split="train").reset_index(drop=True)
    assert len(made(folder, nine, shards=1, processes=2).manifest) == 9


def test_a_changed_byte_is_found(hospital):
    folder, frame = hospital
    store = made(folder, frame)
    shard = store.path / "films-train.array_record-00000"
    content = bytearray(shard.read_bytes())
    place = content.find(store.split("train").read(np.array([2]))[0].tobytes()[:64])
    assert place > 0
    content[place + 10] ^= 4
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"films-train.array_record-00000: record 2 is damaged"):
        verify(open_store(store.path))


def test_images_in_another_order_are_found(hospital):
    """Whole records, so that only the checksum of the image can tell."""
    folder, frame = hospital
    store = made(folder, frame)
    split, count = store.split("valid"), store.shards["valid"][0]
    images = split.read(np.arange(count))
    writer = ShardWriter(store.path / shard_name("valid", 0))
    for row in reversed(range(count)):
        writer.write(encode(images[row].tobytes(), split.frame["image_id"].iat[row]))
    writer.close()
    with pytest.raises(
        InputError, match=r"films-valid.array_record-00000: record 0 is damaged .its pixels are not those"
    ):
        verify(open_store(store.path))


def test_a_changed_manifest_is_found(hospital):
    folder, frame = hospital
    store = made(folder, frame)
    manifest = store.manifest.copy()
    manifest.loc[4, "congestion"] = 1 - manifest.loc[4, "congestion"]
    manifest.to_parquet(store.path / "manifest.parquet")
    with pytest.raises(InputError, match=r"manifest.parquet: is not the file that was written"):
        verify(open_store(store.path))
    (store.path / DIGESTS).unlink()  # as in stores of earlier versions
    with pytest.raises(InputError, match="not those of the fingerprint"):
        verify(open_store(store.path))


def test_checksums_of_other_images_are_found(hospital):
    """The fingerprint has the checksums in their order, not the images that they are said to be of."""
    folder, frame = hospital
    store = made(folder, frame)
    records = pd.read_parquet(store.path / "records.parquet")
    records.assign(image_id=records["image_id"].to_numpy()[::-1]).to_parquet(store.path / "records.parquet")
    with pytest.raises(
        InputError, match=r"records\.parquet and manifest\.parquet do not name the same images"
    ):
        verify(store)


def test_flagged_images_are_named_or_refused(hospital, monkeypatch):
    folder, frame = hospital
    real = journal.decode_image

    def odd(path):
        image = real(path)
        return type(image)(image.pixels, ("secondary capture",)) if path.name == "5.png" else image

    monkeypatch.setattr(journal, "decode_image", odd)
    store = made(folder, frame)
    assert read_listing(store.path / "flagged.csv").to_numpy().tolist() == [["5.png", "secondary capture"]]
    other = made(folder, frame, "other", refuse_flagged=True)
    assert read_listing(other.path / "quarantine.csv")["path"].tolist() == ["3.png", "5.png", "17.png"]


def test_sixteen_bits_are_stored(hospital):
    folder, frame = hospital
    how = Preprocessing(normalisation="percentile", dtype="uint16")
    store = made(folder, frame, how=how)
    images = store.split("train").read_all()
    assert images.dtype == np.uint16
    assert images.max() > 60000
    assert store.dtype == "uint16"
    assert verify(store) == COUNT - 2


def test_a_shard_of_bad_files_only_leaves_no_hole(hospital):
    folder, frame = hospital
    for index in range(0, 40, 4):
        (folder / "images" / f"{index}.png").write_bytes(b"torn")
    frame = frame.sort_values("split", kind="stable").reset_index(drop=True)
    bad = frame["path"].isin([f"{i}.png" for i in range(0, 40, 4)])
    frame = pd.concat([frame[bad], frame[~bad]], ignore_index=True)
    store = made(folder, frame, shards=10)
    assert len(store.manifest) == 28
    names = sorted(p.name for p in store.path.glob("films-train*"))
    assert names == [f"films-train.array_record-{i:05d}" for i in range(len(names))]
    assert verify(store) == 28


def test_the_workers_die_with_their_parent(tmp_path):
    program = (
        "import os, sys, time, threading\nfrom jaxcxr.data import build\n"
        "parent = os.getpid()\nchild = os.fork()\n"
        "if child == 0:\n    threading.Thread(target=build._die_with, args=(parent,)).start()\n    time.sleep(60)\n    os._exit(0)\n"
        "print(child, flush=True)\ntime.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_make_shard_may_be_called_again(hospital):
    folder, frame = hospital

    def die(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(folder, frame, progress=die)
    task = journal.ShardTask(
        folder / ".store.partial",
        7,
        (0, 1),
        ("0.png", "1.png"),
        ("film0", "film1"),
        folder / "images",
        16,
        Preprocessing(),
    )

    def on_the_disk(images):
        """What a kill would leave: an image counts once it is out of this process."""
        counted.append(images)
        assert task.file("raw").stat().st_size >= 16 * 16 * sum(counted)
        assert task.file("journal").read_bytes().count(b"\n") == sum(counted)

    counted, shard = [], None
    for _ in range(2):
        counted.clear()
        shard = make_shard(task, on_the_disk)
        assert sum(counted) == 2
        assert not task.file("json").exists()
    assert shard is not None
    commit_shard(task, shard)
    assert json.loads(task.file("json").read_text())["count"] == 2
    assert make_shard(dataclasses.replace(task, number=8), counted.append, lambda: True) is None
