"""Folders of weights to start from: the parameters, where they come from, and what they were trained on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxcxr.atomic import writing
from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.config_files import validate
from jaxcxr.digests import check, file_digest, record, recorded, seal, write_json
from jaxcxr.errors import InputError
from jaxcxr.models import lora
from jaxcxr.models.marks import RECORD
from jaxcxr.models.network import HEAD
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import from_torch
from jaxcxr.run_folder import CARD, CONFIG, read_config
from jaxcxr.training import trained_on
from jaxcxr.training.checkpoint import leaf_digests, read_arrays, require_leaves, tell
from jaxcxr.training.trained_on import TrainedOn

PARAMS, FILE = "params", "weights.safetensors"
"""What the arrays lie in: an orbax folder, or one file."""
PACKAGED = ("jaxcxr", "weights")
"""First parts of the names of weights that come with the package."""


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
        file = part / FILE
        write_state(
            file, {name: leaf.astype(jax.numpy.bfloat16) for name, leaf in flat_weights(params).items()}
        )
        provenance = provenance | {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    else:
        with writing(folder), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(part.resolve() / PARAMS, jax.tree.map(np.asarray, params), force=True)
    if units is not None:
        provenance = provenance | {"trained_on": trained_on.write(part, units)}
    write_json(part / RECORD, provenance)
    if bfloat16:
        seal(part / FILE)
    else:
        record(part, {PARAMS: leaf_digests(params)})
    with writing(folder):
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
    """The provenance record of weights; empty if they have none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / RECORD
    check(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); put it back from a copy") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object, found {type(found).__name__}; put it back from a copy")
    return found


def require_as_written(folder: Path) -> None:
    """Refuse a weights or release folder of which a file is not the one that was written: by `digests.json`,
    by the privacy card, which names the SHA-256 of a release's files, or by the record. Where none of them
    says anything, that is said, on standard error.

    Raises:
        InputError: a file was cut, changed, exchanged or deleted.
    """
    known = {name: value for name, value in recorded(folder).items() if isinstance(value, list)}
    known = _on_card(folder) | _on_record(folder) | known
    for name, digests in known.items():
        path = folder / name
        if not path.is_file() or file_digest(path) not in digests:
            found = "was cut, changed or exchanged" if path.is_file() else "is missing"
            raise InputError(
                f"{path}: {found}: its SHA-256 is known; take the folder anew from where it came from"
            )
    if not known:
        tell(f"{folder}: no digests of its files were recorded, so it is used unchecked")


def _on_card(folder: Path) -> dict[str, list[str]]:
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8")).get("files") or []
        return {str(file["name"]): [str(file["sha256"])] for file in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({error!r}); take the release anew from where it came from"
        ) from error


def _on_record(folder: Path) -> dict[str, list[str]]:
    found = provenance(folder)
    return {str(found["file"]): [str(found["sha256"])]} if {"file", "sha256"} <= found.keys() else {}


def units_of_weights(named: str | Path) -> TrainedOn | None:
    """Hashes of the data that the named weights were trained on; None if not recorded."""
    folder = weights_folder(named)
    return trained_on.read(folder, provenance(folder))


def describes_itself(folder: Path) -> bool:
    """Whether a folder of weights says what they are weights of (`described`)."""
    return (folder / CONFIG).is_file() or "config" in provenance(folder)


def described(folder: Path) -> tuple[DataConfig, ModelConfig]:
    """The images and the network that a run, weights or release folder is for.

    Raises:
        InputError: the folder does not say, or what it says is damaged.
    """
    if (folder / CONFIG).is_file():
        config = read_config(folder)
        return config.data, config.model
    record = folder / RECORD
    if not record.is_file():
        raise InputError(
            f"{folder}: expected {CONFIG} or {RECORD} there, which say what the network looks like"
        )
    try:
        config = json.loads(record.read_text(encoding="utf-8"))["config"]
        data, model = config["data"], config["model"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{record}: expected a record with config.data and config.model") from error
    return validate(DataConfig, data, f"{record}: data"), validate(ModelConfig, model, f"{record}: model")


def load_weights(folder: Path, like: PyTree) -> PyTree:
    """Parameters written by `save_weights` or a release, in the structure and dtypes of `like`.

    Factors beside kernels (`models.lora`) that the folder lacks are those of `like`.

    Raises:
        InputError: there are no weights, they are not those that were written, or some are missing, surplus
            or of another shape; the message names all.
    """
    files = sorted(folder.glob("*.safetensors"))
    require_as_written(folder)
    if (folder / PARAMS).is_dir():
        found = read_arrays(folder / PARAMS)
        require_leaves(folder / PARAMS, found, recorded(folder).get(PARAMS))
    elif len(files) == 1:
        found = _from_safetensors(files[0], like)
    else:
        raise InputError(f"{folder}: no weights there; expected params/ or one .safetensors file")
    found = _with_factors(found, like)
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


def _with_factors(found: Any, like: Any) -> Any:
    """`found` with the factors of `like` that it lacks, where these are arrays and not shapes alone."""
    lacking = {
        name: leaf
        for name, leaf in like.items()
        if name not in found and lora.is_factor(name) and isinstance(leaf, jax.Array)
    }
    return {
        name: _with_factors(child, like[name]) if isinstance(child, Mapping) and name in like else child
        for name, child in found.items()
    } | lacking


def _from_safetensors(path: Path, like: PyTree) -> PyTree:
    """Parameters from a file whose names are our paths, such as `params/conv1/kernel`, or those of resnet9 in
    torch.
    """
    state = read_state(path)
    if not all("/" in name for name in state):
        layers = like["params"]
        if "conv1" not in layers:
            raise InputError(
                f"{path}: its entries have torch's names; convert-weights makes a weights folder of it"
            )
        return from_torch(
            state, layers[HEAD]["kernel"].shape[-1], layers["conv1"]["kernel"].shape[-1], source=str(path)
        )
    return nested_weights(state)


def without_head(params: PyTree) -> PyTree:
    """The parameters with a head of zeros, which says of every image and finding the same."""
    zeros = jax.tree.map(jax.numpy.zeros_like, params["params"][HEAD])
    return {**params, "params": {**params["params"], HEAD: zeros}}


def weights_digest(params: PyTree) -> str:
    """SHA-256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
