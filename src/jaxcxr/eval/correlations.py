"""The paper's correlations, each with its interval and its number of points.

Eight findings, or seven budgets, are few: an r of 0.5 over eight points is compatible with anything from -0.3
to 0.9.
Source: the paper's Results, 'Diagnostic accuracy is correlated with patient age and sample size'.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import pearsonr


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's r.

    Attributes:
        r: NaN with fewer than three points, or if one variable is constant.
        ci_low, ci_high: 95 % interval by Fisher's transformation, as if the points were independent; NaN with
            fewer than four points.
        p_value: two-sided, of no correlation.
        n: number of points.
    """

    r: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int


def pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Correlation:
    """Pearson's r over the points whose coordinates are both finite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan, len(x))
    result = pearsonr(x, y)
    r, p = np.asarray(result, np.float64)
    interval = result.confidence_interval(0.95) if len(x) > 3 else (np.nan, np.nan)
    return Correlation(float(r), float(interval[0]), float(interval[1]), float(p), len(x))


def privacy_correlations(
    evaluations: pd.DataFrame, samples: pd.Series, epsilon: float, reference: float = np.inf
) -> pd.DataFrame:
    """The paper's four correlations over findings at one budget, and parity against log epsilon over budgets.

    Args:
        evaluations: rows of `evaluation.csv` of several models with a column `epsilon` (infinity: trained
            without privacy).
        samples: number of images with each finding, by finding. The paper does not say of which split;
            training images are what a model learns from.
        epsilon: of the private model (the paper: 7.89).
        reference: epsilon of the model it is compared with.

    Returns:
        Columns `analysis`, `r`, `ci_low`, `ci_high`, `p_value`, `n`, `paper_r` (NaN where the paper gives
        none). Parity is the paper's `statistical_parity_difference` of the average over findings, for each
        group and for all groups together.
    """
    auroc = evaluations.loc[(evaluations["metric"] == "auroc") & (evaluations["group"] == "all")]
    auroc = auroc.loc[~auroc["finding"].isin(["average", "any"])]
    table = auroc.pivot_table(index="finding", columns="epsilon", values="value", sort=False)
    lines = []
    if {epsilon, reference} <= set(table.columns):
        private, public = table[epsilon], table[reference]
        count = samples.reindex(table.index).astype(np.float64)
        pairs = {
            "sample size and non-private AUROC": (count, public, 0.57),
            "sample size and private AUROC": (count, private, 0.52),
            "sample size and loss of AUROC": (count, public - private, 0.06),
            "non-private AUROC and private minus non-private AUROC": (public, private - public, 0.44),
        }
        for analysis, (x, y, paper) in pairs.items():
            correlation = pearson(x.to_numpy(), y.to_numpy(np.float64))
            lines.append({"analysis": analysis, **dataclasses.asdict(correlation), "paper_r": paper})
    parity = evaluations.loc[
        (evaluations["metric"] == "statistical_parity_difference")
        & (evaluations["finding"] == "average")
        & np.isfinite(evaluations["epsilon"])
        & ~evaluations["attribute"].astype(str).str.contains("*", regex=False)
    ]
    # With two groups, one is the other with its sign changed: one of them is enough.
    members = parity.groupby("attribute")["group"].unique()
    mirrored = [groups[1] for groups in members if len(groups) == 2]
    once = parity.loc[~parity["group"].isin(mirrored)]
    for name, of in [("all groups", once), *parity.groupby("group", sort=False)]:
        correlation = pearson(np.log(of["epsilon"].to_numpy(np.float64)), of["value"].to_numpy(np.float64))
        paper = 0.13 if name == "all groups" else np.nan
        lines.append(
            {
                "analysis": f"log epsilon and parity, {name}",
                **dataclasses.asdict(correlation),
                "paper_r": paper,
            }
        )
    return pd.DataFrame(lines, columns=["analysis", "r", "ci_low", "ci_high", "p_value", "n", "paper_r"])
