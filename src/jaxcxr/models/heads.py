"""Replace or map the last layer, to predict other findings than weights were trained for.

The head of a state dict (torch layout) has one row per finding, `fc.weight` [findings, features] and
`fc.bias` [findings].
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import ConfigDict

from jaxcxr.errors import InputError
from jaxcxr.models.torch_weights import State

NEW = "new"
"""In a mapping, a finding without counterpart, which starts from a new random row."""


@dataclasses.dataclass(frozen=True)
class HeadMapping:
    """A head for other findings, as read from YAML.

    Attributes:
        findings: to predict, in order.
        mapping: finding to predict -> finding that the weights were trained for, or `new`; findings with
            equal names need no entry.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    findings: tuple[str, ...]
    mapping: dict[str, str] = dataclasses.field(default_factory=dict)


def replace_head(state: Mapping[str, np.ndarray], n_findings: int, seed: int = 0) -> State:
    """The state with a new head: normal weights of variance 1 / features, zero biases."""
    features = _head(state)[0].shape[1]
    return dict(state) | {
        "fc.weight": _fresh_rows(n_findings, features, seed),
        "fc.bias": np.zeros(n_findings, np.float32),
    }


def map_head(
    state: Mapping[str, np.ndarray],
    trained: Sequence[str],
    wanted: Sequence[str],
    mapping: Mapping[str, str] | None = None,
    seed: int = 0,
) -> State:
    """The state with one head row per wanted finding: the row of the same name, or the one in `mapping`.

    Nothing is guessed: a finding that the weights were not trained for must be mapped, to a trained finding
    or to `new`.

    Args:
        state: weights with one row for each of `trained`, in that order.
        trained: names of the findings that the weights predict.
        wanted: names of the findings to predict, in order.
        mapping: wanted finding -> trained finding, or `new`; by default the trained finding of the same name.
        seed: of the new rows.

    Raises:
        InputError: the number of rows is not that of `trained`, or findings lack a counterpart; the message
            names all.
    """
    mapping = mapping or {}
    weight, bias = _head(state)
    if len(weight) != len(trained):
        raise InputError(
            f"the weights predict {len(weight)} findings, {len(trained)} are named: {', '.join(trained)}"
        )
    source = {finding: mapping.get(finding, finding) for finding in wanted}
    lost = [f if s == f else f"{f} (from {s})" for f, s in source.items() if s != NEW and s not in trained]
    strange = [finding for finding in mapping if finding not in wanted]
    if lost or strange:
        parts = (
            [f"no counterpart for {', '.join(lost)}; map each to one of {', '.join(trained)}, or to {NEW}"]
            if lost
            else []
        )
        parts += [f"mapped but not wanted: {', '.join(strange)}"] if strange else []
        raise InputError(f"the head cannot be mapped: {'; '.join(parts)}")
    fresh = _fresh_rows(len(wanted), weight.shape[1], seed)
    rows = [fresh[i] if source[f] == NEW else weight[trained.index(source[f])] for i, f in enumerate(wanted)]
    biases = [0.0 if source[f] == NEW else bias[trained.index(source[f])] for f in wanted]
    return dict(state) | {"fc.weight": np.stack(rows), "fc.bias": np.asarray(biases, np.float32)}


def _fresh_rows(n: int, features: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, features**-0.5, (n, features)).astype(np.float32)


def _head(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    missing = [name for name in ("fc.weight", "fc.bias") if name not in state]
    if missing:
        raise InputError(f"the weights have no head: {', '.join(missing)} is missing")
    return state["fc.weight"], state["fc.bias"]
