"""Every kind of layer, and several libraries of them, against `vmap(grad)` in 64 bits, leaf by leaf."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.per_example.problem import check, filled

N = 3
F64: Any = {"param_dtype": jnp.float64}
MAP, SEQUENCE, VOLUME = (6, 7, 4), (5, 4), (4, 3, 5, 2)
TOKENS = 11


pytestmark = pytest.mark.filterwarnings("ignore:whole gradients of each example are held")


@pytest.fixture(autouse=True)
def in_64_bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(N, *shape))


def tokens(*shape: int, below: int = TOKENS) -> Any:
    return np.random.default_rng(2).integers(0, below, (N, *shape))


def check_module(model: nn.Module, x: Any, **more: Any) -> dict[str, Any]:
    one = jax.tree.map(lambda v: v[0], x)
    params = filled(jax.eval_shape(partial(model.init, **more), jax.random.key(0), one))
    return check(lambda p, example: jnp.sum(jnp.sin(model.apply(p, example, **more))), params, x)  # type: ignore[arg-type]


conv, transposed = partial(nn.Conv, **F64), partial(nn.ConvTranspose, **F64)
CONVOLUTIONS = {
    "plain": (conv(8, (3, 3)), MAP),
    "strided": (conv(8, (3, 3), 2), MAP),
    "strided, unevenly padded": (conv(5, (4, 3), (2, 3), ((0, 2), (3, 1))), MAP),
    "valid": (conv(8, (2, 3), padding="VALID"), MAP),
    "circular": (conv(8, (3, 3), padding="CIRCULAR"), MAP),
    "window dilated": (conv(8, (3, 2), padding=((1, 2), (0, 3)), kernel_dilation=2), MAP),
    "input dilated, cut": (conv(8, (3, 2), padding=((2, 1), (-1, 2)), input_dilation=2), MAP),
    "grouped": (conv(6, (3, 3), feature_group_count=2), MAP),
    "depthwise": (conv(4, (3, 3), feature_group_count=4), MAP),
    "depthwise, multiplied": (conv(8, (3, 3), 2, feature_group_count=4), MAP),
    "one pixel": (conv(8, (1, 1), 2), MAP),
    "small map": (conv(8, (3, 3)), (3, 2, 4)),
    "window larger than the map": (conv(40, (3, 3)), (1, 2, 30)),
    "few positions": (conv(24, (3, 3), 4), MAP),
    "one channel": (conv(8, (5, 5), 2, padding=2), (9, 8, 1)),
    "1-D, causal": (conv(8, (3,), padding="CAUSAL", kernel_dilation=2), SEQUENCE),
    "3-D": (conv(5, (3, 2, 2)), VOLUME),
    "3-D, few positions": (conv(30, (3, 2, 2), 3), VOLUME),
    "transposed": (transposed(8, (3, 3), (2, 2)), MAP),
    "transposed, few positions": (transposed(30, (3, 3), (2, 2)), (2, 2, 30)),
    "transposed kernel": (transposed(4, (3, 3), (2, 2), transpose_kernel=True), MAP),
    "transposed, 1-D": (transposed(8, (3,), (2,)), SEQUENCE),
    "local": (nn.ConvLocal(3, (2, 2), padding="VALID", **F64), (3, 3, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    model, shape = CONVOLUTIONS[name]
    assert check_module(model, normal(*shape)) == {}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(1, n) for n in (6, 3, 3, 2, 2)]), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=3, max_size=3),
    st.booleans(),
)
def test_any_convolution(
    sides: Any, inputs: int, features: int, groups: int, padding: Any, channels_first: bool
) -> None:
    """Of sides (length, window, stride, dilation of input and window), where the output has a place."""
    length, window, stride, gaps, window_gaps = zip(*sides, strict=True)
    padding = padding[: len(sides)]
    d = len(sides)
    spans = [(n - 1) * g + 1 + sum(p) - ((w - 1) * h + 1) for n, g, p, w, h in zip(length, gaps, padding, window, window_gaps, strict=True)]  # fmt: skip
    if min(spans) < 0:
        return
    last = ((0, d + 1, *range(1, d + 1)), (d + 1, d, *range(d)), (0, d + 1, *range(1, d + 1)))
    first = ((0, 1, *range(2, d + 2)),) * 3
    kernel = (
        (*window, inputs, features * groups) if not channels_first else (features * groups, inputs, *window)
    )

    def loss(params: Any, x: Any) -> Any:
        numbers = jax.lax.ConvDimensionNumbers(*(first if channels_first else last))
        dilation = gaps, window_gaps, numbers, groups
        return jnp.sum(jnp.sin(jax.lax.conv_general_dilated(x, params["kernel"], stride, padding, *dilation)))

    shape = (2, inputs * groups, *length) if channels_first else (2, *length, inputs * groups)
    assert check(loss, filled({"kernel": jnp.zeros(kernel)}), normal(*shape)) == {}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["batch", "contracted", "x", "w"]), min_size=2, max_size=6).filter(
        lambda kinds: "w" in kinds
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_any_product(kinds: list[str], random: Any, weight_first: bool) -> None:
    """Of operands with axes in any order, the weight on either side."""
    letters = "abcdef"[: len(kinds)]
    of_x = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "w"]
    of_w = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "x"]
    of_y = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "contracted"]
    for axes in (of_x, of_w, of_y):
        random.shuffle(axes)
    sizes = {letter: 2 + i % 3 for i, letter in enumerate(letters)}
    terms = ",".join("".join(axes) for axes in ((of_w, of_x) if weight_first else (of_x, of_w)))

    def loss(params: Any, x: Any) -> Any:
        operands = (params["w"], x) if weight_first else (x, params["w"])
        return jnp.sum(jnp.sin(jnp.einsum(f"{terms}->{''.join(of_y)}", *operands)))

    params = filled({"w": jnp.zeros([sizes[letter] for letter in of_w])})
    direct = check(loss, params, normal(*(sizes[letter] for letter in of_x)))
    assert direct == {} or "contracted" not in kinds  # products of single numbers are `mul`


class Stacked(nn.Module):
    """Layers under a scan, computed anew in the backward pass: their parameters are stacked."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x: Any, _: Any) -> Any:
                y = nn.Dense(4, **F64)(jnp.sin(nn.Dense(9, **F64)(nn.LayerNorm(**F64)(x))))
                return x + y, None

        layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class Tied(nn.Module):
    """A table that is looked up, and multiplied with at the end."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        table = nn.Embed(TOKENS, 5, **F64)
        return table.attend(jnp.sin(table(x)))


class Twice(nn.Module):
    """A layer that is called twice."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layer = nn.Dense(4, **F64)
        return layer(jnp.sin(layer(x)))


OTHERS: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
    "dense": (nn.Dense(7, **F64), normal(*SEQUENCE), {}),
    "dense of one vector": (nn.Dense(7, **F64), normal(4), {}),
    "several axes": (nn.DenseGeneral((3, 5), axis=(-1, -2), **F64), normal(*MAP), {}),
    "batch axes": (nn.DenseGeneral(5, axis=-1, batch_dims=(0,), **F64), normal(*SEQUENCE), {}),
    "einsum": (nn.Einsum((4, 3, 5), "...a,abc->...cb", **F64), normal(*SEQUENCE), {}),
    "attention": (nn.MultiHeadDotProductAttention(2, **F64), normal(*SEQUENCE), {}),
    "embedding": (nn.Embed(TOKENS, 6, **F64), tokens(3), {}),
    "embedding, rows looked up twice": (nn.Embed(TOKENS, 6, **F64), tokens(8, below=3), {}),
    "embedding, more rows than the table": (nn.Embed(3, 6, **F64), tokens(8, below=3), {}),
    "gated recurrent": (nn.RNN(nn.GRUCell(6, **F64)), normal(*SEQUENCE), {}),
    "long short-term memory": (nn.RNN(nn.OptimizedLSTMCell(6, **F64)), normal(*SEQUENCE), {}),
    "convolutional recurrent": (nn.RNN(nn.ConvLSTMCell(3, (2, 2), **F64)), normal(3, 4, 4, 2), {}),
    "stacked": (Stacked(), normal(*SEQUENCE), {}),
    "tied": (Tied(), tokens(4), {}),
    "called twice": (Twice(), normal(*SEQUENCE), {}),
    "computed anew": (nn.remat(nn.Conv)(8, (3, 3), **F64), normal(*MAP), {}),
    "weight norm": (nn.WeightNorm(nn.Dense(7, **F64), **F64), normal(*SEQUENCE), {}),
    "mapped, shared": (
        nn.vmap(nn.Dense, in_axes=0, variable_axes={"params": None}, split_rngs={"params": False})(7, **F64),
        normal(*SEQUENCE),
        {},
    ),
    "mapped, each its own": (
        nn.vmap(nn.Dense, in_axes=0, variable_axes={"params": 0}, split_rngs={"params": True})(7, **F64),
        normal(*SEQUENCE),
        {},
    ),
    "partitioned": (
        nn.Dense(7, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "x")), **F64),
        normal(*SEQUENCE),
        {},
    ),
    "group norm": (nn.GroupNorm(2, **F64), normal(*MAP), {}),
    "activation with parameters": (nn.PReLU(), normal(*MAP), {}),
}


SLOW = ("gated recurrent", "convolutional recurrent")
"""Of the recurrent layers one is tried every time."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] if name in SLOW else []) for name in OTHERS]
)
def test_layers_of_flax_linen(name: str) -> None:
    model, x, more = OTHERS[name]
    assert check_module(model, x, **more) == {}


def test_a_module_of_flax_nnx() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(4, 6, (3, 3), rngs=rngs, **F64)
            self.norm = nnx.GroupNorm(6, num_groups=2, rngs=rngs, **F64)
            self.head = nnx.Linear(6, 3, rngs=rngs, **F64)

        def __call__(self, x: Any) -> Any:
            return self.head(jnp.sin(self.norm(self.conv(x))).mean(axis=(0, 1)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    params = filled(state)
    assert check(lambda p, x: jnp.sum(jnp.sin(nnx.merge(graph, p)(x))), params, normal(*MAP)) == {}


def test_a_module_of_equinox() -> None:
    """Channels first, and arrays beside things that are none."""
    keys = jax.random.split(jax.random.key(0), 3)
    layers = [
        eqx.nn.Conv2d(4, 6, 3, padding=1, key=keys[0]),
        eqx.nn.Lambda(jax.nn.gelu),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(6 * 9, 5, key=keys[1]),
        eqx.nn.MLP(5, 3, 7, 1, key=keys[2]),
    ]
    arrays, rest = eqx.partition(eqx.nn.Sequential(layers), eqx.is_inexact_array)
    assert (
        check(lambda p, x: jnp.sum(jnp.sin(eqx.combine(p, rest)(x))), filled(arrays), normal(4, 6, 6)) == {}
    )


def test_any_tree_of_inputs_and_a_key_for_dropout() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, image: Any, words: Any) -> Any:
            x = nn.Dense(5, **F64)(image.reshape(-1)) + nn.Embed(TOKENS, 5, **F64)(words).mean(axis=0)
            return nn.Dense(3, **F64)(nn.Dropout(0.5, deterministic=False)(x))

    model = Net()
    examples = {
        "image": normal(2, 3),
        "words": tokens(4),
        "key": jax.random.split(jax.random.key(3), N),
        "y": normal(3),
    }

    def loss(params: Any, example: Any) -> Any:
        logits = model.apply(params, example["image"], example["words"], rngs={"dropout": example["key"]})
        return jnp.sum((logits - example["y"]) ** 2)  # type: ignore[operator]

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(model.init, keys, examples["image"][0], examples["words"][0])
    assert check(loss, filled(shapes), examples) == {}


def test_frozen_parameters_and_frozen_batch_statistics_are_constants() -> None:
    model = nn.Sequential(
        [nn.Dense(6, **F64), nn.BatchNorm(use_running_average=True, **F64), nn.Dense(3, **F64)]
    )
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(4)))
    variables["batch_stats"] = jax.tree.map(jnp.square, variables["batch_stats"])
    frozen = variables["params"].pop("layers_0")

    def loss(params: Any, x: Any) -> Any:
        everything = {"params": params | {"layers_0": frozen}, "batch_stats": variables["batch_stats"]}
        return jnp.sum(jnp.sin(model.apply(everything, x)))  # type: ignore[arg-type]

    assert check(loss, variables["params"], normal(4)) == {}


def test_a_custom_derivative_is_what_counts() -> None:
    """A product whose derivative is defined to be another's: its kernel is differentiated directly, and named."""

    @jax.custom_vjp
    def odd(x: Any, w: Any) -> Any:
        return x @ w

    odd.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda saved, dy: (dy @ saved[1].T, 3.0 * jnp.outer(saved[0], dy))
    )
    params = filled({"odd": jnp.zeros((4, 3)), "even": jnp.zeros((3, 2))})
    direct = check(lambda p, x: jnp.sum(jnp.sin(odd(x, p["odd"]) @ p["even"])), params, normal(4))
    assert direct == {"odd": ("custom_vjp_call",)}


def test_what_has_no_rule_is_differentiated_directly_and_named() -> None:
    params = filled({"w": jnp.zeros((4, 4)), "v": jnp.zeros((4, 4)), "unused": jnp.zeros((2, 2))})

    def loss(params: Any, x: Any) -> Any:
        solved = jnp.linalg.solve(params["w"] + 4 * jnp.eye(4) + jnp.diag(x), x)
        chosen = jax.lax.cond(x[0] > 0, lambda v: jnp.sum(v @ x), lambda v: jnp.sum(x @ v), params["v"])
        return jnp.sum(solved) + chosen

    direct = check(loss, params, normal(4))
    assert direct == {"v": ("cond",)}


def test_a_parameter_that_takes_part_both_with_and_without_a_rule() -> None:
    params = filled({"w": jnp.zeros((4, 4)), "v": jnp.zeros((4, 4))})

    def loss(params: Any, x: Any) -> Any:
        y = jnp.sin(x @ params["w"]) @ jnp.tril(params["v"]) @ params["v"].T
        return jnp.sum(y) + x[0] * jnp.sum(jnp.square(params["w"])) + jnp.sum(params["w"] @ params["v"])

    assert check(loss, params, normal(4)) == {}


def test_iterations_backwards_with_a_weight_in_slices_and_a_weight_in_common() -> None:
    params = filled({"own": jnp.zeros((3, 4, 4)), "common": jnp.zeros((4, 4)), "scale": jnp.zeros((3, 4))})

    def loss(params: Any, x: Any) -> Any:
        def step(x: Any, given: Any) -> Any:
            own, scale = given
            x = jnp.sin((x * scale) @ own.T + x @ (2.0 * params["common"]))
            return x, x

        last, all_ = jax.lax.scan(step, x, (params["own"], params["scale"]), reverse=True)
        return jnp.sum(last) + jnp.sum(jnp.cos(all_))

    assert check(loss, params, normal(2, 4)) == {}


def test_a_scan_within_a_scan() -> None:
    params = filled({"w": jnp.zeros((3, 4, 4)), "v": jnp.zeros((3, 2, 4, 4))})

    def loss(params: Any, x: Any) -> Any:
        def outer(x: Any, given: Any) -> Any:
            w, v = given
            inner = lambda x, own: (jnp.sin(x @ w + x @ own), None)  # noqa: E731
            return jax.lax.scan(inner, x, v)[0], None

        return jnp.sum(jax.lax.scan(outer, x, (params["w"], params["v"]))[0])

    assert check(loss, params, normal(2, 4)) == {}


def test_lookups_beyond_the_table() -> None:
    """Clipped to its edge, or dropped, as the equation says."""
    params = filled({"table": jnp.zeros((5, 3))})
    index = jnp.asarray([[0, 9, 4, 9], [1, 1, 7, 2], [3, 3, 3, 3]])
    for mode in ("clip", "fill"):

        def loss(params: Any, index: Any, mode: str = mode) -> Any:
            fill = None if mode == "clip" else 0.0
            rows = jnp.take(params["table"], index, axis=0, mode=mode, fill_value=fill)
            return jnp.sum(jnp.sin(rows))

        assert check(loss, params, index) == {}
