"""The names that JAX gives its primitives and their parameters, pinned: no version promises them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import JaxprEqn, Literal

from jaxcxr.per_example import jaxprs

X = jnp.arange(6.0).reshape(2, 3)


def equation(function: Any, *arguments: Any) -> JaxprEqn:
    """The only one of a function's program, or the last."""
    return jaxprs.trace(function, *arguments).jaxpr.eqns[-1]


def custom(x: Any) -> Any:
    @jax.custom_vjp
    def double(x: Any) -> Any:
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, dy: (5 * dy,))
    return double(x)


def test_a_call_is_known_by_the_program_inside() -> None:
    for function in (jax.jit(jnp.sin), jax.checkpoint(jnp.sin)):
        inside = jaxprs.called(equation(function, X))
        assert inside is not None
        assert [e.primitive.name for e in inside.jaxpr.eqns] == ["sin"]
    for function in (jnp.sin, jax.nn.relu, custom):
        assert jaxprs.called(equation(function, X)) is None


def test_a_checkpoint_has_its_options() -> None:
    policy = jax.checkpoint_policies.dots_saveable
    options = jaxprs.checkpoint_options(
        equation(jax.checkpoint(jnp.sin, policy=policy, prevent_cse=False), X)
    )
    assert options == {"policy": policy, "prevent_cse": False}
    assert jaxprs.checkpoint_options(equation(jax.jit(jnp.sin), X)) is None


def test_a_scan_says_what_is_constant_carried_and_sliced() -> None:
    def function(constant: Any, carry: Any, slices: Any) -> Any:
        return jax.lax.scan(lambda c, s: (c + constant, c * s), carry, slices, reverse=True)

    scan = jaxprs.scanned(equation(function, 2.0, 1.0, X))
    assert scan is not None
    assert (scan.constants, scan.carry) == (1, 1)
    assert (scan.options["length"], scan.options["reverse"]) == (2, True)
    assert len(scan.body.jaxpr.invars) == 3
    assert jaxprs.scanned(equation(jnp.sin, X)) is None


def test_a_product_says_which_axes_are_paired() -> None:
    x, y = jnp.ones((2, 3, 4, 5)), jnp.ones((5, 3, 2))
    product = equation(lambda x, y: jax.lax.dot_general(x, y, (((3, 0), (0, 2)), ((1,), (1,)))), x, y)
    assert jaxprs.contraction(product) == (((3, 0), (0, 2)), ((1,), (1,)))
    assert jaxprs.contraction(equation(jnp.sin, X)) is None


def test_a_convolution_says_how_it_is_laid_out() -> None:
    def convolution(x: Any, kernel: Any, **options: Any) -> Any:
        numbers = ("CHNW", "OHIW", "HCWN")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 2), ((0, 1), (2, 3)), (3, 4), (5, 6), dimension_numbers=numbers, **options
        )

    x, kernel = jnp.ones((4, 19, 6, 29)), jnp.ones((6, 2, 2, 3))
    said = jaxprs.convolved(equation(lambda x, k: convolution(x, k, feature_group_count=2), x, kernel))
    assert said is not None
    assert (said.x_axes, said.kernel_axes, said.y_axes) == ((2, 1, 3, 0), (1, 3, 2, 0), (3, 0, 2, 1))
    assert (said.strides, said.padding) == ((1, 2), ((0, 1), (2, 3)))
    assert (said.input_dilation, said.window_dilation, said.groups) == ((3, 4), (5, 6), 2)
    of_batch_groups = equation(lambda x, k: convolution(x, k, batch_group_count=2), x, jnp.ones((6, 2, 4, 3)))
    assert jaxprs.convolved(of_batch_groups) is None
    assert jaxprs.convolved(equation(jnp.sin, X)) is None


def test_a_lookup_says_whether_it_is_of_whole_rows() -> None:
    def inside(function: Any) -> JaxprEqn:
        found = []

        def visit(program: Any) -> None:
            for e in program.jaxpr.eqns:
                if (called := jaxprs.called(e)) is not None:
                    visit(called)
                found.extend([e] if e.primitive is jax.lax.gather_p else [])

        visit(jaxprs.trace(function, X))
        (only,) = found
        return only

    index = jnp.array([0, 1, 1])
    assert jaxprs.rows_taken(inside(lambda x: x.at[index].get(mode="fill"))) == ((1,), False)
    assert jaxprs.rows_taken(inside(lambda x: x.at[index].get(mode="clip"))) == ((1,), True)
    assert jaxprs.rows_taken(inside(lambda x: x[:, index])) is None
    assert jaxprs.rows_taken(inside(lambda x: x[index, index])) is None
    assert jaxprs.rows_taken(equation(jnp.sin, X)) is None


@pytest.mark.parametrize(
    ("function", "rearranges"),
    [
        (lambda x: x.reshape(6), True),
        (lambda x: x.T, True),
        (lambda x: jax.lax.squeeze(x[None], (0,)), True),
        (lambda x: jax.lax.expand_dims(x, (1,)), True),
        (lambda x: jax.lax.rev(x, (0,)), True),
        (lambda x: jax.lax.slice(x, (0, 1), (2, 3)), True),
        (lambda x: -x, True),
        (lambda x: jnp.broadcast_to(x, (4, 2, 3)), False),
        (lambda x: x.sum(axis=0), False),
        (lambda x: 2.0 * x, False),
        (jnp.sin, False),
        (lambda x: jax.lax.pad(x, 0.0, [(1, 0, 0), (0, 0, 0)]), False),
    ],
)
def test_what_only_rearranges_keeps_the_norm_of_what_is_pulled_back(function: Any, rearranges: bool) -> None:
    assert jaxprs.only_rearranges(equation(function, X)) == rearranges
    if rearranges:
        y, pull_back = jax.vjp(function, X)
        dy = jax.random.normal(jax.random.key(0), y.shape)
        assert float(jnp.linalg.norm(pull_back(dy)[0])) == pytest.approx(float(jnp.linalg.norm(dy)), rel=1e-6)


def test_what_only_rounds() -> None:
    assert jaxprs.only_rounds(equation(lambda x: x.astype(jnp.bfloat16), X))
    assert not jaxprs.only_rounds(equation(lambda x: x.astype(jnp.int32), X))
    assert not jaxprs.only_rounds(equation(jnp.sin, X))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "function",
    [
        jnp.sin,
        jax.jit(lambda x: x @ x.T),
        jax.checkpoint(jnp.sin),
        jax.nn.relu,
        custom,
        lambda x: jax.lax.scan(lambda c, s: (c + s, c), x[0], x),
        lambda x: jax.lax.cond(x[0, 1] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x),
        lambda x: jnp.take(x, 1, axis=0),
        lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
        lambda x: x.at[0].add(1.0),
    ],
)
def test_every_equation_is_evaluated_as_it_stands(function: Any) -> None:
    """Under jit, too, and with the derivative that was defined."""

    def replayed(x: Any) -> Any:
        program = jaxprs.trace(function, x)
        known: dict[Any, Any] = dict(zip(program.jaxpr.invars, [x], strict=True))
        known.update(zip(program.jaxpr.constvars, program.consts, strict=True))
        for e in program.jaxpr.eqns:
            values = [v.val if isinstance(v, Literal) else known[v] for v in e.invars]
            known.update(zip(e.outvars, jaxprs.evaluate(e, values), strict=True))
        return [v.val if isinstance(v, Literal) else known[v] for v in program.jaxpr.outvars]

    for found, expected in zip(jax.jit(replayed)(X), jax.tree.leaves(function(X)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    if "while" not in str(jaxprs.trace(function, X)):
        gradients = [
            jax.grad(lambda x, f=f: sum(jnp.sum(v) for v in jax.tree.leaves(f(x))))(X)
            for f in (replayed, function)
        ]
        np.testing.assert_allclose(*gradients, rtol=1e-6)
