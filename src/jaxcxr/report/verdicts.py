"""Verdicts in words on one model: against guessing, at its thresholds, against the weights that it started
from, and on the strength of its privacy.

Each follows from a number that stands beside it, and says no more than the interval of that number shows.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.report.bounds import round_up, upper_text
from jaxcxr.report.wording import between, listed, number

GUESSING = 0.5
"""AUROC of guessing."""
NO_BETTER, WORSE = "no better than guessing", "worse than guessing"

Strength = Literal["weak", "moderate", "strong"]
FALSE_POSITIVE_RATE = 0.01
"""Share of the units that were not used whom an attacker accuses, at which a promise is called weak or
strong."""
WEAK = 0.5
"""From this bound on the attacker's true-positive rate on, a promise is weak."""
STRONG = 2 * FALSE_POSITIVE_RATE
"""Up to this bound, twice what guessing gives, a promise is strong."""


def against_guessing(row: Mapping[str, Any] | None) -> str:
    """`WORSE` if the 95 % interval of an AUROC lies below 0.5, `NO_BETTER` if it holds 0.5; else empty.

    Args:
        row: estimate with `ci_low` and `ci_high`; None, or an interval that is not known, gets no verdict.
    """
    if row is None or np.isnan(row["ci_low"]) or row["ci_low"] > GUESSING:
        return ""
    return WORSE if row["ci_high"] < GUESSING else NO_BETTER


def findings_against_guessing(evaluation: pd.DataFrame) -> str:
    """Which findings are predicted no better than by guessing; empty if each of them is."""
    rows = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == "auroc")]
    rows = rows.loc[rows["finding"] != "average"]
    parts = []
    for verdict, because in ((NO_BETTER, "the interval holds 0.5"), (WORSE, "the interval is below 0.5")):
        found = [row["finding"] for row in rows.to_dict("records") if against_guessing(row) == verdict]
        if found:
            parts.append(f"{verdict}, as far as these images show ({because}): {listed(found)}")
    return f"By AUROC, finding by finding, {'; '.join(parts)}." if parts else ""


def calls_sentences(evaluation: pd.DataFrame) -> tuple[str, ...]:
    """Findings at whose threshold nobody, or everybody, or nobody who has the finding is called positive."""
    rows = evaluation.loc[(evaluation["group"] == "all") & evaluation["value"].notna()]
    rates = {
        (str(row["finding"]), str(row["metric"])): float(row["value"]) for row in rows.to_dict("records")
    }
    findings = [f for f in dict.fromkeys(rows["finding"].astype(str)) if f not in ("average", "any")]
    nobody = [f for f in findings if rates.get((f, "selection_rate")) == 0]
    everybody = [f for f in findings if rates.get((f, "selection_rate")) == 1]
    missed = [f for f in findings if rates.get((f, "sensitivity")) == 0 and f not in nobody]
    said = (
        (nobody, "No test image is called positive for {}: accuracy and specificity only say how rare the "
        "finding is."),
        (everybody, "Every test image is called positive for {}: sensitivity says nothing about the model."),
        (missed, "None of the test images that have the finding is called positive for {}."),
    )  # fmt: skip
    return tuple(text.format(listed(which)) for which, text in said if which)


def against_start(row: Mapping[str, Any] | None) -> str:
    """Whether training improved on the weights that it started from; empty if that is not known.

    Args:
        row: of `eval.compare.compare` for the average AUROC, the starting weights minus the trained model.
    """
    if row is None or np.isnan(row["difference"]):
        return ""
    low, high = float(row["ci_low"]), float(row["ci_high"])
    start = f"the weights that training started from (average AUROC {number(row['value_a'])})"
    if low > 0:
        return (
            f"The model is worse than {start}: training lost {number(row['difference'])} (95 % interval "
            f"{between(low, high)})."
        )
    if high < 0:
        return (
            f"The model is better than {start} by {number(-row['difference'])} (95 % interval "
            f"{between(-high, -low)})."
        )
    return (
        f"The model is not shown to be better than {start}: training changed it by "
        f"{number(-row['difference'])} ({between(-high, -low)}), which is not distinguishable from zero."
    )


def found_by_attack(promised: Guarantee, delta: float) -> float:
    """Bound on the share of used units that any attacker finds who accuses `FALSE_POSITIVE_RATE` of the
    others wrongly: what `strength` judges by.
    """
    return min(1.0, round_up(promised.attacks(delta).true_positive_rate[FALSE_POSITIVE_RATE]) or 0.0)


def strength(found: float) -> Strength:
    """Verdict on a promise of privacy from the bound of `found_by_attack`."""
    if found >= WEAK:
        return "weak"
    return "strong" if found <= STRONG else "moderate"


def strength_sentence(found: float, units: str) -> str:
    """The verdict on a promise with the bound that it follows from.

    Args:
        found: bound of `found_by_attack`.
        units: what is protected, in the plural: 'images' or 'patients'.
    """
    allowed = number(100 * FALSE_POSITIVE_RATE, 0)
    limit = (
        f"{upper_text(100 * found, 3)} of every 100 {units} that were used and wrongly accuses {allowed} of "
        "every 100 others"
    )
    match strength(found):
        case "weak":
            return f"This promise alone is weak: it does not rule out an attacker who finds {limit}."
        case "strong":
            return f"This promise alone is strong: no attacker finds more than {limit}."
        case _:
            return (
                f"This promise alone is moderate: no attacker finds more than {limit}; guessing finds "
                f"{allowed}."
            )
