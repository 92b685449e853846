"""Sums that do not depend on their order: microbatches, devices and processes add whole numbers.

A float32 sum depends on the order of its terms, so that one unit more, which moves every later microbatch,
could move the total by more than its own contribution (Casacuberta et al. 2022, arXiv 2207.10635). Here each
part (the sum of one microbatch on one device) is written once as whole steps of a fixed grid, in two 32-bit
words: `high` counts 2^LOW_BITS steps, `low` single ones.

Guarantee: the total is the exact sum of the parts' words, whatever their order and wherever they were added.
No word overflows as long as at most `most_units` units, each of L2 norm at most the clip norm, come in at
most `MOST_PARTS` parts:

- high: a part's word is at most its units times 2^(1 + high_bits) plus one half, with high_bits <= 29 -
  log2(most_units), so that all together stay below 2^30 + MOST_PARTS;
- low: a part's word is at most 2^(LOW_BITS - 1), and all together at most MOST_PARTS times that, 2^30.

`training.batches` refuses a batch with more units. A part that is not finite is counted in `broken` and makes
the released value not-a-number: a run that diverges stops.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

LOW_BITS = 15
MOST_PARTS = 1 << 16
_TOP_BITS = 12
"""Bits of `high` that are turned into a float apart, so that no conversion rounds."""


class ExactSum(NamedTuple):
    """Whole numbers of steps: high * 2^LOW_BITS + low.

    Attributes:
        high, low: int32, trees of one shape.
        broken: how many parts were not finite.
    """

    high: PyTree
    low: PyTree
    broken: Int32[Array, ""]


def step_for(l2_clip_norm: float, most_units: int) -> float:
    """Size of a step for parts in floating point: the finest power of two with which nothing overflows.

    Raises:
        ValueError: so many units leave no bit for the sum.
    """
    high_bits = 29 - math.ceil(math.log2(most_units))
    if high_bits < 1:
        raise ValueError(f"a step of {most_units} units: expected at most 2^28")
    return 2.0 ** (math.floor(math.log2(l2_clip_norm)) - high_bits - LOW_BITS)


def most_units(steps: int) -> int:
    """How many units may be summed, each of which adds at most so many steps to a coordinate, without an
    overflow.
    """
    return (1 << (30 + LOW_BITS)) // steps


def empty(like: PyTree) -> ExactSum:
    """The sum of nothing, in the shapes of `like`."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), like)
    return ExactSum(zeros, zeros, jnp.zeros((), jnp.int32))


def of_floats(part: PyTree, step: float, is_finite: Any) -> ExactSum:
    """A part in floating point, each coordinate rounded to the nearest step.

    Dividing by a power of two, and taking the nearest whole number away, round nothing. What is not finite
    counts in `broken` and is nothing here.
    """
    scaled = jax.tree.map(lambda x: x * (2.0**-LOW_BITS / step), part)
    # Or XLA would compute a part twice, once for each word, where that is a sum that it can write into the
    # loop.
    scaled = jax.lax.optimization_barrier(
        jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 2.0**30, x, 0.0), scaled)
    )
    whole = jax.tree.map(jnp.rint, scaled)
    high = jax.tree.map(lambda x: x.astype(jnp.int32), whole)
    low = jax.tree.map(lambda x, r: jnp.rint((x - r) * 2.0**LOW_BITS).astype(jnp.int32), scaled, whole)
    return ExactSum(high, low, _broken(is_finite))


def of_units(values: Float[Array, "n"], step: float) -> ExactSum:
    """A part: the sum of one number for each unit, each rounded to the nearest step by itself.

    The halves that rounding may add to its `high`, one per unit, leave the total below 2^31.

    Raises:
        ValueError: there are more units than `low` has room for.
    """
    if len(values) > MOST_PARTS:
        raise ValueError(f"exact sum: expected at most {MOST_PARTS} units, found {len(values)}")
    each = of_floats(values, step, True)
    return ExactSum(*_carried(jnp.sum(each.high), jnp.sum(each.low)), each.broken)


def of_steps(part: PyTree, is_finite: Any) -> ExactSum:
    """A part in whole steps already (int32)."""
    high = jax.tree.map(lambda v: (v + (1 << (LOW_BITS - 1))) >> LOW_BITS, part)
    low = jax.tree.map(lambda v, h: v - (h << LOW_BITS), part, high)
    return ExactSum(high, low, _broken(is_finite))


def plus_steps(total: ExactSum, noise: PyTree, step: float) -> PyTree:
    """The total plus whole steps of noise (int32), as floats: rounded once, after the noise is in it."""

    def of_leaf(high: Any, low: Any, noise: Any) -> Any:
        more = of_steps(noise, True)
        high, low = _carried(high + more.high, low + more.low)
        return _if_whole(total, (high.astype(jnp.float32) * 2.0**LOW_BITS + low.astype(jnp.float32)) * step)

    return jax.tree.map(of_leaf, total.high, total.low, noise)


def plus_floats(total: ExactSum, noise: PyTree, step: float) -> PyTree:
    """The total plus noise in floating point. The noise comes first: no rounding precedes it."""

    def of_leaf(high: Any, low: Any, noise: Any) -> Any:
        high, low = _carried(high, low)
        # to the nearest: terms of one small sum do not cancel
        top = (high + (1 << (_TOP_BITS - 1))) >> _TOP_BITS
        middle = high - (top << _TOP_BITS)
        terms = (low, step), (middle, step * 2.0**LOW_BITS), (top, step * 2.0 ** (LOW_BITS + _TOP_BITS))
        for word, unit in terms:
            noise += word.astype(jnp.float32) * unit
        return _if_whole(total, noise)

    return jax.tree.map(of_leaf, total.high, total.low, noise)


def value(total: ExactSum, step: float) -> PyTree:
    """The total in float32, for tests and audits."""
    return plus_floats(total, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), total.high), step)


def _carried(high: Any, low: Any) -> tuple[Any, Any]:
    """The same number with `low` between -2^(LOW_BITS - 1) and 2^(LOW_BITS - 1)."""
    carry = (low + (1 << (LOW_BITS - 1))) >> LOW_BITS
    return high + carry, low - (carry << LOW_BITS)


def _broken(is_finite: Any) -> Int32[Array, ""]:
    return jnp.where(is_finite, 0, 1).astype(jnp.int32)


def _if_whole(total: ExactSum, x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(total.broken == 0, x, jnp.nan)
