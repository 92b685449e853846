"""A trained model in three lines: `import jaxcxr`, `model = jaxcxr.load_model("runs/demo")`,
`model.predict(["film.dcm"])`.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, PyTree, UInt8

from jaxcxr.config import DataConfig, ModelConfig, Views, validate
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.images import preprocess, read_image
from jaxcxr.errors import InputError
from jaxcxr.models import network as networks
from jaxcxr.models.marks import RECORD
from jaxcxr.models.network import Network
from jaxcxr.models.test_time_augmentation import predictor
from jaxcxr.run_folder import CHECKPOINTS, CONFIG, read_config
from jaxcxr.training.averaging import weights_to_use
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.weights import load_weights, weights_folder

BATCH = 32
Film = str | Path | np.ndarray
"""A file (DICOM, PNG, JPEG, TIFF) or grey values [height, width] of any type and range."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network with what is needed to use it.

    Attributes:
        findings: names of the outputs, in order.
        size: side of the films that the network reads, in pixels.
        network: the Flax module.
        params: its parameters.
        views: what is averaged in a prediction (`models.test_time_augmentation`).
    """

    findings: tuple[str, ...]
    size: int
    network: Network
    params: PyTree
    views: Views = "one"

    def predict(self, images: Film | Iterable[Film]) -> Float[np.ndarray, "n findings"]:
        """Probability of each finding on each film.

        Files and grey values alike are made square, scaled and equalised as the paper's films
        (`data.images.preprocess`). Films that come from a store are prepared already: see `predict_prepared`.

        Args:
            images: films, an array [n, height, width], or one film.

        Raises:
            InputError: a file is no film, or an array is no film of grey values.
        """
        return self.predict_prepared(self.prepare(images))

    def prepare(self, images: Film | Iterable[Film]) -> UInt8[np.ndarray, "n size size"]:
        """The films as the network reads them."""
        one = isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 2)
        films = [_grey(film) for film in ([images] if one else images)]  # type: ignore[union-attr]
        prepared = [preprocess(film, self.size).astype(np.uint8) for film in films]
        return np.stack(prepared) if prepared else np.zeros((0, self.size, self.size), np.uint8)

    def predict_prepared(self, films: UInt8[np.ndarray, "n size size"]) -> Float[np.ndarray, "n findings"]:
        """Probability of each finding on films that are prepared as the training films were."""
        if films.ndim != 3 or films.shape[1:] != (self.size, self.size) or films.dtype != np.uint8:
            raise InputError(
                f"films: expected uint8 [n, {self.size}, {self.size}], found {films.dtype} "
                f"{list(films.shape)}"
            )
        rows = []
        for first in range(0, len(films), BATCH):
            piece = films[first : first + BATCH]
            padded = np.zeros((BATCH, self.size, self.size), np.uint8)  # one shape, one compilation
            padded[: len(piece)] = piece
            rows.append(np.asarray(self._probabilities(self.params, padded))[: len(piece)])
        return np.concatenate(rows) if rows else np.zeros((0, len(self.findings)), np.float32)

    def predictor(
        self, any_batch: bool = False
    ) -> Callable[[PyTree, UInt8[Array, "n size size"]], Float[Array, "n findings"]]:
        """The function (parameters, prepared images) -> probabilities, not compiled."""
        other_side = None if self.views == "one" else mirror_permutation(self.findings)
        return predictor(self.network, self.views, other_side, any_batch)

    @functools.cached_property
    def _probabilities(self) -> Any:
        return jax.jit(self.predictor())


def _grey(film: Any) -> np.ndarray:
    if isinstance(film, str | Path):
        return read_image(film)
    array = np.asarray(film)
    if array.ndim != 2 or array.dtype.kind not in "uif" or array.size == 0 or not np.all(np.isfinite(array)):
        raise InputError(
            f"films: expected finite grey values [height, width], found {array.dtype} {list(array.shape)}"
        )
    return array


def load_model(path: str | Path) -> Model:
    """The model in a folder that this package wrote.

    Args:
        path: a run folder (config.yaml and checkpoints/; the newest checkpoint is taken), a weights folder
            (provenance.json and params/ or a .safetensors file) or a release folder (config.yaml and a
            .safetensors file).

    Raises:
        InputError: there is no such folder, it holds no model, or weights and configuration do not fit.
    """
    path = weights_folder(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a run, weights or release folder")
    data, model = _described(path)
    network = networks.make_network(data, model)
    params = jax.tree.map(jnp.asarray, _read_params(path, networks.shapes_of(network, data.size)))
    return Model(data.findings, data.size, network, params, model.prediction_views)


def weights_record(made_by: str, data: DataConfig, model: ModelConfig, **facts: object) -> dict[str, object]:
    """A provenance record that `load_model` can read: who made the weights, from what, and which network they
    are for.
    """
    return {
        "made_by": made_by,
        **facts,
        "config": {"data": dataclasses.asdict(data), "model": dataclasses.asdict(model)},
    }


def _described(path: Path) -> tuple[DataConfig, ModelConfig]:
    if (path / CONFIG).is_file():
        config = read_config(path)
        return config.data, config.model
    record = path / RECORD
    if not record.is_file():
        raise InputError(
            f"{path}: expected {CONFIG} or {RECORD} there, which say what the network looks like"
        )
    try:
        config = json.loads(record.read_text(encoding="utf-8"))["config"]
        data, model = config["data"], config["model"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{record}: expected a record with config.data and config.model") from error
    return validate(DataConfig, data, f"{record}: data"), validate(ModelConfig, model, f"{record}: model")


def _read_params(path: Path, like: PyTree) -> PyTree:
    if (path / CHECKPOINTS).is_dir():  # a run; a file that was put beside them is not its model
        return _from_checkpoint(path / CHECKPOINTS, like)
    if (path / "params").is_dir() or len(list(path.glob("*.safetensors"))) == 1:
        return load_weights(path, like)
    raise InputError(f"{path}: no weights there; expected checkpoints/, params/ or one .safetensors file")


def _from_checkpoint(folder: Path, like: PyTree) -> PyTree:
    checkpoints = Checkpoints(folder)
    try:
        newest = checkpoints.latest()
    finally:
        checkpoints.close()
    if newest is None:
        raise InputError(f"{folder}: no complete checkpoint there yet")
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((folder / str(newest) / "default").resolve())
    return _fitting(weights_to_use(state), like, folder)


def _fitting(params: PyTree, like: PyTree, source: Path) -> PyTree:
    shapes: Sequence[dict[str, tuple[int, ...]]] = [
        {
            jax.tree_util.keystr(place): tuple(leaf.shape)
            for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (params, like)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise InputError(
            f"{source}: the checkpoint does not fit {CONFIG}; it differs in {', '.join(differing)}"
        )
    return params
