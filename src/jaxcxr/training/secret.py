"""The secret of a run, from which all its randomness is derived: 256 bits that only its owner can read.

It lies beside the checkpoints and never leaves that folder. Whether a run may go on without it is decided in
`training.resume`.
"""

import os
import sys
from pathlib import Path

from jaxcxr.atomic import writing
from jaxcxr.errors import InputError
from jaxcxr.privacy.noise import SECRET_BYTES, new_secret
from jaxcxr.run_folder import SECRET

DELETED_FILE = "secret.deleted"


def read_secret(folder: Path) -> bytes | None:
    """The secret that lies in `folder`; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / SECRET
    if not path.exists():
        return None
    secret = path.read_bytes()
    if path.stat().st_mode & 0o077:
        with writing(path):
            path.chmod(0o600)
        print(
            f"warning: {path}: others could read the secret behind the noise; its mode is 600 now. If "
            "somebody may have copied it, do not release the run",
            file=sys.stderr,
            flush=True,
        )
    if len(secret) != SECRET_BYTES:
        raise InputError(
            f"{path}: expected {SECRET_BYTES} bytes, found {len(secret)}; the run cannot go on with "
            "another secret"
        )
    return secret


def make_secret(folder: Path, seed: int | None) -> bytes:
    """A new secret, created in `folder` with mode 0600: from the operating system, or from `seed`."""
    secret, path = new_secret(seed), folder / SECRET
    part = path.with_suffix(".part")
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    return secret


def was_deleted(folder: Path) -> bool:
    """Whether the secret of `folder` was deleted on purpose (`delete_secret`)."""
    return (folder / DELETED_FILE).exists()


def delete_secret(folder: Path) -> None:
    """Overwrite and delete a run's secret, so that nobody can recompute the noise, or resume the run.

    Copies in backups, snapshots or a file-system journal are not reached. A note stays behind, so that a
    later resume can say what happened.
    """
    path, gone = folder / SECRET, folder / "secret.gone"
    (folder / DELETED_FILE).write_text(
        "The secret of this run was deleted when the run was finished.\n", encoding="utf-8"
    )
    if path.exists():
        path.replace(gone)  # first: an overwritten secret must never be taken for a valid one
    if gone.exists():
        with gone.open("r+b") as file:
            file.write(bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        gone.unlink()
