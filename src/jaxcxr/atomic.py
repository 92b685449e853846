"""Write files that appear complete or not at all, hold locks that only one process has at a time, and say in
one sentence what a disk refuses.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxcxr.errors import InputError

_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class BusyError(InputError):
    """Another process holds a lock."""


def refused(path: Path | str, error: OSError, act: str = "written") -> InputError:
    """What a disk refused, and how to go on, as an error for the user.

    Args:
        path: what was to be written.
        error: the system's.
        act: what could not be done to it.
    """
    reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
    if error.errno in _FULL:
        cure = "free some space or have the quota raised"
    elif error.errno in _FORBIDDEN:
        cure = "make the folder writable, or name another one"
    else:
        cure = "see to the disk or its connection"
    return InputError(
        f"{path}: cannot be {act} ({reason}); what was there before is untouched: {cure}, and give the "
        "command again (a run goes on by --resume, a sweep by itself)"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses within the block into an InputError (`refused`)."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the written file replaces `path` when the block ends, and is on
    the disk then.

    If the block fails, or the process is killed in it, `path` stays as it was.

    Raises:
        InputError: the disk refuses.
    """
    with writing(path), renaming(path) as part:
        yield part


@contextmanager
def renaming(path: Path) -> Iterator[Path]:
    """As `replacing`, for callers that have a sentence of their own for an OSError."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except BaseException:
        _discard(part)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def exclusive_lock(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file; a dead process loses its lock.

    Where the file system has no locks, a file beside it names the process that holds it; the lock of a dead
    process of this machine is taken over, and that of another machine must be deleted by hand.

    Raises:
        BusyError: another process still holds it after `patience` seconds; the message is `refusal`, and the
            file to delete if need be.
        OSError: the folder cannot be written to.
    """
    with path.open("w") as lock:
        deadline = time.monotonic() + patience
        while (held := _held(lock, path)) is not None:
            if time.monotonic() > deadline:
                raise BusyError(refusal + held)
            time.sleep(0.1)
        try:
            yield
        finally:
            if _holder(path).exists() and _reads(_holder(path)) == _own_name():
                _holder(path).unlink()


def _held(lock: IO[str], path: Path) -> str | None:
    """None if the lock is ours now; what to add to the refusal if it is another's."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return _held_by_name(_holder(path))
    return None


def _held_by_name(holder: Path) -> str | None:
    """The same by a file that only one process can create, for file systems without locks."""
    try:
        with holder.open("x", encoding="utf-8") as file:
            file.write(_own_name())
    except FileExistsError:
        machine, _, process = _reads(holder).partition(" ")
        if machine == socket.gethostname() and process.isdecimal() and not _lives(int(process)):
            _discard(holder)
            return _held_by_name(holder)
        where = machine or "a machine without name"
        return f" (on {where}; if no process runs there any more, delete {holder})"
    return None


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _own_name() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _reads(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8")
    except OSError:
        return ""


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
