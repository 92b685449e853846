"""What each figure shows, in words, for readers who do not see it: from the numbers that were plotted."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxcxr.report.figures.heat_map import METRICS, heat_map_rows
from jaxcxr.report.paper.cohort_tables import comorbidity_table
from jaxcxr.report.paper.supplementary_tables import METRIC_NAMES, title
from jaxcxr.report.wording import counted, number


def model_name(epsilon: float) -> str:
    """A model of a sweep by its budget, in a sentence."""
    return "without privacy" if math.isinf(epsilon) else f"at ε = {epsilon:g}"


def curves_texts(evaluation: pd.DataFrame) -> dict[str, str]:
    """Of the ROC and calibration curves of one model: their areas and errors."""
    return {
        "ROC curves": _by_finding(evaluation, "auroc", "guessing: AUROC"),
        "Calibration curves": _by_finding(
            evaluation, "ece", "perfect calibration: expected calibration error"
        ),
    }


def _by_finding(evaluation: pd.DataFrame, metric: str, diagonal: str) -> str:
    what = f"One curve per finding, with the diagonal of {diagonal}"
    rows = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == metric)]
    rows = rows.loc[(rows["finding"] != "average") & rows["value"].notna()]
    if rows.empty:
        return f"{what} not defined for any finding."
    return f"{what} {_extremes(rows['value'], rows['finding'].map(lambda f: title(str(f))))}."


def _extremes(values: pd.Series, names: pd.Series, digits: int = 2) -> str:
    """'from 0.55 (Congestion) to 0.80 (Hernia)'."""
    low, high = values.argmin(), values.argmax()
    if len(values) == 1:
        return f"{number(values.iloc[0], digits)} ({names.iloc[0]})"
    lowest, highest = (f"{number(values.iloc[i], digits)} ({names.iloc[i]})" for i in (low, high))
    return f"from {lowest} to {highest}"


def figure_2_text(summary: pd.DataFrame) -> str:
    """Averages over findings at the largest and smallest budget and without privacy."""
    average = summary.loc[summary["finding"] == "average"]
    return _four_panels("Averages over findings: ", [("", average)])


def figure_3_text(evaluations: pd.DataFrame, samples: pd.Series, epsilon: float) -> str:
    """AUROCs of the private model, numbers of images and losses, from the lowest to the highest."""
    rows = evaluations.loc[(evaluations["group"] == "all") & (evaluations["metric"] == "auroc")]
    private, public = (
        rows.loc[(rows["epsilon"] == e) & (rows["finding"] != "average")].set_index("finding")["value"]
        for e in (epsilon, np.inf)
    )
    known = [f for f in private.dropna().index if f in samples.index]
    if not known:
        return "No finding is defined."
    names = pd.Series([title(str(f)) for f in known])
    images = samples.loc[known]
    loss = (public - private).reindex(known).dropna()
    text = (
        f"One dot per finding at ε = {epsilon:g}: AUROC {_extremes(private.loc[known], names)}, for "
        f"{images.min():,.0f} to {images.max():,.0f} training images with the finding"
    )
    if loss.empty:
        return f"{text}."
    return f"{text}; loss of AUROC against the non-private model {_extremes(loss, _titles(loss))}."


def _titles(by_finding: pd.Series) -> pd.Series:
    return pd.Series([title(str(finding)) for finding in by_finding.index])


def figure_4_text(evaluations: pd.DataFrame, attribute: str) -> str:
    """Averages over findings of each group of an attribute, as in `figure_2_text`."""
    rows = evaluations.loc[(evaluations["attribute"] == attribute) & (evaluations["finding"] == "average")]
    rows = rows.loc[(rows["reference"] == "") & rows["value"].notna()]
    groups = [(f"{label}: ", own) for label, own in rows.groupby("label", sort=False)]
    return _four_panels("Averages over findings. ", groups)


def _four_panels(lead: str, groups: Sequence[tuple[str, pd.DataFrame]]) -> str:
    parts = []
    for name, rows in groups:
        said = []
        for metric, called in METRIC_NAMES.items():
            own = rows.loc[(rows["metric"] == metric) & rows["value"].notna()].sort_values(
                "epsilon", ascending=False
            )
            if len(own):
                values = zip(own["epsilon"], own["value"], strict=True)
                ends = [f"{number(value, 2)} {model_name(epsilon)}" for epsilon, value in values]
                shown = ends if len(ends) <= 3 else [*ends[:2], ends[-1]]
                said.append(f"{called} {', '.join(shown)}")
        parts.append(f"{name}{'; '.join(said)}")
    return f"{lead}{'. '.join(parts)}."


def heat_map_text(evaluations: pd.DataFrame) -> str:
    """Lowest and highest cell of each panel."""
    rows = heat_map_rows(evaluations)
    rows = rows.loc[rows["value"].notna() & (rows["group"] != "all")]
    parts = []
    for metric in METRICS:
        own = rows.loc[rows["metric"] == metric]
        if len(own):
            cells = own["label"].astype(str) + " " + own["epsilon"].map(model_name)
            name = metric.replace("_", " ").replace("auroc", "AUROC")
            parts.append(f"{name} {_extremes(own['value'], cells, 3)}")
    return f"One row per group, one column per budget: {'; '.join(parts)}."


def cohort_texts(films: pd.DataFrame, findings: Sequence[str]) -> dict[str, str]:
    """Of the figures of the cohort: ages, and comorbidities by group."""
    texts = {"Figure S1": _ages(films)}
    table = comorbidity_table(films, findings)
    for name, split in (("Figure S2", "all"), ("Figure S3", "train"), ("Figure S4", "test")):
        rows = table.loc[(table["split"] == split) & (table["n"] > 0)]
        means = [f"{row['group']} {number(row['mean'], 1)}" for row in rows.to_dict("records")]
        texts[name] = f"Mean number of positive findings per image: {', '.join(means) or 'not known'}."
    return texts


def _ages(films: pd.DataFrame) -> str:
    parts = []
    for split in dict.fromkeys(films["split"]):
        for code, sex in (("F", "female"), ("M", "male")):
            chosen = (films["split"] == split) & (films["sex"] == code)
            ages = films.loc[chosen, "age"].to_numpy(np.float64)
            known = ages[np.isfinite(ages)]
            if known.size:
                median = f"median {np.median(known):.0f} years"
                parts.append(f"{split}, {sex}: {counted(known.size, 'image')}, {median}")
    return f"Histograms of ages. {'; '.join(parts) or 'No age is known'}."
