import numpy as np
import pandas as pd
import pytest

from jaxcxr.eval.bootstrap import holm
from jaxcxr.eval.compare import COMPARISON_COLUMNS
from jaxcxr.eval.evaluate import EVALUATION_COLUMNS
from jaxcxr.report.conclusions import (
    findings_sentence,
    price_sentence,
    run_conclusions,
    widened_sentence,
    worst_off_sentence,
)
from jaxcxr.report.evaluation_facts import worst_off
from jaxcxr.report.sweep_conclusions import comparison_conclusions, sweep_conclusions
from jaxcxr.report.wording import leaves_out_zero, number, p_text, signed

GROUPS = {
    "sex_F": ("sex F", 400),
    "sex_M": ("sex M", 600),
    "age_0_30": ("age [0, 30)", 90),
    "age_30_60": ("age [30, 60)", 910),
}


def evaluation(parity, auroc=None, redraws=1000):
    """By hand: a group's accuracy (and AUROC) minus that of all others as (value, low, high, p)."""
    lines = [("all", "", "", "average", "auroc", 0.812, 0.79, 0.83, np.nan, 1000)]
    lines += [
        ("all", "", "", finding, "auroc", 0.8, 0.78, 0.84, np.nan, 1000) for finding in ("heart", "lung")
    ]
    for metric, values in (("statistical_parity_difference", parity), ("auroc_vs_rest", auroc or {})):
        for group, (value, low, high, p) in values.items():
            lines.append(
                (group, GROUPS[group][0], "rest", "average", metric, value, low, high, p, GROUPS[group][1])
            )
    names = ["group", "label", "reference", "finding", "metric", "value", "ci_low", "ci_high", "p_value", "n"]
    frame = pd.DataFrame(lines, columns=names).assign(
        redraws=redraws, note="", threshold_policy="fixed", resample="patient"
    )
    attribute = frame["group"].str.split("_").str[0].where(frame["group"] != "all", "")
    return frame.assign(attribute=attribute).reindex(columns=list(EVALUATION_COLUMNS)).astype({"note": str})


PARITY = {
    "sex_F": (0.010, -0.005, 0.025, 0.2),
    "sex_M": (-0.010, -0.025, 0.005, 0.2),
    "age_0_30": (-0.050, -0.090, -0.010, 0.004),
    "age_30_60": (0.050, 0.010, 0.090, 0.004),
}


def comparison(differences, groups=None):
    """By hand: (difference, low, high, p) of each finding, then of each group's parity."""
    lines = []
    for finding, (difference, low, high, p) in differences.items():
        lines.append(("all", "", "", finding, "auroc", 0.9, 0.9 - difference, difference, low, high, p))
    for group, (difference, low, high, p) in (groups or {}).items():
        lines.append(
            (group, GROUPS[group][0], "rest", "average", "statistical_parity_difference", 0.01, 0.01 - difference, difference, low, high, p)
        )  # fmt: skip
    names = [
        "group",
        "label",
        "reference",
        "finding",
        "metric",
        "value_a",
        "value_b",
        "difference",
        "ci_low",
        "ci_high",
        "p_value",
    ]
    frame = pd.DataFrame(lines, columns=names).assign(n=1000, redraws=1000, attribute="", note="")
    single = ~frame["finding"].isin(["average"])
    frame["p_holm"] = np.nan
    frame.loc[single, "p_holm"] = holm(frame.loc[single, "p_value"].to_numpy())
    return frame.reindex(columns=list(COMPARISON_COLUMNS))


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.01, 0.02, True),
        (-0.02, -0.01, True),
        (-0.01, 0.01, False),
        (0.0, 0.01, False),
        (-0.01, 0.0, False),
        (np.nan, np.nan, False),
    ],
)
def test_an_interval_that_holds_or_touches_zero_shows_nothing(low, high, shown):
    assert leaves_out_zero(low, high) is shown


@pytest.mark.parametrize(
    ("row", "said", "not_said"),
    [
        (
            (0.03, 0.01, 0.05, 0.002),
            "privacy costs 0.030 of it (95 % interval 0.010 to 0.050)",
            "distinguishable",
        ),
        (
            (0.03, -0.01, 0.07, 0.2),
            "+0.030 (−0.010 to 0.070), is not distinguishable from zero",
            "privacy costs 0.030",
        ),
        ((0.03, 0.0, 0.06, 0.05), "is not distinguishable from zero", "privacy costs 0.030"),
        (
            (-0.03, -0.05, -0.01, 0.002),
            "the private model is better by 0.030 (95 % interval 0.010 to 0.050)",
            "costs",
        ),
        ((np.nan, np.nan, np.nan, np.nan), "is not defined", "nan"),
    ],
)
def test_the_price_of_privacy_follows_from_its_interval(row, said, not_said):
    sentence = price_sentence(comparison({"average": row}))
    assert said in sentence
    assert not_said not in sentence


def test_an_open_difference_says_how_large_it_may_be():
    assert "a loss of up to 0.070" in price_sentence(comparison({"average": (0.03, -0.01, 0.07, 0.2)}))
    assert "no non-private model" in price_sentence(None).lower()


def test_findings_are_named_after_correction_only():
    """Uncorrected both are below 0.05; Holm makes them 0.004 and 0.03, and with a third 0.006, 0.06 and 0.9."""
    two = {
        "average": (0.03, 0.01, 0.05, 0.002),
        "heart": (0.05, 0.02, 0.08, 0.002),
        "lung": (0.02, 0.001, 0.04, 0.03),
    }
    assert "a loss of AUROC is shown for Heart and Lung" in findings_sentence(comparison(two))
    three = findings_sentence(comparison(two | {"rib": (0.001, -0.02, 0.02, 0.9)}))
    assert "after correction for 3 findings, a loss of AUROC is shown for Heart; for the other 2" in three
    none = findings_sentence(comparison({"average": two["average"], "rib": (0.001, -0.02, 0.02, 0.9)}))
    assert "no difference in AUROC to the non-private model is distinguishable from zero" in none
    assert findings_sentence(None) == ""


def test_worst_off_is_the_lowest_difference_corrected_for_the_number_of_groups():
    worst = worst_off(evaluation(PARITY), "accuracy")
    assert worst is not None
    assert (worst["group"], worst["groups"], worst["n"]) == ("age_0_30", 4, 90)
    assert worst["difference"] == -0.05
    assert worst["p_holm"] == pytest.approx(4 * 0.004)
    assert worst["p_least"] == pytest.approx(4 * 2 / 1001)
    sentence = worst_off_sentence(evaluation(PARITY), "accuracy")
    assert "the group age [0, 30) (n = 90): 0.050 below all others (95 % interval 0.010 to 0.090)" in sentence
    assert "p = 0.016 after correction for 4 groups" in sentence
    assert worst_off_sentence(evaluation(PARITY), "auroc") == ""


@pytest.mark.parametrize(
    ("young", "said"),
    [
        ((-0.050, -0.110, 0.010, 0.1), "which is not distinguishable from zero"),
        (
            (-0.050, -0.099, -0.001, 0.045),
            "p = 0.135 after correction for 4 groups: among so many groups such a difference may be",
        ),
        (
            (-0.050, -0.090, -0.010, 2 / 1001),
            "p ≤ 0.008 after correction for 4 groups. It is the worst of many",
        ),
    ],
)
def test_the_worst_off_group_is_not_accused_by_chance(young, said):
    assert said in worst_off_sentence(evaluation(PARITY | {"age_0_30": young}), "accuracy")


def test_nobody_is_worst_off_where_nobody_is_behind():
    assert worst_off_sentence(evaluation({"sex_F": (0.01, -0.01, 0.03, 0.4)}), "accuracy") == (
        "No group is below all others in average accuracy."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((0.02, 0.01, 0.03, 0.002), "with privacy it is further behind by 0.020 (0.010 to 0.030)"),
        ((-0.02, -0.03, -0.01, 0.002), "with privacy it is less far behind by 0.020 (0.010 to 0.030)"),
        ((0.02, -0.01, 0.05, 0.2), "the change, −0.020 (−0.050 to 0.010), is not distinguishable from zero"),
    ],
)
def test_whether_privacy_widens_the_distance(change, said):
    sentence = widened_sentence(
        comparison({"average": (0.03, 0.01, 0.05, 0.002)}, {"age_0_30": change}),
        evaluation(PARITY),
        "accuracy",
    )
    assert "Without privacy the group age [0, 30) stands at +0.010" in sentence
    assert said in sentence


def test_a_run_without_privacy_is_not_asked_for_its_price():
    plain = run_conclusions(evaluation(PARITY), None, private=False)
    assert plain[0].startswith("The average AUROC over 2 findings is 0.812 (95 % interval 0.790 to 0.830)")
    assert not any("non-private" in sentence for sentence in plain)
    assert any(
        "is not known" in sentence for sentence in run_conclusions(evaluation(PARITY), None, private=True)
    )


def test_a_sweep_sorts_its_budgets_by_what_is_shown():
    evaluations = pd.concat([evaluation(PARITY).assign(epsilon=e) for e in (np.inf, 8.0, 1.0)])
    free, dear = {"average": (0.005, -0.01, 0.02, 0.4)}, {"average": (0.06, 0.04, 0.08, 0.002)}
    behind = {"age_0_30": (0.03, 0.01, 0.05, 0.002), "sex_M": (0.01, -0.01, 0.03, 0.3)}
    comparisons = pd.concat(
        [comparison(free).assign(epsilon=8.0), comparison(dear, behind).assign(epsilon=1.0)]
    )
    correlations = pd.DataFrame({"analysis": ["log epsilon and parity, all groups"], "r": [0.1], "ci_low": [-0.3], "ci_high": [0.5], "n": [12]})  # fmt: skip
    said = sweep_conclusions(evaluations, comparisons, correlations)
    assert (
        "at ε = 1: +0.060 (0.040 to 0.080). Not distinguishable from zero is the difference at ε = 8: +0.005"
        in said[0]
    )
    assert "age [0, 30) in 3 of 3 models (shown in each of them" in said[1]
    assert "In 1 of 2 comparisons" in said[2]
    assert "a group fares worse with privacy. Then behind all others: age [0, 30) at ε = 1." in said[2]
    assert "ahead" not in said[2]
    assert "r = 0.10 (−0.30 to 0.50, n = 12), not distinguishable from zero" in said[3]


def test_a_group_that_is_still_ahead_is_not_called_behind():
    """Without privacy 0.060 ahead of all others, with it 0.020: less far ahead, and nobody's victim."""
    ahead = comparison({"average": (0.06, 0.04, 0.08, 0.002)}, {"sex_F": (0.04, 0.02, 0.06, 0.002)})
    ahead = ahead.assign(value_b=0.02).assign(epsilon=1.0)
    evaluations = pd.concat([evaluation(PARITY).assign(epsilon=e) for e in (np.inf, 1.0)])
    said = " ".join(sweep_conclusions(evaluations, ahead, None))
    assert "Then less far ahead of them: sex F at ε = 1." in said
    assert "behind all others: sex F" not in said


def test_replicates_that_cannot_show_anything_are_said_to_be_too_few():
    """With 60 replicates the smallest p-value is 2 / 61 = 0.033, which is above 0.05 for two findings or groups."""
    clear = {
        "average": (0.05, 0.03, 0.07, 2 / 61),
        "heart": (0.05, 0.03, 0.07, 2 / 61),
        "lung": (0.05, 0.03, 0.07, 2 / 61),
    }
    few = comparison(
        clear, {"age_0_30": (0.05, 0.03, 0.07, 2 / 61), "sex_M": (0.05, 0.03, 0.07, 2 / 61)}
    ).assign(redraws=60)
    assert "too few to tell, after correction for 2 findings" in findings_sentence(few)
    assert [sentence.count("too few") for sentence in comparison_conclusions(few)] == [0, 1, 1]
    parity = {"age_0_30": (-0.050, -0.090, -0.010, 2 / 61), "age_30_60": (0.050, 0.010, 0.090, 2 / 61)}
    assert (
        "p ≤ 0.066 after correction for 2 groups: the bootstrap replicates are too few"
        in worst_off_sentence(evaluation(parity, redraws=60), "accuracy")
    )
    evaluations = pd.concat([evaluation(parity, redraws=60).assign(epsilon=e) for e in (np.inf, 1.0)])
    assert any(
        "too few" in sentence for sentence in sweep_conclusions(evaluations, few.assign(epsilon=1.0), None)
    )


def test_any_two_models_are_compared_by_name():
    said = comparison_conclusions(
        comparison({"average": (0.03, -0.01, 0.07, 0.2), "heart": (-0.05, -0.08, -0.02, 0.002)})
    )
    assert "A minus B is +0.030 (95 % interval −0.010 to 0.070), not distinguishable from zero." in said[0]
    assert "Heart (B is better)" in said[1]


def test_numbers_are_written_for_people():
    assert (number(-0.0004), signed(-0.0004), signed(0.012), number(-1.5, 1)) == (
        "0.000",
        "+0.000",
        "+0.012",
        "−1.5",
    )
    assert (p_text(0.002, 0.002), p_text(0.0004), p_text(0.03, 0.002)) == (
        "p ≤ 0.002",
        "p < 0.001",
        "p = 0.030",
    )
