from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.models.trainable import split, trained_mask
from jaxcxr.privacy import noise
from jaxcxr.training import build, loop, objective, parameters
from jaxcxr.training.checkpoint import Checkpoints
from jaxcxr.training.plan import RunPlan, make_plan
from tests.conftest import changed, declared
from tests.training.parts import Tiny, clipped_sum
from tests.training.tiny import MAKE_NETWORK

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLIP = 0.05


HEAD = 32 * 3 + 3


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, lambda data, _: Tiny(len(data.findings)))


@pytest.fixture(scope="module")
def plan_of(tiny_config: Experiment, tiny_store: Store, tiny_plan: RunPlan) -> Any:
    def make(scope: str, **fields: Any) -> RunPlan:
        config = changed(tiny_config, "training", scope=scope, **declared(tiny_plan), **fields)
        return make_plan(changed(config, "privacy", noise_multiplier=2.0, l2_clip_norm=CLIP), tiny_store)

    return make


def batch_of(plan: RunPlan, films: list[int]) -> dict[str, np.ndarray]:
    images, labels = plan.split.read(np.asarray(films)), plan.split.labels[films]
    n = len(films)
    return {
        "image": images[:, None],
        "label": labels[:, None],
        "is_image": np.ones((n, 1), bool),
        "is_real": np.ones(n, bool),
    }


@pytest.mark.parametrize("scope", ["head", "head_and_norm", "last_stage"])
@pytest.mark.parametrize("method", ["vmap", "layerwise"])
def test_the_sum_is_that_of_the_trained_gradients_clipped_by_their_own_norm(
    plan_of: Any, scope: Any, method: Any
) -> None:
    plan: RunPlan = plan_of(scope)
    params, batch = parameters.random_params(plan.config, bytes(32)), batch_of(plan, [3, 8, 20])
    total, _ = jax.jit(clipped_sum(parameters.network_of(plan.config), plan.weights, CLIP, method, scope))(
        params, batch
    )
    mask = trained_mask(scope, params, parameters.network_of(plan.config))
    assert jax.tree.structure(total) == jax.tree.structure(split(params, mask)[0])
    expected = _reference(plan, params, batch, mask)
    for found, wanted in zip(jax.tree.leaves(total), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-6)


_whole_gradients: dict[str, Any] = {}


def _reference(plan: RunPlan, params: Any, batch: Any, mask: Any) -> list[np.ndarray]:
    """Whole gradients of all parameters, cut to the trained ones, then clipped."""
    if not _whole_gradients:

        def loss(params: Any, image: Any, label: Any) -> Any:
            logits: Any = parameters.network_of(plan.config).apply(params, image)
            return objective.weighted_cross_entropy(logits, label, jnp.asarray(plan.weights))

        _whole_gradients["of"] = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(
            params, batch["image"][:, 0], batch["label"][:, 0]
        )
    leaves = [
        np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(split(_whole_gradients["of"], mask)[0])
    ]
    norms = np.sqrt(sum((leaf**2).reshape(len(leaf), -1).sum(axis=1) for leaf in leaves))
    assert (norms > CLIP).any()
    return [np.tensordot(np.minimum(1, CLIP / norms), leaf, axes=1) for leaf in leaves]


def test_fixed_parameters_stay_bit_for_bit_and_cost_no_noise(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: RunPlan = plan_of("head", steps=2, checkpoint_every=1)
    noised: list[int] = []
    original = noise.gaussian_noise

    def counting(key: Any, like: Any, stddev: Any) -> Any:
        noised.append(sum(leaf.size for leaf in jax.tree.leaves(like)))
        return original(key, like, stddev)

    monkeypatch.setattr(noise, "gaussian_noise", counting)
    outcome = loop.train(plan, tmp_path / "run", progress=False)
    secret = (tmp_path / "run" / "checkpoints" / "secret.key").read_bytes()
    start, end = parameters.random_params(plan.config, secret)["params"], outcome.params["params"]
    assert start.keys() == end.keys()
    for name in start:
        same = [
            np.asarray(a).tobytes() == np.asarray(b).tobytes()
            for a, b in zip(jax.tree.leaves(start[name]), jax.tree.leaves(end[name]), strict=True)
        ]
        assert all(same) if name != "head" else not any(same)
    assert set(noised) == {HEAD}
    like = build.optimizer_of(plan).init(parameters.trained(plan.config, outcome.params))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    state = checkpoints.restore(2, {"params": outcome.params, "optimizer": like})
    checkpoints.close()
    assert sum(leaf.size for leaf in jax.tree.leaves(state["optimizer"].first)) == HEAD


def test_the_head_alone_needs_no_backward_pass_through_the_trunk(plan_of: Any) -> None:
    """Counted in convolutions of the traced program, which are all in the trunk, and in products, some of which are."""
    plan: RunPlan = plan_of("head")
    params, batch = parameters.random_params(plan.config, bytes(32)), batch_of(plan, [3, 8])

    def count(scope: Any, kind: str) -> int:
        gradient_sum = clipped_sum(parameters.network_of(plan.config), plan.weights, CLIP, "layerwise", scope)
        return str(jax.make_jaxpr(gradient_sum)(params, batch)).count(kind)

    forward = str(
        jax.make_jaxpr(jax.vmap(parameters.network_of(plan.config).apply, in_axes=(None, 0)))(
            params, batch["image"][:, 0]
        )
    )  # type: ignore[arg-type]
    assert count("head", "conv_general_dilated[") == forward.count("conv_general_dilated[") == 1
    assert count("head", "dot_general[") < count("last_stage", "dot_general[") < count("all", "dot_general[")


def test_a_scope_that_names_nothing_is_refused(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Headless(Tiny):
        """A network whose last layer goes by another name."""

        @nn.compact
        def __call__(self, image: Any) -> Any:
            return nn.Dense(self.n_findings, name="classifier")(image.reshape(-1).astype(jnp.float32))

    monkeypatch.setattr(MAKE_NETWORK, lambda *_: Headless(3))
    with pytest.raises(
        InputError,
        match=r"Headless must end in an nn.Dense\(n_findings, name='head'\) .* the parts classifier",
    ):
        plan_of("head")
