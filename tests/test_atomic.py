"""Whole files, locks where there are none, and one sentence for what a disk refuses."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcxr import atomic, digests
from jaxcxr.atomic import exclusive_lock, replacing, write_json
from jaxcxr.errors import InputError


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "free some space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "see to the disk"),
        (errno.ESTALE, "see to the disk"),
    ],
)
@pytest.mark.parametrize("when", ["writing", "replacing"])
def test_what_a_disk_refuses_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str, when: str
) -> None:
    path = tmp_path / "evaluation.csv"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def write(patch: pytest.MonkeyPatch) -> None:
        with replacing(path) as part:
            part.write_text("half")
            if when == "writing":
                refuse()
            patch.setattr(Path, "replace", refuse)

    with monkeypatch.context() as patch, pytest.raises(InputError) as refused:
        write(patch)
    assert str(refused.value).startswith(f"{path}: cannot be written ({os.strerror(number)})")
    assert cure in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.csv"]


def test_a_file_is_on_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = os.fsync

    def fsync(number: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        assert not (tmp_path / "run.json").exists()
        original(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "run.json", {})
    assert synced == [str(tmp_path / "run.json.part")]


def test_a_kill_while_a_file_is_replaced_leaves_one_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evaluation.csv"
    for content in ("first", "second"):
        for killed_at in range(4):  # before the digest, the renaming, the second digest; not at all
            with monkeypatch.context() as patch:
                replaced = 0
                original = Path.replace

                def replace(part: Path, target: Path, killed_at: int = killed_at, do=original) -> Path:
                    nonlocal replaced
                    if replaced == killed_at:
                        raise KeyboardInterrupt
                    replaced += 1
                    return do(part, target)

                patch.setattr(Path, "replace", replace)
                try:
                    with digests.sealed(path) as part:
                        part.write_text(content)
                except KeyboardInterrupt:
                    assert killed_at < 3
            assert not path.exists() or path.read_text() in ("first", "second")
            if path.exists():
                assert digests.check(path)
    assert path.read_text() == "second"
    path.write_text("first")  # an older one that is put back is none of the two
    with pytest.raises(InputError, match="cut, changed or exchanged"):
        digests.check(path)


def test_digests_know_when_they_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert not digests.check(path)
    digests.write_json(path, [1])
    assert digests.check(path)
    content = (tmp_path / digests.DIGESTS).read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / digests.DIGESTS).write_bytes(bytes(changed))
        try:
            assert digests.check(path)  # white space
        except InputError as error:
            assert digests.DIGESTS in str(error)  # noqa: PT017
    (tmp_path / digests.DIGESTS).write_bytes(content)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        digests.check(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_of_the_file_system_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock, holder = tmp_path / ".lock", tmp_path / ".lock.held"
    with exclusive_lock(lock, "busy"):
        assert holder.read_text() == f"{socket.gethostname()} {os.getpid()}"
        with pytest.raises(
            InputError, match=rf"busy \(on .*; if no process runs there any more, delete {holder}\)"
        ):
            exclusive_lock(lock, "busy").__enter__()
    assert not holder.exists()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)  # fmt: skip
    holder.write_text(f"{socket.gethostname()} {dead.stdout.strip()}")
    with exclusive_lock(lock, "busy"):  # of a process that was killed
        assert atomic._reads(holder).endswith(f" {os.getpid()}")
    holder.write_text(f"another-machine {os.getpid()}")
    with pytest.raises(InputError, match="on another-machine"):
        exclusive_lock(lock, "busy").__enter__()
