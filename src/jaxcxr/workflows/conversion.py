"""Weights from torch to this package's folders and back, and models for use elsewhere: what
`scripts/convert_weights.py` and `scripts/export.py` call. Both are ways out of the hospital, and ask
`release.gate` first.
"""

import dataclasses
import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxcxr import __version__
from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.inference import Model, load_model, weights_record
from jaxcxr.models.export import run_stablehlo, to_stablehlo
from jaxcxr.models.heads import map_head, replace_head
from jaxcxr.models.marks import STABLEHLO_MARK
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import State, from_torch, to_torch
from jaxcxr.release.build import require_checked
from jaxcxr.release.gate import Passage, marked, passage
from jaxcxr.run_folder import CONFIG, is_run, read_config, read_facts
from jaxcxr.training.trained_on import TrainedOn, images_of, with_training
from jaxcxr.training.weights import save_weights, units_of_weights

TOLERANCE = 1e-5
"""Largest difference of probabilities at which an export is kept."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict in the torch layout, and the network that it is for.

    Attributes:
        state: the arrays.
        findings: names of the head's rows, in order.
        activation, width: of the network.
        size: side of the films it was trained on, in pixels.
    """

    state: State
    findings: tuple[str, ...]
    activation: str
    width: int
    size: int


def convert(
    source: Path,
    out: Path,
    given: Weights,
    change: Callable[[Weights], Weights] = lambda weights: weights,
    *,
    key: str | None = None,
    torch_file: bool = False,
    head: str = "keep",
    watermark: bool = False,
    store: Path | None = None,
) -> tuple[Path, Weights]:
    """Convert weights to a torch or safetensors file, or to a weights folder with a record of their source.

    Args:
        source: a torch or safetensors file, about which `given` says the rest, or a run, weights or release
            folder, which says all itself.
        out: to write; it must not exist.
        given: of a file: findings, network and size.
        change: of the head.
        key: of a checkpoint with several state dicts: the entry to read.
        torch_file: write a file, not a folder.
        head: what was done to it, for the record.
        watermark: convert weights that must not leave too; what is written is marked.
        store: of a private run's cohort, if it is not where its configuration says.

    Returns:
        What was written, and the weights.

    Raises:
        InputError: the weights must not leave (`release.gate`); they are not readable; names and shapes are
            not those of the network; or the head does not have one row per finding.
    """
    with passage(source, watermark, store) as found:
        out = found.named(out)
        _require_new(out)
        weights = change(_read_weights(found.source, given, key))
        params = from_torch(weights.state, len(weights.findings), weights.width, source=str(source))
        require_checked(found, store)
        found.register()
        if torch_file:
            write_state(out, to_torch(params), found.mark)
            return out, weights
        facts = {"source": source.name, "head": head}
        if source.is_file():
            facts["source_sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
        data = DataConfig(store="", size=weights.size, findings=weights.findings)
        model = ModelConfig(activation=weights.activation, width=weights.width)  # type: ignore[arg-type]
        record = weights_record(f"jaxcxr {__version__} convert_weights", data, model, **facts)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Hashes of its films would tell for certain who was in the data of a private run whose weights may
        # leave.
        leaves = found.kind == "run" and not found.against
        save_weights(out, params, marked(record, found), units=None if leaves else units_of_source(source))
        return out, weights


def units_of_source(source: Path) -> TrainedOn | None:
    """What converted weights were trained on, where their source is a weights folder with a record, or a run
    whose store is still there; None otherwise, so that a private run names it as an assumption. The record of
    a run is about its own films: it must not leave with weights that may.
    """
    if not is_run(source):
        weights = source.is_dir() and not (source / CONFIG).is_file()  # else a release
        return units_of_weights(source) if weights else None
    config, facts = read_config(source), read_facts(source)
    if not Path(config.data.store).is_dir():
        return None
    store, start = open_store(config.data.store), config.model.weights
    if store.fingerprint != facts.get("store_fingerprint"):
        return None
    return with_training(
        images_of(store, "train"), None if start is None else units_of_weights(start), start is None
    )


def _require_new(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out}: exists already, expected a new name")


def _read_weights(path: Path, given: Weights, key: str | None) -> Weights:
    if path.is_dir():
        model = load_model(path)
        return Weights(
            to_torch(model.params), model.findings, model.network.activation, model.network.width, model.size
        )
    state = read_state(path, key)
    rows = (
        state["fc.weight"].shape[0]
        if "fc.weight" in state and state["fc.weight"].ndim == 2
        else len(given.findings)
    )
    from_torch(state, rows, given.width, source=str(path))
    return dataclasses.replace(given, state=state)


def with_head(
    weights: Weights, findings: Sequence[str], mapping: Mapping[str, str] | None, seed: int
) -> Weights:
    """Weights for other findings: by `mapping` (see `heads.map_head`), or with a fresh head if it is None."""
    if mapping is None:
        state = replace_head(weights.state, len(findings), seed)
    else:
        state = map_head(weights.state, weights.findings, findings, mapping, seed)
    return dataclasses.replace(weights, state=state, findings=tuple(findings))


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model that was written for use elsewhere.

    Attributes:
        path: the file.
        model: what it holds.
        difference: largest difference between its probabilities and the model's on four films of noise.
        against: why it must not leave, as its name and its content say; none if it may.
    """

    path: Path
    model: Model
    difference: float
    against: tuple[str, ...]


def export_model(source: Path, out: Path, watermark: bool = False, store: Path | None = None) -> Exported:
    """Write the model in a folder as `out` (.stablehlo, .pth, .pt or .safetensors), read it back and run it.

    A state dict is the network alone, without the averaging of views; it is run by the network in torch where
    torch is installed, else by this package's.

    Args:
        source: run, weights or release folder.
        out: to write; it must not exist.
        watermark: export a model that must not leave too; the file's name and content say so.
        store: of a private run's cohort, if it is not where its configuration says.

    Raises:
        InputError: the model must not leave (`release.gate`), or what was read back gives other
            probabilities.
    """
    with passage(source, watermark, store) as found:
        out = found.named(out)
        _require_new(out)
        require_checked(found, store)
        model = load_model(found.source)
        part = out.with_name(f".{out.name}.partial")
        try:
            difference = _write(model, part / out.name, found)
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{out}: the exported model's probabilities differ by {difference:.2g}; nothing was kept"
                )
            found.register()
            (part / out.name).replace(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Exported(out, model, difference, found.against)


def _write(model: Model, path: Path, found: Passage) -> float:
    """Write, read back, run on four films of noise; the largest difference."""
    films = np.random.default_rng(0).integers(0, 256, (4, model.size, model.size)).astype(np.uint8)
    path.parent.mkdir(parents=True)
    if path.suffix == ".stablehlo":
        name = STABLEHLO_MARK if found.against else "probabilities"
        path.write_bytes(to_stablehlo(model.predictor(any_batch=True), model.params, model.size, name))
        return float(np.abs(run_stablehlo(path, films) - model.predict_prepared(films)).max())
    model = dataclasses.replace(model, views="one")
    write_state(path, to_torch(model.params), found.mark)
    return float(np.abs(_probabilities(model, read_state(path), films) - model.predict_prepared(films)).max())


def _probabilities(model: Model, state: State, films: np.ndarray) -> np.ndarray:
    if importlib.util.find_spec("torch") is None:
        params = from_torch(state, len(model.findings), model.network.width)
        return dataclasses.replace(model, params=params).predict_prepared(films)
    from jaxcxr.bench.torch_net import torch_probabilities

    return torch_probabilities(state, model.network.activation, films)
