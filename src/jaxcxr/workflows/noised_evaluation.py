"""Release an evaluation under the held-out patients' own guarantee: checks, ledger, counts, table.

Nothing that is written, and no decision before it, depends on the private rows but through the noised counts.
Errors for malformed rows, and a table of other images than the store's, are for the operator's eyes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr import accounting
from jaxcxr.config import EvaluationConfig
from jaxcxr.data.store import Store, open_store
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError
from jaxcxr.eval.groups import Group, public_groups
from jaxcxr.eval.metrics import choose_thresholds
from jaxcxr.eval.noised_metrics import CERTAIN, chosen_split
from jaxcxr.eval.noised_record import (
    NOISED_EVALUATION,
    NOISED_TABLE,
    NoisedEvaluation,
    ThresholdSource,
    design_of,
    epsilon_of,
    record_json,
)
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.privacy import noise
from jaxcxr.privacy.score_counts import EDGES, Design, HeldOut, noised_counts, strategy
from jaxcxr.records.evaluation_ledger import held
from jaxcxr.release.gate import final_params
from jaxcxr.run_folder import PREDICTIONS, is_private, is_run, newest_checkpoint, read_config
from jaxcxr.training.weights import weights_digest

COMMON, RARE = 0.5, 0.1
"""Shares of the patients: if even a finding that half of them have would drown in noise, the evaluation is
refused; if one that a tenth have would, there is a warning.
"""


@dataclasses.dataclass(frozen=True)
class Allowance:
    """What an evaluation may cost.

    Attributes:
        epsilon, delta: of this evaluation, for adding or removing a patient.
        patients: declared, public number of test patients; it need not be exact.
        images_per_patient: the most that a patient's images weigh together.
        budget: epsilon that all evaluations of these patients may cost together; None keeps the ledger's, and
            in a new ledger is `epsilon`.
    """

    epsilon: float
    delta: float
    patients: int
    images_per_patient: int = 1
    budget: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What was released.

    Attributes:
        record: as written.
        table: of its metrics.
        remarks: warnings.
    """

    record: NoisedEvaluation
    table: pd.DataFrame
    remarks: tuple[str, ...]


def evaluate_with_noise(
    source: Path, out: Path, config: EvaluationConfig, allowance: Allowance, store: Path | None = None
) -> Evaluated:
    """Release the evaluation of a table of predictions, and record its cost in the ledger of its store.

    Args:
        source: run folder, or a file of predictions.
        out: folder for `noised_evaluation.json` and `.csv`.
        config: threshold policy (`auto`, `youden_validation` or `fixed`) and groups.
        allowance: what it may cost.
        store: of the images, if it is not where the run's configuration says.

    Raises:
        InputError: an argument is out of range, the epsilon is too small for so few patients, the images are
            not the store's held-out ones, the budget is spent, or there is an evaluation in `out` already.
    """
    path, store_path = _found(source, store)
    for name in (NOISED_EVALUATION, NOISED_TABLE):
        if (out / name).exists():
            raise InputError(
                f"{out / name}: exists already; publishing it again costs nothing, another evaluation does: "
                "choose another --out to spend again"
            )
    predictions, findings = read_predictions(path)
    opened = open_store(store_path)
    _require_same_images(predictions, opened, path)
    groups = public_groups(predictions, config.groups)
    wanted = _Wanted(
        findings,
        groups,
        _policy(config),
        _declared(predictions, findings, config),
        _noise_multiplier(allowance),
    )
    remarks = _require_enough(wanted.design(allowance.images_per_patient, wanted.declared), allowance)
    test = held_out_of(predictions, findings, groups, "test")
    valid = held_out_of(predictions, findings, (), "valid")
    out.mkdir(parents=True, exist_ok=True)

    with held(store_path, opened.fingerprint, allowance.delta) as ledger:
        budget = allowance.budget or ledger.budget or allowance.epsilon
        sensitivity = wanted.design(allowance.images_per_patient, wanted.declared).l2_sensitivity
        spent = ledger.record(wanted.noise_multiplier, sensitivity, budget)
        released = _released(valid, test, wanted, allowance.images_per_patient)
    record = NoisedEvaluation.model_validate(
        {
            "epsilon": epsilon_of(wanted.noise_multiplier, allowance.delta),
            "delta": allowance.delta,
            "evaluations": spent.evaluations,
            "epsilon_together": spent.epsilon,
            "declared_patients": allowance.patients,
            "noise_multiplier": wanted.noise_multiplier,
            "images_per_patient": allowance.images_per_patient,
            "findings": list(findings),
            "groups": [{"name": g.name, "label": g.label, "attribute": g.attribute} for g in groups],
            "threshold_source": wanted.threshold_source,
            "weights": _weights(source),
            **released,
        }
    )
    return Evaluated(record, _written(record, out), remarks)


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is to be released, all of it public.

    Attributes:
        declared: thresholds; all None if they are chosen on noised validation images.
    """

    findings: tuple[str, ...]
    groups: tuple[Group, ...]
    threshold_source: ThresholdSource
    declared: list[float | None]
    noise_multiplier: float

    def design(self, images_per_patient: int, thresholds: list[float | None]) -> Design:
        """What is counted of the test images."""
        return design_of(thresholds, _sizes(self.groups), images_per_patient, self.noise_multiplier)


def _declared(
    predictions: pd.DataFrame, findings: tuple[str, ...], config: EvaluationConfig
) -> list[float | None]:
    if config.threshold != "fixed":
        return [None for _ in findings]
    return [float(t) for t in choose_thresholds(predictions, findings, "fixed", config.fixed_thresholds)]


def _released(valid: HeldOut, test: HeldOut, wanted: _Wanted, images_per_patient: int) -> dict[str, Any]:
    """Count both splits with fresh noise; the first release decides the thresholds of the second."""
    secret, of_validation, thresholds = noise.new_secret(None), None, wanted.declared
    if wanted.threshold_source != "declared":
        plain = design_of(wanted.declared, (), images_per_patient, wanted.noise_multiplier)
        of_validation = noised_counts(valid, plain, noise.derive_key(secret, "validation counts", 0))[0]
        chosen = chosen_split(of_validation, plain)
        thresholds = [None if edge is None else float(EDGES[edge]) for edge in chosen]
    design = wanted.design(images_per_patient, thresholds)
    counts = noised_counts(test, design, noise.derive_key(secret, "test counts", 0))
    return {
        "thresholds": thresholds,
        "validation_counts": None if of_validation is None else of_validation.tolist(),
        "counts": counts.tolist(),
    }


def _written(record: NoisedEvaluation, out: Path) -> pd.DataFrame:
    """Write the record and its table; the record last, as it is what counts."""
    table = record.table()
    with sealed(out / NOISED_TABLE) as part:
        table.to_csv(part, index=False)
    with sealed(out / NOISED_EVALUATION) as part:
        part.write_text(record_json(record), encoding="utf-8")
    return table


def _found(source: Path, store: Path | None) -> tuple[Path, Path]:
    """The table of predictions, and the store whose held-out images they are of."""
    if source.is_dir():
        path, own = source / PREDICTIONS, Path(read_config(source).data.store)
    else:
        path, run = source, source.parent
        own = Path(read_config(run).data.store) if source.name == PREDICTIONS and is_run(run) else None
    chosen = store or own
    if chosen is None:
        raise InputError(
            f"{path}: expected the store of its images (--store), whose ledger records what evaluations of "
            "its patients cost"
        )
    return path, chosen


def _require_same_images(predictions: pd.DataFrame, store: Store, path: Path) -> None:
    """Refuse a table about other images or patients than the store's: its ledger would not be theirs."""
    columns = ["image_id", "patient_id", "split"]
    there = store.manifest[columns].astype(str)
    here = predictions.loc[predictions["split"] != "train", columns].astype(str)
    merged = here.merge(there, on=columns, how="left", indicator=True)
    wrong = (merged["_merge"] != "both").to_numpy()
    if wrong.any():
        first = merged.loc[wrong].iloc[0]
        raise InputError(
            f"{path}: image_id {first['image_id']!r}: {store.path} has no {first['split']} image of this "
            "name and patient; expected the store that was predicted (--store)"
        )


def _policy(config: EvaluationConfig) -> ThresholdSource:
    if config.threshold == "fixed":
        return "declared"
    if config.threshold in ("auto", "youden_validation"):
        return "noised validation images"
    raise InputError(
        f"--threshold {config.threshold}: would judge with a threshold chosen on the test images themselves; "
        "expected youden_validation (with noise) or fixed for an evaluation with noise"
    )


def _sizes(groups: tuple[Group, ...]) -> tuple[int, ...]:
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group.attribute] = sizes.get(group.attribute, 0) + 1
    return tuple(sizes.values())


def _noise_multiplier(allowance: Allowance) -> float:
    if allowance.patients < 1:
        raise InputError(f"--private-patients: expected a positive number, found {allowance.patients}")
    if allowance.images_per_patient < 1:
        raise InputError(
            f"--private-images: expected a positive number, found {allowance.images_per_patient}"
        )
    if allowance.budget is not None and not allowance.budget >= allowance.epsilon:
        raise InputError(
            f"--private-budget: expected at least --private-epsilon {allowance.epsilon:g}, found "
            f"{allowance.budget:g}"
        )
    if not accounting.LEAST_DELTA <= allowance.delta < 1 / allowance.patients:
        raise InputError(
            f"--private-delta: expected at least {accounting.LEAST_DELTA:g} and less than 1 / "
            f"{allowance.patients} test patients, found {allowance.delta:g}"
        )
    return accounting.calibrated_noise(allowance.epsilon, allowance.delta, 1.0, 1)


def _require_enough(design: Design, allowance: Allowance) -> tuple[str, ...]:
    """Refuse noise in which every finding would drown; warn if rare ones would. Public numbers decide.

    Raises:
        InputError: the epsilon is too small for so few patients, or its noise does not fit.
    """
    try:
        grid = design.grid
    except ValueError as error:
        raise InputError(f"--private-epsilon {allowance.epsilon:g}: {error}") from None
    whole = np.linalg.inv(strategy(design.splits[0])).sum(axis=0)
    deviation = grid.deviation * grid.step / design.factors[0] * float(np.linalg.norm(whole))
    share = CERTAIN * deviation / allowance.patients
    told = (
        f"epsilon {allowance.epsilon:g} with {len(design.splits)} findings"
        + (f" and {len(design.groups)} kinds of groups" if design.groups else "")
        + f" puts noise of {deviation:.3g} patients (one standard deviation) on a count, and there are "
        f"{allowance.patients} test patients: "
        + (f"findings that fewer than {share:.0%} of them have" if share < 1 else "every finding")
    )
    if share > COMMON:
        raise InputError(
            f"--private-epsilon: the test split is too small for this budget: {told} would be hidden by the "
            "noise; nothing was spent. Give a larger epsilon, or fewer findings or groups"
        )
    return (f"{told} will be hidden by the noise",) if share > RARE else ()


def held_out_of(
    predictions: pd.DataFrame, findings: tuple[str, ...], groups: tuple[Group, ...], split: str
) -> HeldOut:
    """The images of one split, to be counted with noise."""
    rows = (predictions["split"] == split).to_numpy()
    table = predictions.loc[rows]
    attributes = list(dict.fromkeys(group.attribute for group in groups))
    numbers = np.full((len(table), len(attributes)), -1)
    for column, attribute in enumerate(attributes):
        own = [group for group in groups if group.attribute == attribute]
        for number, group in enumerate(own):
            numbers[group.rows[rows], column] = number
    return HeldOut(
        table[[f"p_{f}" for f in findings]].to_numpy(np.float64),
        table[[f"y_{f}" for f in findings]].to_numpy(np.float64),
        pd.factorize(table["patient_id"])[0],
        numbers,
    )


def _weights(source: Path) -> str | None:
    """SHA-256 of the parameters of the private run that the predictions lie in; None if there is none."""
    run = source if source.is_dir() else source.parent
    if not is_run(run) or not is_private(run) or newest_checkpoint(run) is None:
        return None
    return weights_digest(final_params(run))
