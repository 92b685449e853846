"""Weights from torch to this package's folders and back, and models for use elsewhere: what `scripts/convert_weights.py` and
`scripts/export.py` call.
"""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxcxr import __version__
from jaxcxr.config import DataConfig, Experiment, ModelConfig, load
from jaxcxr.data.store import open_store
from jaxcxr.inference import Model, load_model, weights_record
from jaxcxr.models.export import run_stablehlo, to_stablehlo
from jaxcxr.models.heads import map_head, replace_head
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import State, from_torch, to_torch
from jaxcxr.replacing import replacing
from jaxcxr.training.checkpoint import save_weights, units_of_weights
from jaxcxr.training.trained_on import TrainedOn, films_of, with_training


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


def read_weights(path: Path, given: Weights, key: str | None = None) -> Weights:
    """Read a torch or safetensors file, about which `given` says the rest, or a run, weights or release folder, which says all
    itself.

    Raises:
        InputError: not readable, or names and shapes are not those of the network (with as many outputs as the file has).
    """
    if path.is_dir():
        model = load_model(path)
        return Weights(to_torch(model.params), model.findings, model.network.activation, model.network.width, model.size)
    state = read_state(path, key)
    rows = state["fc.weight"].shape[0] if "fc.weight" in state and state["fc.weight"].ndim == 2 else len(given.findings)
    from_torch(state, rows, given.width, source=str(path))
    return dataclasses.replace(given, state=state)


def with_head(weights: Weights, findings: Sequence[str], mapping: Mapping[str, str] | None, seed: int) -> Weights:
    """Weights for other findings: by `mapping` (see `heads.map_head`), or with a fresh head if it is None."""
    if mapping is None:
        state = replace_head(weights.state, len(findings), seed)
    else:
        state = map_head(weights.state, weights.findings, findings, mapping, seed)
    return dataclasses.replace(weights, state=state, findings=tuple(findings))


def write_weights(weights: Weights, out: Path, torch_file: bool, source: Path, head: str) -> None:
    """Write a torch file, or a weights folder with a record of its source.

    Raises:
        InputError: the head does not have one row a finding.
    """
    params = from_torch(weights.state, len(weights.findings), weights.width, source=str(source))
    if torch_file:
        write_state(out, to_torch(params))
        return
    facts = {"source": source.name, "head": head}
    if source.is_file():
        facts["source_sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
    data = DataConfig(store="", size=weights.size, findings=weights.findings)
    model = ModelConfig(activation=weights.activation, width=weights.width)  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    record = weights_record(f"jaxcxr {__version__} convert_weights", data, model, **facts)
    save_weights(out, params, record, units=_units_of(source))


def _units_of(source: Path) -> TrainedOn | None:
    """What converted weights were trained on, where their source is a weights folder with a record, or a run whose store is
    still there; None otherwise, so that a private run names it as an assumption.
    """
    if not (source / "config.yaml").is_file():
        return units_of_weights(source) if source.is_dir() else None
    if not (source / "run.json").is_file():
        return None
    config, facts = load(Experiment, source / "config.yaml"), json.loads((source / "run.json").read_text(encoding="utf-8"))
    if not Path(config.data.store).is_dir():
        return None
    store, start = open_store(config.data.store), config.model.weights
    if store.fingerprint != facts.get("store_fingerprint"):
        return None
    return with_training(films_of(store, "train"), None if start is None else units_of_weights(start), start is None)


def export_model(model: Model, out: Path) -> float:
    """Write `out` (.stablehlo, .pth, .pt or .safetensors), read it back and run it.

    A state dict is the network alone, without the averaging of views; it is run by the network in torch where torch is
    installed, else by this package's.

    Returns:
        Largest difference between its probabilities and the model's on four films of noise.
    """
    films = np.random.default_rng(0).integers(0, 256, (4, model.size, model.size)).astype(np.uint8)
    if out.suffix == ".stablehlo":
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            part.write_bytes(to_stablehlo(model.predictor(), model.params, model.size))
        return float(np.abs(run_stablehlo(out, films) - model.predict_prepared(films)).max())
    model = dataclasses.replace(model, views="one")
    write_state(out, to_torch(model.params))
    return float(np.abs(_probabilities(model, read_state(out), films) - model.predict_prepared(films)).max())


def _probabilities(model: Model, state: State, films: np.ndarray) -> np.ndarray:
    if importlib.util.find_spec("torch") is None:
        params = from_torch(state, len(model.findings), model.network.width)
        return dataclasses.replace(model, params=params).predict_prepared(films)
    from jaxcxr.bench.torch_net import torch_probabilities

    return torch_probabilities(state, model.network.activation, films)
