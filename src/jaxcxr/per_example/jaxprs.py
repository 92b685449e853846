"""JAX's traced programs (jaxprs), as far as this package reads them.

`jax.extend.core` gives the types. The names of primitives that hold programs, and of their parameters, are
not promised by
JAX: they stand in this file alone (those of products, convolutions and lookups in the files of their rules),
and `tests/per_example/test_jaxprs.py` pins each of them down.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Primitives that evaluate the program inside them, and nothing else."""
CHECKPOINTS = frozenset({"remat2", "checkpoint", "remat"})
REARRANGEMENTS = frozenset(
    {
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "rev",
        "slice",
        "neg",
        "copy",
        "copy_p",
        "sharding_constraint",
    }
)
"""Primitives of one operand that move its entries, or take some of them."""


class Scan(NamedTuple):
    """What a scan equation says.

    Attributes:
        body: one iteration: (constants, carry, slices) -> (carry, slices).
        constants, carry: numbers of inputs of each kind.
        options: for `jax.lax.scan`.
    """

    body: ClosedJaxpr
    constants: int
    carry: int
    options: dict[str, Any]


def trace(function: Callable[..., Any], *arguments: Any) -> ClosedJaxpr:
    """The program of a function of pytrees; its inputs and outputs are their leaves."""
    return jax.make_jaxpr(function)(*arguments)


def called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The program that a call or a checkpoint evaluates, if the equation is one."""
    if equation.primitive.name not in CALLS | CHECKPOINTS:
        return None
    body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def checkpoint_options(equation: JaxprEqn) -> dict[str, Any] | None:
    """Options of `jax.checkpoint`, if the equation is a checkpoint."""
    if equation.primitive.name not in CHECKPOINTS:
        return None
    return {"policy": equation.params["policy"], "prevent_cse": equation.params["prevent_cse"]}


def scanned(equation: JaxprEqn) -> Scan | None:
    """What the equation says, if it is a scan."""
    if equation.primitive.name != "scan":
        return None
    params = equation.params
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    if "ft_in" in params:  # from JAX 0.11 or 0.12 on: the inputs as a tree of three parts
        constants, carry = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    else:
        constants, carry = params["num_consts"], params["num_carry"]
    return Scan(params["jaxpr"], constants, carry, options)


def only_rearranges(equation: JaxprEqn) -> bool:
    """Whether the equation moves entries or takes some of them, each once: what is pulled back through it
    keeps its norm.
    """
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    if equation.primitive.name == "broadcast_in_dim":
        return before.size == after.size  # type: ignore[attr-defined]
    return equation.primitive.name in REARRANGEMENTS


def only_rounds(equation: JaxprEqn) -> bool:
    """Whether the equation converts from one floating-point type to another."""
    if equation.primitive.name != "convert_element_type":
        return False
    types = (v.aval.dtype for v in (*equation.invars, *equation.outvars))  # type: ignore[attr-defined]
    return all(jax.numpy.issubdtype(dtype, jax.numpy.floating) for dtype in types)


def evaluate(equation: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The equation's outputs."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair until JAX 0.9
    outputs = equation.primitive.bind(*functions, *values, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]
