"""Low-rank factors: they start by changing nothing, train alone, and multiply out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.errors import InputError
from jaxcxr.models.lora import IN, OUT, merged
from jaxcxr.models.network import Network
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.trainable import trained_mask

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)


class Small(Network):
    """One layer of each kind."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = nn.Conv(8, (3, 3), 2, padding=1, name="conv")(self.input.normalised(image))
        x = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
        x = nn.Dense(16, name="dense")(jnp.tanh(x))
        x = nn.Dense(1, name="thin")(x) + x
        return nn.Dense(self.n_findings, name="head")(jnp.tanh(x).mean((0, 1)))


PLAIN, ADAPTED = Small(3), Small(3, lora_rank=2)


@pytest.fixture(scope="module")
def params() -> Any:
    return ADAPTED.init(jax.random.key(0), IMAGE)


@pytest.fixture(scope="module")
def moved(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)


def factors(params: Any) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(part.key for part in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"])
        if path[-1].key in (IN, OUT)
    }


def test_kernels_have_factors_where_these_are_smaller(params: Any) -> None:
    assert factors(params) == {
        f"conv/{IN}": (3, 3, 3, 2),
        f"conv/{OUT}": (2, 8),
        f"dense/{IN}": (8, 2),
        f"dense/{OUT}": (2, 16),
    }
    assert factors(PLAIN.init(jax.random.key(0), IMAGE)) == {}


def test_they_start_by_changing_nothing(params: Any) -> None:
    plain = PLAIN.init(jax.random.key(0), IMAGE)
    jax.tree.map(np.testing.assert_array_equal, merged(params), plain)
    np.testing.assert_allclose(ADAPTED.apply(params, IMAGE), PLAIN.apply(plain, IMAGE), rtol=1e-6)
    assert 0.5 < float(np.std(params["params"]["dense"][IN])) * 8**0.5 < 1.5


def test_multiplied_out_they_are_the_same_network(moved: Any) -> None:
    found = PLAIN.apply(merged(moved), IMAGE)
    np.testing.assert_allclose(ADAPTED.apply(moved, IMAGE), found, rtol=1e-4)
    without = jax.tree.map(lambda leaf: leaf, moved)
    without["params"]["dense"][OUT] = jnp.zeros((2, 16))
    assert np.abs(np.asarray(PLAIN.apply(merged(without), IMAGE) - found)).max() > 1e-3


def test_the_scope_trains_the_factors_and_the_head(params: Any) -> None:
    mask = trained_mask("head_and_lora", params, ADAPTED)["params"]
    trained = {
        "/".join(part.key for part in path)
        for path, flag in jax.tree_util.tree_leaves_with_path(mask)
        if flag
    }
    assert trained == {*factors(params), "head/kernel", "head/bias"}
    gradient = jax.grad(lambda p: ADAPTED.apply(p, IMAGE).sum())(params)["params"]
    assert np.any(gradient["conv"][OUT])
    assert np.any(gradient["dense"][OUT])


def test_the_scope_without_factors_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"head_and_lora.: the network has no factors; expected a model\.lora_rank"
    ):
        trained_mask("head_and_lora", PLAIN.init(jax.random.key(0), IMAGE), PLAIN)


def test_the_papers_network_has_them_beside_its_blocks_convolutions() -> None:
    shapes = jax.eval_shape(
        ResNet9(2, lora_rank=4).init, jax.random.key(0), jax.ShapeDtypeStruct((32, 32), np.uint8)
    )
    found = factors(shapes)
    assert len(found) == 2 * (2 * 4 + 3)
    assert found[f"stage2_block1/conv1/{IN}"] == (3, 3, 64, 4)
    assert not any(name.startswith(("conv1/", "head/")) for name in found)
