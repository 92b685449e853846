"""What a run folder says of how its model came about, in words: the network, the films, and what was promised
to whom.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.errors import InputError
from jaxcxr.records.spent import spent_of
from jaxcxr.run_folder import CONFIG, is_run
from jaxcxr.run_folder import read_facts as read_run_facts

UNITS: Mapping[str, str] = {
    "image": "one film",
    "patient": "one patient with all of their films",
    "patient_one_image": "one patient with all of their films",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """One finished run.

    Attributes:
        name: of its folder.
        config: its `config.yaml`.
        run: its `run.json`.
        spent: bounds on the epsilon that its ledger has spent; None for a run without privacy.
    """

    name: str
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    spent: Bounds | None

    @property
    def private(self) -> bool:
        """True if it was trained with privacy."""
        return self.spent is not None

    @property
    def synthetic(self) -> bool:
        """True if its films were drawn by formulas, so that there are no patients."""
        return bool(self.config.get("data", {}).get("synthetic"))


def read_facts(folder: Path) -> Facts | None:
    """The facts of a run folder; None if it is none (`run.json` or `config.yaml` is missing).

    Raises:
        InputError: a file cannot be read, or the ledger of a private run is missing, damaged or at odds with
            the run.
    """
    if not is_run(folder):
        return None
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read ({' '.join(str(error).split())})") from error
    spent = spent_of(folder)
    return Facts(
        folder.resolve().name, config, read_run_facts(folder), None if spent is None else spent.bounds()
    )


def trained(facts: Facts, findings: Sequence[str]) -> str:
    """The network and its training in a sentence."""
    model, training, data = (facts.config.get(part, {}) for part in ("model", "training", "data"))
    size, weights = data.get("size", "?"), model.get("weights")
    start = f"from the weights {weights}" if weights else "from random weights"
    return (
        f"A residual network of nine layers (width {model.get('width', '?')}, "
        f"{model.get('activation', '?')}) for "
        f"{len(findings)} finding{'s' * (len(findings) != 1)} on films of {size} × {size} pixels, {start}: "
        f"{facts.run.get('steps', '?')} steps of {training.get('expected_batch_size', '?')} expected films."
    )


def promise(facts: Facts) -> str:
    """The privacy that the ledger accounts for, in a sentence."""
    if facts.spent is None:
        return "None: trained without privacy; epsilon is infinite."
    privacy = facts.config.get("privacy") or {}
    unit = str(privacy.get("unit", "image"))
    whom, less = (
        UNITS.get(unit, unit),
        " A patient with several films is promised less." if unit == "image" else "",
    )
    return (
        f"ε = {facts.spent.upper:.4g} at δ = {facts.run['delta']:g} (upper bound from the ledger; budget "
        f"{facts.run['epsilon']:g}), for {whom} added or removed.{less}"
    )


def films_in_words(films: pd.DataFrame, called: str) -> str:
    """How many films of how many patients, with sex and age where they are known.

    Args:
        films: one row a film, with `patient_id` and, if known, `sex` and `age`.
        called: what they are for, such as 'training'.
    """
    said = f"{len(films):,} {called} films of {films['patient_id'].nunique():,} patients"
    about = []
    if "sex" in films:
        counts = films["sex"].astype(str).value_counts()
        about += [f"{counts.get(code, 0):,} {name}" for code, name in (("F", "female"), ("M", "male"))]
    ages = (
        np.asarray(pd.to_numeric(films["age"], errors="coerce"), np.float64)
        if "age" in films
        else np.array([])
    )
    if np.isfinite(ages).any():
        about.append(f"median age {np.nanmedian(ages):.0f} years")
    return f"{said} ({', '.join(about)})" if about else said


def cohort(facts: Facts | None, films: pd.DataFrame | None, predictions: pd.DataFrame) -> str:
    """Who the model was trained on and judged on, as far as it is known."""
    parts = []
    if films is not None:
        parts.append(f"Trained on {films_in_words(films.loc[films['split'] == 'train'], 'training')}")
    elif facts is not None and "n_units" in facts.run:
        units = "films" if (facts.config.get("privacy") or {}).get("unit", "image") == "image" else "patients"
        parts.append(f"Trained on {facts.run['n_units']:,} {units}, as declared")
    else:
        parts.append("Trained on films that this file knows nothing about")
    parts.append(f"judged on {films_in_words(predictions.loc[predictions['split'] == 'test'], 'test')}")
    text = "; ".join(parts) + "."
    return (
        f"{text} Films and patients are drawn by formulas; nobody's data are in them."
        if facts is not None and facts.synthetic
        else text
    )


def settings(facts: Facts) -> list[tuple[str, str]]:
    """Every field of the configuration, and the facts of the run, as name and value."""
    rows = [
        (f"{part}.{key}", _shown(value))
        for part, fields in facts.config.items()
        for key, value in _fields(fields)
    ]
    return rows + [(f"run.{key}", _shown(value)) for key, value in facts.run.items()]


def _fields(fields: object) -> list[tuple[str, object]]:
    return (
        [(str(key), value) for key, value in fields.items()] if isinstance(fields, dict) else [("", fields)]
    )


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_shown(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items())
    return "none" if value is None else str(value)
