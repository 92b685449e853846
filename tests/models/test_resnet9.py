import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.models.resnet9 import ResNet9

FILMS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32)).astype(np.uint8))


@functools.cache
def params() -> Any:
    """Random weights of a narrow network, no norm at its initial one and zero."""
    rng = np.random.default_rng(1)
    tree = jax.eval_shape(ResNet9(3, width=32).init, jax.random.key(0), FILMS[0])

    def fill(path: Any, leaf: Any) -> jax.Array:
        spread = 1.4 / np.sqrt(math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.2
        return jnp.asarray(rng.normal(float(path[-1].key == "scale"), spread, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)


@functools.cache
def logits(activation: str = "mish") -> np.ndarray:
    model = ResNet9(3, activation, width=32)
    out = jax.jit(jax.vmap(model.apply, in_axes=(None, 0)))(params(), FILMS)
    assert isinstance(out, jax.Array)
    assert out.dtype == jnp.float32
    return np.asarray(out)


def shapes(n_findings: int = 8, width: int = 64) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((64, 64), jnp.uint8)
    tree = jax.eval_shape(ResNet9(n_findings, width=width).init, jax.random.key(0), image)
    assert set(tree) == {"params"}
    return {
        "/".join(str(part.key) for part in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree["params"])
    }


def test_number_of_parameters_is_the_papers() -> None:
    assert sum(math.prod(shape) for shape in shapes().values()) == 4_909_896


def test_parameters_have_these_names_and_shapes() -> None:
    expected: dict[str, tuple[int, ...]] = {
        "conv1/kernel": (7, 7, 3, 64),
        "norm1/scale": (64,),
        "norm1/bias": (64,),
    }
    into = 64
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        block = f"stage{stage}_block1"
        expected |= {f"{block}/conv1/kernel": (3, 3, into, out), f"{block}/conv2/kernel": (3, 3, out, out)}
        norms = ["norm1", "norm2"]
        if stage > 1:
            expected[f"{block}/shortcut_conv/kernel"] = (1, 1, into, out)
            norms.append("shortcut_norm")
        expected |= {f"{block}/{norm}/{leaf}": (out,) for norm in norms for leaf in ("scale", "bias")}
        into = out
    expected |= {"head/kernel": (512, 8), "head/bias": (8,)}
    assert shapes() == expected


def test_findings_change_only_the_head() -> None:
    eight, fourteen = shapes(8), shapes(14)
    assert fourteen.pop("head/kernel") == (512, 14)
    assert fourteen.pop("head/bias") == (14,)
    assert fourteen.items() <= eight.items()


@pytest.mark.parametrize("side", [32, 48, 512])
def test_one_logit_a_finding_whatever_the_size(side: int) -> None:
    model = ResNet9(5, width=32)
    image = jax.ShapeDtypeStruct((side, side), jnp.uint8)
    out = jax.eval_shape(lambda image: model.init_with_output(jax.random.key(0), image)[0], image)
    assert (out.shape, out.dtype) == ((5,), jnp.float32)


def test_maps_are_bfloat16_and_parameters_mean_and_logits_float32() -> None:
    seen: dict[str, set[Any]] = {}

    def note(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__":
            seen.setdefault(context.module.name or "logits", set()).update({args[0].dtype, y.dtype})
        return y

    def first_pass(image: Any) -> Any:
        with nn.intercept_methods(note):
            return ResNet9(3, width=32, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), image)

    out, tree = jax.eval_shape(first_pass, FILMS[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    assert out.dtype == jnp.float32
    assert seen.pop("logits") == {jnp.dtype(jnp.uint8), jnp.dtype(jnp.float32)}
    assert seen.pop("head") == {jnp.dtype(jnp.float32)}, "the mean over the last map is to be float32"
    assert {"conv1", "norm1", "conv2", "shortcut_conv", "stage4_block1"} <= set(seen)
    assert set().union(*seen.values()) == {jnp.dtype(jnp.bfloat16)}


def plain_network(image: Any, activation: str) -> Any:
    """The network of the paper spelt out on three real channels, with nothing of the project's but the parameters."""
    act = {"mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)), "relu": lambda x: jnp.maximum(x, 0)}[
        activation
    ]

    def conv(x: Any, leaves: Any, stride: int, padding: int) -> Any:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, leaves["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=dimensions
        )

    def norm(x: Any, leaves: Any) -> Any:
        return nn.GroupNorm(32, epsilon=1e-5).apply({"params": leaves}, x)

    p = params()["params"]
    x = jnp.repeat(image[None, ..., None] / 255, 3, axis=-1)
    x = act(norm(conv(x, p["conv1"], 2, 3), p["norm1"]))
    x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # type: ignore[arg-type]
    for stage, stride in enumerate((1, 2, 2, 2), start=1):
        q = p[f"stage{stage}_block1"]
        y = act(norm(conv(x, q["conv1"], stride, 1), q["norm1"]))
        y = norm(conv(y, q["conv2"], 1, 1), q["norm2"])
        if stage > 1:
            x = norm(conv(x, q["shortcut_conv"], stride, 0), q["shortcut_norm"])
        x = act(x + y)
    return x.mean(axis=(1, 2))[0] @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_it_is_the_papers_network(activation: str) -> None:
    np.testing.assert_allclose(
        logits(activation)[0],
        jax.jit(plain_network, static_argnums=1)(FILMS[0], activation),
        rtol=1e-3,
        atol=1e-3,
    )


def test_activations_differ_and_do_not_mix() -> None:
    assert np.abs(np.asarray(logits("relu")) - np.asarray(logits("mish"))).max() > 1e-2
    programs = {
        activation: str(jax.make_jaxpr(ResNet9(3, activation, width=32).apply)(params(), FILMS[0]))
        for activation in ("relu", "mish")
    }
    assert "relu" in programs["relu"]
    assert " exp " not in programs["relu"]
    assert "relu" not in programs["mish"]
    assert " exp " in programs["mish"]


def test_one_image_at_a_time_equals_vmap() -> None:
    one = jax.jit(ResNet9(3, width=32).apply)
    alone = np.stack([np.asarray(one(params(), image)) for image in FILMS])
    np.testing.assert_allclose(alone, logits(), rtol=1e-4, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
def test_grey_values_are_scaled_to_one_and_the_image_stands_for_three_channels(dtype: Any) -> None:
    def first_layer(image: Any) -> Any:
        _, state = ResNet9(3, width=32).apply(
            params(), image, capture_intermediates=lambda module, _: module.name == "conv1"
        )
        return state["intermediates"]["conv1"]["__call__"][0]

    three = jnp.asarray(np.repeat(np.asarray(FILMS[:1, ..., None]) / 255, 3, axis=-1), jnp.float32)
    kernel = params()["params"]["conv1"]["kernel"]
    expected = jax.lax.conv_general_dilated(
        three, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    found = jax.jit(first_layer)(FILMS[0].astype(dtype))
    for parity in range(4):
        np.testing.assert_allclose(
            found[parity], expected[parity // 2 :: 2, parity % 2 :: 2], rtol=1e-4, atol=1e-5
        )
