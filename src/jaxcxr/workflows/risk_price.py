"""What each budget costs the groups of test patients whose exposure was measured, and whether those pay whom
privacy protects most.

Those who are exposed were trained on, and those who pay are tested: other people, joined by group alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.bootstrap import spread
from jaxcxr.eval.compare import read_pair
from jaxcxr.eval.estimates import measure
from jaxcxr.eval.exposure import Exposed
from jaxcxr.eval.patient_groups import (
    ABSENT,
    COMMON,
    specs_of_patients,
    with_patients,
)
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.eval.price import (
    DIFFICULTY,
    PRICE_COLUMNS,
    PRICES,
    Priced,
    difficulty,
    losses,
    price_by_group,
)
from jaxcxr.report.risk_files import JOINED, PATIENT_PRICE, PRICE, RISK, write_private_csv
from jaxcxr.run_folder import PREDICTIONS
from jaxcxr.workflows.risk import RATES, Risk
from jaxcxr.workflows.risk_inputs import Target

LEAST_GROUPS = 4
"""Fewer groups have no rank correlation worth a figure."""


def price(folder: Path, risk: Risk, config: EvaluationConfig, findings: Sequence[str]) -> pd.DataFrame | None:
    """Write `price.csv`, `joined.csv` and `test_patients.csv` into `risk/`.

    Returns:
        The table that joins exposure and price; None without a model without privacy and a private one.
    """
    plain = [target for target in risk.targets if math.isinf(target.epsilon)]
    private = [target for target in risk.targets if math.isfinite(target.epsilon)]
    if not plain or not private:
        return None
    judged = dataclasses.replace(config, groups=specs_of_patients(risk.table, findings, config.groups))
    priced, patients, measured = {}, {}, None
    for target in private:
        a, b, common = read_pair(plain[0].folder, target.folder)
        a = with_patients(a, risk.table)
        hard = _difficulty([t for t in risk.targets if t not in (plain[0], target)], a, common, config)
        if hard is not None:
            a = a.assign(**{DIFFICULTY: hard})
        b = _with_columns_of(a, b)
        measured = measured or measure(a, common, judged)  # the same for every budget
        priced[target.epsilon] = price_by_group(a, b, common, judged, measured)
        patients[target.epsilon] = _of_patients(a, b, common, config)
    table = pd.concat([p.table.assign(epsilon=e) for e, p in priced.items()], ignore_index=True)
    write_private_csv(table.loc[:, list(PRICE_COLUMNS)], folder / RISK / PRICE)
    write_private_csv(_side_by_side(patients), folder / RISK / PATIENT_PRICE)
    joined = join(risk.exposed, priced)
    write_private_csv(joined, folder / RISK / JOINED)
    return joined


def join(exposed: Exposed, priced: Mapping[float, Priced]) -> pd.DataFrame:
    """Rank correlation over groups between what privacy takes from their exposure and what they pay.

    One row per budget and price: `correlation` (Spearman's), its percentile interval over the replicates of
    both samples, which are independent of each other, and the number of `groups`. Complements of groups
    (a finding that is absent, a combination that is common) are left out, since they repeat the others.
    """
    rows = []
    for epsilon, of in priced.items():
        for name in PRICES:
            groups = [
                group
                for (e, rate, group) in exposed.draws
                if e == epsilon
                and rate == RATES[-1]
                and group != "all"
                and (name, group) in of.draws
                and not group.endswith((f"_{ABSENT}", f"_{COMMON}"))
            ]
            row = {"epsilon": epsilon, "price": name, "groups": len(groups)}
            if len(groups) >= LEAST_GROUPS:
                taken = [
                    exposed.draws[math.inf, RATES[-1], g] - exposed.draws[epsilon, RATES[-1], g]
                    for g in groups
                ]
                paid = [of.draws[name, g] for g in groups]
                draws = _spearman(np.stack(taken), np.stack(paid))
                interval = spread(draws[1:])
                row |= {"correlation": draws[0], "ci_low": interval.ci_low, "ci_high": interval.ci_high}
            rows.append(row)
    return pd.DataFrame(rows).reindex(
        columns=["epsilon", "price", "groups", "correlation", "ci_low", "ci_high"]
    )


def _spearman(
    a: Float[np.ndarray, "groups draws"], b: Float[np.ndarray, "groups draws"]
) -> Float[np.ndarray, " draws"]:
    """Of each draw; NaN where a draw has an undefined value or all groups are equal."""
    ranks = [rankdata(values, axis=0) for values in (a, b)]
    centred = [rank - rank.mean(axis=0) for rank in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred[0] * centred[1]).sum(axis=0) / np.sqrt(
            (centred[0] ** 2).sum(axis=0) * (centred[1] ** 2).sum(axis=0)
        )
    return np.where(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0), np.nan, found)


def _difficulty(
    others: Sequence[Target], plain: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> pd.Series | None:
    """Of each row of `plain`, by the models that are not compared; None if there are none."""
    found = []
    for target in others:
        table, _ = read_predictions(target.folder / PREDICTIONS)
        ids = table.loc[table["split"] == "test", "image_id"].astype(str)
        found.append(pd.Series(losses(table, findings, config), index=ids.to_numpy()))
    if not found:
        return None
    ids = plain.loc[plain["split"] == "test", "image_id"].astype(str)
    quarters = difficulty([loss.reindex(ids.to_numpy()).to_numpy() for loss in found])
    rows = pd.Series([None] * len(plain), index=plain.index, dtype=object)
    rows.loc[ids.index] = quarters.to_numpy()
    return rows


def _with_columns_of(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """`b` with the columns for groups of `a`, by image."""
    kept = b[["image_id", "patient_id", "split", *(c for c in b if str(c).startswith(("y_", "p_")))]]
    joined = kept.merge(a[["image_id", *(c for c in a if c not in kept)]], on="image_id", how="left")
    joined.attrs = dict(b.attrs)
    return joined


def _of_patients(
    a: pd.DataFrame, b: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> pd.DataFrame:
    """Mean loss of each test patient in both models."""
    test = a.loc[a["split"] == "test", ["patient_id"]].astype(str)
    test = test.assign(loss_non_private=losses(a, findings, config), loss=losses(b, findings, config))
    return test.groupby("patient_id", sort=False).mean()


def _side_by_side(patients: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    first = next(iter(patients.values()))[["loss_non_private"]]
    columns = {f"loss_epsilon_{epsilon:g}": table["loss"] for epsilon, table in patients.items()}
    return first.assign(**columns).reset_index()
