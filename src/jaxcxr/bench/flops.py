"""The fewest floating-point operations of a gradient step, from the traced loss."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float, PyTree

LOOPS = ("scan", "while", "cond")


def least_flops(loss: Callable[[Any, Any], Float[Array, ""]], params: PyTree, example: PyTree) -> float:
    """Operations of the products and convolutions of one example's loss and of its gradient with respect to
    `params`.

    The gradient of an operand costs what the product costs, and is needed where that operand depends on a
    parameter. Everything but products is left out. Leaves may be shapes.

    Raises:
        NotImplementedError: the loss has a loop or a branch, whose operations nobody can count beforehand.
    """
    closed = jax.make_jaxpr(loss)(params, example)
    n_params = len(jax.tree.leaves(params))
    return _flops(closed.jaxpr, [index < n_params for index in range(len(closed.jaxpr.invars))])[0]


def _flops(jaxpr: Jaxpr, depends: Sequence[bool]) -> tuple[float, list[bool]]:
    """The operations, and which outputs depend on a parameter, given which inputs do."""
    total, depending = 0.0, {variable for variable, does in zip(jaxpr.invars, depends, strict=True) if does}

    def of(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in depending

    for equation in jaxpr.eqns:
        name: str = equation.primitive.name
        shapes: list[Any] = [
            getattr(atom.aval, "shape", ()) for atom in (*equation.invars, *equation.outvars)
        ]
        if name in LOOPS:
            raise NotImplementedError(f"operations of a {name}")
        inputs = [of(atom) for atom in equation.invars]
        outputs = [any(inputs)] * len(equation.outvars)
        inner = next(
            (_open(value) for value in equation.params.values() if isinstance(value, (Jaxpr, ClosedJaxpr))),
            None,
        )
        if name in ("dot_general", "conv_general_dilated"):
            left, right, out = shapes
            if name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                terms = math.prod(left[axis] for axis in contracted)
            else:
                kernel = equation.params["dimension_numbers"].rhs_spec  # (out, in, *sides)
                terms = math.prod(right[axis] for axis in kernel[1:])
            total += 2.0 * math.prod(out) * terms * (1 + sum(inputs))
        elif inner is not None:
            within, outputs = _flops(inner, inputs)
            total += within
        depending |= {variable for variable, does in zip(equation.outvars, outputs, strict=True) if does}
    return total, [of(atom) for atom in jaxpr.outvars]


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
