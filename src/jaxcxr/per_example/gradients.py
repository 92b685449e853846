"""Sums of per-example gradients of any JAX function, weighted by their norms, at about the price of one
ordinary gradient.

The definition is `jax.vmap(jax.grad(loss))`. What is computed: one forward and one backward pass over all
examples, which give for each site (`sites`) its input and the cotangent of its output; squared norms by Gram
matrices or from the gradients themselves, whichever is cheaper; and the weighted sum, after a Gram norm by
one ordinary weight gradient of scaled cotangents.

An example is one element of the leading axis of every leaf of `examples`, any pytree: an image and its
labels, a patient's images, tokens, a key for dropout. The loss sees one of them, so that nothing can mix
examples.

Norms and sums are float32 at full precision or better (on a GPU, XLA's default would round the factors of a
product to ten bits, and the sum would not have the norm that was computed for it); the network's own
arithmetic may be as coarse as it likes.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from jaxcxr.per_example import jaxprs
from jaxcxr.per_example.products import accumulator
from jaxcxr.per_example.sites import Body, Program, find

Loss = Callable[[Any, Any], Float[Array, ""]]
"""(parameters, one example) -> its loss."""
Weigh = Callable[[PyTree], PyTree]
"""Squared norms of each parameter's gradients -> factors of each parameter's gradients: trees like the
parameters, of [n].
"""

ELEMENTWISE = frozenset({"add", "sub", "mul", "div"})
KEPT = "input of a weight"
"""Name, for `jax.checkpoint`, of what a weight gradient needs."""


def weighted_sum(
    loss: Loss, params: PyTree, examples: PyTree, weigh: Weigh
) -> tuple[PyTree, Float[Array, "n"], PyTree]:
    """The sum over examples of gradients times factors that follow from their norms.

    Args:
        loss: of one example.
        params: floating-point leaves.
        examples: leaves with a leading axis of n examples; of none, the sum is zero.
        weigh: from squared norms to factors; called once, under trace.

    Returns:
        The sum (float32 or better, same tree as `params`), the n losses, and the squared norms that `weigh`
        was given.
    """
    if _count(examples) == 0:
        return _zeros(params), jnp.zeros(0), jax.tree.map(lambda _: jnp.zeros(0), params)
    one = _backward_pass(loss, params, examples)
    if found := _named(one.program, params):
        named = ", ".join(f"{name} ({', '.join(why)})" for name, why in found.items())
        warnings.warn(f"whole gradients of each example are held for {named}", stacklevel=2)
    leaves, structure = jax.tree.flatten(params)
    with jax.default_matmul_precision("highest"):
        by_norm = {leaf for leaf in range(len(leaves)) if one.norm_is_cheaper(leaf)}
        one = one.fixed(by_norm)
        gradients = {leaf: one.each(leaf) for leaf in range(len(leaves)) if leaf not in by_norm}
        if not one.is_in_32_bits:
            gradients = _fixed(gradients)
        squared = [
            one.squared_norms(leaf) if leaf in by_norm else _squared(gradients[leaf])
            for leaf in range(len(leaves))
        ]
        squared = jax.tree.unflatten(structure, squared)
        factors = structure.flatten_up_to(weigh(squared))
        total = [
            one.total(leaf, factors[leaf]) if leaf in by_norm else _weighted(factors[leaf], gradients[leaf])
            for leaf in range(len(leaves))
        ]
    return jax.tree.unflatten(structure, total), one.losses, squared


def weighted_sum_vmap(
    loss: Loss, params: PyTree, examples: PyTree, weigh: Weigh
) -> tuple[PyTree, Float[Array, "n"], PyTree]:
    """The definition of `weighted_sum`: `vmap(grad)`, which holds every example's whole gradient.

    Of the loss as it is, but for convolutions of maps of a few pixels, which are written as products
    (`convolutions.convolve_small`): XLA on the CPU has nothing but a naive loop for them.
    """
    differentiate = jax.value_and_grad(quick(loss, is_differentiated=True))
    losses, gradients = jax.vmap(differentiate, in_axes=(None, 0))(params, examples)
    gradients = _fixed(gradients)
    squared = jax.tree.map(_squared, gradients)
    with jax.default_matmul_precision("highest"):
        return jax.tree.map(_weighted, weigh(squared), gradients), losses, squared


def _weighted(factors: Float[Array, "n"], gradients: Float[Array, "n ..."]) -> Any:
    return jnp.tensordot(factors.astype(accumulator(gradients)), _wide(gradients), axes=(0, 0))


def each_gradient(loss: Loss, params: PyTree, examples: PyTree) -> tuple[PyTree, Float[Array, "n"]]:
    """Every example's whole gradient, with a leading axis of n, and the n losses: from one backward pass over
    all examples.

    Whoever takes norms of them fixes their rounding first (`jax.lax.optimization_barrier`).
    """
    if _count(examples) == 0:
        return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), params), jnp.zeros(0)
    one = _backward_pass(loss, params, examples)
    leaves, structure = jax.tree.flatten(params)
    with jax.default_matmul_precision("highest"):
        return jax.tree.unflatten(structure, [one.each(leaf) for leaf in range(len(leaves))]), one.losses


def plain_sum(
    loss: Loss, params: PyTree, examples: PyTree, weights: Float[Array, "n"]
) -> tuple[PyTree, Float[Array, "n"]]:
    """The sum of gradients times given weights, for training without privacy, and the n losses times them:
    the weight gradients are the fast ones of the private sum.
    """
    if _count(examples) == 0:
        return _zeros(params), jnp.zeros(0)
    one = _backward_pass(loss, params, examples, weights)
    leaves, structure = jax.tree.flatten(params)
    with jax.default_matmul_precision(None):
        return jax.tree.unflatten(
            structure, [_wide(one.total(leaf)) for leaf in range(len(leaves))]
        ), one.losses


def directly_differentiated(loss: Loss, params: PyTree, example: PyTree) -> dict[str, tuple[str, ...]]:
    """The parameters of which each example's whole gradient is held, because they take part in equations
    without a rule (`sites`), and the kinds of those equations. Scales and biases are not named: their
    gradients are smaller than activations.
    """
    return _named(_program(loss, params, example), params)


def _named(program: Program, params: PyTree) -> dict[str, tuple[str, ...]]:
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    kinds = {
        leaf: tuple(kind for kind in why if kind not in ELEMENTWISE) for leaf, why in program.direct.items()
    }
    large = {number for number, leaf in enumerate(jax.tree.leaves(params)) if leaf.ndim > 1}
    return {paths[leaf]: why for leaf, why in sorted(kinds.items()) if why and leaf in large}


def quick(
    function: Callable[[Any, Any], Any], *, is_differentiated: bool = False
) -> Callable[[Any, Any], Any]:
    """The same function of (parameters, one example), its convolutions as quick as the platform can.

    Args:
        function: of any pytrees.
        is_differentiated: with respect to the parameters; then only formulations are taken that JAX
            differentiates by itself. Without it, whoever does so is refused or gets zeros. (It may always be
            differentiated with respect to the example.)
    """

    def replayed(params: PyTree, example: PyTree) -> PyTree:
        program, shape = jax.make_jaxpr(function, return_shape=True)(params, example)
        found = find(program, len(jax.tree.leaves(params)))
        values = jax.tree.leaves((params, example))
        outputs, _ = _replay(found, found.body, values, None, is_differentiated)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return replayed


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One backward pass over a batch: everything of which the gradients of its examples are made.

    Attributes:
        program: the traced loss.
        params: its leaves.
        losses: of the examples.
        inputs, cotangents: of each site, as the site's rule expects them.
        direct: gradients of the parameters that are differentiated directly, by number.
    """

    program: Program
    params: list[Any]
    losses: Float[Array, "n"]
    inputs: list[Any]
    cotangents: list[Any]
    direct: dict[int, Any]

    def sites(self, leaf: int) -> list[int]:
        return [i for i, site in enumerate(self.program.sites) if leaf in site.origin.leaves]

    def norm_is_cheaper(self, leaf: int) -> bool:
        """Whether the norm of a parameter's gradient is to be had for less than the gradient."""
        if leaf in self.direct or len(self.sites(leaf)) != 1:
            return False
        return self.program.sites[self.sites(leaf)[0]].norm_is_cheaper

    @property
    def is_in_32_bits(self) -> bool:
        values = [v for v in (*self.inputs, *self.cotangents) if jnp.issubdtype(v.dtype, jnp.floating)]
        return all(accumulator(v) == v.dtype for v in values)

    def fixed(self, leaves: set[int]) -> "_Pass":
        """The same, with inputs and cotangents of the given parameters that all their users see alike."""
        if self.is_in_32_bits:
            return self
        inputs, cotangents = list(self.inputs), list(self.cotangents)
        for site in (i for leaf in leaves for i in self.sites(leaf)):
            inputs[site], cotangents[site] = _fixed((inputs[site], cotangents[site]))
        return dataclasses.replace(self, inputs=inputs, cotangents=cotangents)

    def squared_norms(self, leaf: int) -> Float[Array, "n"]:
        (site,) = self.sites(leaf)
        return self.program.sites[site].rule.squared_norms(self.inputs[site], self.cotangents[site])

    def each(self, leaf: int) -> Float[Array, "n ..."]:
        """The parameter's gradient for each example, in the precision in which it was computed."""
        parts = self.direct_of(leaf)
        for i in self.sites(leaf):
            site = self.program.sites[i]
            of_weights = site.rule.each(self.inputs[i], self.cotangents[i])
            parts.append(
                jax.vmap(lambda own, site=site: site.of_parameter(leaf, own, self.params))(of_weights)
            )
        if not parts:
            return jnp.zeros((len(self.losses), *self.params[leaf].shape), self.params[leaf].dtype)
        return functools.reduce(jnp.add, parts if len(parts) == 1 else map(_wide, parts))

    def total(self, leaf: int, factors: Float[Array, "n"] | None = None) -> Float[Array, "..."]:
        """The sum of the parameter's gradients; with factors, which scale the cotangents, in float32 or
        better: what is summed must have the norm that was computed for it.
        """
        # As a product: XLA on the CPU would merge a sum with the one over a map's places, which the
        # cotangents need apart, and compute both (80 of 740 ms at 256 pixels).
        parts = [
            jnp.tensordot(jnp.ones(len(g), accumulator(g)), _wide(g), 1, precision="highest")
            for g in self.direct_of(leaf)
        ]
        for i in self.sites(leaf):
            site, x, dy = self.program.sites[i], self.inputs[i], self.cotangents[i]
            if factors is not None:
                dy = jax.vmap(jnp.multiply)(factors.astype(accumulator(dy)), _wide(dy))
                x = _wide(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
            parts.append(_wide(site.of_parameter(leaf, site.rule.total(x, dy), self.params)))
        return functools.reduce(
            jnp.add, parts, jnp.zeros(self.params[leaf].shape, accumulator(self.params[leaf]))
        )

    def direct_of(self, leaf: int) -> list[Any]:
        return [self.direct[leaf]] if leaf in self.direct else []


def _backward_pass(
    loss: Loss, params: PyTree, examples: PyTree, weights: Float[Array, "n"] | None = None
) -> _Pass:
    """The pass, of each example's loss or of the loss times its weight."""
    leaves = jax.tree.leaves(params)
    program = _program(loss, params, jax.tree.map(lambda x: jax.typeof(x[0]), examples))
    zeros = [site.zero for site in program.sites]

    def of_parts(direct: dict[int, Any], zeros: list[Any], example: PyTree, weight: Any) -> Any:
        own = [direct.get(number, leaf) for number, leaf in enumerate(leaves)]
        (value,), inputs = _replay(
            program, program.body, [*own, *jax.tree.leaves(example)], dict(enumerate(zeros))
        )
        return (value if weight is None else weight * value), [inputs[i] for i in range(len(zeros))]

    differentiate = jax.vmap(
        jax.value_and_grad(of_parts, argnums=(0, 1), has_aux=True), in_axes=(None, None, 0, 0)
    )
    moving = {number: leaves[number] for number in sorted(program.direct)}
    (losses, inputs), (direct, cotangents) = differentiate(moving, zeros, examples, weights)
    arranged = [
        [site.arranged(v) for site, v in zip(program.sites, values, strict=True)]
        for values in (inputs, cotangents)
    ]
    inputs, cotangents = arranged
    return _Pass(program, leaves, losses, inputs, cotangents, direct)


def _program(loss: Loss, params: PyTree, example: PyTree) -> Program:
    try:
        traced = jaxprs.trace(loss, params, example)
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(
            "loss: expected to see one example; a layer of it mixes examples, such as batch statistics in "
            f"training ({error})"
        ) from error
    if [v.aval.shape for v in traced.jaxpr.outvars] != [()]:  # type: ignore[attr-defined]
        raise ValueError(f"loss: expected one number, found {traced.out_avals}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)}: expected floating point, found {leaf.dtype}"
            )
    return find(traced, len(jax.tree.leaves(params)))


def _replay(
    program: Program,
    body: Body,
    values: list[Any],
    zeros: dict[int, Any] | None,
    is_differentiated: bool = False,
) -> tuple[list[Any], dict[int, Any]]:
    """The outputs of a program, with zeros added at its sites, and the inputs of those; the sites' weights
    are constants unless they are differentiated.
    """
    jaxpr = body.program.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*body.program.consts, *values), strict=True))
    inputs: dict[int, Any] = {}
    for place, equation in enumerate(jaxpr.eqns):
        given = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
        if place in body.sites:
            number = body.sites[place]
            rule = program.sites[number].rule
            x, weight = checkpoint_name(given[1 - rule.operand], KEPT), given[rule.operand]
            if is_differentiated:
                output = rule.apply_differentiably(x, weight)
            else:
                output = rule.apply(x, jax.lax.stop_gradient(weight))
            if zeros is not None:
                inputs[number] = x
                output = output + zeros[number]
            outputs = [output]
        elif place in body.inner and body.inner[place].all_sites:
            inner = body.inner[place]
            own = None if zeros is None else {number: zeros[number] for number in inner.all_sites}
            outputs, found = _replay_inside(program, equation, inner, given, own, is_differentiated)
            inputs.update(found)
        else:
            outputs = jaxprs.evaluate(equation, given)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars], inputs


def _replay_inside(
    program: Program,
    equation: Any,
    inner: Body,
    given: list[Any],
    zeros: dict[int, Any] | None,
    is_differentiated: bool,
) -> tuple[list[Any], dict[int, Any]]:
    replay = functools.partial(_replay, program, inner, is_differentiated=is_differentiated)
    options, scan = jaxprs.checkpoint_options(equation), jaxprs.scanned(equation)
    if options is not None:
        keep = jax.checkpoint_policies.save_only_these_names(KEPT)
        policy = options.pop("policy")
        policy = keep if policy is None else jax.checkpoint_policies.save_from_both_policies(policy, keep)
        return jax.checkpoint(replay, policy=policy, **options)(given, zeros)
    if scan is None:
        return replay(given, zeros)
    constants, slices = given[: scan.constants], given[scan.constants + scan.carry :]

    def iteration(carry: list[Any], of_iteration: Any) -> Any:
        slices, zeros = of_iteration
        outputs, inputs = replay([*constants, *carry, *slices], zeros)
        return outputs[: scan.carry], (outputs[scan.carry :], inputs)

    carry, (outputs, inputs) = jax.lax.scan(
        iteration, given[scan.constants : scan.constants + scan.carry], (slices, zeros), **scan.options
    )
    return [*carry, *outputs], inputs


def _fixed(values: Any) -> Any:
    """The same numbers for all that use them.

    XLA leaves out a rounding to 16 bits where it computes in 32, and does so for each use of a value apart
    (`xla_allow_excess_precision`): a norm may then be that of other numbers than those that are summed.
    Measured on a CPU: a contribution 2e-5 longer than the clip norm.
    """
    return jax.lax.optimization_barrier(values)


def _wide(x: Any) -> Any:
    return x.astype(accumulator(x))


def _squared(gradient: Float[Array, "n ..."]) -> Float[Array, "n"]:
    return jnp.sum(jnp.square(_wide(gradient)).reshape(len(gradient), -1), axis=1)


def _count(examples: PyTree) -> int:
    lengths = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1:
        raise ValueError(
            f"examples: expected one leading axis for all, found lengths {sorted(lengths) or 'none'}"
        )
    return lengths.pop()


def _zeros(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, accumulator(leaf)), params)
