"""Save and restore what a run needs after a crash: weights, optimiser state and step.

Checkpoints are atomic, by orbax. The sampler and the noise have no state but (secret, step), so nothing else
is needed but the secret, which lies beside the checkpoints (`training.secret`).
"""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxcxr.errors import InputError


class Checkpoints:
    """The checkpoints of one run folder; the two newest are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest(self) -> int | None:
        """Number of steps done at the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, steps_done: int, state: PyTree) -> None:
        """Write a checkpoint; it appears under its final name only when complete.

        Raises:
            InputError: the disk refused; earlier checkpoints are untouched.
        """
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

    def restore(self, steps_done: int, like: PyTree) -> PyTree:
        """A checkpoint in the structure, shapes and dtypes of `like`, as arrays on the default device."""
        restored = self._manager.restore(
            steps_done, args=ocp.args.StandardRestore(jax.tree.map(_on_host, like))
        )
        return jax.tree.map(jax.numpy.asarray, restored)

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()


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
