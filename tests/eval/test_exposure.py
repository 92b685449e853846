"""Exposure by group: counted by hand, calibrated where there is none, and silent on small groups."""

import numpy as np
import pytest

from jaxcxr.eval.exposure import Accusations, exposure_by_group, rates_of_one_model
from jaxcxr.eval.groups import Group
from tests.eval.exposure_coverage import of_one_model, swapped_coverage


def group(name: str, attribute: str, rows: np.ndarray) -> Group:
    return Group(name, name, attribute, rows)


def test_found_minus_falsely_found_by_hand() -> None:
    inside = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]], bool)
    accused = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]], bool)
    halves = [
        group("a", "side", np.array([1, 1, 0, 0], bool)),
        group("b", "side", np.array([0, 0, 1, 1], bool)),
    ]
    both = {(np.inf, 0.01): Accusations(accused, inside), (1.0, 0.01): Accusations(accused & False, inside)}
    table = exposure_by_group(both, halves, 2, 20, 0).table.set_index(["epsilon", "group"])
    assert table.loc[(np.inf, "a"), "found"] == pytest.approx(3 / 4)
    assert table.loc[(np.inf, "a"), "falsely_found"] == 0
    assert table.loc[(np.inf, "b"), "exposure"] == pytest.approx(1 / 2 - 1 / 4)
    assert table.loc[(np.inf, "all"), "exposure"] == pytest.approx(4 / 6 - 1 / 6)
    assert table.loc[(np.inf, "a"), "vs_rest"] == pytest.approx(3 / 4 - 1 / 4)
    assert table.loc[(1.0, "a"), "vs_non_private"] == pytest.approx(-3 / 4)
    assert np.isnan(table.loc[(np.inf, "a"), "vs_non_private"])


def test_a_group_of_one_is_named_and_not_judged() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((20, 50)) < 0.5
    alone = np.zeros(50, bool)
    alone[7] = True
    groups = [group("one", "x", alone), group("others", "x", ~alone)]
    made = exposure_by_group({(np.inf, 0.01): Accusations(inside, inside)}, groups, 10, 20, 0)
    row = made.table.set_index("group").loc["one"]
    assert row["note"] == "suppressed: fewer than 10 patients"
    assert row[["found", "falsely_found", "exposure", "ci_low", "vs_rest"]].isna().all()
    assert row["patients"] == 1
    # the others are judged, but not against the one
    assert np.isnan(made.table.set_index("group").loc["others", "vs_rest"])
    assert not any(name == "one" for _, _, name in made.draws)


def test_where_members_and_others_are_swapped_at_random_intervals_hold_zero() -> None:
    """A quick form of `python -m tests.eval.exposure_coverage`, which draws 2,000 cohorts."""
    assert min(swapped_coverage(60, seed=0, patients=100).values()) >= 0.9


def test_the_interval_of_one_model_holds_the_truth_and_chance_has_no_small_p_values() -> None:
    for shift, most in ((0.0, 0.2), (1.0, 1.0)):
        held, small = of_one_model(40, 0, shift, members=500, others=400)
        assert held >= 0.8
        assert small <= most


def test_groups_whose_scores_differ_are_not_thereby_exposed() -> None:
    """Everybody of one group is accused, inside or not: that is no exposure."""
    rng = np.random.default_rng(3)
    inside = rng.random((40, 100)) < 0.5
    loud = np.arange(100) < 50
    accused = np.broadcast_to(loud, inside.shape).copy()
    groups = [group("loud", "x", loud), group("quiet", "x", ~loud)]
    table = exposure_by_group({(np.inf, 0.01): Accusations(accused, inside)}, groups, 10, 50, 0).table
    row = table.set_index("group").loc["loud"]
    assert (row["found"], row["falsely_found"], row["exposure"]) == (1.0, 1.0, 0.0)


def test_true_positive_rate_of_one_model_is_that_of_its_roc_curve() -> None:
    rng = np.random.default_rng(4)
    member = rng.random(500) < 0.6
    scores = np.round(rng.normal(member * 1.0, 1.0), 2)
    draws = rates_of_one_model(scores, member, (0.001, 0.05), 50, 0)
    assert np.isnan(draws[0]).all()  # 200 non-members have no rate of 0.1 %
    best = max(
        (scores[member] >= t).mean() for t in np.unique(scores) if (scores[~member] >= t).mean() <= 0.05
    )
    assert draws[1, 0] == pytest.approx(best)
    assert np.percentile(draws[1, 1:], 2.5) < best < np.percentile(draws[1, 1:], 97.5)
