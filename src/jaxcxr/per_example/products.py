"""Per-example gradients of the weights of a product: dense layers, projections of attention, einsums, any
`dot_general`.

With the other operand as rows U [T, P] and the output's cotangent as rows V [T, O], the weight's gradient is
U^T V.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float

from jaxcxr.per_example import jaxprs

GRAM_ROUNDINGS = 4
"""Added to a squared Gram norm, in roundings of the terms' absolute sum: where terms of both signs cancel,
their rounding is many times the result's, and a norm that came out too small would clip too little.
"""


CPU_PRODUCTS = 48
"""How many products a processor computes in the time in which it writes and reads a number of a gradient (see
`gram_is_cheaper`)."""


def gram_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether the norm should come from Gram matrices, T^2 (P + O) products, and not from the gradient of
    each example.

    With Gram matrices no example's gradient is held: the sum is one weight gradient more. So they pay where
    the gradient has more numbers than rows and cotangents together, P O > T (P + O). On a processor memory is
    no concern: there they must also cost less than writing the gradient and reading it twice (ViT-S, 8 images
    of 196 patches: a private step of 1.14 ordinary ones by the first condition alone).
    """
    if positions * (inputs + outputs) >= inputs * outputs:
        return False
    return (
        jax.default_backend() != "cpu" or positions**2 * (inputs + outputs) < CPU_PRODUCTS * inputs * outputs
    )


def gram_squared_norms(
    input_gram: Float[Array, "n *b t t"], cotangents: Float[Array, "n *b t o"]
) -> Float[Array, "n"]:
    """|U^T V|^2 as the inner product of the Gram matrices U U^T and V V^T (Goodfellow 2015, arXiv 1510.01799;
    Li et al. 2022, arXiv 2110.05679, 'ghost clipping').
    """
    terms = input_gram * gram(cotangents)
    sums, sizes = (v.reshape(len(v), -1).sum(axis=1) for v in (terms, jnp.abs(terms)))
    return sums + GRAM_ROUNDINGS * jnp.finfo(terms.dtype).eps * sizes


def gram(rows: Float[Array, "*b t p"]) -> Float[Array, "*b t t"]:
    """Inner products of the rows, each with each, float32 or better."""
    return jnp.einsum("...tp,...sp->...ts", rows, rows, preferred_element_type=accumulator(rows))


def accumulator(x: Any) -> Any:
    """The precision in which numbers of this type are added: float32, or float64 for float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Product:
    """The rule (`sites.Rule`) of one `dot_general`.

    Attributes:
        equation: the product.
        operand: 0 or 1, which of its inputs is the weight.
        batch, contracted, free: the weight's axes of each kind; those summed over and those of a batch in the
            order in which the product pairs them.
        x_batch, x_contracted, x_free: the same of the other input.
    """

    equation: JaxprEqn
    operand: int
    batch: tuple[int, ...]
    contracted: tuple[int, ...]
    free: tuple[int, ...]
    x_batch: tuple[int, ...]
    x_contracted: tuple[int, ...]
    x_free: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.equation.invars[self.operand].aval.shape  # type: ignore[attr-defined]

    def norm_is_cheaper(self, times: int) -> bool:
        """Whether Gram matrices are."""
        x = self.equation.invars[1 - self.operand].aval.shape  # type: ignore[attr-defined]
        positions = times * math.prod(x[axis] for axis in self.x_free)
        return gram_is_cheaper(
            positions,
            *(math.prod(self.shape[axis] for axis in axes) for axes in (self.contracted, self.free)),
        )

    def apply(self, x: Any, weight: Any) -> Any:
        """The product of one example."""
        return jaxprs.evaluate(self.equation, [weight, x] if self.operand == 0 else [x, weight])[0]

    def apply_differentiably(self, x: Any, weight: Any) -> Any:
        """The same: JAX differentiates it by itself."""
        return self.apply(x, weight)

    def each(self, x: Any, dy: Any) -> Float[Array, "n a ..."]:
        """Gradient of the weight for each example."""
        u, v = self._rows(x, dy)
        return self._as_weight(
            jnp.einsum("nabtp,nabto->nabpo", u, v, preferred_element_type=accumulator(v)).astype(v.dtype)
        )

    def total(self, x: Any, dy: Any) -> Float[Array, "a ..."]:
        """Gradient of the weight summed over examples: one product for all of them."""
        u, v = self._rows(x, dy)
        return self._as_weight(
            jnp.einsum("nabtp,nabto->abpo", u, v, preferred_element_type=accumulator(v)).astype(v.dtype)
        )

    def squared_norms(self, x: Any, dy: Any) -> Float[Array, "n"]:
        """By Gram matrices."""
        u, v = self._rows(x, dy)
        return gram_squared_norms(gram(u), v)

    def _rows(self, x: Any, dy: Any) -> tuple[Float[Array, "n a b t p"], Float[Array, "n a b t o"]]:
        lead, after = x.shape[:3], 3
        x = jnp.transpose(
            x,
            (
                0,
                1,
                *(after + i for i in self.x_batch),
                2,
                *(after + i for i in (*self.x_free, *self.x_contracted)),
            ),
        )
        batch = math.prod(self.shape[axis] for axis in self.batch)
        x = x.reshape(*lead[:2], batch, -1, math.prod(self.shape[axis] for axis in self.contracted))
        batches, weights, others = len(self.batch), len(self.free), len(self.x_free)
        # the output has the batch first, then what is free of the left operand, then of the right one
        first = weights if self.operand == 0 else 0
        free_of_x = range(batches + first, batches + first + others)
        free_of_weight = [i for i in range(batches, batches + weights + others) if i not in free_of_x]
        dy = jnp.transpose(
            dy,
            (
                0,
                1,
                *(after + i for i in range(batches)),
                2,
                *(after + i for i in (*free_of_x, *free_of_weight)),
            ),
        )
        return x, dy.reshape(*lead[:2], batch, -1, math.prod(self.shape[axis] for axis in self.free))

    def _as_weight(self, gradient: Float[Array, "*lead a b p o"]) -> Array:
        order = (*self.batch, *self.contracted, *self.free)
        lead = gradient.shape[:-3]
        gradient = gradient.reshape(*lead, *(self.shape[axis] for axis in order))
        return jnp.transpose(
            gradient, (*range(len(lead)), *(len(lead) + order.index(axis) for axis in range(len(order))))
        )


def rule_of(equation: JaxprEqn, operand: int) -> Product | None:
    """The rule of a `dot_general` whose weight is one of its inputs."""
    if (said := jaxprs.contraction(equation)) is None:
        return None
    contracted, batch = said
    axes = []
    for which in (operand, 1 - operand):
        taken = (*batch[which], *contracted[which])
        rank = len(equation.invars[which].aval.shape)  # type: ignore[attr-defined]
        axes += [
            tuple(batch[which]),
            tuple(contracted[which]),
            tuple(i for i in range(rank) if i not in taken),
        ]
    return Product(equation, operand, *axes)
