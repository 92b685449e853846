from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxcxr.models import convolution
from jaxcxr.models.layers import Conv, GroupNorm, Stem, max_pool
from jaxcxr.models.resnet9 import Block, ResNet9
from jaxcxr.models.taps import apply_tapped, find_taps, warn_of_direct_layers
from jaxcxr.privacy.gradients import CLIP_MARGIN, _gram_is_cheaper, clipped_sum_layerwise, clipped_sum_vmap

CLIP = 0.7
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling takes most of the time here; the program is the same."""
WAYS = pytest.mark.parametrize("way", [0, 1], ids=["vmap", "layerwise"])


def error_of(output: Any, target: Any) -> Any:
    return jnp.sum((output - target) ** 2)


class Problem:
    """A network, its parameters and a batch, with the clipped sum both ways."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], n: int, seed: int = 0, image: bool = False) -> None:
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 256, (n, *shape)).astype(np.uint8) if image else rng.normal(size=(n, *shape)).astype(np.float32)
        self.model, self.x = model, jnp.asarray(x)
        shapes = jax.eval_shape(model.init, jax.random.key(seed), self.x[0])

        def fill(path: Any, leaf: Any) -> Any:
            scale = 1.4 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.2
            return jnp.asarray(rng.normal(float(path[-1].key == "scale"), scale, leaf.shape), leaf.dtype)

        self.params = jax.tree_util.tree_map_with_path(fill, shapes)
        out = jax.eval_shape(model.apply, self.params, self.x[0]).shape
        self.y = jnp.asarray(rng.normal(size=(n, *out)).astype(np.float32))
        self.taps = find_taps(model, self.x[0])
        self.tapped_paths = {tap.path for tap in self.taps}
        self.ways: dict[str, tuple[Any, Any]] = {}
        self.options: dict[str, Any] = QUICK

    def compiled(self, function: Any) -> Any:
        return jax.jit(function, compiler_options=self.options)

    def loss(self, params: Any, example: Any) -> Any:
        return error_of(self.model.apply(params, example[0]), example[1])

    def tapped(self, params: Any, zeros: Any, example: Any) -> Any:
        def one(zeros: Any, x: Any) -> Any:
            return apply_tapped(self.model, self.taps, params, zeros, x)

        outputs, inputs = jax.vmap(one)(zeros, example[0][None])
        return error_of(outputs[0], example[1]), inputs

    def sum(
        self, way: int, is_real: Any = None, clip: float = CLIP, x: Any = None, clipping: str = "flat", stability: float = 0.0
    ) -> Any:
        """Sum, losses and norms, by vmap (0) or layer by layer (1)."""
        if clipping not in self.ways:
            per_layer = clipping == "per_layer"

            def how(gamma: Any) -> dict[str, Any]:
                return {"stability": gamma if clipping == "automatic" else None, "per_layer": per_layer}

            self.ways[clipping] = (
                self.compiled(lambda p, b, r, c, g: clipped_sum_vmap(self.loss, p, b, r, c, **how(g))),
                self.compiled(lambda p, b, r, c, g: clipped_sum_layerwise(self.tapped, self.taps, p, b, r, c, **how(g))),
            )
        real = jnp.ones(len(self.x), bool) if is_real is None else jnp.asarray(is_real)
        batch = (self.x if x is None else x, self.y)
        return self.ways[clipping][way](self.params, batch, real, jnp.float32(clip), jnp.float32(stability))

    def only(self, one: int) -> list[bool]:
        return [i == one for i in range(len(self.x))]

    def assert_both_ways_agree(self, **how: Any) -> None:
        (reference, losses, norms), (fast, fast_losses, fast_norms) = (self.sum(way, **how) for way in (0, 1))
        assert_same(fast, reference)
        np.testing.assert_allclose(fast_norms, norms, rtol=1e-5)
        np.testing.assert_allclose(fast_losses, losses, rtol=1e-5)

    def gradients(self) -> list[Any]:
        """Of each example, by a Python loop."""
        gradient = self.compiled(jax.grad(self.loss))
        return [gradient(self.params, (self.x[i], self.y[i])) for i in range(len(self.x))]


def assert_same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        # a leaf that the norm after it makes irrelevant has a gradient of rounding noise: it is judged against the whole gradient
        scale = float(jnp.linalg.norm(v)) + 1e-2 * norm_of(b)
        assert float(jnp.linalg.norm(u - v)) <= tolerance * scale, jax.tree_util.keystr(path)


def norm_of(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def by_layer(tree: Any) -> dict[str, Any]:
    """Nodes that hold parameters, by path."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.setdefault(jax.tree_util.keystr(path[:-1]), []).append(leaf)
    return found


class Residual(nn.Module):
    """The network's own parts in its own order, but fewer: stem, maximum, a block that keeps the shape and one that changes it."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = (image.astype(jnp.float32) / 255).astype(self.dtype)
        x = max_pool(GroupNorm(name="norm1")(Stem(32, dtype=self.dtype, name="conv1")(x), activation="mish"))
        x = Block(32, 1, "mish", self.dtype, name="stage1")(x)
        x = Block(64, 2, "mish", self.dtype, name="stage2")(x)
        return nn.Dense(3, name="head")(x.astype(jnp.float32).mean(axis=(0, 1)))


@pytest.fixture(scope="module")
def residual() -> Problem:
    return Problem(Residual(), (16, 16), 4, image=True)


REAL = [True, True, False, True]


def test_vmap_equals_a_python_loop(residual: Problem) -> None:
    total = jax.tree.map(jnp.zeros_like, residual.params)
    for g, real in zip(residual.gradients(), REAL, strict=True):
        factor = real * min(1.0, CLIP / norm_of(g))
        total = jax.tree.map(lambda t, leaf, s=factor: t + s * leaf, total, g)
    assert_same(residual.sum(0, REAL)[0], total, tolerance=3e-5)  # the factors of the sum are CLIP_MARGIN smaller


def test_layerwise_equals_vmap_on_every_leaf(residual: Problem) -> None:
    assert len(residual.tapped_paths) == 7
    residual.assert_both_ways_agree(is_real=REAL)


@pytest.fixture(params=["by patches", "one by one"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is written for accelerators, on this processor: gradients of single films from patches wherever that can be, or
    nowhere.
    """
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments))  # noqa: ARG005
    monkeypatch.setattr(convolution, "PATCH_BYTES", 2**40 if request.param == "by patches" else -(2**40))
    return request.param


@pytest.mark.usefixtures("accelerator")
def test_what_accelerators_compute_equals_vmap() -> None:
    Problem(Residual(), (16, 16), 4, image=True).assert_both_ways_agree(is_real=REAL)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("accelerator")
def test_each_patients_gradient_is_that_of_all_its_films(dtype: Any) -> None:
    problem = Problem(Residual(dtype), (16, 16), 4, image=True)
    zeros = {tap.path: jnp.zeros(tap.output.shape, tap.output.dtype) for tap in problem.taps}
    inputs = jax.vmap(lambda x: apply_tapped(problem.model, problem.taps, problem.params, zeros, x)[1])(problem.x)
    for tap in problem.taps:
        kernel, x = problem.params["params"], inputs[tap.path].reshape(2, 2, *inputs[tap.path].shape[1:])
        for name in (*tap.path, "kernel"):
            kernel = kernel[name]
        dy = jax.random.normal(jax.random.key(0), (2, 2, *tap.output.shape), tap.output.dtype)
        found = problem.compiled(tap.kernel_gradients)(kernel, x, dy)
        assert found.dtype == tap.output.dtype
        expected = jnp.stack([tap.kernel_gradient(kernel, x[i], dy[i]) for i in range(2)])
        distance = jnp.linalg.norm((found - expected).astype(jnp.float32))
        assert distance <= (1e-6 if dtype == jnp.float32 else 1e-2) * jnp.linalg.norm(found.astype(jnp.float32)), tap.path


def test_every_convolution_of_the_network_is_tapped() -> None:
    taps = find_taps(ResNet9(3, width=32), jax.ShapeDtypeStruct((32, 32), jnp.uint8))
    assert len(taps) == 13
    assert {(tap.input_gram is None) for tap in taps[1:]} == {False}


def test_vmap_equals_jax_privacy(residual: Problem) -> None:
    clipped = jax_privacy.clipped_grad(residual.loss, l2_clip_norm=CLIP, batch_argnums=1, keep_batch_dim=False)
    theirs = residual.compiled(clipped)(residual.params, (residual.x, residual.y))
    assert_same(residual.sum(0)[0], theirs, tolerance=3e-5)


@WAYS
def test_padding_contributes_nothing(residual: Problem, way: int) -> None:
    other = residual.x.at[2].set(255 - residual.x[2])
    assert_same(residual.sum(way, REAL, x=other)[0], residual.sum(way, REAL)[0], tolerance=1e-6)
    assert norm_of(residual.sum(way, [False] * 4)[0]) == 0.0


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem(Net(), (3,), 6)


def scaled(seed: int, scale: float) -> Any:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(0, 1),
    st.sampled_from(["flat", "per_layer"]),
)
def test_neighbouring_batches_differ_by_at_most_the_clip_norm(
    small: Problem, seed: int, clip: float, scale: float, way: int, clipping: str
) -> None:
    x, one = scaled(seed, scale), seed % 6
    everyone, _, norms = small.sum(way, None, clip, x, clipping)
    without, alone = (small.sum(way, [(i == one) is only for i in range(6)], clip, x, clipping)[0] for only in (False, True))
    difference = norm_of(jax.tree.map(lambda u, v: np.asarray(u, np.float64) - np.asarray(v, np.float64), everyone, without))
    # the difference of two float32 sums carries their rounding; what the unit adds is measured alone
    assert difference <= clip * (1 + 1e-5)
    assert norm_of(alone) <= clip
    if clipping == "flat":
        assert norm_of(alone) == pytest.approx(min(float(norms[one]), clip * (1 - CLIP_MARGIN)), rel=1e-4)


@WAYS
def test_clipped_layer_by_layer_each_layer_has_its_share(small: Problem, way: int) -> None:
    """Two layers, each clipped to C / sqrt(2): with this C one of the last example's gradients is clipped and the other is not."""
    parts = {name: norm_of(leaves) for name, leaves in by_layer(small.gradients()[5]).items()}
    assert len(parts) == 2
    clip = float(np.sqrt(2 * parts[min(parts, key=parts.__getitem__)] * max(parts.values())))
    summed = by_layer(small.sum(way, small.only(5), clip, clipping="per_layer")[0])
    found = {name: norm_of(leaves) for name, leaves in summed.items()}
    share = clip / np.sqrt(2)
    assert min(parts.values()) < share < max(parts.values())
    assert found == pytest.approx({name: min(norm, share * (1 - CLIP_MARGIN)) for name, norm in parts.items()}, rel=1e-5)


def test_clipped_layer_by_layer_both_ways_agree(small: Problem) -> None:
    small.assert_both_ways_agree(is_real=[True] * 5 + [False], clipping="per_layer")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-4, 1e4), st.sampled_from([1e-9, 1e-2, 1.0]), st.integers(0, 1)
)
def test_automatic_clipping_keeps_the_sensitivity(
    small: Problem, seed: int, clip: float, scale: float, stability: float, way: int
) -> None:
    x, one = scaled(seed, scale), seed % 6
    alone, _, norms = small.sum(way, small.only(one), clip, x, "automatic", stability)
    assert norm_of(alone) <= clip
    norm = float(norms[one])
    assert norm_of(alone) == pytest.approx(clip * norm / (norm + stability), rel=1e-4)
    assert norm_of(small.sum(way, [False] * 6, clip, x, "automatic", stability)[0]) == 0.0


def test_automatic_clipping_is_the_same_both_ways(small: Problem) -> None:
    small.assert_both_ways_agree(is_real=small.only(4), clipping="automatic", stability=0.01)
    raw = small.gradients()[4]
    clipped = small.sum(1, small.only(4), clipping="automatic", stability=0.01)[0]
    assert_same(clipped, jax.tree.map(lambda g: g * CLIP / (norm_of(raw) + 0.01), raw), tolerance=3e-5)


class Rounded(nn.Module):
    """Layers that compute in 16 bits, some with few positions, whose norms come from Gram matrices, and some with many."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = Conv(8, 3, 1, 1, dtype=jnp.bfloat16, name="many")(x)
        x = jnp.tanh(nn.Conv(16, (3, 3), 2, dtype=jnp.bfloat16, name="flax")(x))
        x = Conv(32, 3, 2, 1, dtype=jnp.bfloat16, name="few")(jnp.tanh(x))
        return nn.Dense(24, dtype=jnp.bfloat16, name="dense")(jnp.tanh(x)).mean(axis=(0, 1)).astype(jnp.float32)


@pytest.fixture(scope="module")
def rounded() -> Problem:
    return rounded_problem()


def rounded_problem() -> Problem:
    problem = Problem(Rounded(), (8, 8, 4), 16)
    problem.options = {}  # with all that the compiler makes of the roundings
    kernels = problem.params["params"]
    by_gram = {tap.path[0] for tap in problem.taps if _gram_is_cheaper(tap, kernels[tap.path[0]]["kernel"].shape, 1)}
    assert by_gram == {"few", "dense"}
    assert problem.tapped_paths == {("many",), ("flax",), ("few",), ("dense",)}
    return problem


@pytest.mark.parametrize(("way", "clipping"), [(0, "flat"), (1, "flat"), (1, "per_layer")])
def test_whatever_is_rounded_the_clip_norm_bounds_what_is_summed(rounded: Problem, way: int, clipping: str) -> None:
    assert_clipped_to_the_bound(rounded, way, clipping)


@pytest.mark.usefixtures("accelerator")
def test_whatever_accelerators_round_the_clip_norm_bounds_what_is_summed() -> None:
    assert_clipped_to_the_bound(rounded_problem(), 1, "flat")


def assert_clipped_to_the_bound(rounded: Problem, way: int, clipping: str) -> None:
    """Each example's share of the sum is measured anew in 64 bits; all are clipped, and none is clipped much more than it must."""
    clip = 0.05
    for one in range(16):
        contribution, _, norms = rounded.sum(way, rounded.only(one), clip, clipping=clipping)
        assert float(norms[one]) > 10 * clip
        assert clip * (1 - 3e-5) <= norm_of(contribution) <= clip


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


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(5, 9), st.integers(1, 2), st.integers(0, 99))
@example(3, 2, 1, 9, 2, 0)
def test_layerwise_equals_vmap_for_random_convolutions(
    kernel: int, stride: int, padding: int, side: int, channels: int, seed: int
) -> None:
    problem = Problem(RandomNet(kernel, stride, padding, 2), (side, side + 1, channels), 3, seed)
    assert problem.tapped_paths == {("a",), ("b",), ("Dense_0",)}
    problem.assert_both_ways_agree()


class StemNet(nn.Module):
    """The first layer, its maximum and a head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(max_pool(Stem(2, name="stem")(x)).reshape(-1))


def test_layerwise_equals_vmap_for_the_stem() -> None:
    problem = Problem(StemNet(), (4, 8), 3)
    assert problem.tapped_paths == {("stem",), ("Dense_0",)}
    problem.assert_both_ways_agree()


class FlaxNet(nn.Module):
    """Flax's own convolution with the given geometry, then one with few positions, whose norm is a Gram norm."""

    kernel: tuple[int, ...]
    strides: Any
    padding: Any
    input_dilation: Any
    dilation: Any
    groups: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        geometry = (self.kernel, self.strides, self.padding, self.input_dilation, self.dilation, self.groups)
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, *geometry, name="a")(x)))
        x = nn.Conv(12, (3,) * len(self.kernel), 4, name="b")(x)
        return nn.Dense(3)(x.reshape(-1))


@settings(max_examples=2, deadline=None)
@given(
    st.sampled_from([(3, 3), (2, 1), (1, 4), (3,), (2,)]),
    st.integers(1, 3),
    st.sampled_from(["SAME", "VALID", 1, "CIRCULAR", "REFLECT"]),
    st.sampled_from([1, None]),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
@example((3, 3), 2, 1, 1, 2, 2, 0)
@example((3, 2), (2, 1), ((0, 2), (1, 0)), (1, 2), (1, 2), 1, 0)
@example((3,), 1, "CAUSAL", 1, 2, 1, 0)
@example((2, 2, 2), 2, "SAME", 1, 1, 1, 0)
def test_layerwise_equals_vmap_for_flax_convolutions(
    kernel: tuple[int, ...], strides: Any, padding: Any, input_dilation: Any, dilation: Any, groups: int, seed: int
) -> None:
    net = FlaxNet(kernel, strides, padding, input_dilation, dilation, groups)
    problem = Problem(net, (*(9, 8, 5)[: len(kernel)], 2), 3, seed)
    assert problem.tapped_paths == {("a",), ("b",), ("Dense_0",)}
    problem.assert_both_ways_agree()


class Sequence(nn.Module):
    """Layers that are not tapped (embedding, layer norm, a bare parameter) beside a dense layer with several positions."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(7, 4)(tokens.astype(jnp.int32) % 7)
        x = nn.LayerNorm()(nn.Dense(5)(x))
        return (x * self.param("gain", nn.initializers.ones, (5,))).mean(axis=0)


class Frames(nn.Module):
    """A convolution of several maps at once, which share its kernel."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(nn.Conv(3, (2, 2), 3, name="conv")(x.reshape(3, 4, 4, 1)).mean(axis=(0, 1, 2)))


class Shared(nn.Module):
    """One dense layer called twice."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        shared = nn.Dense(3, name="shared")
        return nn.Dense(2, name="last")(shared(jnp.tanh(shared(x))))


class Tied(nn.Module):
    """A layer called once, whose kernel is used once more elsewhere."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        tied = nn.Dense(3, name="tied")
        y = nn.Dense(3, name="last")(jnp.tanh(tied(x)))
        return y @ tied.variables["params"]["kernel"].T


class Lifted(nn.Module):
    """Layers under Flax's transformations: what they see is not their parameter, or not outside of the transformation."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.WeightNorm(nn.Dense(3, name="normed"))(x)
        x = nn.remat(nn.Dense)(3, name="again")(jnp.tanh(x))
        mapped = nn.vmap(
            nn.Dense, in_axes=None, out_axes=0, axis_size=2, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        x = mapped(4, name="mapped")(jnp.tanh(x))
        return nn.Dense(2, name="last")(inputs=jnp.tanh(nn.Dense(2, name="first")(x.reshape(-1))))


@pytest.mark.parametrize(
    ("model", "shape", "tapped"),
    [
        (Sequence(), (6,), {("Dense_0",)}),
        (Frames(), (48,), {("conv",), ("Dense_0",)}),
        (Shared(), (3,), {("last",)}),
        (Tied(), (3,), {("last",)}),
        (Lifted(), (3,), {("first",)}),
    ],
    ids=["unknown layers", "maps that share a kernel", "called twice", "kernel used elsewhere", "lifted"],
)
def test_only_what_a_tap_serves_is_tapped_and_everything_is_right(model: nn.Module, shape: Any, tapped: set[Any]) -> None:
    problem = Problem(model, shape, 4)
    assert problem.tapped_paths == tapped
    problem.assert_both_ways_agree()


def test_layers_without_a_tap_are_named() -> None:
    problem = Problem(Sequence(), (6,), 1)
    with pytest.warns(UserWarning, match="no layer-by-layer gradient of Embed_0/embedding: "):
        warn_of_direct_layers(problem.params, problem.taps)
