"""Who is exposed: how often the members of a group of patients are recognised, and how often wrongly.

Many models are attacked, each trained on a random half of the patients. A patient is accused by a model if
the attack's score reaches a threshold at which a given share of all non-members is accused. `found` is the
share of a group's patients who are accused by the models that had them, `falsely_found` by those that had
not, and `exposure` is the difference: zero if nothing tells members from others, in every group, whatever its
scores are like.

Intervals are percentile intervals of a bootstrap over patients and models at once (Owen, The pigeonhole
bootstrap, Ann. Appl. Stat. 2007), which is wider rather than narrower than it should be. Budgets and groups
share replicates, so that differences are paired.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxcxr.eval.bootstrap import all_multiplicities, p_value, spread
from jaxcxr.eval.groups import Group

_BLOCK = 64
EXPOSURE_COLUMNS: tuple[str, ...] = (
    "epsilon",
    "false_positive_rate",
    "group",
    "label",
    "attribute",
    "patients",
    "found",
    "falsely_found",
    "exposure",
    "ci_low",
    "ci_high",
    "vs_rest",
    "vs_rest_low",
    "vs_rest_high",
    "vs_rest_p",
    "vs_non_private",
    "vs_non_private_low",
    "vs_non_private_high",
    "note",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Accusations:
    """What an attack says of patients in many models.

    Attributes:
        accused: which patients it takes for members.
        inside: who was one.
    """

    accused: Bool[np.ndarray, "models patients"]
    inside: Bool[np.ndarray, "models patients"]


@dataclasses.dataclass(frozen=True, eq=False)
class Exposed:
    """Exposure by budget, rate and group.

    Attributes:
        table: one row each, with `EXPOSURE_COLUMNS`; a group that is too small has no figures and a note.
        draws: of `exposure`, by (budget, rate, group); the estimate first, then the replicates. Suppressed
            groups are left out.
    """

    table: pd.DataFrame
    draws: Mapping[tuple[float, float, str], Float[np.ndarray, " draws"]]


def exposure_by_group(
    accusations: Mapping[tuple[float, float], Accusations],
    groups: Sequence[Group],
    least: int,
    redraws: int,
    seed: int,
) -> Exposed:
    """Exposure of every group, of all others beside it, and what a budget takes from it.

    Args:
        accusations: by budget (infinity is without privacy) and false-positive rate, all on the same patients
            and halves.
        groups: masks over the patients; all patients together are added.
        least: number of patients below which a group, or all others beside it, is not judged.
        redraws: number of bootstrap replicates.
        seed: of the replicates.
    """
    count = next(iter(accusations.values())).inside.shape[1]
    every = Group("all", "all", "", np.ones(count, bool))
    wanted = [every, *groups]
    rests = [_rest(group, groups) for group in wanted]
    masks = np.stack([group.rows for group in wanted] + rests, axis=1)
    found = {key: _draws(value, masks, redraws, seed) for key, value in accusations.items()}
    rows, draws = [], {}
    for (epsilon, rate), (hits, false) in found.items():
        plain = found.get((np.inf, rate))
        for place, group in enumerate(wanted):
            size = int(group.rows.sum())
            row = {
                "epsilon": epsilon,
                "false_positive_rate": rate,
                "group": group.name,
                "label": group.label,
                "attribute": group.attribute,
                "patients": size,
                "note": "" if size >= least or place == 0 else f"suppressed: fewer than {least} patients",
            }
            if not row["note"]:
                own = hits[place] - false[place]
                draws[epsilon, rate, group.name] = own
                row |= {"found": hits[place, 0], "falsely_found": false[place, 0]} | _named("exposure", own)
                other = len(wanted) + place
                if rests[place].sum() >= least:
                    apart = own - (hits[other] - false[other])
                    row |= _named("vs_rest", apart) | {"vs_rest_p": p_value(apart[1:])}
                if plain is not None and np.isfinite(epsilon):
                    row |= _named("vs_non_private", own - (plain[0][place] - plain[1][place]))
            rows.append(row)
    return Exposed(pd.DataFrame(rows).reindex(columns=list(EXPOSURE_COLUMNS)), draws)


def _named(name: str, draws: Float[np.ndarray, " draws"]) -> dict[str, float]:
    of, prefix = spread(draws[1:]), "ci" if name == "exposure" else name
    return {name: float(draws[0]), f"{prefix}_low": of.ci_low, f"{prefix}_high": of.ci_high}


def _rest(group: Group, groups: Sequence[Group]) -> Bool[np.ndarray, " patients"]:
    """All others whose attribute is known."""
    same = [other.rows for other in groups if other.attribute == group.attribute]
    return np.logical_or.reduce([np.zeros(len(group.rows), bool), *same]) & ~group.rows


def _draws(
    accusations: Accusations, masks: Bool[np.ndarray, "patients groups"], redraws: int, seed: int
) -> tuple[Float[np.ndarray, "groups draws"], Float[np.ndarray, "groups draws"]]:
    """Share of members and of non-members who are accused, in each group."""
    models, patients = accusations.inside.shape
    of_patients = all_multiplicities(patients, seed, redraws).astype(np.float64)
    of_models = all_multiplicities(models, seed + 1, redraws).astype(np.float64)
    accused, inside, groups = accusations.accused, accusations.inside, masks.astype(np.float64)
    shares = []
    for which in (inside, ~inside):
        counts = []
        for cells in (accused & which, which):
            there = cells.astype(np.float64)
            parts = [
                ((of_models[:, first : first + _BLOCK].T @ there) * of_patients[:, first : first + _BLOCK].T)
                @ groups
                for first in range(0, 1 + redraws, _BLOCK)
            ]
            counts.append(np.concatenate(parts).T)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares.append(counts[0] / counts[1])
    return shares[0], shares[1]


def rates_of_one_model(
    scores: Float[np.ndarray, " patients"],
    member: Bool[np.ndarray, " patients"],
    rates: Sequence[float],
    redraws: int,
    seed: int,
) -> Float[np.ndarray, "rates draws"]:
    """True-positive rate of one attacked model at false-positive rates, with bootstrap replicates over
    patients, in each of which the threshold is chosen anew; the estimate first.

    NaN where there are fewer non-members than 1 / rate, so that no threshold has that rate.
    """
    multiplicity = all_multiplicities(len(scores), seed, redraws).astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    member, multiplicity, ordered = member[order], multiplicity[order], scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are accused together
    false, true = (np.cumsum(multiplicity * side[:, None], axis=0)[last] for side in (~member, member))
    others = int((~member).sum())
    found = np.full((len(rates), 1 + redraws), np.nan)
    for place, rate in enumerate(rates):
        if others * rate < 1:
            continue
        allowed = (false <= rate * false[-1] * (1 + 1e-12)).sum(axis=0)
        padded = np.concatenate([np.zeros((1, true.shape[1])), true])
        with np.errstate(invalid="ignore", divide="ignore"):
            found[place] = padded[allowed, np.arange(true.shape[1])] / true[-1]
    return found
