from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.privacy.clipping import CLIP_MARGIN, ClipRule, Flat, PerLayer, clipped_sum, layer_of

CLIP = 0.7
METHODS = pytest.mark.parametrize("method", ["vmap", "layerwise"])
RULES = [Flat(), Flat(stability=0.01), PerLayer(), PerLayer(stability=0.01)]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


PARAMS: Any = Net().init(jax.random.key(0), jnp.zeros(3))
LABELS = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)


def loss(params: Any, example: Any) -> Any:
    x, y = example
    return jnp.sum((Net().apply(params, x) - y) ** 2)  # type: ignore[operator]


_compiled: dict[tuple[str, ClipRule], Any] = {}


def summed(x: Any, is_real: Any, clip: float, method: Any = "layerwise", rule: ClipRule = RULES[0]) -> Any:
    """Sum, losses and norms."""
    if (method, rule) not in _compiled:
        _compiled[method, rule] = jax.jit(
            lambda x, real, clip: clipped_sum(loss, PARAMS, (x, LABELS), real, clip, rule, method)
        )  # type: ignore[arg-type]
    return _compiled[method, rule](x, np.asarray(is_real, bool), jnp.float32(clip))


def batch(seed: int = 0, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32)


def gradients(x: Any) -> list[Any]:
    """Of each example, by a Python loop."""
    return [jax.grad(loss)(PARAMS, (x[i], LABELS[i])) for i in range(6)]


def norm_of(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    difference = jax.tree.map(
        lambda u, v: np.asarray(u, np.float64) - np.asarray(v, np.float64), found, expected
    )
    assert norm_of(difference) <= tolerance * norm_of(expected)


REAL = [True, True, False, True, True, False]
EVERYONE = [True] * 6


@METHODS
def test_the_sum_is_that_of_a_python_loop(method: str) -> None:
    x, total = batch(), jax.tree.map(jnp.zeros_like, PARAMS)
    for g, real in zip(gradients(x), REAL, strict=True):
        factor = real * min(1.0, CLIP / norm_of(g))
        total = jax.tree.map(lambda t, leaf, s=factor: t + s * leaf, total, g)
    assert_same(
        summed(x, REAL, CLIP, method)[0], total, tolerance=3e-5
    )  # the sum's factors are CLIP_MARGIN smaller


@METHODS
def test_the_sum_is_that_of_jax_privacy(method: str) -> None:
    clipped = jax_privacy.clipped_grad(loss, l2_clip_norm=CLIP, batch_argnums=1, keep_batch_dim=False)
    assert_same(
        summed(batch(), EVERYONE, CLIP, method)[0], clipped(PARAMS, (batch(), LABELS)), tolerance=3e-5
    )


@METHODS
def test_padding_contributes_nothing(method: str) -> None:
    x = batch()
    assert_same(
        summed(x.at[2].set(99.0), REAL, CLIP, method)[0], summed(x, REAL, CLIP, method)[0], tolerance=1e-6
    )
    assert norm_of(summed(x, [False] * 6, CLIP, method)[0]) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
    st.sampled_from(["vmap", "layerwise"]),
    st.sampled_from(RULES),
)
def test_neighbouring_batches_differ_by_at_most_the_clip_norm(
    seed: int, clip: float, scale: float, method: str, rule: ClipRule
) -> None:
    x, one = batch(seed, scale), seed % 6
    everyone, _, norms = summed(x, EVERYONE, clip, method, rule)
    without, alone = (
        summed(x, [(i == one) is only for i in range(6)], clip, method, rule)[0] for only in (False, True)
    )
    difference = norm_of(
        jax.tree.map(lambda u, v: np.asarray(u, np.float64) - np.asarray(v, np.float64), everyone, without)
    )
    # the difference of two float32 sums carries their rounding; what the unit adds is measured alone
    assert difference <= clip * (1 + 1e-5)
    assert norm_of(alone) <= clip
    if rule == Flat():
        assert norm_of(alone) == pytest.approx(min(float(norms[one]), clip * (1 - CLIP_MARGIN)), rel=1e-4)
    if rule == Flat(stability=0.01):
        assert norm_of(alone) == pytest.approx(
            clip * float(norms[one]) / (float(norms[one]) + 0.01), rel=1e-4
        )


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1e12), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(1e-3, 1e3),
    st.sampled_from(RULES),
)
def test_no_rule_lets_a_gradient_be_longer_than_the_clip_norm(
    squared: list[list[float]], clip: float, rule: ClipRule
) -> None:
    layers = {(str(i),): jnp.asarray(own, jnp.float32) for i, own in enumerate(squared)}
    factors = rule.factors(layers, clip)
    assert set(factors) == set(layers)
    total = np.asarray(
        sum(
            np.square(np.asarray(factors[layer], float)) * np.asarray(own, float)
            for layer, own in layers.items()
        )
    )
    assert (total <= clip**2 * (1 + 1e-5)).all()


@METHODS
def test_clipped_layer_by_layer_each_layer_has_its_share(method: str) -> None:
    """Two layers, each clipped to C / sqrt(2): with this C one of the last example's gradients is clipped, the other is not."""

    def by_layer(tree: Any) -> dict[Any, float]:
        found: dict[Any, list[Any]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found.setdefault(layer_of(path), []).append(leaf)
        return {layer: norm_of(leaves) for layer, leaves in found.items()}

    x = batch()
    parts = by_layer(gradients(x)[5])
    assert len(parts) == 2
    clip = float(np.sqrt(2 * min(parts.values()) * max(parts.values())))
    found = by_layer(summed(x, [False] * 5 + [True], clip, method, PerLayer())[0])
    share = clip / np.sqrt(2)
    assert min(parts.values()) < share < max(parts.values())
    assert found == pytest.approx(
        {layer: min(norm, share * (1 - CLIP_MARGIN)) for layer, norm in parts.items()}, rel=1e-5
    )


@pytest.mark.parametrize("rule", RULES)
def test_both_methods_agree(rule: ClipRule) -> None:
    (reference, losses, norms), (fast, fast_losses, fast_norms) = (summed(batch(), REAL, CLIP, m, rule) for m in ("vmap", "layerwise"))  # fmt: skip
    assert_same(fast, reference)
    np.testing.assert_allclose(fast_norms, norms, rtol=1e-5)
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-5)


@METHODS
def test_a_gradient_that_is_not_finite_is_not_hidden(method: str) -> None:
    total, _, norms = summed(batch().at[1].set(np.inf), REAL, CLIP, method)
    assert not np.isfinite(norms[1])
    assert not np.isfinite(norm_of(total))


@pytest.mark.parametrize("stability", [0.0, 1e-9, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("rule", [Flat, PerLayer])
def test_a_stability_beyond_float32_is_refused(rule: Any, stability: float) -> None:
    with pytest.raises(ValueError, match=f"stability: expected at least 1e-06, found {stability}"):
        rule(stability)
