from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.models import layers
from tests.models.arrays import assert_all_close, normal, output_and_gradients, plain_convolution


def by_parity(x: Any) -> Any:
    h, w, c = x.shape
    return x.reshape(h // 2, 2, w // 2, 2, c).transpose(1, 3, 0, 2, 4).reshape(4, h // 2, w // 2, c)


@pytest.mark.parametrize("sides", [(4, 4), (8, 4), (12, 20)])
def test_stem_is_the_convolution_of_three_copies_sorted_by_parity(sides: tuple[int, int]) -> None:
    layer = layers.Stem(features=5)
    x, kernel = normal(0, *sides), normal(1, 7, 7, 3, 5)
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == {"params": {"kernel": kernel.shape}}

    def plain(x: Any, w: Any) -> Any:
        return by_parity(plain_convolution(jnp.stack([x, x, x], axis=-1), w, 2, 3))

    found = output_and_gradients(lambda x, w: layer.apply({"params": {"kernel": w}}, x), x, kernel)
    assert_all_close(found, output_and_gradients(plain, x, kernel), rtol=1e-4, atol=1e-4)


def test_stem_takes_sides_that_are_multiples_of_four() -> None:
    with pytest.raises(ValueError, match="multiples of 4, found 8 x 6"):
        layers.Stem(features=2).init(jax.random.key(0), normal(0, 8, 6))


def flax_group_norm(groups: int) -> Any:
    reference = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
    return lambda x, scale, bias: reference.apply({"params": {"scale": scale, "bias": bias}}, x[None])[0]


@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 4, 12), 4), ((5, 4, 12), 1), ((3, 3, 6), 6), ((1, 1, 8), 2)]
)
def test_group_norm_is_flax_group_norm(shape: tuple[int, int, int], groups: int) -> None:
    x, scale, bias = 3 * normal(0, *shape) + 0.5, 1 + normal(1, shape[-1]), normal(2, shape[-1])
    found = output_and_gradients(
        lambda x, s, b: layers.group_norm(x, s, b, None, "identity", groups, 1e-5), x, scale, bias
    )
    assert_all_close(
        found, output_and_gradients(flax_group_norm(groups), x, scale, bias), rtol=1e-4, atol=2e-5
    )


def test_group_norm_keeps_groups_apart() -> None:
    x = normal(0, 4, 4, 8) * jnp.repeat(jnp.asarray([1e-2, 1.0, 1e2, 1e4]), 2)
    y = np.asarray(layers.group_norm(x, jnp.ones(8), jnp.zeros(8), None, "identity", 4, 1e-5)).reshape(
        16, 4, 2
    )
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(
        y.std(axis=(0, 2)), np.sqrt([1 / (1 + 1e-5 / float(x[..., :2].var())), 1, 1, 1]), rtol=1e-4
    )


def test_group_norm_of_a_bfloat16_map_is_one_with_float32_sums() -> None:
    x = (4 + normal(0, 16, 16, 4)).astype(jnp.bfloat16)
    scale, bias = jnp.full(4, 3.0), jnp.full(4, 0.5)
    y, dx, dscale, dbias = output_and_gradients(
        lambda x, s, b: layers.group_norm(x, s, b, None, "identity", 2, 1e-5),
        x,
        scale,
        bias,
        cotangent=jnp.ones(x.shape, x.dtype),
    )
    assert [a.dtype for a in (y, dx, dscale, dbias)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    expected = flax_group_norm(2)(x.astype(jnp.float32), scale, bias)
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(dbias, 256.0)


@pytest.mark.parametrize(("mean", "tolerance"), [(10.0, 1e-5), (100.0, 1e-4), (1000.0, 1e-3)])
def test_group_norm_far_from_zero(mean: float, tolerance: float) -> None:
    """Only the map's own rounding is left, mean / spread times float32's 6e-8."""
    x, scale, bias = mean + normal(0, 8, 8, 8), 1 + normal(1, 8), normal(2, 8)
    found = output_and_gradients(
        lambda x, s, b: layers.group_norm(x, s, b, None, "identity", 2, 1e-5), x, scale, bias
    )
    expected = output_and_gradients(flax_group_norm(2), x, scale, bias)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=tolerance * np.abs(e).max())


@pytest.fixture(params=["cpu", "default"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is written for the CPU, and what is written for everything else, both run here."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arguments, **written: written[request.param](*arguments)
    )
    return request.param


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ["mish", "relu"])
@pytest.mark.usefixtures("formulation")
def test_norm_residual_and_activation_are_what_they_say(activation: str, with_residual: bool) -> None:
    # biases of some -20 to 20: also where the exponentials are held
    arguments = (
        normal(0, 5, 4, 8),
        1 + normal(1, 8),
        12 * normal(2, 8),
        *([normal(3, 5, 4, 8)] if with_residual else []),
    )
    function = {"mish": lambda z: z * jnp.tanh(jax.nn.softplus(z)), "relu": jax.nn.relu}[activation]

    def found(x: Any, scale: Any, bias: Any, residual: Any = None) -> Any:
        return layers.group_norm(x, scale, bias, residual, activation, 2, 1e-5)

    def expected(x: Any, scale: Any, bias: Any, residual: Any = 0.0) -> Any:
        return function(flax_group_norm(2)(x, scale, bias) + residual)

    assert_all_close(
        output_and_gradients(found, *arguments),
        output_and_gradients(expected, *arguments),
        rtol=1e-4,
        atol=2e-5,
    )


def test_group_norm_of_a_constant_map_is_its_bias() -> None:
    scale, bias = normal(1, 4), normal(2, 4)
    y, dx, *_ = output_and_gradients(
        lambda x, s, b: layers.group_norm(x, s, b, None, "identity", 2, 1e-5),
        np.full((3, 3, 4), 7, np.float32),
        scale,
        bias,
    )
    np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=1e-3)
    assert np.isfinite(dx).all()


def test_group_norm_layer_has_torchs_epsilon() -> None:
    x = 1e-3 * normal(0, 4, 4, 32)
    layer = layers.GroupNorm(groups=4)
    params = layer.init(jax.random.key(0), x)
    expected = flax_group_norm(4)(x, params["params"]["scale"], params["params"]["bias"])
    np.testing.assert_allclose(np.asarray(layer.apply(params, x)), expected, rtol=1e-4, atol=1e-5)


def window_pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), [(1, 1), (1, 1), (0, 0)])


def pool_by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maxima, and the gradient that gives each to the first place in reading order that holds it."""
    h, w, c = x.shape
    y = np.zeros(((h + 1) // 2, (w + 1) // 2, c), np.float32)
    dy, dx = np.asarray(normal(99, *y.shape)), np.zeros_like(x)
    for i, j, k in np.ndindex(*y.shape):
        places = [
            (r, s)
            for r in range(2 * i - 1, 2 * i + 2)
            for s in range(2 * j - 1, 2 * j + 2)
            if 0 <= r < h and 0 <= s < w
        ]
        first = max(places, key=lambda place, k=k: x[(*place, k)])  # max returns the first of equals
        y[i, j, k] = x[(*first, k)]
        dx[(*first, k)] += dy[i, j, k]
    return y, dx


SIDES = [(2, 2), (4, 4), (6, 6), (8, 6), (2, 8)]


def pool(x: Any) -> Any:
    return layers.max_pool(by_parity(x))


@pytest.mark.parametrize("sides", SIDES)
def test_max_pool_is_the_window_maximum(sides: tuple[int, int]) -> None:
    x = (
        np.random.default_rng(0).permutation(sides[0] * sides[1] * 3).reshape(*sides, 3).astype(np.float32)
        - 50
    )
    assert_all_close(output_and_gradients(pool, x), output_and_gradients(window_pool, x), atol=1e-6)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("values", [1, 2, 3])
def test_ties_go_to_the_first_maximum(sides: tuple[int, int], values: int) -> None:
    x = -np.random.default_rng(values).integers(0, values, (*sides, 3)).astype(np.float32)
    assert_all_close(output_and_gradients(pool, x), pool_by_hand(x), atol=1e-6)


@pytest.mark.usefixtures("formulation")
def test_mish_is_x_tanh_softplus() -> None:
    x = np.linspace(-50, 50, 4001).astype(np.float32)
    wide = x.astype(np.float64)
    gate = np.tanh(np.logaddexp(0, wide))
    sigmoid = np.exp(-np.logaddexp(0, -wide))
    y, slope = jax.jit(jax.vmap(jax.value_and_grad(layers.mish)))(x)
    np.testing.assert_allclose(y, wide * gate, rtol=3e-6, atol=1e-30)
    np.testing.assert_allclose(slope, gate + wide * (1 - gate**2) * sigmoid, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", [-1e4, -200.0, -88.0, 0.0, 20.0, 88.0, 200.0, 1e4])
def test_mish_is_finite_everywhere(x: float) -> None:
    y, slope = jax.value_and_grad(layers.mish)(jnp.float32(x))
    assert float(y) == pytest.approx(max(x, 0.0), abs=1e-6)
    assert float(slope) == pytest.approx({-1e4: 0, -200.0: 0, -88.0: 0, 0.0: 0.6}.get(x, 1), abs=1e-6)
