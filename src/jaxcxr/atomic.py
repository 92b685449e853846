"""Files that appear complete or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; what is written there takes the place of `path` when the block
    ends.

    A block that fails, or a process that is killed in it, leaves `path` as it was.
    """
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
