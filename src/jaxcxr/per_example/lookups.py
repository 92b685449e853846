"""Per-example gradients of a table from which rows are looked up: embeddings.

An example's gradient is nearly all zeros: the cotangents of its rows, added up where a row is looked up
twice. Norms never need the table's size.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Bool, Float, Int

from jaxcxr.per_example import jaxprs
from jaxcxr.per_example.products import accumulator


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The rule (`sites.Rule`) of a `gather` of whole rows of a table."""

    equation: JaxprEqn
    taken: jaxprs.RowsTaken
    operand: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return self.equation.invars[0].aval.shape  # type: ignore[attr-defined]

    def norm_is_cheaper(self, times: int) -> bool:
        """Whether an example looks up fewer rows than the table has."""
        return times * math.prod(self.equation.invars[1].aval.shape[:-1]) < self.shape[0]  # type: ignore[attr-defined]

    def apply(self, x: Any, weight: Any) -> Any:
        """The rows of one example."""
        return jaxprs.evaluate(self.equation, [weight, x])[0]

    def apply_differentiably(self, x: Any, weight: Any) -> Any:
        """The same: JAX differentiates it by itself."""
        return self.apply(x, weight)

    def each(self, x: Any, dy: Any) -> Float[Array, "n a rows ..."]:
        """Gradient of the table for each example."""
        index, rows = self._rows(x, dy)

        def of_one(index: Any, rows: Any) -> Any:
            return jnp.zeros((self.shape[0], rows.shape[-1]), rows.dtype).at[index].add(rows, mode="drop")

        return jax.vmap(jax.vmap(of_one))(index, rows).reshape(*index.shape[:2], *self.shape).astype(dy.dtype)

    def total(self, x: Any, dy: Any) -> Float[Array, "a rows ..."]:
        """Gradient of the table summed over the examples."""
        index, rows = (jnp.moveaxis(v, 0, 1) for v in self._rows(x, dy))
        weights = len(index)
        index, rows = index.reshape(weights, -1), rows.reshape(weights, -1, rows.shape[-1])
        table = jnp.zeros((weights, self.shape[0], rows.shape[-1]), rows.dtype)
        table = table.at[jnp.arange(weights)[:, None], index].add(rows, mode="drop")
        return table.reshape(-1, *self.shape).astype(dy.dtype)

    def squared_norms(self, x: Any, dy: Any) -> Float[Array, "n"]:
        """Cotangents of the same row are added up, in as many rows as are looked up."""
        index, rows = self._rows(x, dy)

        def of_one(index: Any, rows: Any) -> Any:
            order = jnp.argsort(index)
            ordered = index[order]
            slot = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]]))
            rows = jnp.where((ordered < self.shape[0])[:, None], rows[order], 0)
            return jnp.sum(jnp.square(jnp.zeros_like(rows).at[slot].add(rows)))

        return jax.vmap(jax.vmap(of_one))(index, rows).sum(axis=1)

    def _rows(self, x: Any, dy: Any) -> tuple[Int[Array, "n a t"], Float[Array, "n a t row"]]:
        """Which rows, beyond the table where none is looked up, and their cotangents."""
        table, offsets = self.shape[0], self.taken.row_axes
        index = x[..., 0].reshape(*x.shape[:2], -1)
        if self.taken.clips:
            index = jnp.clip(index, 0, table - 1)
        inside: Bool[Array, "n a t"] = (index >= 0) & (index < table)
        axes = [i for i in range(dy.ndim - 3) if i not in offsets]
        rows = jnp.transpose(dy, (0, 1, 2, *(3 + i for i in (*axes, *offsets)))).reshape(*index.shape, -1)
        return jnp.where(inside, index, table), rows.astype(accumulator(dy))


def rule_of(equation: JaxprEqn, operand: int) -> Lookup | None:
    """The rule of a `gather` of whole rows along the table's first axis."""
    taken = jaxprs.rows_taken(equation) if operand == 0 else None
    return Lookup(equation, taken) if taken is not None else None
