"""What every data source returns, and one id per patient."""

import dataclasses
from collections.abc import Iterable, Mapping

import pandas as pd

from jaxcxr.config import STRICT
from jaxcxr.data.splits import GIVEN
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a data set comes from and on which terms it may be used; shown on the data card."""

    __pydantic_config__ = STRICT
    name: str
    origin: str
    access: str
    licence: str


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A cohort ready to be prepared.

    Attributes:
        manifest: the checked manifest.
        findings: its label columns.
        provenance: of the data.
        excluded: number of rows of the tables that are not used, by reason.
        refused: files that cannot be used, and why, for quarantine.csv.
        split: how the splits were made, for `store.json` (`jaxcxr.data.splits`); holds the key of random
            splits.
    """

    manifest: pd.DataFrame
    findings: tuple[str, ...]
    provenance: Provenance
    excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    split: Mapping[str, object] = dataclasses.field(default_factory=lambda: dict(GIVEN), repr=False)


def with_one_id(patients: Iterable[str], same_patient: Mapping[str, str]) -> list[str]:
    """Each image's patient id with aliases resolved: with `A: B` and `B: C`, images of A, B and C are C's.

    Args:
        patients: the patient id of each image.
        same_patient: alias -> id.

    Raises:
        InputError: an alias leads back to itself.
    """
    final: dict[str, str] = {}
    for alias in same_patient:
        chain = [alias]
        while chain[-1] in same_patient:
            following = same_patient[chain[-1]]
            if following in chain:
                raise InputError(
                    f"same_patient: {' -> '.join([*chain, following])} leads back; expected one id at the end"
                )
            chain.append(following)
        final[alias] = chain[-1]
    return [final.get(patient, patient) for patient in patients]
