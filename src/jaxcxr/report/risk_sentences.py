"""What a risk assessment says in sentences, each of which follows from a row of its tables."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxcxr.eval.bootstrap import holm
from jaxcxr.eval.patient_groups import ABSENT, COMBINATION, COMMON, RARE_ONE
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.paper.supplementary_tables import title
from jaxcxr.report.risk_files import RiskFiles
from jaxcxr.report.wording import between, leaves_out_zero, number, p_text, signed

RATE = 0.01
"""False-positive rate of the sentences and the picture."""
PRICE_NAMES = {
    "auroc_lost": "AUROC",
    "underdiagnosis_gained": "underdiagnosis",
    "loss_gained": "loss",
    "share_worse": "share of images predicted worse",
}


def label_of(label: str) -> str:
    """A group as a reader calls it."""
    first, _, last = label.rpartition(" ")
    if first == COMBINATION:
        return {RARE_ONE: "rare combination of findings", COMMON: "common combination of findings"}[last]
    return title(first) + f" {last}" if "_" in first else label


def is_complement(group: str) -> bool:
    """Whether a group is the rest beside one that is shown, such as those without a finding."""
    return group.endswith((f"_{ABSENT}", f"_{COMMON}"))


def risk_sentences(risk: RiskFiles) -> tuple[str, ...]:
    """The sentences, most important first."""
    rows = risk.exposure.loc[risk.exposure["false_positive_rate"] == RATE]
    budgets = sorted({float(e) for e in rows["epsilon"] if math.isfinite(e)}, reverse=True)
    sentences = [
        *_attacked(risk.attacks),
        *_exposed(rows, budgets, risk),
        *(_most_exposed(rows, epsilon, risk) for epsilon in (math.inf, *budgets[-1:])),
        *_limited(risk.limits, budgets[-1:]),
    ]
    if risk.price is not None and budgets:
        sentences.append(_payers(risk.price, budgets[-1], risk))
        sentences.append(_related(risk.joined, budgets[-1]))
    return tuple(sentence for sentence in sentences if sentence)


def percent(value: float, digits: int = 1) -> str:
    """A share in percent."""
    return f"{number(100 * value, digits)} %"


def _attacked(attacks: pd.DataFrame) -> list[str]:
    rows = attacks.loc[attacks["false_positive_rate"] == RATE]
    sentences = []
    for model, own in rows.groupby("model", sort=False):
        parts = []
        for row in own.to_dict("records"):
            if np.isnan(row["true_positive_rate"]):
                parts.append(f"{row['attack']} cannot be judged ({row['note']})")
                continue
            found, low, high = (percent(row[key]) for key in ("true_positive_rate", "ci_low", "ci_high"))
            verdict = "more than chance" if row["p_holm"] <= 0.05 else "not distinguishable from chance"
            parts.append(
                f"{row['attack']} recognises {found} (95 % interval {low} to {high}; {verdict}, "
                f"{p_text(row['p_holm'])})"
            )
        start = f"The model {_named(float(own['epsilon'].iloc[0]))}"
        start = start if model != "before training" else "The weights before training"
        sentences.append(
            f"{start}, attacked once at 1 % false positives: of its training patients {'; '.join(parts)}."
        )
    untouched = rows.loc[(rows["model"] == "before training") & (rows["p_holm"] <= 0.05)]
    if len(untouched):
        sentences.append(
            "The weights before training never saw these patients and yet tell them from the held-out ones: "
            "the two kinds of patients differ by themselves, so that the attacks on the models above "
            "overstate what training betrayed."
        )
    return sentences


def _exposed(rows: pd.DataFrame, budgets: Sequence[float], risk: RiskFiles) -> list[str]:
    everyone = rows.loc[rows["group"] == "all"].set_index("epsilon")
    parts = []
    for epsilon in (math.inf, *budgets):
        row = everyone.loc[epsilon]
        parts.append(
            f"{_named(epsilon)} {signed(100 * row['exposure'], 1)} (95 % interval "
            f"{between(100 * row['ci_low'], 100 * row['ci_high'], 1)})"
        )
    recognised = risk.facts["recognised_patients"]
    people = int(everyone["patients"].iloc[0])
    beyond = []
    for epsilon in (math.inf, *budgets):
        key = "non_private" if math.isinf(epsilon) else f"epsilon_{epsilon:g}"
        beyond.append(f"{recognised[key]:,} {_named(epsilon)}")
    return [
        "In small models trained on random halves of the patients, at 1 % false positives, of 100 training "
        f"patients so many more are recognised than accused wrongly: {'; '.join(parts)}. A whole network can "
        "remember more.",
        f"Of {people:,} training patients, so many are recognised by these models beyond chance, each for "
        f"themselves (Fisher's exact test, corrected for all of them): {', '.join(beyond)}.",
    ]


def _named(epsilon: float) -> str:
    return "without privacy" if math.isinf(epsilon) else f"at ε = {epsilon:g}"


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    kept = rows.loc[(rows["group"] != "all") & rows["vs_rest"].notna()]
    kept = kept.loc[~kept["group"].map(is_complement)]
    return kept.assign(p_holm=holm(kept["vs_rest_p"].to_numpy(np.float64)))


def _largest(own: pd.DataFrame, risk: RiskFiles, text: str, none: str) -> str:
    """A sentence on the group furthest above all others.

    Args:
        own: rows of `_judged`.
        risk: all files, for the number of replicates.
        text: with places for the `group` and the `value` with its interval.
        none: what is said if no group is above the others.
    """
    worst = own.loc[own["vs_rest"].idxmax()]
    value, low, high = (float(worst[key]) for key in ("vs_rest", "vs_rest_low", "vs_rest_high"))
    if value <= 0:
        return none
    scale, digits = (100, 1) if "of 100" in text else (1, 3)
    least = min(1.0, len(own) * 2 / (risk.facts["redraws"] + 1))
    interval = (
        f"(95 % interval {between(scale * low, scale * high, digits)}; "
        f"{p_text(float(worst['p_holm']), least)} for the largest of {len(own)})"
    )
    clear = "." if leaves_out_zero(low, high) else ", not distinguishable from the others."
    said = text.format(group=label_of(str(worst["label"])), value=signed(scale * value, digits), of=len(own))
    return f"{said} {interval}{clear}"


def _most_exposed(rows: pd.DataFrame, epsilon: float, risk: RiskFiles) -> str:
    own, named = _judged(rows.loc[rows["epsilon"] == epsilon]), _named(epsilon)
    if own.empty:
        return ""
    text = "Of {of} groups the most exposed " + named + " is {group}: {value} of 100 against all others"
    return _largest(own, risk, text, f"No group is more exposed than all others {named}.")


def _limited(limits: pd.DataFrame, budgets: Sequence[float]) -> list[str]:
    sentences = []
    for epsilon in budgets:
        own = limits.loc[limits["epsilon"] == epsilon].drop_duplicates("images", keep="last")
        own = pd.concat([limits.loc[(limits["epsilon"] == epsilon)].head(1), own.loc[own["images"] > 1]])
        parts = [
            f"{upper_text(100 * row[f'limit_{RATE:g}'], 3)} of 100 "
            + ("images" if row["unit"] == "image" else "patients" if row["unit"] == "patient" else "")
            + (
                f"patients with {row['images']} images (the {row['unit']} of the training patients)"
                if row["unit"] not in ("image", "patient")
                else ""
            )
            for row in own.to_dict("records")
        ]
        if parts:
            sentences.append(
                f"Whatever the attack, the guarantee at ε = {epsilon:g} lets nobody recognise, at 1 % false "
                f"positives, more than {'; '.join(parts)}."
            )
    return sentences


def _payers(price: pd.DataFrame, epsilon: float, risk: RiskFiles) -> str:
    rows = price.loc[(price["epsilon"] == epsilon) & (price["price"] == "auroc_lost")]
    own, named = _judged(rows), _named(epsilon)
    if own.empty:
        return ""
    text = "Of {of} groups {group} pays most AUROC " + named + ": {value} against all others"
    return _largest(own, risk, text, f"No group pays more AUROC than all others {named}.")


def _related(joined: pd.DataFrame | None, epsilon: float) -> str:
    if joined is None:
        return ""
    parts = []
    for row in joined.loc[joined["epsilon"] == epsilon].to_dict("records"):
        if np.isnan(row["correlation"]):
            continue
        low, high = row["ci_low"], row["ci_high"]
        verdict = "not distinguishable from none"
        if leaves_out_zero(low, high):
            verdict = "those pay more" if low > 0 else "those pay less"
        parts.append(
            f"{PRICE_NAMES[row['price']]} {signed(row['correlation'], 2)} (95 % interval "
            f"{between(low, high, 2)}: {verdict})"
        )
    if not parts:
        return "Too few groups are large enough to ask whether those pay whom privacy protects most."
    return (
        f"Do the groups pay whom privacy protects most {_named(epsilon)}? Rank correlation over groups "
        f"between exposure taken away and price: {'; '.join(parts)}."
    )
