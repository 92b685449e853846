"""What an audit undoes where noise is correlated and groups take turns (`accounting.banded`): by definition,
apart from the code under audit.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcxr.audit.checks import Check, exact


def unit_column(column: Sequence[float]) -> Float[np.ndarray, " bands"]:
    """A column of C, of norm 1."""
    return np.asarray(column, float) / np.linalg.norm(column)


def whitened(column: Sequence[float], rows: Float[np.ndarray, "steps d"]) -> Float[np.ndarray, "steps d"]:
    """C w of the noise w of steps 0, 1, ...: independent from step to step, of the claimed deviation."""
    found = np.zeros_like(rows)
    for age, c in enumerate(unit_column(column)):
        found[age:] += c * rows[: max(0, len(rows) - age)]
    return found


@dataclasses.dataclass(frozen=True)
class Turns:
    """Groups that take turns; with one group every step is everybody's.

    Attributes:
        bands: how many groups there are.
        groups: of each unit; None with one group.
    """

    bands: int
    groups: Int[np.ndarray, " units"] | None

    def own(self, steps: Int[np.ndarray, " steps"]) -> Bool[np.ndarray, "steps units"]:
        """Which units may be in the batch of each step."""
        if self.groups is None:
            return np.ones((len(steps), 1), bool)
        return (steps % self.bands)[:, None] == self.groups

    def rounds(
        self, drawn: Bool[np.ndarray, "steps units"], steps: Int[np.ndarray, " steps"]
    ) -> Bool[np.ndarray, "rounds units"]:
        """Each unit's draws in the steps of its own group, one a row, as far as all groups have had a turn:
        as if everybody had been drawn from in every round.
        """
        if self.groups is None:
            return drawn
        of_group = [np.flatnonzero(steps % self.bands == group) for group in range(self.bands)]
        whole = min(len(own) for own in of_group)
        rows = np.stack([own[:whole] for own in of_group])[self.groups]  # [units, rounds]
        return drawn[rows, np.arange(drawn.shape[1])[:, None]].T


def turns_check(masks: list[tuple[Turns, np.ndarray, np.ndarray]]) -> Check:
    """Nobody is in a step of another group.

    Args:
        masks: groups, draws [steps, units] and numbers of steps, of several runs.
    """
    wrong = sum(int((drawn & ~turns.own(steps)).sum()) for turns, drawn, steps in masks)
    name = "units are drawn in the steps of their group alone"
    return exact(name, wrong == 0, f"{wrong} in those of others")
