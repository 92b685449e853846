"""What view, age, sex and the groups that a column map declares (a detector, the size of the original image)
alone tell of a finding: shortcuts that a model may take in place of the disease.

Ill patients are imaged lying down, at another device, and are older. A model that sees nothing but this has
an AUROC, too, and that of a trained model is to be read beside it. A logistic regression on those columns of
the manifest is fitted on the training images and judged on the test images, without any image being looked
at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from pandas.api.types import is_numeric_dtype
from scipy.special import expit

from jaxcxr.data.manifest import declared_groups
from jaxcxr.eval.bootstrap import clusters
from jaxcxr.eval.delong import delong

ATTRIBUTES = ("view", "age", "sex")
"""Beside the text columns that are declared as groups."""
MOST_VALUES = 50
"""Of a text column; one with more counts as a number, or, if it holds none, is left out."""
COLUMNS = ("finding", "known", "auroc", "ci_low", "ci_high", "n", "positives")
ALL = "all of them"
_RIDGE, _NEWTON_STEPS, _SMALL_STEP = 1e-3, 30, 1e-10


def shortcuts(manifest: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """AUROC of each finding by each attribute alone, and by all.

    Args:
        manifest: of a store, with the columns `split` and `patient_id`.
        findings: label columns.

    Returns:
        One row per finding and attribute that the manifest knows of more than one value of (`known`): AUROC
        on the test images with its 95 % interval (DeLong's, by patients), NaN where these have one class
        alone; numbers of labelled images and of positives. No rows without training or test images.
    """
    train, test = (manifest.loc[manifest["split"] == name] for name in ("train", "test"))
    declared = [c for c in declared_groups(manifest, findings) if not is_numeric_dtype(manifest[c])]
    parts = {a: part for a in (*ATTRIBUTES, *declared) if (part := _columns(manifest, train, a)).shape[1]}
    if not parts or train.empty or test.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    if len(parts) > 1:
        parts[ALL] = np.concatenate(list(parts.values()), axis=1)
    cluster = clusters(pd.Series(test["patient_id"]), "patient")
    fits, judges = ((manifest["split"] == name).to_numpy() for name in ("train", "test"))
    rows = []
    for finding in findings:
        labels = manifest[finding].to_numpy(np.float64)
        for known, x in parts.items():
            scores = x[judges] @ _fitted(x[fits], labels[fits])
            found = delong(labels[judges], scores[None], cluster)
            n, positives = int((~np.isnan(labels[judges])).sum()), int((labels[judges] == 1).sum())
            rows.append((finding, known, float(found.auroc[0]), *found.interval(), n, positives))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shortcut_texts(table: pd.DataFrame) -> pd.DataFrame:
    """For a page or the screen: one row per finding, one column per attribute."""

    def text(row: Mapping[str, Any]) -> str:
        if np.isnan(row["auroc"]):
            return "-"
        return f"{row['auroc']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"

    told = table.assign(text=[text(row) for row in table.to_dict("records")])
    wide = told.pivot(index="finding", columns="known", values="text")
    return wide.reindex(
        index=list(dict.fromkeys(table["finding"])), columns=list(dict.fromkeys(table["known"]))
    )


def _columns(manifest: pd.DataFrame, train: pd.DataFrame, attribute: str) -> Float[np.ndarray, "n columns"]:
    """Numbers that stand for an attribute: one per value but the most frequent, a number and its square; none
    where the training images have one value alone.
    """
    if attribute not in manifest or len(set(train[attribute].dropna().tolist())) < 2:
        return np.zeros((len(manifest), 0))
    if attribute == "age" or train[attribute].nunique() > MOST_VALUES:
        numbers, used = (pd.to_numeric(frame[attribute], errors="coerce") for frame in (manifest, train))
        known = used.dropna().to_numpy(np.float64)
        if len(np.unique(known)) < 2:
            return np.zeros((len(manifest), 0))
        number = (numbers.to_numpy(np.float64) - known.mean()) / known.std()
        missing = np.isnan(number)
        number = np.where(missing, 0.0, number)
        return np.stack([number, np.square(number) - 1, missing.astype(np.float64)], axis=1)
    values = train[attribute].astype(str).value_counts().index[1:]
    return np.stack(
        [(manifest[attribute].astype(str) == value).to_numpy(np.float64) for value in values], axis=1
    )


def _fitted(
    x: Float[np.ndarray, "n columns"], labels: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "columns"]:
    """Coefficients of a logistic regression, intercept aside; unknown labels add nothing."""
    known = ~np.isnan(labels)
    design = np.concatenate([x[known], np.ones((known.sum(), 1))], axis=1)
    ridge = _RIDGE * np.eye(design.shape[1])
    found = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = expit(design @ found)
        gradient = design.T @ (labels[known] - p) / max(1, known.sum()) - ridge @ found
        curvature = design.T * (p * (1 - p)) @ design / max(1, known.sum()) + ridge
        step = np.linalg.solve(curvature, gradient)
        found += step
        if np.abs(step).max() < _SMALL_STEP:
            break
    return found[:-1]
