"""A trained model in three lines: `import jaxcxr`, `model = jaxcxr.load_model("runs/demo")`,
`model.predict(["image.dcm"])`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, PyTree, UInt8

from jaxcxr.config import DataConfig, ModelConfig, Views
from jaxcxr.data.findings import mirror_permutation
from jaxcxr.data.images import preprocess, read_image
from jaxcxr.errors import InputError
from jaxcxr.models import network as networks
from jaxcxr.models.calibration import NO_MAP, Calibration, read_calibration, read_thresholds
from jaxcxr.models.network import Network
from jaxcxr.models.test_time_augmentation import predictor
from jaxcxr.records.spent import saved_in
from jaxcxr.run_folder import CHECKPOINTS, CONFIG
from jaxcxr.training.averaging import weights_to_use
from jaxcxr.training.checkpoint import newest_sound
from jaxcxr.training.weights import described, load_weights, require_as_written, weights_folder

BATCH = 32
NOT_CALIBRATED = "the probabilities are not calibrated: the network's class-weighted scores"
Image = str | Path | np.ndarray
"""A file (DICOM, PNG, JPEG, TIFF) or grey values [height, width] of any type and range."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of some images; `numpy.asarray` of it, and indexing, give the probabilities.

    Attributes:
        findings: names of the columns.
        probabilities: calibrated on validation images where `calibrated` says so, else the scores.
        scores: what the network says, trained with class weights: good for ranking, no probability.
        thresholds: on the probabilities, at or above which a finding is called; NaN where none is known.
        calibrated: whether each finding's probabilities are calibrated.
        note: in words, what the probabilities are.
    """

    findings: tuple[str, ...]
    probabilities: Float[np.ndarray, "n findings"]
    scores: Float[np.ndarray, "n findings"]
    thresholds: Float[np.ndarray, " findings"]
    calibrated: tuple[bool, ...]
    note: str

    @property
    def called(self) -> Float[np.ndarray, "n findings"]:
        """1 where a finding is called, 0 where it is not, NaN where no threshold is known."""
        return np.where(np.isnan(self.thresholds), np.nan, self.probabilities >= self.thresholds)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images and of findings."""
        return self.probabilities.shape

    def __len__(self) -> int:
        """Count the images."""
        return len(self.probabilities)

    def __getitem__(self, place: Any) -> Any:
        """Probabilities, as of an array."""
        return self.probabilities[place]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The probabilities."""
        return np.array(self.probabilities, dtype=dtype, copy=copy)

    def table(self, images: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per image: `p_<finding>` (probability), `threshold_<finding>` and `called_<finding>` (1, 0,
        or empty where no threshold is known).

        Args:
            images: names for a first column `image`.
        """
        columns: dict[str, Any] = {} if images is None else {"image": list(images)}
        for place, finding in enumerate(self.findings):
            columns[f"p_{finding}"] = self.probabilities[:, place]
            columns[f"threshold_{finding}"] = np.full(len(self), self.thresholds[place])
            columns[f"called_{finding}"] = pd.array(self.called[:, place]).astype("Int64")
        return pd.DataFrame(columns)


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A trained network with what is needed to use it.

    Attributes:
        findings: names of the outputs, in order.
        size: side of the images that the network reads, in pixels.
        network: the Flax module.
        params: its parameters.
        views: what is averaged in a prediction (`models.test_time_augmentation`).
        calibration: thresholds, and the map from scores to probabilities; None if there is none.
    """

    findings: tuple[str, ...]
    size: int
    network: Network
    params: PyTree
    views: Views = "one"
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        """One line."""
        count = sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(self.params))
        findings = f"{len(self.findings)} findings" if len(self.findings) > 1 else "1 finding"
        known = self.calibration
        mapped = known is not None and any(slope is not None for slope in known.slope)
        calibrated = f"calibrated on {known.made_on}" if known and mapped else "not calibrated"
        return (
            f"Model({findings}: {', '.join(self.findings)}; images {self.size} x {self.size}; "
            f"{count:,} parameters; {calibrated})"
        )

    def predict(self, images: Image | Iterable[Image]) -> Predictions:
        """Probability of each finding on each image, with the threshold from which it is called.

        Files and grey values alike are made square, scaled and equalised as the paper's images
        (`data.images.preprocess`). Images of a store are prepared already: see `predict_prepared`.

        Args:
            images: files or grey values, an array [n, height, width], or one image.

        Raises:
            InputError: a file is no image, or an array is no image of grey values.
        """
        return self.judge(self.predict_prepared(self.prepare(images)))

    def judge(self, scores: Float[np.ndarray, "n findings"]) -> Predictions:
        """The network's scores with the calibration and thresholds that the model has."""
        known, n = self.calibration, len(self.findings)
        if known is None:
            return Predictions(
                self.findings, scores, scores, np.full(n, np.nan), (False,) * n, NOT_CALIBRATED
            )
        calibrated = tuple(slope is not None for slope in known.slope)
        note = f"probabilities calibrated and thresholds chosen on {known.made_on}"
        if not any(calibrated):
            note = f"thresholds chosen on {known.made_on}; {NOT_CALIBRATED}"
        without = [
            f"{finding} ({why})"
            for finding, why in zip(known.findings, known.notes, strict=True)
            if why not in ("", NO_MAP)
        ]
        if without:
            note += f"; not calibrated: {', '.join(without)}"
        return Predictions(
            self.findings, known.probabilities(scores), scores, known.thresholds(), calibrated, note
        )

    def prepare(self, images: Image | Iterable[Image]) -> UInt8[np.ndarray, "n size size"]:
        """The images as the network reads them."""
        one = isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 2)
        grey = [_grey(image) for image in ([images] if one else images)]  # type: ignore[union-attr]
        prepared = [preprocess(image, self.size).astype(np.uint8) for image in grey]
        return np.stack(prepared) if prepared else np.zeros((0, self.size, self.size), np.uint8)

    def predict_prepared(self, films: UInt8[np.ndarray, "n size size"]) -> Float[np.ndarray, "n findings"]:
        """The network's score of each finding, between 0 and 1, on images that are prepared as the training
        images were.
        """
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


def _grey(image: Any) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    array = np.asarray(image)
    if array.ndim != 2 or array.dtype.kind not in "uif" or array.size == 0 or not np.all(np.isfinite(array)):
        raise InputError(
            f"images: expected finite grey values [height, width], found {array.dtype} {list(array.shape)}"
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
    data, model = described(path)
    if not (path / CHECKPOINTS).is_dir():
        require_as_written(path)
    network = networks.make_network(data, model)
    params = jax.tree.map(jnp.asarray, _read_params(path, networks.shapes_of(network, data.size)))
    read = read_calibration if (path / CHECKPOINTS).is_dir() else read_thresholds
    calibration = read(path, data.findings)
    return Model(data.findings, data.size, network, params, model.test_time_augmentation, calibration)


def weights_record(made_by: str, data: DataConfig, model: ModelConfig, **facts: object) -> dict[str, object]:
    """A provenance record that `load_model` can read: who made the weights, from what, and which network they
    are for.
    """
    return {
        "made_by": made_by,
        **facts,
        "config": {"data": dataclasses.asdict(data), "model": dataclasses.asdict(model)},
    }


def _read_params(path: Path, like: PyTree) -> PyTree:
    if (path / CHECKPOINTS).is_dir():  # a run; a file that was put beside them is not its model
        return _from_checkpoint(path / CHECKPOINTS, like)
    if (path / "params").is_dir() or len(list(path.glob("*.safetensors"))) == 1:
        return load_weights(path, like)
    raise InputError(f"{path}: no weights there; expected checkpoints/, params/ or one .safetensors file")


def _from_checkpoint(folder: Path, like: PyTree) -> PyTree:
    _, state = newest_sound(folder, saved_in(folder.parent))
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
