"""Two virtual CPU devices, runtime shape checks, one compilation a program, and the tiny things that many tests share."""

import atexit
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
# What one test or script has compiled, the others load; a folder that is named beforehand serves several sessions.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxcxr-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

from jaxtyping import install_import_hook

# Shapes and types are checked at each call where arrays are; elsewhere the type checker's word is enough, and a call of a
# small function that works on text would take ten times as long.
SOURCE = Path(__file__).resolve().parents[1] / "src"
WITH_ARRAYS = sorted(path for path in SOURCE.rglob("*.py") if "from jaxtyping import" in path.read_text())
install_import_hook(
    [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in WITH_ARRAYS], "beartype.beartype"
)

import dataclasses
from types import ModuleType

import hypothesis
import jax
import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.data.store import Store, write_store
from jaxcxr.training.plan import RunPlan, make_plan

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("unhurried")

SHARED = SOURCE.parents[0] / ".." / "shared"
FINDINGS = ("cardiomegaly", "atelectasis_right", "atelectasis_left")


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """What a module compiles, and the processes that it starts, is hardly optimised: the same programs, that round otherwise.

    Compiling takes most of the time of tiny networks. For modules in which both sides of a comparison are compiled so.
    """
    setting, variable = "jax_disable_most_optimizations", "JAX_DISABLE_MOST_OPTIMIZATIONS"
    before = jax.config.values[setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, "1")
        jax.config.update(setting, True)
        jax.clear_caches()  # what is compiled is kept by program alone, not by setting
        yield
        jax.config.update(setting, before)
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_network() -> Iterator[None]:
    """A tiny network in the place of the paper's, for all tests of a module."""
    from tests.training.tiny import MAKE_NETWORK, tiny_network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        yield


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ninety films of 32 x 32 pixels whose brightness says a little about the labels; two films a patient."""
    rng = np.random.default_rng(0)
    n = 90
    labels = rng.integers(0, 2, (n, len(FINDINGS))).astype(float)
    frame = pd.DataFrame(
        {
            "image_id": [f"film{i:03d}" for i in range(n)],
            "patient_id": [f"patient{i // 2:03d}" for i in range(n)],
            "path": [f"films/{i}.png" for i in range(n)],
            "split": np.repeat(["train", "valid", "test"], [50, 20, 20]),
            "age": rng.uniform(20, 90, n),
            "sex": rng.choice(["F", "M"], n),
            "view": "AP",
            **{finding: labels[:, i] for i, finding in enumerate(FINDINGS)},
        }
    )
    films = np.clip(rng.normal(100 + 40 * labels[:, :1, None], 30, (n, 32, 32)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("stores") / "tiny"
    return write_store(
        path, frame, iter(films), size=32, findings=FINDINGS, preprocessing={"made": "by hand"}
    )


@pytest.fixture(scope="session")
def tiny_config(tiny_store: Store) -> Experiment:
    """A private experiment of six steps on the tiny store."""
    return Experiment(
        data=DataConfig(store=str(tiny_store.path), size=32, findings=FINDINGS),
        model=ModelConfig(network="tests.training.tiny:TinyNet"),
        training=TrainingConfig(
            expected_batch_size=6,
            microbatch_size=2,
            steps=6,
            learning_rate=1e-3,
            class_weights="paper",
            log_every=2,
            checkpoint_every=3,
            seed=7,
        ),
        privacy=PrivacyConfig(epsilon=8.0, delta=1e-4, l2_clip_norm=1.0),
        evaluation=EvaluationConfig(redraws=50),
    )


@pytest.fixture(scope="session")
def tiny_nonprivate_config(tiny_config: Experiment) -> Experiment:
    """Twenty steps without privacy on the tiny store."""
    config = dataclasses.replace(tiny_config, privacy=None)
    return changed(
        config, "training", steps=20, augmentation="flip_rotate", expected_batch_size=16, log_every=5
    )


@pytest.fixture(scope="session")
def tiny_plan(tiny_config: Experiment, tiny_store: Store) -> RunPlan:
    """The tiny private experiment's plan."""
    return make_plan(tiny_config, tiny_store)


def declared(plan: RunPlan) -> dict[str, object]:
    """Training fields that declare what `plan` computed from its labels: the same weights, hence the same compiled step."""
    assert plan.weights is not None
    return {
        "class_weights": "public",
        "positive_rates": tuple(float(1 / (1 + weight)) for weight in plan.weights),
    }


def changed(config: Experiment, section: str, **fields: object) -> Experiment:
    """`config` with some fields of one section replaced."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})


def load_script(name: str) -> ModuleType:
    """The command behind a file of `scripts/`, whose `main` is not run."""
    return importlib.import_module(f"jaxcxr.cli.{name.removesuffix('.py')}")
