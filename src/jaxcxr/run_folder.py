"""The folders of runs and sweeps: the names of their files, and `run.json`, read and written only here.

`config.yaml` says what was asked for, `run.json` what was settled when the run was begun (calibrated noise,
sample rate, steps, fingerprints). Whether a run is private (`is_private`) and the numbers that it promised
(`promise_of`) are read here, so that nobody takes them from a file that is damaged or contradicts the other.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

import yaml

from jaxcxr.atomic import replacing
from jaxcxr.config import Experiment
from jaxcxr.config_files import dump, load
from jaxcxr.digests import DIGESTS, check, digest_of, record, recorded, write_json
from jaxcxr.errors import InputError

CONFIG: Final = "config.yaml"
FACTS: Final = "run.json"
LEDGER: Final = "ledger.jsonl"
LOG: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"
SECRET: Final = "secret.key"
"""In `CHECKPOINTS`."""
CLASS_COUNTS: Final = "class_counts.json"
PATIENTS: Final = "patients.json"
PREDICTIONS: Final = "predictions.parquet"
EVALUATION: Final = "evaluation.csv"
CALIBRATION: Final = "calibration.json"
"""From the network's scores to probabilities, from private validation images without noise."""
AUDIT: Final = "audit.json"
FIGURES: Final = "figures"
LOCK: Final = ".lock"
CARD: Final = "privacy_card.json"
"""Of a release: what it promises, with the SHA-256 of its files."""

SUMMARY: Final = "summary.csv"
"""Of a sweep: the metrics of all its models."""
SWEEP_COST: Final = "privacy.json"
"""Of a sweep: what its models cost together."""
JOBS: Final = "jobs"
"""Of a sweep, a study or a risk assessment: the logs of parts that were run side by side."""
UNTOUCHED: Final = "untouched"
"""In a sweep: the folder of the weights that its runs start from, evaluated before any training."""
_NON_PRIVATE = "non_private"
_EPSILON = "epsilon_"

PATHS: Final = ("data.store", "model.weights", "model.pretraining", "head.public")
"""Fields of `config.yaml` that may be edited in a run folder: where things lie, not what they are."""

_POSITIVE = ("epsilon", "sample_rate")
_NOT_NEGATIVE = ("noise_multiplier", "l2_clip_norm", "delta")
_COUNTS = ("n_units", "expected_batch_size", "steps")


class Facts(TypedDict, total=False):
    """The keys of `run.json`.

    Every run has `jaxcxr` (the version) to `against_release` (codes of `records.declarations`); one that
    starts from given weights also `initial_weights_sha256`, one of a head on kept features `head` (where its
    directions come from: `training.head_data`), and one by a recipe `chosen` (what it chose and why, in
    sentences). A private run has the fields of its mechanism, `n_units` to `discrete_coordinates` (and
    `noise_column`, if its noise is correlated), what is known of its starting weights
    (`initial_weights_record`) and the noise of its class counts, if there are any; one of a tuning's runs
    names its terms in `tuning` (`records.tuning`). Weights that were evaluated without training have
    `findings`, `prediction_views`, `evaluation`, `weights_sha256` and `store_fingerprint`. Keys that earlier
    versions did not write are absent from their runs; `code_fingerprint` is theirs alone.
    """

    jaxcxr: str
    made_with: dict[str, str]
    binding: dict[str, Any]
    store_fingerprint: str
    split_origin: str
    near_duplicates: dict[str, bool] | None
    sums: str
    sample_rate: float
    steps: int
    microbatch_size: int
    positive_weights: list[float] | None
    class_weights_covered: bool
    release: bool
    against_release: list[str]
    initial_weights_sha256: str
    initial_weights_record: str | None
    head: dict[str, Any]
    chosen: list[str]
    n_units: int
    expected_batch_size: int
    l2_clip_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float
    discrete_coordinates: int | None
    noise_column: list[float]
    class_counts_noise_multiplier: float
    findings: list[str]
    prediction_views: str
    evaluation: dict[str, Any]
    weights_sha256: str
    code_fingerprint: str
    tuning: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a private run promised when it was begun.

    Attributes:
        epsilon, delta: the budget.
        sample_rate, noise_multiplier, l2_clip_norm: of each step.
        bands: over how many steps noise is correlated; 1 if it is not.
        n_units, expected_batch_size, steps: declared.
        store_fingerprint: of the data.
    """

    epsilon: float
    delta: float
    sample_rate: float
    noise_multiplier: float
    l2_clip_norm: float
    n_units: int
    expected_batch_size: int
    steps: int
    store_fingerprint: str
    bands: int = 1


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that was begun: `config.yaml` and `run.json` are there."""
    return (folder / CONFIG).is_file() and (folder / FACTS).is_file()


def has_facts(folder: Path) -> bool:
    """Whether a folder holds a `run.json`, of a run or of weights that were evaluated without training."""
    return (folder / FACTS).is_file()


def is_evaluated(folder: Path) -> bool:
    """Whether a run was trained to its end and evaluated."""
    return (folder / EVALUATION).is_file()


def read_config(run: Path) -> Experiment:
    """The configuration of a run.

    Raises:
        InputError: there is no run, `config.yaml` cannot be read, or its values are not those that were
            written.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: no run there ({CONFIG} is missing)")
    config = load(Experiment, run / CONFIG, say=None)  # a run's file is nobody's to edit
    known = recorded(run).get(CONFIG)
    if known is not None and known != _values_digest(run / CONFIG):
        raise InputError(
            f"{run / CONFIG}: is not the file that was written ({DIGESTS}): it was cut, changed or "
            "exchanged; put "
            f"it back from a copy (only the paths {', '.join(PATHS)} may be changed)"
        )
    return config


def write_config(run: Path, config: Experiment) -> None:
    """Write `config.yaml`, completely or not at all, and the digest of its values."""
    with replacing(run / CONFIG) as part:
        dump(config, part)
        record(run, {CONFIG: _values_digest(part)})


def _values_digest(path: Path) -> str:
    """SHA-256 of the values in a configuration, but for its paths (`PATHS`)."""
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    values = {
        f"{section}.{name}": str(value)
        for section, fields in sections.items()
        for name, value in (fields or {"": None}).items()
    }
    return digest_of({name: value for name, value in values.items() if name not in PATHS})


def read_facts(run: Path) -> Facts:
    """The facts in `run.json`.

    Raises:
        InputError: it is missing, or not an object of facts.
    """
    return Facts(**_read_object(run))  # type: ignore[typeddict-item]


def write_facts(run: Path, facts: Facts) -> None:
    """Write `run.json`, completely or not at all."""
    write_json(run / FACTS, facts)


def is_private(run: Path) -> bool:
    """Whether a run was trained with privacy; False for weights that were evaluated without training.

    Raises:
        InputError: there is no run, or `run.json` and `config.yaml` contradict each other.
    """
    facts = read_facts(run)
    private = "delta" in facts
    if not private and "steps" not in facts:  # nothing was trained
        return False
    promised = read_config(run).privacy is not None
    if promised != private:
        which = (FACTS, CONFIG) if promised else (CONFIG, FACTS)
        raise InputError(
            f"{run}: trained without privacy according to {which[0]}, with it according to {which[1]}"
        )
    return private


def is_trained(run: Path) -> bool:
    """Whether the run folder was trained; if not, it holds unchanged public weights, for comparison."""
    return "steps" in read_facts(run)


def promise_of(run: Path) -> Promise | None:
    """What a run promised; None if it was trained without privacy, or nothing was trained.

    Raises:
        InputError: there is no run, a number is missing or impossible, or `run.json` and `config.yaml`
            contradict each other.
    """
    if not is_private(run):
        return None
    facts = _read_object(run)
    _require_numbers(run, facts)
    promised = read_config(run).privacy
    for name in ("epsilon", "delta", "l2_clip_norm"):
        if facts[name] != getattr(promised, name):
            raise InputError(
                f"{run}: privacy.{name} is {getattr(promised, name)} in {CONFIG}, {facts[name]} in {FACTS}"
            )
    numbers = {name: float(facts[name]) for name in (*_POSITIVE, *_NOT_NEGATIVE)}
    counts = {name: int(facts[name]) for name in _COUNTS}
    bands = _bands(run, facts, None if promised is None else promised.noise_bands)
    return Promise(**numbers, **counts, store_fingerprint=str(facts["store_fingerprint"]), bands=bands)  # type: ignore[arg-type]


def _bands(run: Path, facts: Mapping[str, Any], asked: int | str | None) -> int:
    """Over how many steps the noise of a run is correlated."""
    column = facts.get("noise_column", [1.0])
    if not isinstance(column, list) or not column:
        raise InputError(f"{run}: noise_column: expected a list of numbers in {FACTS}, found {column!r}")
    if asked not in (len(column), "auto"):
        raise InputError(f"{run}: privacy.noise_bands is {asked} in {CONFIG}, {len(column)} in {FACTS}")
    return len(column)


def newest_checkpoint(run: Path) -> int | None:
    """Steps done at the newest checkpoint of a run folder; None if there is none."""
    return next(iter(checkpoint_steps(run / CHECKPOINTS)), None)


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Steps done at the checkpoints in a folder, the newest first."""
    found = [path for path in checkpoints.glob("*") if path.is_dir() and re.fullmatch("[0-9]+", path.name)]
    return sorted((int(path.name) for path in found), reverse=True)


def runs_in(folder: Path) -> list[Path]:
    """The folders with a `run.json` in the folder of a sweep, by name."""
    return sorted(facts.parent for facts in folder.glob(f"*/{FACTS}"))


def budget_name(epsilon: float) -> str:
    """Name of the folder in which a sweep trains with a budget; infinity is without privacy."""
    return _NON_PRIVATE if math.isinf(epsilon) else f"{_EPSILON}{epsilon:g}"


def evaluated_budgets(sweep: Path) -> list[Path]:
    """The folders of a sweep's budgets whose models are trained and evaluated."""
    return [
        folder
        for folder in sorted([*sweep.glob(f"{_EPSILON}*"), *sweep.glob(_NON_PRIVATE)])
        if is_evaluated(folder)
    ]


def _read_object(run: Path) -> dict[str, Any]:
    path = run / FACTS
    if not path.is_file():
        raise InputError(f"{run}: no run there ({FACTS} is missing)")
    check(path)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(facts, dict):
        raise InputError(
            f"{path}: not the facts of a run (expected an object of facts, found {type(facts).__name__})"
        )
    return facts


def _require_numbers(run: Path, facts: Mapping[str, Any]) -> None:
    for name in (*_POSITIVE, *_COUNTS, *_NOT_NEGATIVE, "store_fingerprint"):
        if name not in facts:
            raise InputError(f"{run / FACTS}: key '{name}' is missing")
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = facts[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (name in _POSITIVE and value == 0) or (name == "delta" and not 0 < value < 1):
            wanted = "a number between 0 and 1" if name == "delta" else "a positive number"
            raise InputError(
                f"{run / FACTS}: not the facts of a run ({name}: expected {wanted}, found {value!r})"
            )
    for name in _COUNTS:
        if type(facts[name]) is not int or facts[name] < 0:
            raise InputError(
                f"{run / FACTS}: not the facts of a run ({name}: expected a whole number, found "
                f"{facts[name]!r})"
            )
