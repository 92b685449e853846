"""The files of a risk assessment, in the folder `risk/` of a run or sweep. Each says that it stays in the
hospital: the tables in their first line, the facts in their first field.
"""

import dataclasses
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, Final

import pandas as pd

from jaxcxr.atomic import replacing
from jaxcxr.errors import InputError
from jaxcxr.run_folder import PREDICTIONS

RISK: Final = "risk"
KEPT: Final = "kept"
"""In `RISK`: what models said of patients, kept for the next call."""
RISK_FACTS: Final = "risk.json"
ATTACKS: Final = "attacks.csv"
EXPOSURE: Final = "exposure.csv"
LIMITS: Final = "limits.csv"
PRICE: Final = "price.csv"
JOINED: Final = "joined.csv"
PATIENT_RISK: Final = "patients.csv"
"""One row per training patient, by name."""
PATIENT_PRICE: Final = "test_patients.csv"
STAYS: Final = (
    "stays in the hospital: computed from patients without noise, and covered by no privacy guarantee"
)


@dataclasses.dataclass(frozen=True, eq=False)
class RiskFiles:
    """What a risk assessment wrote, but for the tables of single patients.

    Attributes:
        facts: `risk.json`.
        attacks, exposure, limits: the tables.
        price, joined: None where there is no non-private model to compare with.
    """

    facts: dict[str, Any]
    attacks: pd.DataFrame
    exposure: pd.DataFrame
    limits: pd.DataFrame
    price: pd.DataFrame | None
    joined: pd.DataFrame | None


def write_private_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table whose first line says that it stays; readable by its owner alone."""
    text = io.StringIO()
    text.write(f"# {STAYS}\n")
    table.to_csv(text, index=False)
    with (
        replacing(path) as part,
        os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file,
    ):
        file.write(text.getvalue())


def read_private_csv(path: Path) -> pd.DataFrame:
    """A table of `write_private_csv`; texts that are missing are empty.

    Raises:
        InputError: it cannot be read.
    """
    try:
        table = pd.read_csv(path, skiprows=1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run jaxcxr risk again") from error
    for column in ("label", "note", "attribute", "group"):
        if column in table:
            table[column] = table[column].astype(object).where(table[column].notna(), "").astype(str)
    return table


def read_risk(folder: Path) -> RiskFiles | None:
    """What `risk/` of a run or sweep folder holds; None if there was no assessment.

    Raises:
        InputError: a file is damaged.
    """
    place = folder / RISK
    if not (place / RISK_FACTS).is_file():
        return None
    try:
        facts = json.loads((place / RISK_FACTS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{place / RISK_FACTS}: not valid JSON ({error}); run jaxcxr risk again") from error
    first = [read_private_csv(place / name) for name in (ATTACKS, EXPOSURE, LIMITS)]
    last = [read_private_csv(place / n) if (place / n).is_file() else None for n in (PRICE, JOINED)]
    return RiskFiles(facts, *first, *last)


def is_about(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether an assessment is about the models that a folder holds now, by their predictions."""
    for name, evaluated in facts.get("models", {}).items():
        own = [path for path in (folder.resolve(), folder.resolve() / name) if path.name == name]
        there = [path / PREDICTIONS for path in own if (path / PREDICTIONS).is_file()]
        beside = folder.resolve().parent / name / PREDICTIONS  # untouched weights beside a run
        there += [beside] if beside.is_file() else []
        if not any(hashlib.sha256(path.read_bytes()).hexdigest() == evaluated for path in there):
            return False
    return True
