"""The network's own parts, in the precisions and formulations of processors and accelerators; what is refused and what is said."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.models.layers import GroupNorm, Stem, max_pool
from jaxcxr.models.resnet9 import Block, ResNet9
from jaxcxr.per_example import convolutions, gradients, jaxprs
from jaxcxr.per_example.sites import find
from tests.models.arrays import normal, plain_convolution
from tests.per_example.problem import QUICK, check, error, expected, filled, weigh

ON_ANY_PLATFORM = jax.lax.platform_dependent


class Residual(nn.Module):
    """The network's parts in its order, but fewer: stem, maximum, a block that keeps the shape and one that changes it."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Any) -> Any:
        x = (image.astype(jnp.float32) / 255).astype(self.dtype)
        x = max_pool(GroupNorm(name="norm1")(Stem(32, dtype=self.dtype, name="conv1")(x), activation="mish"))
        x = Block(32, 1, "mish", self.dtype, name="stage1")(x)
        x = Block(64, 2, "mish", self.dtype, name="stage2")(x)
        return nn.Dense(3, name="head")(x.astype(jnp.float32).mean(axis=(0, 1)))


def loss_of(model: nn.Module) -> Any:
    return lambda params, example: jnp.sum((model.apply(params, example[0]) - example[1]) ** 2)  # type: ignore[operator]


def examples(n: int = 4, side: int = 16) -> Any:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side)).astype(np.uint8), rng.normal(size=(n, 3)).astype(np.float32)


def params_of(model: nn.Module, side: int = 16) -> Any:
    """Scales near 1, so that norms pass signals on."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((side, side), jnp.uint8))
    numbers = filled(shapes, scale=0.1)
    return jax.tree_util.tree_map_with_path(lambda path, x: x + 1.0 * (path[-1].key == "scale"), numbers)


@cache
def problem() -> tuple[Any, Any, Any]:
    """With maps of 6 x 6 and of 3 x 3, on either side of what counts as small."""
    return loss_of(Residual()), params_of(Residual()), examples(3, 24)


@cache
def sums_by_vmap() -> Any:
    """As this processor computes them: of the formulations for accelerators, too, these are the sums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", ON_ANY_PLATFORM)
        return expected(*problem())


def test_sums_of_the_networks_parts_are_those_of_vmap() -> None:
    assert check(*problem(), 2e-5, sums_by_vmap()) == {}


@pytest.fixture(params=["by patches", pytest.param("one by one", marks=pytest.mark.thorough)])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is written for accelerators, on this processor: gradients of single examples from patches wherever that can be, or
    nowhere.
    """
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments))  # noqa: ARG005
    monkeypatch.setattr(convolutions, "PATCH_BYTES", 2**40 if request.param == "by patches" else -(2**40))
    return request.param


@pytest.mark.usefixtures("accelerator")
def test_what_accelerators_compute_is_the_same() -> None:
    check(*problem(), 2e-5, sums_by_vmap())


def rules(model: nn.Module, *arguments: Any) -> list[Any]:
    program = jaxprs.trace(model.apply, *arguments)
    return [site.rule for site in find(program, len(jax.tree.leaves(arguments[0]))).sites]


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.thorough), jnp.bfloat16])
@pytest.mark.usefixtures("accelerator")
def test_each_patients_gradient_is_that_of_all_its_images(dtype: Any) -> None:
    found = rules(Residual(dtype), params_of(Residual()), examples()[0][0])
    convolved = [rule for rule in found if isinstance(rule, convolutions.Convolution)]
    assert len(convolved) == 6
    for rule in convolved:

        @partial(jax.jit, compiler_options=QUICK)
        def both(x: Any, dy: Any, rule: Any = rule) -> Any:
            return rule.each(x, dy), jnp.stack([rule.total(x[i : i + 1], dy[i : i + 1]) for i in range(2)])

        x, y = rule.equation.invars[0].aval, rule.equation.outvars[0].aval
        rng = np.random.default_rng(0)
        x, dy = (jnp.asarray(rng.normal(size=(2, 1, 2, *v.shape)), dtype) for v in (x, y))  # type: ignore[attr-defined]
        each, totals = both(x, dy)
        assert each.dtype == totals.dtype == dtype
        distance = np.linalg.norm(np.asarray(each - totals, np.float32))
        assert distance <= (1e-6 if dtype == jnp.float32 else 1e-2) * np.linalg.norm(
            np.asarray(each, np.float32)
        )


def test_every_kernel_of_the_network_has_a_rule() -> None:
    model, image = ResNet9(3, width=32), jax.ShapeDtypeStruct((32, 32), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    program = find(jaxprs.trace(model.apply, params, image), len(jax.tree.leaves(params)))
    assert len(program.sites) == 13
    assert {type(site.rule).__name__ for site in program.sites} == {"Convolution", "Product"}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert {leaves[leaf][0][-1].key for leaf in program.direct} == {"scale", "bias"}


class Rounded(nn.Module):
    """Layers that compute in 16 bits, some with few positions, whose norms come from Gram matrices, and some with many."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        how: Any = {"use_bias": False, "dtype": jnp.bfloat16}
        x = nn.Conv(8, (3, 3), padding=1, name="many", **how)(x)
        x = jnp.tanh(nn.Conv(16, (3, 3), 2, name="flax", **how)(x))
        x = nn.Conv(32, (3, 3), 2, padding=1, name="few", **how)(jnp.tanh(x))
        return (
            nn.Dense(24, dtype=jnp.bfloat16, name="dense")(jnp.tanh(x)).mean(axis=(0, 1)).astype(jnp.float32)
        )


def contributions(clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of what each of 16 examples adds to a sum clipped to `clip`, measured in 64 bits, and its norm before."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 4)).astype(np.float32), rng.normal(size=(16, 24)).astype(np.float32)
    model = Rounded()
    params = filled(jax.eval_shape(model.init, jax.random.key(0), x[0]), scale=0.3)
    loss = loss_of(model)
    program = find(jaxprs.trace(loss, params, (x[0], y[0])), len(jax.tree.leaves(params)))
    assert [site.norm_is_cheaper for site in program.sites] == [False, False, True, True]

    @jax.jit  # with all that the compiler makes of the roundings
    def summed(one: Any) -> Any:
        def weigh(squared: Any) -> Any:
            factors = clip / jnp.sqrt(sum(jax.tree.leaves(squared)))
            return jax.tree.map(lambda _: jnp.where(jnp.arange(16) == one, factors, 0.0), squared)

        total, _, squared = gradients.weighted_sum(loss, params, (x, y), weigh)
        return total, jnp.sqrt(sum(jax.tree.leaves(squared)))[one]

    found = [jax.tree.map(np.asarray, summed(one)) for one in range(16)]
    lengths = [
        np.sqrt(sum(np.sum(np.square(leaf.astype(float))) for leaf in jax.tree.leaves(total)))
        for total, _ in found
    ]
    return np.asarray(lengths), np.asarray([norm for _, norm in found])


def assert_sums_have_the_norm_that_was_computed() -> None:
    lengths, norms = contributions(0.05)
    assert (norms > 0.5).all()
    assert (lengths <= 0.05 * (1 + 1e-6)).all()
    assert (lengths >= 0.05 * (1 - 3e-5)).all()


def test_whatever_is_rounded_what_is_summed_has_the_norm_that_was_computed() -> None:
    assert_sums_have_the_norm_that_was_computed()


@pytest.mark.usefixtures("accelerator")
def test_whatever_accelerators_round_what_is_summed_has_the_norm_that_was_computed() -> None:
    assert_sums_have_the_norm_that_was_computed()


def test_a_batch_of_no_example_has_sum_zero() -> None:
    params, none = {"w": jnp.ones((3, 2))}, jnp.zeros((0, 3))
    loss = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    total, losses, squared = gradients.weighted_sum(loss, params, none, weigh)
    assert error(total, {"w": np.zeros((3, 2))}) == 0.0
    assert losses.shape == squared["w"].shape == (0,)
    assert gradients.each_gradient(loss, params, none)[0]["w"].shape == (0, 3, 2)
    assert gradients.plain_sum(loss, params, none, jnp.zeros(0))[0]["w"].shape == (3, 2)


@pytest.mark.parametrize(
    ("loss", "params", "examples", "message"),
    [
        (lambda p, x: x @ p["w"], {"w": np.ones((3, 2))}, np.ones((4, 3)), "loss: expected one number"),
        (
            lambda p, x: jnp.sum(x * p["w"]),
            {"w": np.ones(3, int)},
            np.ones((4, 3)),
            r"params\['w'\]: expected floating point",
        ),
        (
            lambda p, x: jnp.sum(x[0] * p["w"]),
            {"w": np.ones(3)},
            (np.ones((4, 3)), np.ones(5)),
            "lengths \\[4, 5\\]",
        ),
        (lambda p, _: jnp.sum(p["w"]), {"w": np.ones(3)}, {}, "lengths none"),
    ],
    ids=["vector", "integers", "lengths", "no leaf"],
)
def test_what_cannot_be_is_refused_by_name(loss: Any, params: Any, examples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradients.weighted_sum(loss, params, examples, weigh)


def test_a_layer_that_mixes_examples_is_refused_and_says_over_which_axis() -> None:
    model = nn.BatchNorm(use_running_average=False, axis_name="examples")
    variables = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), jnp.zeros(3))

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(model.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0])

    with pytest.raises(ValueError, match=r"a layer of it mixes examples.*examples"):
        gradients.weighted_sum(loss, variables["params"], jnp.ones((2, 3)), weigh)

    with pytest.raises(NameError, match="nowhere"):  # other mistakes are left as they are
        gradients.weighted_sum(lambda p, _: nowhere(p), variables["params"], jnp.ones((2, 3)), weigh)  # type: ignore[name-defined]


def test_what_is_held_for_each_example_is_named_once() -> None:
    params = {"w": jnp.ones((3, 3))}
    loss = lambda p, x: jax.lax.cond(x[0] > 0, jnp.sum, jnp.max, p["w"])  # noqa: E731
    with pytest.warns(UserWarning, match=r"whole gradients of each example are held for w \(cond\)"):
        gradients.weighted_sum(loss, params, jnp.ones((2, 3)), weigh)


def test_the_function_that_is_differentiated_has_the_same_gradients() -> None:
    """Of maps of a few pixels, also inside a checkpoint and a scan."""
    kernels = {"first": normal(0, 3, 3, 2, 2), "layers": normal(1, 2, 3, 3, 2, 2)}

    def loss(params: Any, x: Any) -> Any:
        y = jax.checkpoint(lambda kernel, x: plain_convolution(x, kernel, 1, 1))(params["first"], x)
        y, _ = jax.lax.scan(
            lambda y, kernel: (jnp.sin(plain_convolution(y, kernel, 1, 1)), None), y, params["layers"]
        )
        return jnp.sum(jnp.square(y))

    x = normal(2, 4, 2, 2, 2)
    found, wanted = (
        jax.jit(jax.vmap(jax.grad(f), in_axes=(None, 0)), compiler_options=QUICK)(kernels, x)
        for f in (gradients.quick(loss, is_differentiated=True), loss)
    )
    assert error(found, wanted) < 1e-5
    text = str(jax.make_jaxpr(gradients.quick(loss, is_differentiated=True))(kernels, x[0]))
    assert "conv_general_dilated" not in text


def test_the_quick_function_is_the_same() -> None:
    model, image = Residual(), examples()[0][0]
    params = params_of(model)
    found, wanted = (
        jax.jit(f, compiler_options=QUICK)(params, image) for f in (gradients.quick(model.apply), model.apply)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
