"""Who pays for privacy: whose predictions get worse from the model without privacy to a private one.

From predictions for the same test images alone. Three prices, each positive where the private model is worse:
AUROC lost (mean over findings), underdiagnosis gained (share of images with any finding on which none is
called), and loss gained: the cross-entropy of the calibrated probabilities (`eval.calibrate`, on validation
images, if there are any), mean over labelled findings. Differences are paired: both models are judged on the
same bootstrap replicates of patients.

Difficulty is judged by other models than the two that are compared, since a patient whom one of them
predicts badly by bad luck would seem to gain from the other (regression to the mean).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.bootstrap import all_multiplicities, clusters, p_value, spread
from jaxcxr.eval.calibrate import calibrate
from jaxcxr.eval.estimates import NO_FINDING, Estimates, measure
from jaxcxr.eval.groups import Group, make_groups
from jaxcxr.models.calibration import logits

AUROC, UNDERDIAGNOSIS, LOSS, WORSE = "auroc_lost", "underdiagnosis_gained", "loss_gained", "share_worse"
PRICES = (AUROC, UNDERDIAGNOSIS, LOSS, WORSE)
PRICE_COLUMNS: tuple[str, ...] = (
    "epsilon",
    "price",
    "group",
    "label",
    "attribute",
    "images",
    "value",
    "ci_low",
    "ci_high",
    "vs_rest",
    "vs_rest_low",
    "vs_rest_high",
    "vs_rest_p",
    "note",
)
DIFFICULTY = "difficulty"
QUARTERS = ("easiest quarter", "second quarter", "third quarter", "hardest quarter")


@dataclasses.dataclass(frozen=True, eq=False)
class Priced:
    """What one budget costs whom.

    Attributes:
        table: one row per price and group, with `PRICE_COLUMNS` but `epsilon`.
        draws: of each price in each group; the estimate first, then its replicates.
    """

    table: pd.DataFrame
    draws: Mapping[tuple[str, str], Float[np.ndarray, " draws"]]


def calibrated(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> Float[np.ndarray, "test findings"]:
    """Probabilities of the test images, calibrated on the validation images, if there are any."""
    known = calibrate(predictions, findings, config)
    test = predictions.loc[predictions["split"] == "test"]
    said = test[[f"p_{f}" for f in findings]].to_numpy(np.float64)
    return said if known is None else known.probabilities(said)


def losses(
    predictions: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> Float[np.ndarray, " test"]:
    """Cross-entropy of each test image, mean over the findings that have a label; NaN where none has."""
    test = predictions.loc[predictions["split"] == "test"]
    said = logits(calibrated(predictions, findings, config))
    labels = test[[f"y_{f}" for f in findings]].to_numpy(np.float64)
    lost = np.logaddexp(0.0, np.where(labels == 1, -said, said))
    lost[np.isnan(labels)] = np.nan
    labelled = (~np.isnan(lost)).sum(axis=1)
    return np.where(labelled, np.nansum(lost, axis=1) / np.maximum(labelled, 1), np.nan)


def difficulty(others: Sequence[Float[np.ndarray, " test"]]) -> pd.Series:
    """The quarter of each test image by its mean loss in other models, in words; None without a loss."""
    mean = np.mean(np.stack(others), axis=0)
    ranks = pd.Series(mean).rank(pct=True, method="first")
    quarter = np.searchsorted([0.25, 0.5, 0.75], ranks.to_numpy())
    return pd.Series(np.array(QUARTERS, object)[quarter], ranks.index).where(ranks.notna(), None)


def price_by_group(
    plain: pd.DataFrame,
    private: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    measured: Estimates | None = None,
) -> Priced:
    """What is paid in every group, and by all others beside it.

    Args:
        plain: predictions of the model without privacy; its columns make the groups of `config.groups`, and
            its column `difficulty`, if there is one, more of them for the loss.
        private: of the private one, on the same test images in the same order (`eval.compare.read_pair`),
            with the same columns for groups.
        findings: names of the findings.
        config: how they are judged; its groups must be given.
        measured: the result of `measure(plain, findings, config)`, if it is at hand.
    """
    first, second = measured or measure(plain, findings, config), measure(private, findings, config)
    rows, draws = [], {}
    for price, metric, finding, sign in (
        (AUROC, "auroc", "average", -1),
        (UNDERDIAGNOSIS, NO_FINDING, "any", 1),
    ):
        for row, (own, apart) in _differences(first, second, metric, finding, sign):
            rows.append(row | {"price": price})
            if not np.isnan(own[0]):
                draws[price, str(row["group"])] = own
                rows[-1] |= _values(own, apart)
    if DIFFICULTY in plain:
        config = dataclasses.replace(config, groups=(*(config.groups or ()), DIFFICULTY))
    for row, price, own, apart in _loss_rows(plain, private, findings, config):
        rows.append(row)
        if own is not None:
            draws[price, str(row["group"])] = own
            rows[-1] |= _values(own, apart)
    table = pd.DataFrame(rows).reindex(columns=[c for c in PRICE_COLUMNS if c != "epsilon"])
    return Priced(table, draws)


def _values(own: Float[np.ndarray, " draws"], apart: Float[np.ndarray, " draws"] | None) -> dict[str, float]:
    of = spread(own[1:])
    values = {"value": float(own[0]), "ci_low": of.ci_low, "ci_high": of.ci_high}
    if apart is not None and not np.isnan(apart[0]):
        other = spread(apart[1:])
        values |= {"vs_rest": float(apart[0]), "vs_rest_low": other.ci_low, "vs_rest_high": other.ci_high}
        values |= {"vs_rest_p": p_value(apart[1:])}
    return values


def _differences(
    first: Estimates, second: Estimates, metric: str, finding: str, sign: int
) -> list[tuple[dict[str, object], tuple[np.ndarray, np.ndarray | None]]]:
    """Second minus first, times `sign`: of each group, and of each group minus all others."""
    found = []
    rows = first.rows.loc[(first.rows["finding"] == finding)]
    keyed = {
        (str(row["group"]), str(row["metric"])): place
        for place, row in enumerate(second.rows.to_dict("records"))
        if row["finding"] == finding and row["reference"] in ("", "rest")
    }
    own_rows = rows.loc[(rows["metric"] == metric) & (rows["reference"] == "")]
    for place, row in zip(own_rows.index, own_rows.to_dict("records"), strict=True):
        own = sign * (second.draws[keyed[str(row["group"]), metric]] - first.draws[place])
        rest = rows.loc[(rows["metric"] == f"{metric}_vs_rest") & (rows["group"] == row["group"])]
        apart = None
        if len(rest):
            there = keyed[str(row["group"]), f"{metric}_vs_rest"]
            apart = sign * (second.draws[there] - first.draws[rest.index[0]])
        described: dict[str, object] = {key: row[key] for key in ("group", "label", "attribute", "note")}
        found.append((described | {"images": row["n"]}, (own, apart)))
    return found


def _loss_rows(
    plain: pd.DataFrame, private: pd.DataFrame, findings: Sequence[str], config: EvaluationConfig
) -> list[tuple[dict[str, object], str, np.ndarray | None, np.ndarray | None]]:
    """Loss gained, and share of images with a larger loss, of each group."""
    gained = losses(private, findings, config) - losses(plain, findings, config)
    is_test = (plain["split"] == "test").to_numpy()
    test, known = plain.loc[is_test], ~np.isnan(gained)
    cluster = clusters(pd.Series(test["patient_id"]), config.resample)
    sampled = all_multiplicities(int(cluster.max()) + 1, config.seed, config.redraws)[cluster].astype(float)
    made = [Group("all", "all", "", np.ones(len(plain), bool)), *make_groups(plain, config.groups)]
    found = []
    for group in made:
        own = group.rows[is_test] & known
        same = [other.rows[is_test] for other in made if other.attribute == group.attribute]
        others = np.logical_or.reduce(same) & known & ~own
        small = own.sum() < config.min_group_images and group.name != "all"
        note = f"suppressed: fewer than {config.min_group_images} images" if small else ""
        described: dict[str, object] = {
            "group": group.name,
            "label": group.label,
            "attribute": group.attribute,
            "note": note,
            "images": int(own.sum()),
        }
        for price, values in ((LOSS, gained), (WORSE, (gained > 0).astype(float))):
            draws = None if small else _mean(values, own, sampled)
            apart = None
            if draws is not None and group.name != "all" and others.sum() >= config.min_group_images:
                apart = draws - _mean(values, others, sampled)
            found.append((described | {"price": price}, price, draws, apart))
    return found


def _mean(
    values: Float[np.ndarray, " n"], mask: np.ndarray, sampled: Float[np.ndarray, "n draws"]
) -> Float[np.ndarray, " draws"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values[mask] @ sampled[mask]) / sampled[mask].sum(axis=0)
