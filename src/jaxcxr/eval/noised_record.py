"""What a hospital publishes of an evaluation with noise: the file `noised_evaluation.json`.

It holds the noised counts, the public numbers of their design and the cost; the table of metrics follows
from these (`NoisedEvaluation.table`), so that nobody has to believe it.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.errors import InputError, faults_in
from jaxcxr.eval.noised_metrics import NamedGroup, chosen_split, noised_evaluation
from jaxcxr.privacy.score_counts import EDGES, Design

NOISED_EVALUATION, NOISED_TABLE = "noised_evaluation.json", "noised_evaluation.csv"
ROUNDING = 1e-9
"""Relative difference by which another machine's arithmetic may differ."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Threshold = Annotated[float, Field(ge=0, le=1)]
ThresholdSource = Literal["declared", "noised validation images"]
Rows = list[Annotated[int, Field(ge=-(2**52), le=2**52)]]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    label: str
    attribute: str


class NoisedEvaluation(BaseModel):
    """A published evaluation.

    Attributes:
        unit, adjacency, epsilon, delta: the guarantee, of this evaluation alone, for every patient whose
            images were validation or test images.
        evaluations, epsilon_together: how many evaluations of these patients there were up to this one, and
            upper bound on what they cost together, at `delta`.
        declared_patients: public number of test patients, which need not be exact.
        noise_multiplier, images_per_patient: of the design.
        findings, groups: what was counted, the groups of an attribute in a row.
        threshold_source: where thresholds come from.
        thresholds: of each finding; null where the noise hides it.
        weights: SHA-256 of the model's parameters; null if it is not known which model was judged.
        validation_counts, counts: as released, in steps of their grids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_version: Literal[1] = 1
    unit: Literal["patient"] = "patient"
    adjacency: Literal["add_remove"] = "add_remove"
    epsilon: Positive
    delta: Annotated[float, Field(ge=accounting.LEAST_DELTA, lt=1)]
    evaluations: Annotated[int, Field(ge=1)]
    epsilon_together: Positive
    declared_patients: Annotated[int, Field(ge=1)]
    noise_multiplier: Positive
    images_per_patient: Annotated[int, Field(ge=1)]
    findings: Annotated[list[str], Field(min_length=1)]
    groups: list[_Group]
    threshold_source: ThresholdSource
    thresholds: list[Threshold | None]
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    validation_counts: list[list[Rows]] | None
    counts: list[list[list[Rows]]]

    @model_validator(mode="after")
    def _agrees(self) -> "NoisedEvaluation":
        """Refuse a record that contradicts itself."""
        if len(self.thresholds) != len(self.findings):
            raise ValueError("thresholds: expected one per finding")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names) or len(set(self.findings)) != len(self.findings):
            raise ValueError("groups, findings: expected distinct names")
        _require_shape("counts", self.counts, self.design.shape)
        if (self.validation_counts is None) != (self.threshold_source == "declared"):
            raise ValueError("validation_counts: go with thresholds from noised validation images only")
        if self.validation_counts is not None:
            design = self.validation_design
            _require_shape("validation_counts", self.validation_counts, design.shape[1:])
            chosen = chosen_split(np.array(self.validation_counts), design)
            if self.thresholds != [None if i is None else float(EDGES[i]) for i in chosen]:
                raise ValueError("thresholds: do not follow from the counts of validation images")
        cost = epsilon_of(self.noise_multiplier, self.delta)
        if not math.isclose(cost, self.epsilon, rel_tol=ROUNDING) or self.epsilon_together < cost * (
            1 - ROUNDING
        ):
            raise ValueError("epsilon: is not the cost of this noise")
        if (self.evaluations == 1) != math.isclose(self.epsilon_together, cost, rel_tol=ROUNDING):
            raise ValueError("epsilon_together: does not go with the number of evaluations")
        return self

    @property
    def design(self) -> Design:
        """What was counted of the test images."""
        sizes: dict[str, int] = {}
        for group in self.groups:
            sizes[group.attribute] = sizes.get(group.attribute, 0) + 1
        return design_of(
            self.thresholds, tuple(sizes.values()), self.images_per_patient, self.noise_multiplier
        )

    @property
    def validation_design(self) -> Design:
        """What was counted of the validation images, to choose thresholds."""
        return design_of([None] * len(self.findings), (), self.images_per_patient, self.noise_multiplier)

    def table(self) -> pd.DataFrame:
        """The metrics with their intervals, as in `noised_evaluation.csv`."""
        groups = [NamedGroup(group.name, group.label, group.attribute) for group in self.groups]
        has = [threshold is not None for threshold in self.thresholds]
        return noised_evaluation(np.array(self.counts), self.design, self.findings, groups, has)


def design_of(
    thresholds: list[float | None], groups: tuple[int, ...], images_per_patient: int, noise_multiplier: float
) -> Design:
    """The design for thresholds; where there is none, the counts are split in the middle."""
    middle = nearest_edge(0.5)
    splits = tuple(middle if t is None else nearest_edge(t) for t in thresholds)
    used = tuple(float(EDGES[middle]) if t is None else t for t in thresholds)
    return Design(splits, used, groups, images_per_patient, noise_multiplier)


def nearest_edge(threshold: float) -> int:
    """Index of the edge whose place a threshold can take so that the edges still rise."""
    return int(np.clip(np.argmin(np.abs(EDGES - threshold)), 0, len(EDGES) - 1))


def epsilon_of(noise_multiplier: float, delta: float) -> float:
    """Upper bound on what one evaluation costs each held-out patient."""
    return accounting.epsilon_pld([Spending(1.0, noise_multiplier, 1)], delta)


def record_json(record: NoisedEvaluation) -> str:
    """The record as JSON text, the counts of a class in one line."""
    values: dict[str, Any] = record.model_dump(mode="json")
    lines = [f"  {json.dumps(name)}: {_packed(value)}" for name, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _packed(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_record(path: Path) -> NoisedEvaluation:
    """Read and validate a published evaluation.

    Raises:
        InputError: the file is missing, is none, or contradicts itself.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such evaluation")
    try:
        return NoisedEvaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: {faults_in(error)[0]}") from None


def _require_shape(name: str, counts: Any, shape: tuple[int, ...]) -> None:
    try:
        found = np.array(counts).shape
    except ValueError:
        found = ()
    if found != shape:
        raise ValueError(f"{name}: expected {' x '.join(map(str, shape))} numbers")
