from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.errors import InputError
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.trainable import Scope, join, split, trained_mask

WIDTH, N = 32, 3
NET = ResNet9(N, width=WIDTH)


def params() -> Any:
    shapes = jax.eval_shape(
        ResNet9(N, width=WIDTH).init, jax.random.key(0), jax.ShapeDtypeStruct((32, 32), np.uint8)
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def trained(scope: Scope) -> set[str]:
    mask = jax.tree_util.tree_leaves_with_path(trained_mask(scope, params(), NET)["params"])
    return {"/".join(str(part.key) for part in path) for path, flag in mask if flag}


def test_all_is_everything() -> None:
    assert all(jax.tree.leaves(trained_mask("all", params(), NET)))


def test_head_is_the_last_layer() -> None:
    assert trained("head") == {"head/kernel", "head/bias"}


def test_head_and_norm_has_every_norm_and_no_convolution() -> None:
    found = trained("head_and_norm")
    norms = 1 + 2 * 4 + 3  # first layer, two a block, three shortcuts
    assert len(found) == 2 + 2 * norms
    assert {
        "norm1/scale",
        "norm1/bias",
        "stage2_block1/shortcut_norm/bias",
        "stage4_block1/norm2/scale",
    } <= found
    assert not any("conv" in name for name in found)


def test_last_stage_is_stage_four_and_the_head() -> None:
    found = trained("last_stage")
    assert {name.split("/")[0] for name in found} == {"stage4_block1", "head"}
    assert len(found) == 2 + 3 + 2 * 3


def test_a_scope_that_names_nothing() -> None:
    with pytest.raises(
        InputError, match="scope 'head': names no parameter of this network, whose parts are trunk"
    ):
        trained_mask("head", {"params": {"trunk": {"kernel": np.zeros(2)}}}, NET)


@pytest.mark.parametrize("scope", ["all", "head", "head_and_norm", "last_stage"])
def test_split_and_join(scope: Scope) -> None:
    whole = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), params())
    mask = trained_mask(scope, whole, NET)
    moved, kept = split(whole, mask)
    assert len(jax.tree.leaves(moved)) == sum(jax.tree.leaves(mask))
    assert len(jax.tree.leaves(moved)) + len(jax.tree.leaves(kept)) == len(jax.tree.leaves(whole))
    again = join(moved, kept)
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True))
