"""Save and restore what a run needs after a crash: weights, optimiser state, step and secret.

Checkpoints are atomic, by orbax. The sampler and the noise have no state but (secret, step), so nothing else
is needed. The secret lies beside the checkpoints, readable by its owner only, and never leaves that folder.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxcxr.errors import InputError
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import from_torch
from jaxcxr.privacy.noise import SECRET_BYTES, new_secret
from jaxcxr.training import trained_on
from jaxcxr.training.trained_on import TrainedOn

SECRET_FILE = "secret.key"
DELETED_FILE = "secret.deleted"
PACKAGED = ("jaxcxr", "weights")
"""First parts of the names of weights that come with the package."""


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


def load_or_make_secret(folder: Path, seed: int | None, begun: bool = False) -> bytes:
    """The run's 256-bit secret: read from `folder`, or created there with mode 0600 (from `seed` if given).

    Raises:
        InputError: the secret is damaged, or it is missing although the run has `begun` (has steps in its
            ledger, or a checkpoint).
    """
    path = folder / SECRET_FILE
    if path.exists():
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise InputError(
                f"{path}: expected {SECRET_BYTES} bytes, found {len(secret)}; the run cannot go on with "
                "another secret"
            )
        return secret
    if (folder / DELETED_FILE).exists():
        raise InputError(
            f"{path}: the secret was deleted when the run was finished (--delete-secret); the run cannot go "
            "on"
        )
    if begun:
        raise InputError(
            f"{path}: the run has begun but its secret is gone; with another one it would spend its steps a "
            "second time"
        )
    folder.mkdir(parents=True, exist_ok=True)
    secret = new_secret(seed)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return secret


def delete_secret(folder: Path) -> None:
    """Overwrite and delete a run's secret, so that nobody can recompute the noise, or resume the run.

    Copies in backups, snapshots or a file-system journal are not reached. A note stays behind, so that a
    later resume can say what happened.
    """
    path, gone = folder / SECRET_FILE, folder / "secret.gone"
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


def flat_weights(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by path, such as `params/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        "/".join(str(key.key) for key in path): np.ascontiguousarray(leaf, np.float32)
        for path, leaf in leaves
    }


def nested_weights(flat: dict[str, np.ndarray]) -> PyTree:
    """The tree of parameters given by path: the inverse of `flat_weights`."""
    tree: dict[str, PyTree] = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def save_weights(
    folder: Path,
    params: PyTree,
    provenance: dict[str, object],
    bfloat16: bool = False,
    units: TrainedOn | None = None,
) -> None:
    """Write parameters as starting weights, with their provenance; `folder` must not exist.

    The folder appears when complete.

    Args:
        folder: to write.
        params: of the network.
        provenance: the record.
        bfloat16: write one safetensors file as in a release, but rounded to 16 bits, with its checksum in the
            record, instead of an orbax folder of float32: half the size, for weights to share.
        units: hashes of the data they were trained on (`jaxcxr.training.trained_on`); None if not known.
    """
    part = folder.with_name(folder.name + ".part")
    if bfloat16:
        file = part / "weights.safetensors"
        write_state(
            file, {name: leaf.astype(jax.numpy.bfloat16) for name, leaf in flat_weights(params).items()}
        )
        provenance = provenance | {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(part.resolve() / "params", jax.tree.map(np.asarray, params), force=True)
    if units is not None:
        provenance = provenance | {"trained_on": trained_on.write(part, units)}
    (part / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    part.rename(folder)


def weights_folder(named: str | Path) -> Path:
    """The folder of weights that a configuration names.

    `jaxcxr/weights/NAME` is the package's own, wherever it is installed, unless that folder exists below the
    working directory.
    """
    path = Path(named)
    if path.parts[: len(PACKAGED)] == PACKAGED and not path.exists():
        return Path(__file__).resolve().parents[1].joinpath(*path.parts[1:])
    return path


def provenance(folder: Path) -> dict[str, Any]:
    """The provenance record of weights; empty if they have none."""
    path = folder / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def units_of_weights(named: str | Path) -> TrainedOn | None:
    """Hashes of the data that the named weights were trained on; None if not recorded."""
    folder = weights_folder(named)
    return trained_on.read(folder, provenance(folder))


def load_weights(folder: Path, like: PyTree) -> PyTree:
    """Parameters written by `save_weights` or a release, in the structure and dtypes of `like`.

    Raises:
        InputError: there are no weights, or some are missing, surplus or of another shape; the message names
            all.
    """
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "params").is_dir():
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore((folder / "params").resolve())
    elif len(files) == 1:
        found = _from_safetensors(files[0], like)
    else:
        raise InputError(f"{folder}: no weights there; expected params/ or one .safetensors file")
    have, want = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (found, like)
    )
    wrong = [f"{name} is missing" for name in want.keys() - have.keys()] + [
        f"{name} is surplus" for name in have.keys() - want.keys()
    ]
    wrong += [
        f"{name} has shape {np.shape(have[name])}, expected {np.shape(want[name])}"
        for name in want.keys() & have.keys()
        if np.shape(have[name]) != np.shape(want[name])
    ]
    if wrong:
        raise InputError(f"{folder}: the weights do not fit the network: {'; '.join(sorted(wrong))}")
    return jax.tree.map(lambda leaf, target: jax.numpy.asarray(leaf, target.dtype), found, like)


def _from_safetensors(path: Path, like: PyTree) -> PyTree:
    """Parameters from a file whose names are our paths, such as `params/conv1/kernel`, or torch's names."""
    state = read_state(path)
    if not all(name.startswith("params/") for name in state):
        layers = like["params"]
        return from_torch(
            state, layers["head"]["kernel"].shape[-1], layers["conv1"]["kernel"].shape[-1], source=str(path)
        )
    return nested_weights(state)
