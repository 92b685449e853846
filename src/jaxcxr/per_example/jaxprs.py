"""JAX's traced programs (jaxprs), as far as this package reads them.

`jax.extend.core` gives the types. The names of primitives and of their parameters are not promised by JAX:
in this package they stand in this file alone, and `tests/per_example/test_jaxprs.py` pins each of them down.
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


class Contraction(NamedTuple):
    """The axes of a product that are summed over, and those of a batch: of the left and the right operand, in
    the order in which they are paired.
    """

    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]


def contraction(equation: JaxprEqn) -> Contraction | None:
    """What the equation says, if it is a product (`dot_general`)."""
    if equation.primitive is not jax.lax.dot_general_p:
        return None
    contracted, batch = equation.params["dimension_numbers"]
    return Contraction(*((tuple(left), tuple(right)) for left, right in (contracted, batch)))


class Convolved(NamedTuple):
    """What a convolution says.

    Attributes:
        x_axes: of the input: batch, sides, channels.
        kernel_axes: sides, input channels of a group, features.
        y_axes: of the output: batch, sides, features.
        strides, padding, input_dilation, window_dilation: for each side.
        groups: of channels.
    """

    x_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    y_axes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]
    groups: int


def convolved(equation: JaxprEqn) -> Convolved | None:
    """What the equation says, if it is a convolution without groups of its batch."""
    params = equation.params
    if equation.primitive is not jax.lax.conv_general_dilated_p or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    # the batch, or the output features, come first in JAX's numbering, and the (input) channels second
    x_axes, y_axes = ((spec[0], *spec[2:], spec[1]) for spec in (numbers.lhs_spec, numbers.out_spec))
    return Convolved(
        x_axes,
        (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]),
        y_axes,
        tuple(params["window_strides"]),
        tuple((int(before), int(after)) for before, after in params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        params["feature_group_count"],
    )


class RowsTaken(NamedTuple):
    """How rows are looked up.

    Attributes:
        row_axes: of the output, those that run along a row.
        clips: whether an index outside the table means the nearest row; otherwise there is none.
    """

    row_axes: tuple[int, ...]
    clips: bool


def rows_taken(equation: JaxprEqn) -> RowsTaken | None:
    """What the equation says, if it is a lookup (`gather`) of whole rows: the first operand's first axis."""
    if equation.primitive is not jax.lax.gather_p:
        return None
    params, table = equation.params, equation.invars[0].aval.shape  # type: ignore[attr-defined]
    numbers = params["dimension_numbers"]
    is_of_rows = (
        tuple(numbers.collapsed_slice_dims) == (0,) == tuple(numbers.start_index_map)
        and tuple(params["slice_sizes"]) == (1, *table[1:])
        and not numbers.operand_batching_dims
    )
    if not is_of_rows:
        return None
    return RowsTaken(tuple(numbers.offset_dims), params["mode"] == jax.lax.GatherScatterMode.CLIP)


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
