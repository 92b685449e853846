"""From somebody's table to files to begin with: a column map, a private experiment with safe defaults and its
twin without privacy, every guess marked in a comment.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import yaml

from jaxcxr.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.config_files import PACKAGED, load
from jaxcxr.data.manifest import text_of
from jaxcxr.data.sources.proposal import Proposal
from jaxcxr.data.sources.table import TableSource, to_manifest
from jaxcxr.errors import InputError
from jaxcxr.records.declarations import proposed_size
from jaxcxr.workflows.recipes import Rule, recommended

EPSILON, EPOCHS = 2.0, 30.0
MARK = "GUESS"
COMMENTS: Mapping[str, str] = MappingProxyType(
    {
        "data.store": "which `jaxcxr prepare` makes",
        "data.size": "pixels; the store's",
        "model.weights": f"{MARK}: random; better public weights (`jaxcxr pretrain`)",
        "privacy.epsilon": f"{MARK}: 1 is a strong promise, 8 a weak one",
        "privacy.delta": f"{MARK}: at most a tenth of 1 / N",
        "privacy.unit": "the promise is to each patient, with all images",
        "privacy.images_per_patient": "images of a patient that a step uses at most",
        "privacy.dataset_size": f"{MARK}: rounded number of training patients",
        "training": "by the recommended recipe for this N and epsilon",
        "training.expected_batch_size": f"{MARK}: patients in a step, on average",
        "training.steps": f"{MARK}: about {EPOCHS:.0f} passes over the patients",
        "training.class_weights": "from counts with noise, which the budget pays for",
        "evaluation.redraws": "bootstrap replicates",
        "evaluation.resample": "images of one patient are not independent",
        "evaluation.threshold": "chosen on validation images, judged on test images",
    }
)
"""What the written experiments say of their fields."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        source, private, nonprivate: the column map and the two experiments.
        guesses: how many are marked.
        unread: why the map does not read the table yet; empty if it does.
    """

    source: Path
    private: Path
    nonprivate: Path
    guesses: int
    unread: str


def write_proposal(proposal: Proposal, table: pd.DataFrame, name: str, out: Path, size: int) -> Written:
    """Write the three files into the folder `out`, after the strict loader has read them.

    Raises:
        InputError: one of them is there already; nothing is written then.
    """
    files = {kind: out / f"{name}{kind}.yaml" for kind in ("_map", "", "_nonprivate")}
    for path in files.values():
        if path.exists():
            raise InputError(
                f"{path}: exists already, and nothing is overwritten; name another --name or --out"
            )
    source, split = proposal.source, proposal.source.draw
    patients = len(set(text_of(table, source.columns.patient_id)))
    if source.columns.split is not None:
        sides = pd.Series(text_of(table, source.columns.split)).map(source.split or {})
        patients = len(set(text_of(table.loc[(sides == "train").to_numpy()], source.columns.patient_id)))
    declared = proposed_size(max(1, round(patients * (split.train if split else 1))))
    config = private_experiment(name, size, source.findings, declared)
    texts = {
        "_map": _map_text(proposal, name),
        "": _experiment_text(config, name),
        "_nonprivate": _nonprivate_text(config, name),
    }
    out.mkdir(parents=True, exist_ok=True)
    try:
        for kind, path in files.items():
            path.write_text(texts[kind], encoding="utf-8")
        read = load(TableSource, files["_map"])
        for kind in ("", "_nonprivate"):
            load(Experiment, files[kind])
    except Exception:
        for path in files.values():
            path.unlink(missing_ok=True)
        raise
    try:
        to_manifest(table, read, name)
        unread = ""
    except InputError as error:
        unread = str(error)
    return Written(
        files["_map"], files[""], files["_nonprivate"], sum(t.count(MARK) for t in texts.values()), unread
    )


def private_experiment(name: str, size: int, findings: tuple[str, ...], declared: int) -> Experiment:
    """A private experiment that a hospital can begin with.

    The patient is the unit, class counts are noised, thresholds are chosen on validation images, patients are
    resampled, N is declared and rounded; batch, steps and rate are the recommended recipe's.

    Args:
        name: of the store.
        size: side of its images.
        findings: to predict.
        declared: rounded number of training patients.
    """
    base = Experiment(
        DataConfig(f"stores/{name}", size, findings),
        ModelConfig("mish"),
        TrainingConfig(min(declared, 1024), 1e-3, epochs=EPOCHS, class_weights="noised"),
        PrivacyConfig(EPSILON, delta_below(declared), 1.0, unit="patient", dataset_size=declared),
        evaluation=EvaluationConfig(threshold="youden_validation"),
    )
    rule = dataclasses.replace(load(Rule, PACKAGED / "recommended.yaml"), head=None)
    chosen = recommended(base, declared, rule)  # of the whole network: there are no weights yet
    steps = chosen.training.steps or 1
    training = dataclasses.replace(
        chosen.training,
        learning_rate=float(f"{chosen.training.learning_rate:.2g}"),
        log_every=max(1, steps // 40),
        checkpoint_every=max(1, steps // 10),
    )
    return dataclasses.replace(chosen, training=training)


def delta_below(units: int) -> float:
    """A power of ten of at most a tenth of 1 / N."""
    return float(f"1e{math.floor(math.log10(1 / (10 * units)))}")


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
        .removesuffix("...\n")
        .strip()
    )


def _line(key: str, value: Any, comment: str = "", indent: int = 0) -> str:
    said = f"  # {comment}" if comment else ""
    return f"{' ' * indent}{key}: {_value(value)}{said}"


def _map_text(proposal: Proposal, name: str) -> str:
    source, why = proposal.source, proposal.why
    guess = {place: f"{MARK}: {reason}" for place, reason in why.items()}
    plain: Mapping[str, Any] = dataclasses.asdict(source)
    lines = [
        f"# How `jaxcxr prepare csv` reads {source.provenance.name}, proposed from its columns and values.",
        f"# Check every line with {MARK}: a wrong one gives wrong labels. The keys are explained by",
        "# `jaxcxr configs prepare_example.yaml`.",
        *[f"# Seen: {remark}." for remark in proposal.remarks],
        "",
        "columns:",
    ]
    lines += [_line(k, v, guess.get(f"columns.{k}", ""), 2) for k, v in plain["columns"].items()]
    lines.append(_line("age_unit", source.age_unit, guess.get("age_unit", "")))
    lines += [
        _line(key, plain[key], guess.get(key, ""))
        for key in ("sex", "view", "split")
        if plain[key] is not None
    ]
    if source.keep:
        lines.append(_line("keep", {k: list(v) for k, v in source.keep.items()}, guess.get("keep", "")))
    if source.graded is not None:
        lines.append("graded:  # null is unknown; an empty cell is unknown too")
        lines += [_line(f, plain["graded"][f], guess[f"graded.{f}"], 2) for f in source.graded]
    if source.listed is not None:
        listed = source.listed
        lines += [f"listed:  # {guess['listed']}", _line("column", listed.column, "", 2)]
        lines += [_line("separator", listed.separator, "", 2), "  findings:"]
        lines += [_line(f, list(labels), "", 4) for f, labels in listed.findings.items()]
        if listed.unlabelled:
            said = f"{MARK}: an image with one of these is unknown for what it does not name"
            lines.append(_line("unlabelled", list(listed.unlabelled), said, 2))
        lines.append(_line("other", list(listed.other), f"{MARK}: an image with these alone is negative", 2))
    if source.draw is not None:
        fractions = source.draw.fractions()
        lines.append(_line("draw", fractions, guess["draw"]))
    lines.append(_line("provenance", {**plain["provenance"], "name": name}, guess["provenance"]))
    return "\n".join(lines) + "\n"


def _sections(values: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str]) -> list[str]:
    lines = []
    for section, fields in values.items():
        said = f"  # {comments[section]}" if section in comments else ""
        lines.append(f"{section}:{said}")
        lines += [_line(key, value, comments.get(f"{section}.{key}", ""), 2) for key, value in fields.items()]
    return lines


def _fields(part: Any, *names: str) -> dict[str, Any]:
    plain = json.loads(json.dumps({name: getattr(part, name) for name in names}))
    return dict(plain)


def _common(config: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections that a private experiment and its twin share: data and model, evaluation."""
    first = {
        "data": _fields(config.data, "store", "size", "findings"),
        "model": _fields(config.model, "activation", "weights", "test_time_augmentation"),
    }
    return first, {"evaluation": _fields(config.evaluation, "redraws", "resample", "threshold")}


def _experiment_text(config: Experiment, name: str) -> str:
    first, last = _common(config)
    privacy = ("epsilon", "delta", "unit", "images_per_patient", "dataset_size", "l2_clip_norm")
    training = ("expected_batch_size", "steps", "learning_rate", "scope", "averaging", "tail_share")
    values = {
        **first,
        "privacy": _fields(config.privacy, *privacy),
        "training": _fields(config.training, *training, "class_weights", "log_every", "checkpoint_every"),
        **last,
    }
    head = [
        f"# A private classifier on the store of {name}, with defaults that are safe for a hospital's",
        f"# patients. Lines with {MARK} are yours to decide. `jaxcxr train --help-config` lists the fields;",
        "# `jaxcxr train --config THIS --dry-run` says what the run would cost before anything is trained.",
        "# Choose epsilon before you look at results, and N where you can from elsewhere than this table.",
        "",
    ]
    return "\n".join([*head, *_sections(values, COMMENTS), ""])


def _nonprivate_text(config: Experiment, name: str) -> str:
    first, last = _common(config)
    training = {
        "expected_batch_size": min(32, config.training.expected_batch_size),
        "epochs": EPOCHS,
        "learning_rate": 1e-4,
        "class_weights": "paper",
        "log_every": 20,
        "checkpoint_every": 200,
    }
    said = {
        **{name: text for name, text in COMMENTS.items() if not name.startswith("training")},
        "training": f"{MARK}: all of it",
        "training.class_weights": "exact counts: without privacy nothing is promised",
    }
    head = [
        f"# The cohort and network of {name}.yaml without privacy, for comparison inside the hospital:",
        "# never to be released.",
        "",
    ]
    return "\n".join([*head, *_sections({**first, "training": training, **last}, said), ""])
