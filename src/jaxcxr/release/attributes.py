"""What a file system keeps beside the content of files: written alike in every release, so that it tells
nothing.

Times of change are `TIME`, files have mode 0644 and folders 0755, there are no extended attributes, and all
belongs to whoever owns the folder. Times of reading and creation cannot be set, and do not travel.
"""

import datetime
import os
import stat
from collections.abc import Iterator
from pathlib import Path

TIME = 315_532_800
"""1980-01-01 00:00 UTC, the first that a zip archive knows."""
FIRST_DAY = datetime.date(2026, 1, 1)
"""Before which no version could release anything, and no copy of a release was made."""
FILE_MODE, FOLDER_MODE = 0o644, 0o755


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


def unusual(folder: Path) -> tuple[str, ...]:
    """A remark where times of change, modes or owners are not those that a release is written with.

    A copy, a download or an archive changes them, so that they say nothing of whether the content is the
    release's; but they could tell something, and whoever sends the folder on may want them gone.
    """
    owner = (folder.stat().st_uid, folder.stat().st_gid)
    odd = 0
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            found, mode = path.stat(), FOLDER_MODE if path.is_dir() else FILE_MODE
            own = (found.st_uid, found.st_gid) == owner
            odd += found.st_mtime_ns != TIME * 10**9 or stat.S_IMODE(found.st_mode) != mode or not own
    if not odd:
        return ()
    return (
        f"{odd} of its files and folders have a time of change, a mode or an owner that a release is not "
        "written with, as after a copy or download; it forbids nothing, and `jaxcxr release` wrote them all "
        "alike",
    )


def attributes_of(folder: Path) -> Iterator[str]:
    """A sentence for everything that has an extended attribute which the system itself does not set."""
    for path in [folder, *sorted(folder.rglob("*"))]:
        names = [] if path.is_symlink() else os.listxattr(path, follow_symlinks=False)
        if not all(map(_of_the_system, names)):
            yield (
                f"{path.relative_to(folder).as_posix()}: has extended attributes, and a release has none: "
                "copy the folder with cp -r, which leaves them behind"
            )


def numbers_beside(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Place, meaning and value of every number that the file system keeps and a copy may have changed:
    times of change in seconds and as a day (YYYYMMDD), and owners.
    """
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path.is_symlink():
            continue
        found, place = path.stat(), path.relative_to(folder).as_posix()
        if found.st_mtime_ns != TIME * 10**9:
            day = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
            yield place, "time of change", int(found.st_mtime)
            yield place, "time of change in nanoseconds", found.st_mtime_ns % 10**9
            if day.date() < FIRST_DAY:  # later ones are those of a copy
                yield place, "day of change", int(f"{day:%Y%m%d}")
        yield place, "owner", found.st_uid
        yield place, "group", found.st_gid


def _of_the_system(name: str) -> bool:
    """What the kernel and network file systems put on every file, and nobody can take off."""
    return name in ("security.selinux", "system.nfs4_acl")
