"""Write files that appear complete or not at all, and hold locks that only one process has at a time."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcxr.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the written file replaces `path` when the block ends.

    If the block fails, or the process is killed in it, `path` stays as it was.
    """
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def exclusive_lock(path: Path, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file; a dead process loses its lock.

    Raises:
        InputError: another process still holds it after `patience` seconds; the message is `refusal`.
    """
    with path.open("w") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(refusal) from None
                time.sleep(0.1)
        yield
