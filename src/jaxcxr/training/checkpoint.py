"""Save and restore what a run needs after a crash: weights, optimiser state and step.

Checkpoints are atomic, by orbax. The sampler and the noise have no state but (secret, step), so nothing else
is needed but the secret, which lies beside the checkpoints (`training.secret`).

The SHA-256 of every saved array is in `digests.json` beside the checkpoints before the checkpoint is written,
and that of all of them (`state_digest`) in the ledger of a private run. No array is used that is another one.
An array is read as it lies on the disk, whatever number of devices and processes wrote it.
"""

import hashlib
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxcxr.digests import digest_of, record, recorded
from jaxcxr.errors import InputError
from jaxcxr.run_folder import checkpoint_steps

_KEPT = 2
_ITEM = "default"
NO_DIGESTS = "its digests were not recorded (an earlier version wrote it), so it is used unchecked"


class DamagedCheckpointError(InputError):
    """A checkpoint is not what was saved, or cannot be read; an earlier one may be sound."""


class Checkpoints:
    """The checkpoints of one run folder; the two newest are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest(self) -> int | None:
        """Number of steps done at the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Numbers of steps done at the checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, steps_done: int, state: PyTree) -> None:
        """Write a checkpoint; it appears under its final name only when complete, and after its digests.

        Raises:
            InputError: the disk refused; earlier checkpoints are untouched.
        """
        if jax.process_index() == 0:
            known = {str(step) for step in (*self._manager.all_steps(), steps_done)}
            gone = frozenset(recorded(self._folder).keys() - known)
            record(self._folder, {str(steps_done): leaf_digests(state)}, without=gone)
        try:
            self._manager.save(steps_done, args=ocp.args.StandardSave(state), force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            if self.latest() == steps_done:
                raise
            kept = self.latest()
            raise InputError(
                f"{self._folder}: checkpoint of step {steps_done} could not be written ({_reason(error)}); "
                f"the newest complete one is of step {kept}: free some space and resume the run (train.py "
                "--resume; a sweep resumes by itself)"
            ) from error

    def restore(self, steps_done: int, like: PyTree, recorded_by: Collection[str] = ()) -> PyTree:
        """A checkpoint in the structure, shapes and dtypes of `like`, as arrays on the default device.

        Args:
            steps_done: its step.
            like: parameters and states, of which only structure, shapes and dtypes are used.
            recorded_by: digests of this checkpoint in the ledger (`state_digest`); none if it has none.

        Raises:
            DamagedCheckpointError: an array is not the one that was saved, or cannot be read.
        """
        try:
            restored = self._manager.restore(
                steps_done, args=ocp.args.StandardRestore(jax.tree.map(_on_host, like))
            )
        except Exception as error:
            raise _damaged(self._folder / str(steps_done), _one_line(error)) from error
        require_saved(self._folder, steps_done, restored, recorded_by)
        return jax.tree.map(jax.numpy.asarray, restored)

    def put_aside(self, steps_done: int) -> None:
        """Rename a damaged checkpoint, so that its step can be saved again; `reload` in all processes
        then.
        """
        path, number = self._folder / str(steps_done), 1
        while (aside := path.with_name(f"{steps_done}.damaged-{number}")).exists():
            number += 1
        path.rename(aside)

    def reload(self) -> None:
        """Look again which checkpoints there are."""
        self._manager.reload()

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()


def read_checkpoint(folder: Path, steps_done: int, recorded_by: Collection[str] = ()) -> PyTree:
    """What a checkpoint holds, as arrays on the host and in plain dictionaries and lists, whichever devices
    it was written on; arguments and errors as of `Checkpoints.restore`.
    """
    state = read_arrays(folder / str(steps_done) / _ITEM)
    require_saved(folder, steps_done, state, recorded_by)
    return state


def read_arrays(path: Path) -> PyTree:
    """The arrays in a folder of orbax, on the host and in plain dictionaries and lists, whichever devices
    wrote them.

    Raises:
        DamagedCheckpointError: they cannot be read.
    """
    handler = ocp.PyTreeCheckpointHandler()
    place: Any = path.resolve()
    try:
        found: Any = handler.metadata(place)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.tree)
        return handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=kinds))
    except Exception as error:
        raise _damaged(path.parent if path.name == _ITEM else path, _one_line(error)) from error


def newest_sound(folder: Path, saved: Mapping[int, Collection[str]]) -> tuple[int, PyTree]:
    """The newest checkpoint that is what was saved, and its step; damaged ones are passed over with a
    sentence on standard error.

    Args:
        folder: of the checkpoints.
        saved: the ledger's digests, by step.

    Raises:
        InputError: there is none.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise InputError(f"{folder}: no complete checkpoint there yet")
    damage: list[str] = []
    for steps_done in steps:
        try:
            state = read_checkpoint(folder, steps_done, saved.get(steps_done, ()))
        except DamagedCheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            tell(f"{'; '.join(damage)}: the one of step {steps_done} is taken instead")
        return steps_done, state
    raise no_sound_one(folder, damage)


def no_sound_one(folder: Path, damage: list[str]) -> InputError:
    """The error for a run whose checkpoints are all damaged."""
    return InputError(
        f"{folder}: no checkpoint is what was saved ({'; '.join(damage)}); put one back from a copy, or "
        "begin a new run in another folder"
    )


def tell(sentence: str) -> None:
    """Say what is wrong and goes on nevertheless, on standard error, in the first process."""
    if jax.process_index() == 0:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)


def leaf_digests(state: PyTree) -> dict[str, str]:
    """SHA-256 of every array (its dtype, shape and numbers), by its place, such as `params/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    found = {}
    for path, leaf in leaves:
        array = np.asarray(leaf)
        head = f"{array.dtype.name} {list(array.shape)} ".encode()
        found["/".join(_key(key) for key in path)] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return found


def state_digest(state: PyTree) -> str:
    """SHA-256 over all of a checkpoint, for the ledger."""
    return digest_of(leaf_digests(state))


def require_saved(folder: Path, steps_done: int, state: PyTree, recorded_by: Collection[str]) -> None:
    """Refuse arrays that are not those that were saved; say so where nothing is known of them.

    Raises:
        DamagedCheckpointError: as it says.
    """
    path, known = folder / str(steps_done), recorded(folder).get(str(steps_done))
    if recorded_by and state_digest(state) not in recorded_by:
        require_leaves(path, state, known, silent=True)  # names the array, if it can
        raise _damaged(path, "it is not the one that the ledger names by its SHA-256")
    require_leaves(path, state, known, silent=bool(recorded_by))


def require_leaves(
    path: Path, state: PyTree, known: Mapping[str, str] | None, *, silent: bool = False
) -> None:
    """Refuse arrays whose SHA-256 is not the one that was recorded (`leaf_digests`); say so where none was.

    Raises:
        DamagedCheckpointError: as it says.
    """
    if known is None:
        if not silent:
            tell(f"{path}: {NO_DIGESTS}")
        return
    found = leaf_digests(state)
    wrong = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    if wrong:
        more = f" and {len(wrong) - 3} others" if len(wrong) > 3 else ""
        raise _damaged(path, f"not what was saved: {', '.join(wrong[:3])}{more}")


def _damaged(path: Path, what: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path}: damaged checkpoint ({what})")


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _reason(error: Exception) -> str:
    """The system's message: tensorstore puts it last in a long line, before details in brackets."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.split(r" \[(?:os_error_code|tensorstore_spec)", lines[0])[0].rpartition(": ")[2]


def _on_host(leaf: Any) -> Any:
    return np.zeros(np.shape(leaf), leaf.dtype)
