"""Replace or map the last layer, to predict other findings than weights were trained for.

A head is `kernel` [features, findings] and `bias` [findings]: one column per finding.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree
from pydantic import ConfigDict

from jaxcxr.errors import InputError
from jaxcxr.models.backbone import HEAD

NEW, ZERO = "new", "zero"
"""In a mapping, findings without counterpart: they start from new random weights, or from zeros."""
Sources = Mapping[str, str | Sequence[str]]
"""Finding to predict -> the finding, or the findings to average, whose weights it starts from; or `NEW`, or
`ZERO`.
"""


@dataclasses.dataclass(frozen=True)
class HeadMapping:
    """A head for other findings, as read from YAML.

    Attributes:
        findings: to predict, in order.
        mapping: finding to predict -> finding that the weights were trained for, a list of them to average
            (such as the two sides), `new` or `zero`; findings with equal names need no entry.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    findings: tuple[str, ...]
    mapping: dict[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)


def replace_head(params: PyTree, n_findings: int, seed: int = 0) -> PyTree:
    """The parameters with a new head: normal weights of variance 1 / features, zero biases."""
    kernel, _ = _head(params)
    return _with_head(params, _fresh(n_findings, len(kernel), seed), np.zeros(n_findings, np.float32))


def zero_head(params: PyTree, n_findings: int) -> PyTree:
    """The parameters with a head of zeros: every finding has probability 1/2."""
    kernel, _ = _head(params)
    return _with_head(params, np.zeros((len(kernel), n_findings)), np.zeros(n_findings))


def map_head(
    params: PyTree,
    trained: Sequence[str],
    wanted: Sequence[str],
    mapping: Sources | None = None,
    seed: int = 0,
) -> PyTree:
    """The parameters with one head column per wanted finding: that of the same name, or what `mapping` says.

    Nothing is guessed: a finding that the weights were not trained for must be mapped.

    Args:
        params: with a head for each of `trained`, in that order.
        trained: names of the findings that the weights predict.
        wanted: names of the findings to predict, in order.
        mapping: see `Sources`; by default the trained finding of the same name.
        seed: of new columns.

    Raises:
        InputError: the head has not as many findings as `trained`, or findings lack a counterpart; the
            message names all.
    """
    mapping = mapping or {}
    kernel, bias = _head(params)
    if kernel.shape[1] != len(trained):
        raise InputError(
            f"the weights predict {kernel.shape[1]} findings, {len(trained)} are named: {', '.join(trained)}"
        )
    sources = {finding: _listed(mapping.get(finding, finding)) for finding in wanted}
    lost = [
        finding if source == (finding,) else f"{finding} (from {' and '.join(source) or 'nothing'})"
        for finding, source in sources.items()
        if source not in ((NEW,), (ZERO,)) and not (source and set(source) <= set(trained))
    ]
    strange = [finding for finding in mapping if finding not in wanted]
    if lost or strange:
        parts = (
            [
                f"no counterpart for {', '.join(lost)}; map each to one of {', '.join(trained)}, to several "
                f"of them, to {NEW} or to {ZERO}"
            ]
            if lost
            else []
        )
        parts += [f"mapped but not wanted: {', '.join(strange)}"] if strange else []
        raise InputError(f"the head cannot be mapped: {'; '.join(parts)}")
    columns, biases = _fresh(len(wanted), len(kernel), seed), np.zeros(len(wanted), np.float32)
    for place, source in enumerate(sources.values()):
        if source == (ZERO,):
            columns[:, place] = 0
        elif source != (NEW,):
            rows = [trained.index(name) for name in source]
            columns[:, place], biases[place] = kernel[:, rows].mean(axis=1), bias[rows].mean()
    return _with_head(params, columns, biases)


def _listed(source: str | Sequence[str]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else tuple(source)


def _fresh(n: int, features: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(0, features**-0.5, (n, features))
    return np.ascontiguousarray(rows.T, np.float32)


def _head(params: Any) -> tuple[np.ndarray, np.ndarray]:
    head = params["params"][HEAD]
    return np.asarray(head["kernel"]), np.asarray(head["bias"])


def _with_head(params: Any, kernel: np.ndarray, bias: np.ndarray) -> PyTree:
    head = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return {**params, "params": {**params["params"], HEAD: head}}
