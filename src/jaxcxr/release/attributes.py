"""What a file system keeps beside the content of files: the same for every release, so that it tells nothing.

Times of change are `TIME`, files have mode 0644 and folders 0755, there are no extended attributes, and all
belongs to whoever owns the folder. Times of reading and creation cannot be set, and do not travel.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

TIME = 315_532_800
"""1980-01-01 00:00 UTC, the first that a zip archive knows."""
FILE_MODE, FOLDER_MODE = 0o644, 0o755
CURE = (
    "copy a release with `cp -a`, or put it right with `find FOLDER -exec touch -d @315532800 {} +` and "
    "`chmod -R u=rwX,go=rX FOLDER`"
)


def normalise(folder: Path) -> None:
    """Give a folder and everything in it the attributes of a release."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        for name in os.listxattr(path, follow_symlinks=False):
            if not _of_the_system(name):
                os.removexattr(path, name, follow_symlinks=False)
        path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            os.utime(path, (TIME, TIME))


def unusual(folder: Path) -> Iterator[str]:
    """A sentence for every attribute that is not a release's."""
    owner = (folder.stat().st_uid, folder.stat().st_gid)
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path.is_symlink():
            continue
        name, found = path.relative_to(folder).as_posix(), path.stat()
        name = "the folder itself" if name == "." else name
        for attribute in os.listxattr(path, follow_symlinks=False):
            if not _of_the_system(attribute):
                yield f"{name}: has the extended attribute {attribute!r}; expected none"
        if found.st_mtime_ns != TIME * 10**9:
            yield f"{name}: its time of change is not that of a release's files; {CURE}"
        mode, wanted = stat.S_IMODE(found.st_mode), FOLDER_MODE if path.is_dir() else FILE_MODE
        if mode != wanted:
            yield f"{name}: its mode is {mode:o}, expected {wanted:o}; {CURE}"
        if (found.st_uid, found.st_gid) != owner:
            yield f"{name}: has another owner than the folder"


def _of_the_system(name: str) -> bool:
    """Labels that the kernel itself puts on every file, and that nobody can take off."""
    return name == "security.selinux"
