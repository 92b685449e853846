"""Norms from Gram matrices where their terms cancel: rounding must never make a contribution larger than the clip norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.per_example import jaxprs, same_convolution
from jaxcxr.per_example.sites import Site, find
from jaxcxr.privacy.clipping import clipped_sum

EXAMPLES, POSITIONS, CHANNELS = 48, 4, 32
"""4 x (32 + 32) < 32 x 32: the norm is taken from Gram matrices."""


def site_of(model: nn.Module, params: Any, x: Any) -> Site:
    """The only one of a layer."""
    (site,) = find(jaxprs.trace(model.apply, params, x), len(jax.tree.leaves(params))).sites
    return site


def cancelling(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and cotangents whose weight gradient, the sum over positions, is the small rest of large terms of both signs."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(EXAMPLES, 1, CHANNELS)), POSITIONS, axis=1)
    dy = (
        np.repeat(rng.normal(size=(EXAMPLES, 1, CHANNELS)), POSITIONS, axis=1)
        * np.asarray([1, -1, 1, -1])[:, None]
    )
    x, dy = (v + spread * rng.normal(size=v.shape) for v in (x, dy))
    return x.astype(np.float32), dy.astype(np.float32)


@pytest.mark.parametrize("spread", [0.003, 0.01, 1.0])
def test_where_terms_cancel_no_norm_is_too_small_and_no_contribution_too_large(spread: float) -> None:
    model = nn.Dense(CHANNELS)
    x, dy = cancelling(spread)
    params = model.init(jax.random.key(0), x[0])
    assert site_of(model, params, x[0]).norm_is_cheaper

    def loss(params: Any, example: Any) -> Any:
        return jnp.sum(model.apply(params, example[0]) * example[1])  # type: ignore[operator]

    kernel = np.einsum("ntp,nto->npo", x.astype(np.float64), dy.astype(np.float64))
    bias = dy.astype(np.float64).sum(axis=1)
    true = np.sqrt((kernel**2).sum(axis=(1, 2)) + (bias**2).sum(axis=1))
    clip = float(true.min()) / 2
    clipped = jax.jit(lambda is_real: clipped_sum(loss, params, (x, dy), is_real, clip))
    norms = np.asarray(clipped(np.ones(EXAMPLES, bool))[2], np.float64)
    assert (norms >= true * (1 - 1e-6)).all()
    assert (norms <= true * 1.1).all()  # nor clips much more than it must
    for one in range(EXAMPLES):
        leaves = jax.tree.leaves(clipped(np.arange(EXAMPLES) == one)[0])
        assert np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in leaves)) <= clip


@pytest.mark.parametrize("spread", [0.001, 0.003, 0.03, 1.0])
def test_the_same_where_the_sum_is_made_of_winograds_products(spread: float) -> None:
    channels, side, examples = 128, 4, 6
    model = nn.Conv(channels, (3, 3), padding=1, use_bias=False)
    rng = np.random.default_rng(0)
    # Alike at all places, beside cotangents that sum to zero over the places that each entry of the kernel meets.
    signs = np.multiply.outer([0, 1, -1, 0], [0, 1, -1, 0])[..., None]
    x = np.ones((side, side, 1)) * rng.normal(size=(examples, 1, 1, channels))
    dy = signs * rng.normal(size=(examples, 1, 1, channels))
    x, dy = (jnp.asarray(v + spread * rng.normal(size=v.shape), jnp.float32) for v in (x, dy))
    params = model.init(jax.random.key(0), x[0])
    rule: Any = site_of(model, params, x[0]).rule
    assert same_convolution.is_wide(rule.shape)

    def loss(params: Any, example: Any) -> Any:
        return jnp.sum(model.apply(params, example[0]) * example[1])  # type: ignore[operator]

    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    met = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    true = np.sqrt(
        sum((np.einsum("nhwc,nhwo->nco", m, np.asarray(dy, np.float64)) ** 2).sum(axis=(1, 2)) for m in met)
    )
    clip = float(true.min()) / 2
    clipped = jax.jit(lambda is_real: clipped_sum(loss, params, (x, dy), is_real, clip))
    norms = np.asarray(clipped(np.ones(examples, bool))[2], np.float64)
    assert (norms >= true * (1 - 1e-6)).all()
    for one in range(examples):
        (leaf,) = jax.tree.leaves(clipped(np.arange(examples) == one)[0])
        assert np.linalg.norm(np.asarray(leaf, np.float64)) <= clip


def test_norms_of_16_bit_numbers_are_not_rounded_to_16_bits() -> None:
    """Operation by operation: within one program the compiler leaves such roundings out, where it likes."""
    model = nn.Conv(16, (3, 3), 2, 1, dtype=jnp.bfloat16, use_bias=False)
    x, dy = (
        jnp.asarray(np.random.default_rng(s).normal(size=size), jnp.bfloat16)
        for s, size in ((0, (1, 8, 8, 8)), (1, (1, 4, 4, 16)))
    )
    rule = site_of(model, model.init(jax.random.key(0), x[0]), x[0]).rule
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = [
        np.einsum("nhwc,nhwo->co", padded[:, i : i + 7 : 2, j : j + 7 : 2], np.asarray(dy, np.float64))
        for i in range(3)
        for j in range(3)
    ]
    found = rule.squared_norms(x[:, None, None, None], dy[:, None, None, None])
    np.testing.assert_allclose(found, [np.sum(np.square(kernel))], rtol=1e-5)
