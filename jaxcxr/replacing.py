"""Files that appear complete or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; what is written there takes the place of `path` when the block ends.

    A block that fails, or a process that is killed in it, leaves `path` as it was.
    """
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)
