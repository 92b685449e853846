"""What a run folder says of how its model came about, in words: the network, the images, and the privacy that
was promised to whom.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.config import Experiment
from jaxcxr.config_files import by_present_names
from jaxcxr.errors import InputError
from jaxcxr.records.spent import spent_of
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.verdicts import found_by_attack, strength, strength_sentence
from jaxcxr.report.wording import counted
from jaxcxr.run_folder import CONFIG, is_run
from jaxcxr.run_folder import read_facts as read_run_facts

UNITS: Mapping[str, str] = {
    "image": "one image",
    "patient": "one patient with all of their images",
    "patient_one_image": "one patient with all of their images",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """One finished run.

    Attributes:
        name: of its folder.
        config: its `config.yaml`.
        run: its `run.json`.
        spent: bounds on the epsilon that its ledger has spent; None for a run without privacy.
        found: bound on the share of used units that any attacker finds (`verdicts.found_by_attack`); None for
            a run without privacy.
    """

    name: str
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    spent: Bounds | None
    found: float | None = None

    @property
    def private(self) -> bool:
        """True if it was trained with privacy."""
        return self.spent is not None

    @property
    def synthetic(self) -> bool:
        """True if its images are synthetic, so that there are no patients."""
        return bool(self.config.get("data", {}).get("synthetic"))

    @property
    def unit(self) -> str:
        """What privacy is promised to: a key of `UNITS`."""
        return str((self.config.get("privacy") or {}).get("unit", "image"))

    @property
    def units(self) -> str:
        """The same in the plural, in words."""
        return "images" if self.unit == "image" else "patients"

    @property
    def seeded(self) -> bool:
        """True if its randomness was to be repeatable, so that the noise can be computed by who knows the
        seed.
        """
        return (self.config.get("training") or {}).get("seed") is not None


def read_facts(folder: Path) -> Facts | None:
    """The facts of a run folder; None if it is none (`run.json` or `config.yaml` is missing).

    Raises:
        InputError: a file cannot be read, or the ledger of a private run is missing, damaged or at odds with
            the run.
    """
    if not is_run(folder):
        return None
    config, spent = read_sections(folder), spent_of(folder)
    name, facts = folder.resolve().name, read_run_facts(folder)
    if spent is None:
        return Facts(name, config, facts, None)
    return Facts(name, config, facts, spent.bounds(), found_by_attack(spent.guarantee, spent.delta))


def read_sections(folder: Path) -> dict[str, Any]:
    """The sections of a run's configuration as they stand there, also of an earlier version.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        sections = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read ({' '.join(str(error).split())})") from error
    return by_present_names(Experiment, sections, lambda _: None)


def trained(facts: Facts, findings: Sequence[str]) -> str:
    """The network and its training in a sentence."""
    model, training, data = (facts.config.get(part, {}) for part in ("model", "training", "data"))
    size, weights = data.get("size", "?"), model.get("weights")
    start = f"from the weights {weights}" if weights else "from random weights"
    return (
        f"A residual network of nine layers (width {model.get('width', '?')}, "
        f"{model.get('activation', '?')}) for "
        f"{counted(len(findings), 'finding')} on images of {size} × {size} pixels, {start}: "
        f"{facts.run.get('steps', '?')} steps with an expected batch of "
        f"{training.get('expected_batch_size', '?')}."
    )


def promise(facts: Facts) -> str:
    """The privacy that the ledger accounts for, with a verdict on it, in sentences."""
    if facts.spent is None:
        return "None: trained without privacy; epsilon is infinite."
    less = " A patient with several images is promised less." if facts.unit == "image" else ""
    return (
        f"ε = {upper_text(facts.spent.upper)} at δ = {facts.run['delta']:g} (upper bound from the ledger; "
        f"budget {facts.run['epsilon']:g}), for {UNITS.get(facts.unit, facts.unit)} added or removed."
        f"{less} {_strength(facts)}"
    )


def _strength(facts: Facts) -> str:
    if facts.seeded:
        return "No verdict: anyone with the run's seed (training.seed) can recompute and subtract the noise."
    return strength_sentence(1.0 if facts.found is None else facts.found, facts.units)


def verdict(facts: Facts) -> str:
    """How strong the promise is, in a word; 'none' where there is none or the run was seeded."""
    if facts.found is None or facts.seeded:
        return "none"
    return strength(facts.found)


def films_in_words(films: pd.DataFrame, called: str) -> str:
    """How many images of how many patients, with sex and age where they are known.

    Args:
        films: one row per image, with `patient_id` and, if known, `sex` and `age`.
        called: what they are for, such as 'training'.
    """
    patients = counted(len(set(films["patient_id"].dropna())), "patient")
    said = f"{counted(len(films), f'{called} image')} of {patients}"
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
        parts.append(f"Trained on {facts.run['n_units']:,} {facts.units}, as declared")
    else:
        parts.append("Training data: not recorded in this file")
    parts.append(f"tested on {films_in_words(predictions.loc[predictions['split'] == 'test'], 'test')}")
    text = "; ".join(parts) + "."
    return (
        f"{text} Images and patients are synthetic; nobody's data are in them."
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
