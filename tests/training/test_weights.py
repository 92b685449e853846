"""Weights to start from: those that come with the package, in 16 bits, and how they are found."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree
from safetensors.numpy import save_file

import jaxcxr
from jaxcxr.config import Experiment
from jaxcxr.config_files import load, validate
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.training import parameters
from jaxcxr.training.weights import load_weights, provenance, save_weights, weights_folder
from jaxcxr.workflows.experiment import pretrain
from tests.conftest import changed

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = "jaxcxr/weights/synthetic-64"


@pytest.fixture(scope="module")
def params(tiny_nonprivate_config: Experiment, tiny_store: Store) -> PyTree:
    return parameters.random_params(tiny_nonprivate_config, bytes(32))


def test_the_weights_that_are_shipped_are_the_recorded_ones() -> None:
    folder = ROOT / "src" / SHIPPED
    record = provenance(folder)
    file = folder / record["file"]
    assert file.stat().st_size < 12_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]
    assert 0.75 < record["test_auroc"]["average"] < 1
    recipe = load(Experiment, ROOT / "configs" / "pretrain_synthetic.yaml")
    assert validate(Experiment, record["config"], "record") == recipe, (
        "made by another configuration: make them anew"
    )


def test_the_demo_starts_from_the_shipped_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # nothing of that name below the working folder: the package's own are taken
    for name in ("demo", "demo_nonprivate"):
        config = load(Experiment, ROOT / "configs" / f"{name}.yaml")
        assert config.model.weights == SHIPPED
        model = jaxcxr.load_model(config.model.weights)
        assert (model.findings, model.size) == (config.data.findings, config.data.size)
        assert (model.network.activation, model.network.width) == (
            config.model.activation,
            config.model.width,
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))


def test_a_folder_below_the_working_one_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights_folder(SHIPPED) == Path(jaxcxr.__file__).parent / "weights" / "synthetic-64"
    for elsewhere in ("weights/synthetic-64", tmp_path / "jaxcxr" / "weights" / "x"):
        assert weights_folder(elsewhere) == Path(elsewhere)
    (tmp_path / SHIPPED).mkdir(parents=True)
    assert weights_folder(SHIPPED) == Path(SHIPPED)


def test_sixteen_bits_are_rounded_to_the_nearest(params: PyTree, tmp_path: Path) -> None:
    save_weights(tmp_path / "w", params, {"from": "here"}, bfloat16=True)
    again = load_weights(tmp_path / "w", params)
    for kept, exact in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert kept.dtype == exact.dtype
        np.testing.assert_array_equal(kept, np.asarray(exact).astype(jnp.bfloat16).astype(np.float32))
    record = provenance(tmp_path / "w")
    file = tmp_path / "w" / "weights.safetensors"
    assert record == {
        "from": "here",
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == header + 2 * numbers


def test_the_file_of_a_release_is_read_and_a_misfit_named(params: PyTree, tmp_path: Path) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    flat = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
    assert "params/conv1/kernel" in flat
    save_file(flat, tmp_path / "model.safetensors")
    again = load_weights(tmp_path, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    save_file({n: a for n, a in flat.items() if n != "params/conv1/kernel"}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"\['conv1'\]\['kernel'\] is missing"):
        load_weights(tmp_path, params)
    save_file(flat, tmp_path / "another.safetensors")
    with pytest.raises(InputError, match=r"one \.safetensors file"):
        load_weights(tmp_path, params)


def test_a_seeded_pretraining_gives_the_same_file_again(
    tiny_nonprivate_config: Experiment, tmp_path: Path
) -> None:
    config = changed(tiny_nonprivate_config, "training", steps=2, seed=0)
    for name in ("a", "b"):
        pretrain(config, tmp_path / name, say=lambda _: None, bfloat16=True)
    records = [provenance(tmp_path / name) for name in ("a", "b")]
    salted = [record.pop("trained_on") for record in records]
    assert records[0] == records[1]
    assert salted[0]["sha256"] != salted[1]["sha256"]  # of the same images, under another salt
    assert set(records[0]["test_auroc"]) == {*config.data.findings, "average"}
    assert (tmp_path / "a-run" / "metrics.jsonl").exists()
