from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxcxr.models.layers import Conv, GroupNorm, Stem, max_pool
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.taps import apply_tapped, find_taps
from jaxcxr.privacy.gradients import CLIP_MARGIN, clipped_sum_layerwise, clipped_sum_vmap

CLIP = 0.7


def error_of(output: Any, target: Any) -> Any:
    return jnp.sum((output - target) ** 2)


class Problem:
    """A network, its parameters and a batch, with the clipped sum both ways."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], n: int, seed: int = 0, image: bool = False) -> None:
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 256, (n, *shape)).astype(np.uint8) if image else rng.normal(size=(n, *shape)).astype(np.float32)
        self.model, self.x = model, jnp.asarray(x)
        self.params = model.init(jax.random.key(seed), self.x[0])
        leaves, structure = jax.tree.flatten(self.params)
        self.params = jax.tree.unflatten(
            structure, [p + 0.1 * jnp.asarray(rng.normal(size=p.shape), jnp.float32) for p in leaves]
        )
        out = jax.eval_shape(model.apply, self.params, self.x[0]).shape
        self.y = jnp.asarray(rng.normal(size=(n, *out)).astype(np.float32))
        self.taps = find_taps(model, self.x[0])
        self.ways = (
            jax.jit(lambda p, b, r, c: clipped_sum_vmap(self.loss, p, b, r, c)),
            jax.jit(lambda p, b, r, c: clipped_sum_layerwise(self.tapped, self.taps, p, b, r, c)),
        )

    def loss(self, params: Any, example: Any) -> Any:
        return error_of(self.model.apply(params, example[0]), example[1])

    def tapped(self, params: Any, zeros: Any, example: Any) -> Any:
        def one(zeros: Any, x: Any) -> Any:
            return apply_tapped(self.model, self.taps, params, zeros, x)

        outputs, inputs = jax.vmap(one)(zeros, example[0][None])
        return error_of(outputs[0], example[1]), inputs

    def sums(self, is_real: Any = None, clip: float = CLIP, x: Any = None) -> tuple[Any, Any]:
        real = jnp.ones(len(self.x), bool) if is_real is None else jnp.asarray(is_real)
        batch = (self.x if x is None else x, self.y)
        reference, fast = (way(self.params, batch, real, jnp.float32(clip)) for way in self.ways)
        return reference, fast

    def by_loop(self, rows: Any, clip: float = CLIP) -> Any:
        total = jax.tree.map(jnp.zeros_like, self.params)
        gradient = jax.jit(jax.grad(self.loss))
        for i in rows:
            g = gradient(self.params, (self.x[i], self.y[i]))
            norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(g)))
            factor = min(1.0, float(clip / norm))
            total = jax.tree.map(lambda t, leaf, s=factor: t + s * leaf, total, g)
        return total


def assert_same(a: Any, b: Any, tolerance: float = 3e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        # a leaf that the norm after it makes irrelevant has a gradient of rounding noise: it is judged against the whole gradient
        scale = float(jnp.linalg.norm(v)) + 1e-2 * norm_of(b)
        assert float(jnp.linalg.norm(u - v)) <= tolerance * scale, jax.tree_util.keystr(path)


def norm_of(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


@pytest.fixture(scope="module")
def resnet() -> Problem:
    return Problem(ResNet9(3, width=32), (32, 32), 5, image=True)


@pytest.fixture(scope="module")
def resnet_sums(resnet: Problem) -> tuple[Any, Any]:
    return resnet.sums([True, True, False, True, True])


def test_vmap_equals_a_python_loop(resnet: Problem, resnet_sums: tuple[Any, Any]) -> None:
    assert_same(resnet_sums[0][0], resnet.by_loop([0, 1, 3, 4]))


def test_layerwise_equals_vmap_on_every_leaf(resnet_sums: tuple[Any, Any]) -> None:
    (reference, losses, norms), (fast, fast_losses, fast_norms) = resnet_sums
    assert_same(fast, reference)
    np.testing.assert_allclose(fast_norms, norms, rtol=1e-5)
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-6)


def test_vmap_equals_jax_privacy(resnet: Problem) -> None:
    clipped = jax_privacy.clipped_grad(resnet.loss, l2_clip_norm=CLIP, batch_argnums=1, keep_batch_dim=False)
    theirs = jax.jit(clipped)(resnet.params, (resnet.x, resnet.y))
    assert_same(resnet.sums()[0][0], theirs)


@pytest.mark.parametrize("way", [0, 1], ids=["vmap", "layerwise"])
def test_padding_contributes_nothing(resnet: Problem, resnet_sums: tuple[Any, Any], way: int) -> None:
    other = resnet.x.at[2].set(255 - resnet.x[2])
    assert_same(resnet.sums([True, True, False, True, True], x=other)[way][0], resnet_sums[way][0], tolerance=1e-6)
    nobody = resnet.sums([False] * 5)[way][0]
    assert norm_of(nobody) == 0.0


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem(Net(), (3,), 6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 1))
def test_neighbouring_batches_differ_by_at_most_the_clip_norm(
    small: Problem, seed: int, clip: float, scale: float, way: int
) -> None:
    x = jnp.asarray(scale * np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32)
    one = seed % 6
    everyone, _, norms = small.sums([True] * 6, clip, x)[way]
    without, alone = (small.sums([(i == one) is only for i in range(6)], clip, x)[way][0] for only in (False, True))
    difference = norm_of(jax.tree.map(lambda u, v: np.asarray(u, np.float64) - np.asarray(v, np.float64), everyone, without))
    # the difference of two float32 sums carries their rounding; what the unit adds is measured alone
    assert difference <= clip * (1 + 1e-5)
    assert norm_of(alone) <= clip
    assert norm_of(alone) == pytest.approx(min(float(norms[one]), clip * (1 - CLIP_MARGIN)), rel=1e-4)


class RandomNet(nn.Module):
    """A convolution, a norm and a head with the given geometry."""

    kernel_size: int
    stride: int
    padding: int
    features: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = Conv(self.features, self.kernel_size, self.stride, self.padding, name="a")(x)
        x = nn.relu(GroupNorm(groups=2)(x))
        x = Conv(2 * self.features, 1, 1, 0, name="b")(x)
        return nn.Dense(3)(x.reshape(-1))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(5, 9), st.integers(1, 2), st.integers(0, 99))
def test_layerwise_equals_vmap_for_random_convolutions(
    kernel: int, stride: int, padding: int, side: int, channels: int, seed: int
) -> None:
    problem = Problem(RandomNet(kernel, stride, padding, 2), (side, side + 1, channels), 3, seed)
    assert {tap.path for tap in problem.taps} == {("a",), ("b",), ("Dense_0",)}
    reference, fast = problem.sums()
    assert_same(fast[0], reference[0])


class StemNet(nn.Module):
    """The first layer, its maximum and a head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(max_pool(Stem(2, name="stem")(x)).reshape(-1))


@pytest.mark.parametrize("side", [4, 8])
def test_layerwise_equals_vmap_for_the_stem(side: int) -> None:
    problem = Problem(StemNet(), (side, side + 4), 3)
    assert {tap.path for tap in problem.taps} == {("stem",), ("Dense_0",)}
    reference, fast = problem.sums()
    assert_same(fast[0], reference[0])


class FlaxNet(nn.Module):
    """Flax's own convolution with the given geometry, then a 1 x 1 one with few positions, whose norm is a Gram norm."""

    kernel: tuple[int, ...]
    strides: int
    padding: Any
    dilation: int
    groups: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = nn.Conv(
            4, self.kernel, self.strides, self.padding, kernel_dilation=self.dilation, feature_group_count=self.groups, name="a"
        )
        x = nn.relu(nn.GroupNorm(2)(conv(x)))
        x = nn.Conv(12, (3,) * (x.ndim - 1), 4, name="b")(x)
        return nn.Dense(3)(x.reshape(-1))


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(3, 3), (2, 1), (1, 4), (3,), (2,)]),
    st.integers(1, 2),
    st.sampled_from(["SAME", "VALID", 1, "CIRCULAR"]),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
@example((3, 3), 2, 1, 2, 2, 0)
@example((3,), 1, "SAME", 2, 1, 0)
def test_layerwise_equals_vmap_for_flax_convolutions(
    kernel: tuple[int, ...], strides: int, padding: Any, dilation: int, groups: int, seed: int
) -> None:
    problem = Problem(FlaxNet(kernel, strides, padding, dilation, groups), (*(9, 8)[: len(kernel)], 2), 3, seed)
    assert {tap.path for tap in problem.taps} == {("a",), ("b",), ("Dense_0",)}
    reference, fast = problem.sums()
    assert_same(fast[0], reference[0])


class Sequence(nn.Module):
    """Layers that the fast path cannot tap (embedding, layer norm, a bare parameter) beside a dense layer with several positions."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(7, 4)(tokens.astype(jnp.int32) % 7)
        x = nn.LayerNorm()(nn.Dense(5)(x))
        return (x * self.param("gain", nn.initializers.ones, (5,))).mean(axis=0)


def test_unknown_layers_keep_the_direct_path() -> None:
    problem = Problem(Sequence(), (6,), 4)
    assert [tap.path for tap in problem.taps] == [("Dense_0",)]
    reference, fast = problem.sums()
    assert_same(fast[0], reference[0])


class Shared(nn.Module):
    """One dense layer called twice."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shared = nn.Dense(3, name="shared")
        return nn.Dense(2, name="last")(shared(jnp.tanh(shared(x))))


def test_a_layer_called_twice_keeps_the_direct_path() -> None:
    problem = Problem(Shared(), (3,), 4)
    assert [tap.path for tap in problem.taps] == [("last",)]
    reference, fast = problem.sums()
    assert_same(fast[0], reference[0])


def test_bfloat16_contributions_stay_within_the_clip_norm() -> None:
    problem = Problem(ResNet9(3, width=32, dtype=jnp.bfloat16), (32, 32), 2, image=True)
    contribution, _, norms = problem.sums([True, False], clip=0.05)[1]
    assert float(norms[0]) > 0.05
    assert norm_of(contribution) <= 0.05


def automatic(problem: Problem, x: Any, is_real: Any, way: int, clip: float, stability: float) -> Any:
    params, batch, real = problem.params, (x, problem.y), jnp.asarray(is_real)
    if way == 0:
        return clipped_sum_vmap(problem.loss, params, batch, real, clip, stability=stability)
    return clipped_sum_layerwise(problem.tapped, problem.taps, params, batch, real, clip, stability=stability)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-4, 1e4), st.sampled_from([1e-9, 1e-2, 1.0]), st.integers(0, 1)
)
def test_automatic_clipping_keeps_the_sensitivity(
    small: Problem, seed: int, clip: float, scale: float, stability: float, way: int
) -> None:
    x = jnp.asarray(scale * np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32)
    one = seed % 6
    alone, _, norms = automatic(small, x, [i == one for i in range(6)], way, clip, stability)
    assert norm_of(alone) <= clip
    norm = float(norms[one])
    assert norm_of(alone) == pytest.approx(clip * norm / (norm + stability), rel=1e-4)
    assert norm_of(automatic(small, x, [False] * 6, way, clip, stability)[0]) == 0.0


def test_automatic_clipping_is_the_same_both_ways(small: Problem) -> None:
    (reference, _, norms), (fast, _, _) = (
        automatic(small, small.x, [False] * 4 + [True, False], way, CLIP, 0.01) for way in (0, 1)
    )
    assert_same(fast, reference)
    raw = small.by_loop([4], clip=1e30)
    assert_same(fast, jax.tree.map(lambda g: g * CLIP / (norms[4] + 0.01), raw))
