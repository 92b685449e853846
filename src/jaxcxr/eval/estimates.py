"""All estimates from one predictions file: one row per estimate, one column per draw.

Draw 0 is the test images themselves; the others are bootstrap replicates. A difference between two groups or
two models is computed draw by draw and thereby has a paired interval.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.bootstrap import bootstrap, clusters, std_paper
from jaxcxr.eval.delong import delong
from jaxcxr.eval.fairness import GAPS, Judged, best_of, difference, gaps, rest_name, with_average
from jaxcxr.eval.groups import Group, make_groups
from jaxcxr.eval.metrics import COMPARED, METRICS, NEED_A_THRESHOLD, ThresholdPolicy, choose_thresholds

NO_FINDING = "no_finding_among_ill"
"""Underdiagnosis: share of images with any finding on which none is called; its finding is `any`."""

EVERY = "over every finding"
NO_INTERVAL = "no interval: "
FEWEST = 5
"""Patients that the images of either class must be of for an interval: of fewer there are so few different
replicates that their percentiles say next to nothing.
"""
NO_THRESHOLD = "not defined: no threshold, one class only where it is chosen"

KEYS: tuple[str, ...] = ("group", "finding", "metric", "reference")
"""Columns that identify an estimate. `reference` is empty for the metric of a group itself."""


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates with their draws.

    Attributes:
        rows: `KEYS` and the description of each estimate: `label`, `attribute`, `n`, `positives`,
            `threshold`, `std_paper`, `delong_low`, `delong_high`, `note`, `clusters`, the number of resampled
            units (patients or images) with a positive, and `few`, whether positives or negatives are of fewer
            than `FEWEST` units, so that no interval follows from them.
        draws: the estimate itself, then its bootstrap replicates.
        policy: the threshold policy used.
    """

    rows: pd.DataFrame
    draws: Float[np.ndarray, "rows draws"]
    policy: ThresholdPolicy


def policy_of(predictions: pd.DataFrame, config: EvaluationConfig) -> ThresholdPolicy:
    """The configured threshold policy, with `auto` resolved."""
    if config.threshold != "auto":
        return config.threshold
    return "youden_validation" if bool((predictions["split"] == "valid").any()) else "youden_test"


def measure(
    predictions: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    groups: Mapping[str, Bool[np.ndarray, " rows"]] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Estimates:
    """Every metric, overall and by group; each group against the others; the largest differences.

    Args:
        predictions: table from `read_predictions`.
        findings: names of the findings.
        config: how they are judged.
        groups: name -> mask over the rows of `predictions`, instead of the configuration's groups.
        progress: told 1 after each finding.

    Raises:
        InputError: no test rows, no validation rows for `youden_validation`, a negative seed, or groups that
            cannot be made.
    """
    if groups is None:
        made = make_groups(predictions, config.groups)
    else:
        made = tuple(Group(name, name, "group", np.asarray(mask, bool)) for name, mask in groups.items())
    policy = policy_of(predictions, config)
    is_test = (predictions["split"] == "test").to_numpy()
    test = predictions.loc[is_test]
    masks = {"all": np.ones(len(test), bool)} | {group.name: group.rows[is_test] for group in made}
    rests = {group.name: _rest(group, made)[is_test] for group in made}
    cuts = choose_thresholds(predictions, findings, policy, config.fixed_thresholds)
    judged = _judge(test, findings, config, policy, cuts, [*masks.values(), *rests.values()], progress)
    by_group, by_rest = (
        dict(zip(masks, judged, strict=False)),
        dict(zip(rests, judged[len(masks) :], strict=True)),
    )

    keys: list[dict[str, Any]] = []
    draws: list[np.ndarray] = []
    shown = np.full(len(findings), np.nan) if policy == "youden_test_per_draw" else cuts
    checks = _delong_intervals(test, findings, config, masks)
    for group in (Group("all", "all", "", masks["all"]), *made):
        own = by_group[group.name]
        for key, row in _metric_rows(group, findings, own, shown):
            check = (np.nan, np.nan)
            if key["metric"] == "auroc" and not np.isnan(row[0]) and not key["few"]:
                check = checks.get((group.name, key["finding"]), check)
            keys.append(key | dict(zip(("delong_low", "delong_high"), check, strict=True)))
            draws.append(row)
        if group.name != "all":
            for key, row in _rest_rows(group, findings, own, by_rest[group.name]):
                keys.append(key)
                draws.append(row)
    for attribute in dict.fromkeys(group.attribute for group in made):
        members = [group for group in made if group.attribute == attribute]
        for key, row in _between_rows(
            attribute, members, findings, [by_group[group.name] for group in members]
        ):
            keys.append(key)
            draws.append(row)
    return Estimates(framed(keys), np.stack(draws), policy)


def _rest(group: Group, groups: Sequence[Group]) -> Bool[np.ndarray, " rows"]:
    """Mask of everyone else whose attribute is known."""
    known = np.logical_or.reduce([other.rows for other in groups if other.attribute == group.attribute])
    return known & ~group.rows if group.attribute != "group" else ~group.rows


def _judge(
    test: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    policy: ThresholdPolicy,
    cuts: Float[np.ndarray, " findings"],
    masks: Sequence[Bool[np.ndarray, " n"]],
    progress: Callable[[int], object],
) -> list[Judged]:
    places: dict[bytes, int] = {}
    for mask in masks:
        places.setdefault(mask.tobytes(), len(places))
    distinct = [np.frombuffer(mask, bool) for mask in places]
    replicates = bootstrap(
        test,
        findings,
        distinct,
        thresholds=None if policy == "youden_test_per_draw" else cuts,
        redraws=config.redraws,
        resample=config.resample,
        seed=config.seed,
        progress=progress,
    )
    labels = test[[f"y_{f}" for f in findings]].to_numpy(np.float64)
    positive, cluster = labels == 1, clusters(pd.Series(test["patient_id"]), config.resample)
    judged = []
    for index, mask in enumerate(distinct):
        own = labels[mask]
        n, positives = (~np.isnan(own)).sum(axis=0), (own == 1).sum(axis=0)
        images, ill = len(own), int(replicates.ill[index])
        notes = [""] * (len(findings) + 1)
        if not mask.all():  # the whole test split is never suppressed
            notes = [too_small(images, int(p), int(k - p), config) for p, k in zip(positives, n, strict=True)]
            notes.append(too_small(images, ill, config.min_group_positives, config))
        suppressed = np.array([bool(note) for note in notes])
        for f in range(len(findings)):
            if not notes[f] and (positives[f] == 0 or positives[f] == n[f]):
                notes[f] = "not defined: one class only"
        values = np.where(suppressed[:-1, None, None], np.nan, replicates.metrics[index])
        missed = np.where(suppressed[-1], np.nan, replicates.no_finding_among_ill[index])
        defined = np.array([not note for note in notes[:-1]])
        having, lacking = (
            [np.unique(cluster[mask & column]).size for column in (*kind.T, kind[:, defined].any(axis=1))]
            for kind in (positive, labels == 0)
        )
        units = np.unique(cluster[mask]).size
        if units < FEWEST:
            values[:, :, 1:], missed = np.nan, np.where(np.arange(len(missed)) > 0, np.nan, missed)
            of = f"{NO_INTERVAL}all images are of {units} {config.resample}{'s' * (units > 1)}"
            notes = [note or of for note in notes]
        few = np.minimum(having, lacking) < FEWEST
        judged.append(
            Judged(
                with_average(values), missed, n, positives, images, ill, np.array(having), few, tuple(notes)
            )
        )
    return [judged[places[mask.tobytes()]] for mask in masks]


def too_small(images: int, positives: int, negatives: int, config: EvaluationConfig) -> str:
    """Why a group of test images is not judged; empty if it is."""
    if images < config.min_group_images:
        return f"suppressed: fewer than {config.min_group_images} images"
    for count, name in ((positives, "positives"), (negatives, "negatives")):
        if count < config.min_group_positives:
            return f"suppressed: fewer than {config.min_group_positives} {name}"
    return ""


def _delong_intervals(
    test: pd.DataFrame,
    findings: Sequence[str],
    config: EvaluationConfig,
    masks: Mapping[str, Bool[np.ndarray, " n"]],
) -> dict[tuple[str, str], tuple[float, float]]:
    cluster = clusters(pd.Series(test["patient_id"]), config.resample)
    scores = {f: test[f"p_{f}"].to_numpy(np.float64)[None] for f in findings}
    labels = {f: test[f"y_{f}"].to_numpy(np.float64) for f in findings}
    return {
        (name, f): delong(np.where(mask, labels[f], np.nan), scores[f], cluster).interval()
        for name, mask in masks.items()
        for f in findings
    }


Row = tuple[dict[str, Any], np.ndarray]


def _counts(own: Judged, f: int) -> dict[str, Any]:
    if f == len(own.n):
        over, own_note = _over(own.values), next((note for note in own.notes if note), "")
        note = (
            own_note
            if over == EVERY and own_note.startswith(NO_INTERVAL)
            else over or own_note or "not defined"
        )
        return {"n": own.images, "positives": None, "note": "" if note == EVERY else note}
    return {"n": int(own.n[f]), "positives": int(own.positives[f]), "note": own.notes[f]}


def _over(values: Float[np.ndarray, "rows metrics draws"]) -> str:
    """Note on how many findings the average is over; empty if over none."""
    defined = int((~np.isnan(values[:-1, 0, 0])).sum())
    if defined == len(values) - 1:
        return EVERY
    return f"over {defined} of {len(values) - 1} findings" if defined else ""


def _metric_rows(
    group: Group, findings: Sequence[str], own: Judged, cuts: Float[np.ndarray, " findings"]
) -> Iterator[Row]:
    base = {"group": group.name, "label": group.label, "attribute": group.attribute, "reference": ""}
    for f, finding in enumerate([*findings, "average"]):
        counts = _counts(own, f)
        for m, metric in enumerate(METRICS):
            pooled = own.values[:-1, m, 1:] if finding == "average" else own.values[f : f + 1, m, 1:]
            described = {
                "finding": finding,
                "metric": metric,
                "std_paper": std_paper(pooled),
                "clusters": int(own.clusters[f]),
                "few": bool(own.few[f]),
            }
            if metric in NEED_A_THRESHOLD and finding != "average":
                described["threshold"] = cuts[f]
                if np.isnan(own.values[f, m, 0]) and not counts["note"]:
                    described["note"] = NO_THRESHOLD
            yield base | counts | described, own.values[f, m]
    yield base | _any(own), own.no_finding_among_ill


def _any(own: Judged) -> dict[str, Any]:
    return {"finding": "any", "metric": NO_FINDING, "n": own.ill, "positives": own.ill, "note": own.notes[-1]}


def _rest_rows(group: Group, findings: Sequence[str], own: Judged, rest: Judged) -> Iterator[Row]:
    base = {"group": group.name, "label": group.label, "attribute": group.attribute, "reference": "rest"}
    differences = difference(own, rest)
    for f, finding in enumerate([*findings, "average"]):
        counts = _counts(own, f)
        if f == len(findings):
            over = _over(differences)
            counts["note"] = "" if over == EVERY else over or counts["note"] or "not defined"
        elif not counts["note"] and rest.notes[f]:
            counts["note"] = f"rest {rest.notes[f]}"
        for metric in COMPARED:
            key = {"finding": finding, "metric": rest_name(metric), "few": bool(own.few[f] or rest.few[f])}
            yield base | counts | key, differences[f, METRICS.index(metric)]
    yield (
        base | _any(own) | {"metric": rest_name(NO_FINDING)},
        own.no_finding_among_ill - rest.no_finding_among_ill,
    )


def _between_rows(
    attribute: str, members: Sequence[Group], findings: Sequence[str], judged: Sequence[Judged]
) -> Iterator[Row]:
    best, differences = best_of(judged)
    for g, group in enumerate(members):
        base = {"group": group.name, "label": group.label, "attribute": attribute}
        for f, finding in enumerate([*findings, "average"]):
            for m, metric in enumerate(METRICS):
                if best[f, m] >= 0:
                    b = best[f, m]
                    few = bool(judged[g].few[f] or judged[b].few[f])
                    key = {
                        "finding": finding,
                        "metric": f"{metric}_vs_best",
                        "reference": members[b].name,
                        "few": few,
                    }
                    yield base | _counts(judged[g], f) | key, differences[g, f, m]
    spans, pairs = gaps(judged)
    base = {"group": attribute, "label": f"between groups of {attribute}", "attribute": attribute}
    for f, finding in enumerate([*findings, "average"]):
        n = sum(j.images if f == len(findings) else int(j.n[f]) for j in judged)
        positives = None if f == len(findings) else sum(int(j.positives[f]) for j in judged)
        for i, gap in enumerate(GAPS):
            defined = not np.isnan(spans[f, i, 0])
            reference = "between"
            if f < len(findings) and defined:
                reference = " - ".join(members[g].name for g in pairs[f, i])
            note = "" if defined else "not defined: fewer than two groups"
            key = {
                "finding": finding,
                "metric": gap,
                "n": n,
                "positives": positives,
                "reference": reference,
                "note": note,
                "few": any(bool(j.few[f]) for j in judged),
            }
            yield base | key, spans[f, i]


def framed(keys: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Descriptions of estimates as the rows of `Estimates`."""
    frame = pd.DataFrame(list(keys))
    for column in ("threshold", "std_paper", "delong_low", "delong_high"):
        if column not in frame:
            frame[column] = np.nan
    frame["few"] = frame["few"].eq(True)
    frame["clusters"] = frame["clusters"].fillna(0).astype(np.int64)  # differences do not use it
    return frame.astype({"positives": "Int64", "threshold": np.float64})
