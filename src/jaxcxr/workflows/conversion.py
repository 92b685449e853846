"""Weights from torch to this package's folders and back, and models for use elsewhere: what
`scripts/convert_weights.py` and `scripts/export.py` call. Both are ways out of the hospital, and ask
`release.gate` first.
"""

import dataclasses
import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcxr import __version__
from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.inference import Model, load_model, weights_record
from jaxcxr.models.export import run_stablehlo, to_stablehlo
from jaxcxr.models.heads import Sources, map_head, replace_head, zero_head
from jaxcxr.models.marks import STABLEHLO_MARK
from jaxcxr.models.network import HEAD, make_network
from jaxcxr.models.published import normalisation_beside, of_network, published_params, torch_state
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import State, from_torch
from jaxcxr.release.build import require_checked
from jaxcxr.release.gate import Passage, marked, passage
from jaxcxr.run_folder import CONFIG, is_run, read_config, read_facts
from jaxcxr.training.trained_on import TrainedOn, images_of, with_training
from jaxcxr.training.weights import described, save_weights, units_of_weights, weights_digest

TOLERANCE = 1e-5
"""Largest difference of probabilities at which an export is kept."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters, and the network that they are for.

    Attributes:
        params: of the network; None of a file that is still to be read.
        findings: names of the head's outputs, in order.
        model: the network; `options` are those of the weights.
        size: side of the images it was trained on, in pixels.
        digest: of the parameters as they were read.
    """

    params: PyTree
    findings: tuple[str, ...]
    model: ModelConfig
    size: int
    digest: str = ""

    @property
    def data(self) -> DataConfig:
        """The images that the network takes, of no store."""
        return DataConfig(store="", size=self.size, findings=self.findings)


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
        _require_head(weights, source)
        require_checked(found, store)
        found.register()
        if torch_file:
            write_state(out, torch_state(weights.model, weights.params), found.mark)
            return out, weights
        facts = {"source": source.name, "head": head, "source_weights_sha256": weights.digest}
        facts["weights_sha256"] = weights_digest(weights.params)
        if source.is_file():
            facts["source_sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
        record = weights_record(f"jaxcxr {__version__} convert_weights", weights.data, weights.model, **facts)
        out.parent.mkdir(parents=True, exist_ok=True)
        # Hashes of its films would tell for certain who was in the data of a private run whose weights may
        # leave.
        leaves = found.kind == "run" and not found.against
        save_weights(
            out, weights.params, marked(record, found), units=None if leaves else units_of_source(source)
        )
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
        data, model = described(path)
        params = jax.tree.map(np.asarray, load_model(path).params)
        return Weights(params, data.findings, of_network(model), data.size, weights_digest(params))
    state = read_state(path, key)
    if given.model.network == "resnet9":
        head = state.get("fc.weight")
        rows = len(given.findings) if head is None or head.ndim != 2 else len(head)
        params = from_torch(state, rows, given.model.width, source=str(path))
        return dataclasses.replace(given, params=params, digest=weights_digest(params))
    known = normalisation_beside(path)
    model, params = published_params(given.data, given.model, state, str(path), known)
    return dataclasses.replace(given, params=params, model=model, digest=weights_digest(params))


def _require_head(weights: Weights, source: Path) -> None:
    """The head has an output for each finding."""
    outputs, wanted = weights.params["params"][HEAD]["kernel"].shape[1], len(weights.findings)
    if outputs == 0:
        raise InputError(
            f"{source}: these weights have no head; --head zero or --head replace gives them one for "
            "--findings"
        )
    if outputs != wanted:
        raise InputError(
            f"{source}: the head of these weights has {outputs} outputs, and {wanted} findings are named "
            f"({', '.join(weights.findings)}); name {outputs} by --findings, or choose --head zero, replace "
            "or map"
        )


def with_head(weights: Weights, findings: Sequence[str], mapping: Sources | None, seed: int) -> Weights:
    """Weights for other findings: by `mapping` (see `heads.map_head`), or with a fresh head if it is None."""
    if mapping is None:
        params = replace_head(weights.params, len(findings), seed)
    else:
        params = map_head(weights.params, weights.findings, findings, mapping, seed)
    return dataclasses.replace(weights, params=params, findings=tuple(findings))


def with_zero_head(weights: Weights, findings: Sequence[str]) -> Weights:
    """Weights for other findings, with a head of zeros."""
    params = zero_head(weights.params, len(findings))
    return dataclasses.replace(weights, params=params, findings=tuple(findings))


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
            difference = _write(model, found.source, part / out.name, found)
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{out}: the exported model's probabilities differ by {difference:.2g}; nothing was kept"
                )
            found.register()
            (part / out.name).replace(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Exported(out, model, difference, found.against)


def _write(model: Model, source: Path, path: Path, found: Passage) -> float:
    """Write, read back, run on four films of noise; the largest difference."""
    films = np.random.default_rng(0).integers(0, 256, (4, model.size, model.size)).astype(np.uint8)
    path.parent.mkdir(parents=True)
    if path.suffix == ".stablehlo":
        name = STABLEHLO_MARK if found.against else "probabilities"
        path.write_bytes(to_stablehlo(model.predictor(any_batch=True), model.params, model.size, name))
        return float(np.abs(run_stablehlo(path, films) - model.predict_prepared(films)).max())
    model = dataclasses.replace(model, views="one")
    _, config = described(source)
    write_state(path, torch_state(config, model.params), found.mark)
    again = _probabilities(model, config, read_state(path), films)
    return float(np.abs(again - model.predict_prepared(films)).max())


def _probabilities(model: Model, config: ModelConfig, state: State, films: np.ndarray) -> np.ndarray:
    """By the network in torch, where there is one here; else by this package's with the file read back."""
    if config.network == "resnet9" and importlib.util.find_spec("torch") is not None:
        from jaxcxr.bench.torch_net import torch_probabilities

        return torch_probabilities(state, config.activation, films)
    data = DataConfig(store="", size=model.size, findings=model.findings)
    config = dataclasses.replace(config, lora_rank=0)  # the factors were multiplied out
    if config.network == "resnet9":
        params = from_torch(state, len(model.findings), config.width)
    else:
        params = published_params(data, config, state, "the file")[1]
    network = make_network(data, config)
    return dataclasses.replace(model, network=network, params=params).predict_prepared(films)
