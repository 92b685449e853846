"""Clipped gradient sums of known sensitivity: each unit's contribution is rounded by itself and added in
whole numbers.

Theorem. Let S(B) be the sum, in steps, that `rounded_sum` and `exact_sum` give for a batch B, for fixed
parameters. For every unit u that is not in B, S(B + u) - S(B) = c(u), where c(u) depends on u and on nothing
else, and |c(u)|_2 <= C / step + sqrt(d) / 2 for d coordinates.

Proof. (1) A compiled program of fixed shapes performs a fixed sequence of roundings. Under `vmap`, what is
computed for one place of the microbatch depends on what stands in that place and on the parameters alone: the
values of other places take part, if at all, multiplied by an exact zero. So the gradient of a unit is a
function g(u, place). The place is drawn for each unit by itself (`sampling.in_places`), whatever other units
are there, so that the unit has one gradient g(u), in whichever microbatch and on whichever device of the same
kind it is computed. (On a GPU kernels must not add atomically: the scripts set
XLA_FLAGS=--xla_gpu_deterministic_ops=true unless there are other flags, `console`; whoever calls this
otherwise sets it.)

(2) c(u) = rint(f g(u) / step), with f from |g(u)| alone: a function of u. A unit whose gradient is not finite
contributes 0, and the run stops. Whole numbers are added exactly, in any order (below 2^31 within a
microbatch of `MOST_UNITS`, then by `exact_sum`).

(3) Let s be the computed squared norm of g(u). It is a sum of d squares in four stages of at most 128 terms
each, kept apart by barriers, and of at most 256 leaves: with e = 2^-24, a sum of m terms of one sign is off
by at most (m - 1) e / (1 - (m - 1) e) of itself in any order (Higham 2002, section 4.2), so s >= |g|^2 (1 -
(4 * 127 + 255 + 8) e) >= |g|^2 (1 - 1e-4 / 2). Hence f |g| <= C (1 - `MARGIN`) (1 + 3e-5) in exact
arithmetic, the roundings of the square root, quotients and products included, and fl(f g / step) has length
at most C / step, since MARGIN is 1e-4. Rounding to whole numbers moves each coordinate by at most one half.
Squares that underflow are taken for 0; all of them together are below d 2^-126, which is nothing beside the
square of a clip norm, or of gamma, of at least 1e-6 (`clipping.LEAST`). QED.

The noise of `rounded_noise.grid_for` is for C / step + sqrt(d). Clipped layer by layer, the norm of each
layer's part is bounded so. The coordinate that an adaptive rule adds is one of the d.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PyTree

from jaxcxr.privacy.clipping import ClipRule, Flat, factors_of_parameters

MARGIN = 1e-4
MOST_UNITS = 512
_TERMS = 128


def rounded_sum(
    gradients: PyTree,
    is_real: Bool[Array, "n"],
    l2_clip_norm: float,
    step: float,
    rule: ClipRule = Flat(),  # noqa: B008 - frozen
) -> tuple[PyTree, Float[Array, "n"]]:
    """The clipped sum of a microbatch in whole steps (int32), and the n norms before clipping (private; for
    the operator's eyes).

    Args:
        gradients: of each unit, with a leading axis of n (`per_example.gradients.each_gradient`, or
            `vmap(grad)`).
        is_real: False for padding, which contributes exactly zero.
        l2_clip_norm: C.
        step: size of a step (`rounded_noise.grid_for`).
        rule: which part of a gradient is scaled by how much.

    Raises:
        ValueError: more than `MOST_UNITS` units might not fit into 32 bits.
    """
    if len(is_real) > MOST_UNITS:
        raise ValueError(
            f"hardened sum: expected at most {MOST_UNITS} units in a microbatch, found {len(is_real)}"
        )
    gradients = jax.lax.optimization_barrier(gradients)  # one rounding for norm and sum alike
    squared = jax.tree.map(_squared_norms, gradients)
    factors, of_wholes = factors_of_parameters(squared, is_real, l2_clip_norm * (1.0 - MARGIN), rule)
    norms = jnp.sqrt(of_wholes)
    usable = is_real & jnp.isfinite(norms)

    def of_leaf(factors: Float[Array, "n"], gradient: Float[Array, "n ..."]) -> Int32[Array, "..."]:
        scaled = factors / step
        total = jnp.zeros(gradient.shape[1:], jnp.int32)
        for place in range(len(gradient)):  # one pass over memory: XLA fuses what is unrolled
            own = jnp.rint(gradient[place].astype(jnp.float32) * scaled[place]).astype(jnp.int32)
            total += jnp.where(usable[place], own, 0)
        return total

    return jax.tree.map(of_leaf, factors, gradients), norms


def _squared_norms(leaf: Float[Array, "n ..."]) -> Float[Array, "n"]:
    """Squared norms of one parameter's gradients, in the stages that the theorem counts."""
    terms = jnp.square(leaf.astype(jnp.float32)).reshape(len(leaf), -1)
    while terms.shape[1] > 1:
        columns = -(-terms.shape[1] // _TERMS)
        padded = jnp.pad(terms, ((0, 0), (0, columns * _TERMS - terms.shape[1])))
        # Rows of neighbours are added: a sum down the columns, which XLA makes wide additions of.
        terms = jax.lax.optimization_barrier(padded.reshape(len(leaf), _TERMS, columns).sum(axis=1))
    return terms[:, 0]
