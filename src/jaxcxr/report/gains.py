"""What private training bought over the weights that it started from, and what privacy cost."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.report.evaluation_facts import estimate
from jaxcxr.report.wording import between, leaves_out_zero, signed

COLUMNS = ("epsilon", "before", "after", "gain", "ci_low", "ci_high", "p_value", "n", "redraws", "resample")


def gains(starts: Mapping[float, Mapping[str, Any]]) -> pd.DataFrame:
    """What each model gained in average AUROC over the weights that it started from, paired.

    Args:
        starts: by budget, rows of `eval.compare.compare` for the start minus the model.

    Returns:
        One row per budget, falling: `epsilon`, `before`, `after`, `gain`, `ci_low`, `ci_high` (95 %),
        `p_value`, `n` (test images), `redraws`, `resample`.
    """
    rows = [
        {
            "epsilon": epsilon,
            "before": row.get("value_a", math.nan),
            "after": row.get("value_b", math.nan),
            "gain": -row["difference"],
            "ci_low": -row["ci_high"],
            "ci_high": -row["ci_low"],
            **{name: row.get(name) for name in ("p_value", "n", "redraws", "resample")},
        }
        for epsilon, row in sorted(starts.items(), reverse=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def bought_and_paid(gained: pd.DataFrame, comparisons: pd.DataFrame | None) -> list[str]:
    """At the smallest and the largest budget: what private training bought over the weights that it started
    from, and what privacy cost against the model without it, as far as that was measured.

    Args:
        gained: table of `gains`.
        comparisons: rows of `report.sweep_report.compare_with_non_private`, or None.
    """
    rows = {
        row["epsilon"]: row
        for row in gained.to_dict("records")
        if math.isfinite(row["epsilon"]) and not np.isnan(row["gain"])
    }
    said = []
    for epsilon in sorted({min(rows), max(rows)} if rows else ()):
        row = rows[epsilon]
        text = (
            f"At ε = {epsilon:g}, in average AUROC, private training bought "
            f"{_amount(row['gain'], row['ci_low'], row['ci_high'])} over the weights that it started from"
        )
        here = None if comparisons is None else comparisons.loc[comparisons["epsilon"] == epsilon]
        price = None if here is None else estimate(here, "auroc")
        if price is not None and not np.isnan(price["difference"]):
            paid = _amount(price["difference"], price["ci_low"], price["ci_high"])
            text += f", and privacy cost {paid} against training without it"
        said.append(f"{text}.")
    return said


def _amount(difference: float, low: float, high: float) -> str:
    shown = "" if leaves_out_zero(low, high) else ", not distinguishable from zero"
    return f"{signed(difference)} (95 % interval {between(low, high)}{shown})"
