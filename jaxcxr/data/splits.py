"""Who is trained on and who is held out: patients are dealt to the splits so that each gets its share of every finding and
group.

Source: the paper, Patient Cohort: patients, not films, are allocated to training and test.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxcxr.data.manifest import SPLITS, numbers_of, text_of
from jaxcxr.errors import InputError

_AGE_EDGES = (30.0, 60.0, 70.0, 80.0)


def split_stratified(
    frame: pd.DataFrame, fractions: Mapping[str, float], seed: int, findings: Sequence[str], groups: Sequence[str] = ()
) -> pd.DataFrame:
    """Give every patient, with all of their images, one split, so that the splits resemble one another.

    Patients are put in order of their findings (the rarest first), sex, age, further groups and number of films, at random
    among equals, and then dealt along that order, each to the split that lacks most. Of any run of alike patients each split
    gets its fraction to within about one patient.

    Args:
        frame: a manifest without `split`; labels are 1, 0 or empty.
        fractions: fraction of the patients in each split; they sum to 1.
        seed: of the order among equals; the same patients, fractions and seed give the same splits, whatever the row order.
        findings: label columns to balance.
        groups: further columns to balance, such as an ethnic group or a scanner.

    Returns:
        A copy with a `split` column.

    Raises:
        InputError: a split is unknown, or the fractions do not lie in [0, 1] and sum to 1.
    """
    check_fractions(fractions)
    patients = text_of(frame, "patient_id")
    positive = {finding: numbers_of(frame, finding) == 1 for finding in findings}
    ages = numbers_of(frame, "age") if "age" in frame else np.full(len(frame), np.nan)
    rarest_first = sorted(findings, key=lambda finding: int(positive[finding].sum()))
    films = pd.DataFrame(
        {
            **positive,
            "sex": text_of(frame, "sex") if "sex" in frame else "",
            "age": np.digitize(np.nan_to_num(ages, nan=-1.0), _AGE_EDGES),
            **{group: text_of(frame, group) for group in groups},
            "films": 1,
        }
    )
    described = ("sex", "age", *groups)
    how = {**dict.fromkeys(rarest_first, "any"), **dict.fromkeys(described, "max"), "films": "sum"}
    table: pd.DataFrame = films.groupby(patients, sort=True).agg(how)  # type: ignore[arg-type]
    table["chance"] = np.random.default_rng(seed).permutation(len(table))
    order = table.sort_values([*rarest_first, *described, "films", "chance"]).index
    names = [name for name, fraction in fractions.items() if fraction > 0]
    wanted = np.array([fractions[name] for name in names])
    given = np.zeros(len(names))
    split: dict[str, str] = {}
    for place, patient in enumerate(order, 1):
        chosen = int(np.argmax(wanted * place - given))
        given[chosen] += 1
        split[patient] = names[chosen]
    return frame.assign(split=[split[patient] for patient in patients])


def valid_from_train(frame: pd.DataFrame, fraction: float, seed: int, findings: Sequence[str]) -> pd.DataFrame:
    """Move a fraction of the training patients to `valid`, for sources that publish no validation split."""
    there = set(frame["split"])
    if fraction == 0 or "valid" in there or "train" not in there:
        return frame
    train = frame.loc[frame["split"] == "train"].drop(columns="split")
    drawn = split_stratified(train, {"train": 1 - fraction, "valid": fraction}, seed, findings)
    sides = frame["split"].copy()
    sides.loc[drawn.index] = drawn["split"]
    return frame.assign(split=sides)


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuse fractions of unknown splits, or that do not lie in [0, 1] and sum to 1."""
    if any(split not in SPLITS for split in fractions):
        raise InputError(f"split fractions: expected splits among {list(SPLITS)}, found {list(fractions)}")
    parts = np.array(list(fractions.values()), dtype=np.float64)
    if not np.all((parts >= 0) & (parts <= 1)) or not np.isclose(parts.sum(), 1):
        raise InputError(f"split fractions: expected numbers in [0, 1] that sum to 1, found {dict(fractions)}")
