"""What every data source returns."""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from jaxcxr.config import STRICT
from jaxcxr.data.splits import GIVEN


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
        remarks: what the user should know before training, such as ids that look like one person's.
    """

    manifest: pd.DataFrame
    findings: tuple[str, ...]
    provenance: Provenance
    excluded: Mapping[str, int] = dataclasses.field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    split: Mapping[str, object] = dataclasses.field(default_factory=lambda: dict(GIVEN), repr=False)
    remarks: tuple[str, ...] = ()

    def with_remark(self, remark: str) -> "Cohort":
        """This cohort with one more remark."""
        return dataclasses.replace(self, remarks=(*self.remarks, remark))
