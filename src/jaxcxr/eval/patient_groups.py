"""Groups of patients for which exposure and price are set side by side: the same groups, by the same rule, of
the patients who were trained on and of those who were tested on.

A patient has the age and sex of the first image, the view of most, and every finding that any image has.
Beside the groups of an evaluation there are: number of images, each finding, and a rare combination of
findings, which fewer than `RARE` patients of the whole cohort have.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxcxr.eval.groups import PAPER_GROUPS, Group, make_groups

IMAGES = "images:1,2,5,10,inf"
RARE = 10
"""Number of patients of the cohort from which on a combination of findings is not rare."""
COMBINATION = "combination"
PRESENT, ABSENT = "present", "absent"
RARE_ONE, COMMON = "rare", "common"
_GIVEN = ("age", "sex", "view", "comorbidities")


def patient_table(manifest: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """One row per patient of a cohort, in order of first appearance, by `patient_id` (the index).

    Args:
        manifest: one row per image: `patient_id`, `split`, a column per finding, and those of `_GIVEN` that
            the cohort has.
        findings: names of the label columns.
    """
    ids = manifest["patient_id"].astype(str)
    grouped = manifest.assign(patient_id=ids).groupby("patient_id", sort=False)
    table = pd.DataFrame({"split": grouped["split"].first(), "images": grouped.size()})
    for column in _GIVEN:
        if column in manifest:
            table[column] = grouped[column].agg(_commonest if column == "view" else "first")
    present = {finding: np.asarray(grouped[finding].max() == 1) for finding in findings}
    for finding in findings:
        table[finding] = np.where(present[finding], PRESENT, ABSENT)
    combinations = np.stack([present[finding] for finding in findings], axis=1)
    _, place, counts = np.unique(combinations, axis=0, return_inverse=True, return_counts=True)
    table[COMBINATION] = np.where(counts[place.ravel()] < RARE, RARE_ONE, COMMON)
    return table


def _commonest(values: pd.Series) -> object:
    counts = values.value_counts()
    return None if counts.empty else counts.index[0]


def groups_of_patients(
    table: pd.DataFrame, findings: Sequence[str], specs: Sequence[str] | None
) -> tuple[Group, ...]:
    """The groups of `specs_of_patients`, masks being over the rows of the table."""
    return make_groups(table, specs_of_patients(table, findings, specs))


def specs_of_patients(
    table: pd.DataFrame, findings: Sequence[str], specs: Sequence[str] | None
) -> tuple[str, ...]:
    """Which groups there are, as texts for `eval.groups.make_groups`; attributes are not combined.

    Args:
        table: of the whole cohort (`patient_table`), so that groups have the same names whoever is asked
            about.
        findings: names of the findings.
        specs: as in `make_groups`; None takes the paper's and the view, as far as the table has them.
    """
    wanted = [spec for spec in (specs or (*PAPER_GROUPS, "view")) if "*" not in spec]
    own = [*wanted, IMAGES, *findings, COMBINATION]
    return tuple(dict.fromkeys(s for s in own if _known(table, s.partition(":")[0].strip())))


def _known(table: pd.DataFrame, column: str) -> bool:
    return column in table and bool(table[column].notna().any())


def with_patients(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Predictions with what `table` says of each image's patient in the place of columns of their own."""
    columns = [column for column in table.columns if column != "split"]
    kept = predictions.drop(columns=[column for column in columns if column in predictions])
    own = table.loc[:, columns].reindex(kept["patient_id"].astype(str)).set_axis(kept.index)
    joined = pd.concat([kept, own], axis=1)
    joined.attrs = dict(predictions.attrs)
    return joined
