import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from jaxcxr.eval.correlations import pearson, privacy_correlations


def test_equals_scipy_and_fishers_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=8)
    y = x + rng.normal(size=8)
    got = pearson(np.append(x, [np.nan, 1.0]), np.append(y, [1.0, np.inf]))
    r, p_value = np.asarray(pearsonr(x, y))
    assert (got.r, got.p_value, got.n) == (pytest.approx(r), pytest.approx(p_value), 8)
    z, half = np.arctanh(got.r), 1.959963984540054 / np.sqrt(5)
    assert (got.ci_low, got.ci_high) == pytest.approx((np.tanh(z - half), np.tanh(z + half)))


def test_too_few_or_constant_points_have_no_r():
    assert np.isnan(pearson(np.array([1.0, 2]), np.array([1.0, 2])).r)
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)).r)
    three = pearson(np.array([1.0, 2, 4]), np.array([1.0, 3, 3]))
    assert three.r == pytest.approx(np.asarray(pearsonr([1, 2, 4], [1, 3, 3]))[0])
    assert np.isnan(three.ci_low)


def evaluations():
    lines = []
    for epsilon, loss in ((np.inf, 0.0), (8.0, 0.02), (1.0, 0.05)):
        for i, finding in enumerate(["a", "b", "c", "d"]):
            value = 0.7 + 0.05 * i - loss * (4 - i)
            lines.append(
                {"epsilon": epsilon, "group": "all", "finding": finding, "metric": "auroc", "value": value}
            )
        for group, slope in (("sex_F", 0.02), ("age_0_30", -0.01), ("sex_F*age_0_30", 9.0)):
            value = 0.0 if np.isinf(epsilon) else slope * np.log(epsilon) + 0.003 * (epsilon == 1.0)
            lines.append(
                {
                    "epsilon": epsilon, "group": group, "finding": "average", "metric": "statistical_parity_difference",
                    "value": value,
                }
            )  # fmt: skip
    frame = pd.DataFrame(lines)
    return frame.assign(
        attribute=frame["group"].str.replace("_F", "").str.replace("_0_30", "").replace("all", "")
    )


def test_the_papers_analyses():
    samples = pd.Series({"d": 10, "c": 20, "b": 30, "a": 45})
    got = privacy_correlations(evaluations(), samples, 8.0).set_index("analysis")
    private, public = np.array([0.62, 0.69, 0.76, 0.83]), np.array([0.7, 0.75, 0.8, 0.85])
    count = [45, 30, 20, 10]
    assert got.loc["sample size and non-private AUROC", "r"] == pytest.approx(
        np.corrcoef(count, public)[0, 1]
    )
    assert got.loc["sample size and private AUROC", "r"] == pytest.approx(np.corrcoef(count, private)[0, 1])
    assert got.loc["sample size and loss of AUROC", "r"] == pytest.approx(
        np.corrcoef(count, public - private)[0, 1]
    )
    assert got.loc["non-private AUROC and private minus non-private AUROC", "r"] == pytest.approx(1)
    assert (got["n"].iloc[:4] == 4).all()
    # The non-private model has no log epsilon, and intersections are not counted again; here each attribute has one group.
    assert got.loc["log epsilon and parity, all groups", "n"] == 4
    assert set(got.index[4:]) == {f"log epsilon and parity, {g}" for g in ("all groups", "sex_F", "age_0_30")}
    assert got["paper_r"].dropna().tolist() == [0.57, 0.52, 0.06, 0.44, 0.13]


def test_without_the_budget_only_parity_is_left():
    got = privacy_correlations(evaluations(), pd.Series(dtype=float), 7.89)
    assert got["analysis"].str.startswith("log epsilon").all()
