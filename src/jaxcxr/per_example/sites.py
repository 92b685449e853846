"""Where a program uses its parameters: the equations whose per-example gradients follow from one backward
pass.

For a product, a convolution or a lookup y = f(x, w) that is linear in w, and w made of parameters alone, an
example's gradient is determined by x and by the cotangent of y (Goodfellow 2015, arXiv 1510.01799). Both come
from one backward pass over many examples: a zero is added to y, and the gradient with respect to that zero is
the cotangent. So the search needs no knowledge of any library of layers: it reads the traced program, through
`jit`, `jax.checkpoint` and `jax.lax.scan`.

A parameter that takes part otherwise (scales, biases, anything inside `cond`, a custom derivative or a kernel
of one's own) is differentiated directly, example by example: right for everything, dear for large ones, and
named (`Program.direct`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array, Float

from jaxcxr.per_example import convolutions, jaxprs, lookups, products


@runtime_checkable
class Rule(Protocol):
    """What one kind of equation knows of its gradients.

    Arrays have three leading axes: n examples, a weights (of a scan over layers, each with its own), and the
    s times that each weight is used (in a scan over time). `x` is what the equation meets besides its weight,
    `dy` the cotangent of its output.
    """

    operand: int
    """Which input of the equation is the weight."""

    def norm_is_cheaper(self, times: int) -> bool:
        """Whether `squared_norms` costs less than `each`, where an example uses each weight so many times."""
        ...

    def apply(self, x: Any, weight: Any) -> Any:
        """The equation itself, for one example, as quickly as the platform can where the weight is not
        differentiated.
        """
        ...

    def apply_differentiably(self, x: Any, weight: Any) -> Any:
        """The same, where JAX differentiates the weight too, perhaps for each example."""
        ...

    def each(self, x: Any, dy: Any) -> Float[Array, "n a ..."]:
        """Gradient of the weights for each example, in the precision of dy."""
        ...

    def total(self, x: Any, dy: Any) -> Float[Array, "a ..."]:
        """Gradient of the weights summed over the examples, in the precision of dy."""
        ...

    def squared_norms(self, x: Any, dy: Any) -> Float[Array, "n"]:
        """Squared norm of each example's gradient, never too small by more than float32's rounding of it."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """How a value of the program is made of parameters and constants alone.

    Attributes:
        leaves: numbers of those parameters among the leaves of their tree; none for a constant.
        evaluate: (parameters, what is known already) -> the value; inside a scan over slices of it, of all
            slices.
        rearranged: if it is one parameter, rearranged and perhaps rounded: parameter -> value without the
            rounding. A gradient has the same norm for the value and for the parameter.
        own: the scans, by depth, that give each iteration a slice of its own; they are the value's leading
            axes.
    """

    leaves: frozenset[int]
    evaluate: Callable[[Sequence[Any], dict[int, Any]], Any]
    rearranged: Callable[[Any], Any] | None = None
    own: tuple[int, ...] = ()

    def value(self, params: Sequence[Any], known: dict[int, Any] | None = None) -> Any:
        """The value; `known` has those of other origins, so that nothing is computed twice."""
        known = {} if known is None else known
        if id(self) not in known:
            known[id(self)] = self.evaluate(params, known)
        return known[id(self)]


def _parameter(number: int) -> Origin:
    return Origin(frozenset([number]), lambda params, _: params[number], lambda parameter: parameter)


def _constant(value: Any) -> Origin:
    return Origin(frozenset(), lambda *_: value)


def _results(equation: JaxprEqn, inputs: Sequence[Origin]) -> list[Origin] | None:
    """The origins of an equation's outputs, given those of its inputs; None if its inputs belong to different
    scans.
    """
    scans = {origin.own for origin in inputs if origin.own}
    if len(scans) > 1:
        return None
    own = scans.pop() if scans else ()

    def run(*values: Any) -> list[Any]:
        mapped: Callable[..., Any] = lambda *values: jaxprs.evaluate(equation, values)  # noqa: E731 - mapped below
        for _ in own:
            mapped = jax.vmap(mapped, in_axes=tuple(0 if origin.own else None for origin in inputs))
        return mapped(*values)

    together = Origin(
        frozenset().union(*(origin.leaves for origin in inputs)),
        lambda params, known: run(*(origin.value(params, known) for origin in inputs)),
        own=own,
    )
    before, rearranged = inputs[0].rearranged if len(inputs) == 1 else None, None
    if before is not None and jaxprs.only_rounds(equation):
        rearranged = before
    elif before is not None and jaxprs.only_rearranges(equation):
        rearranged = lambda parameter, before=before: run(before(parameter))[0]  # noqa: E731 - bound to what comes before
    return [
        Origin(together.leaves, lambda params, known, i=i: together.value(params, known)[i], rearranged, own)
        for i in range(len(equation.outvars))
    ]


@dataclasses.dataclass(frozen=True)
class Site:
    """One equation in which a parameter takes part.

    Attributes:
        origin: of its weight.
        rule: of its kind.
        output: of one example in one iteration of the scans around it.
        scans: lengths of those scans, outermost first.
    """

    origin: Origin
    rule: Rule
    output: jax.ShapeDtypeStruct
    scans: tuple[int, ...]

    @property
    def zero(self) -> Array:
        """What is added to the outputs of one example, in all iterations."""
        return jnp.zeros((*self.scans, *self.output.shape), self.output.dtype)

    @property
    def norm_is_cheaper(self) -> bool:
        """Whether the norm of the gradient of the one parameter that it is made of is to be had for less than
        the gradient.
        """
        shared = [length for depth, length in enumerate(self.scans) if depth not in self.origin.own]
        return self.origin.rearranged is not None and self.rule.norm_is_cheaper(math.prod(shared))

    def arranged(self, values: Any) -> Any:
        """Values with leading axes of n examples and of the scans -> those that a `Rule` expects."""
        own = [1 + depth for depth in self.origin.own]
        shared = [1 + depth for depth in range(len(self.scans)) if depth not in self.origin.own]
        lengths = [math.prod(self.scans[axis - 1] for axis in axes) for axes in (own, shared)]
        moved = jnp.transpose(values, (0, *own, *shared, *range(1 + len(self.scans), values.ndim)))
        return moved.reshape(len(values), *lengths, *values.shape[1 + len(self.scans) :])

    def of_parameter(self, leaf: int, gradient: Float[Array, "a ..."], params: Sequence[Any]) -> Any:
        """The gradient of one of the parameters, given that of the weights; not rounded further where it is
        only rearranged.
        """
        weights = gradient.reshape(*(self.scans[depth] for depth in self.origin.own), *gradient.shape[1:])
        if self.origin.rearranged is not None:
            like = jax.ShapeDtypeStruct(params[leaf].shape, weights.dtype)
            return jax.linear_transpose(self.origin.rearranged, like)(weights)[0]

        def weight(parameter: Any) -> Any:
            return self.origin.value([parameter if i == leaf else other for i, other in enumerate(params)])

        value, pull_back = jax.vjp(weight, params[leaf])
        return pull_back(weights.astype(value.dtype))[0]


@dataclasses.dataclass(frozen=True)
class Body:
    """A program, the sites among its equations and the programs inside it that have some, by the equation's
    place.
    """

    program: ClosedJaxpr
    sites: dict[int, int]
    inner: dict[int, "Body"]

    @property
    def all_sites(self) -> set[int]:
        """Numbers of the sites in it and inside it."""
        return set(self.sites.values()).union(*(body.all_sites for body in self.inner.values()))


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced loss.

    Attributes:
        body: its program.
        sites: in the order of the forward pass.
        direct: for each parameter that is (also) differentiated directly, by number, what it takes part in.
    """

    body: Body
    sites: tuple[Site, ...]
    direct: dict[int, tuple[str, ...]]


def find(program: ClosedJaxpr, parameters: int) -> Program:
    """The sites of a loss whose first inputs are its parameters."""
    search = _Search()
    origins = [_parameter(i) if i < parameters else None for i in range(len(program.jaxpr.invars))]
    body, outputs = search.walk(program, origins, ())
    search.differentiated_directly(outputs, "output")
    return Program(
        body, tuple(search.sites), {leaf: tuple(dict.fromkeys(why)) for leaf, why in search.direct.items()}
    )


class _Search:
    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.direct: dict[int, list[str]] = {}

    def differentiated_directly(self, origins: Sequence[Origin | None], name: str) -> None:
        for leaf in (leaf for origin in origins if origin is not None for leaf in sorted(origin.leaves)):
            self.direct.setdefault(leaf, []).append(name)

    def walk(
        self, program: ClosedJaxpr, origins: Sequence[Origin | None], scans: tuple[int, ...]
    ) -> tuple[Body, list[Origin | None]]:
        """The program's sites, and the origins of its outputs, given those of its inputs (None where an
        example takes part).
        """
        body = Body(program, {}, {})
        made: dict[Any, Origin | None] = dict(zip(program.jaxpr.invars, origins, strict=True))
        made.update(zip(program.jaxpr.constvars, map(_constant, program.consts), strict=True))

        def origin_of(variable: Any) -> Origin | None:
            return _constant(variable.val) if isinstance(variable, Literal) else made.get(variable)

        for place, equation in enumerate(program.jaxpr.eqns):
            known = [origin_of(variable) for variable in equation.invars]
            inside, scan = jaxprs.called(equation), jaxprs.scanned(equation)
            outputs: Sequence[Origin | None] | None = None
            if inside is not None:
                body.inner[place], outputs = self.walk(inside, known, scans)
            elif scan is not None:
                body.inner[place] = self.walk_scan(scan, known, scans)
            elif (site := _site(equation, known, scans)) is not None:
                body.sites[place] = len(self.sites)
                self.sites.append(site)
            else:
                origins_known = [origin for origin in known if origin is not None]
                if len(origins_known) == len(known) and not equation.effects:
                    outputs = _results(equation, origins_known)
                if outputs is None:
                    self.differentiated_directly(known, equation.primitive.name)
            if outputs is not None:
                made.update(zip(equation.outvars, outputs, strict=True))
        return body, [origin_of(variable) for variable in program.jaxpr.outvars]

    def walk_scan(self, scan: jaxprs.Scan, known: Sequence[Origin | None], scans: tuple[int, ...]) -> Body:
        slices = scan.constants + scan.carry
        self.differentiated_directly(known[scan.constants : slices], "scan")
        own = [o and dataclasses.replace(o, own=(*o.own, len(scans))) for o in known[slices:]]
        inside = [*known[: scan.constants], *[None] * scan.carry, *own]
        body, outputs = self.walk(scan.body, inside, (*scans, scan.options["length"]))
        self.differentiated_directly(outputs, "scan")
        return body


def _site(equation: JaxprEqn, known: Sequence[Origin | None], scans: tuple[int, ...]) -> Site | None:
    """The equation as a site, if it is linear in one weight and its other input has nothing to do with
    parameters.
    """
    operands = [i for i, origin in enumerate(known) if origin is not None and origin.leaves]
    if len(operands) != 1:
        return None
    for kind in (products, convolutions, lookups):
        rule = kind.rule_of(equation, operands[0])
        origin, output = known[operands[0]], equation.outvars[0].aval
        if rule is not None and origin is not None:
            return Site(origin, rule, jax.ShapeDtypeStruct(output.shape, output.dtype), scans)  # type: ignore[attr-defined]
    return None
