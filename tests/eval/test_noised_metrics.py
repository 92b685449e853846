import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.errors import InputError
from jaxcxr.eval.groups import public_groups
from jaxcxr.eval.metrics import point_metrics
from jaxcxr.eval.noised_metrics import (
    HIDDEN,
    METRICS,
    NO_THRESHOLD,
    NamedGroup,
    chosen_split,
    noised_evaluation,
)
from jaxcxr.eval.noised_record import (
    NoisedEvaluation,
    design_of,
    epsilon_of,
    nearest_edge,
    read_record,
    record_json,
)
from jaxcxr.privacy.score_counts import EDGES, Design, HeldOut, noised_counts, rounded_counts
from tests.eval.noised_coverage import Cohort, coverage

KEY = np.arange(4, dtype=np.uint32)
GROUPS = [NamedGroup("sex_F", "sex F", "sex"), NamedGroup("sex_M", "sex M", "sex")]


def held_out(n: int, seed: int = 0) -> HeldOut:
    """One image per patient; the second finding is unknown for some."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < [0.4, 0.2]).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=(n, 2)) + 1.5 * labels - 1)))
    labels[rng.random(n) < 0.1, 1] = np.nan
    return HeldOut(scores, labels, np.arange(n), rng.integers(-1, 2, (n, 1)))


def design(noise_multiplier: float, groups: tuple[int, ...] = (2,)) -> Design:
    return design_of([0.3, 0.4], groups, 1, noise_multiplier)


def test_without_noise_they_are_the_metrics_of_the_binned_scores() -> None:
    images, plan = held_out(400), design(0.1)
    table = noised_evaluation(rounded_counts(images, plan), plan, ["a", "b"], GROUPS, [True, True])
    masks = {"all": np.ones(400, bool)} | {g.name: images.groups[:, 0] == i for i, g in enumerate(GROUPS)}
    for row in table.loc[table["finding"] != "average"].itertuples():
        f, mask = "ab".index(row.finding), masks[row.group]
        binned = np.searchsorted(plan.edges(f), images.scores[mask, f], side="right") / 64
        cut = (plan.splits[f] + 1) / 64
        wanted = point_metrics(images.labels[mask, f], binned, cut)
        assert row.value == pytest.approx(wanted[row.metric], abs=1e-4)
        assert row.ci_low <= row.value <= row.ci_high
        exact = point_metrics(images.labels[mask, f], images.scores[mask, f], plan.thresholds[f])
        assert row.value == pytest.approx(exact[row.metric], abs=0.01)
    for metric in METRICS:
        own = table.loc[(table["group"] == "all") & (table["metric"] == metric)].set_index("finding")["value"]
        assert own["average"] == pytest.approx(own[["a", "b"]].mean())


def test_groups_have_two_metrics_and_everybody_four() -> None:
    counts = noised_counts(held_out(2000), design(1.0), KEY)
    table = noised_evaluation(counts, design(1.0), ["a", "b"], GROUPS, [True, True])
    shown = table.groupby("group", sort=False)["metric"].agg(lambda m: tuple(dict.fromkeys(m)))
    assert shown.to_dict() == {"all": METRICS, "sex_F": ("auroc", "accuracy"), "sex_M": ("auroc", "accuracy")}


def test_what_the_noise_hides_is_not_given_and_what_it_does_not_hide_is() -> None:
    """With 400 patients and a tenth of them ill, negatives can stand out where positives do not."""
    rng = np.random.default_rng(0)
    images = dataclasses.replace(
        held_out(400), labels=(rng.random((400, 2)) < 0.05).astype(float), groups=np.zeros((400, 0), int)
    )
    plan = design(10.0, ())
    table = noised_evaluation(noised_counts(images, plan, KEY), plan, ["a", "b"], [], [True, True])
    notes = table.set_index(["finding", "metric"])["note"].to_dict()
    assert notes["a", "auroc"] == notes["a", "sensitivity"] == notes["average", "auroc"] == HIDDEN
    assert notes["a", "accuracy"] == notes["a", "specificity"] == notes["average", "accuracy"] == ""
    hidden = table.loc[table["note"] == HIDDEN, ["value", "ci_low", "ci_high", "std_noise", "std_sample"]]
    assert hidden.isna().to_numpy().all()


def test_without_a_threshold_only_auroc_is_given() -> None:
    counts = noised_counts(held_out(2000), design(0.5), KEY)
    table = noised_evaluation(counts, design(0.5), ["a", "b"], GROUPS, [True, False])
    notes = table.loc[table["group"] == "all"].set_index(["finding", "metric"])["note"]
    assert notes["b", "accuracy"] == NO_THRESHOLD
    assert notes["b", "auroc"] == ""
    assert notes["average", "accuracy"] == "over 1 of 2 findings"


def test_the_interval_of_an_average_is_no_narrower_than_if_findings_failed_together() -> None:
    """Equal findings: their average varies with the sample as much as each of them."""
    images = held_out(3000)
    twice = dataclasses.replace(
        images,
        scores=images.scores[:, [0, 0]],
        labels=images.labels[:, [0, 0]],
        groups=np.zeros((3000, 0), int),
    )
    plan = Design((nearest_edge(0.3),) * 2, (0.3, 0.3), (), 1, 0.1)
    table = noised_evaluation(noised_counts(twice, plan, KEY), plan, ["a", "b"], [], [True, True])
    std = table.loc[table["metric"] == "sensitivity"].set_index("finding")["std_sample"]
    assert std["average"] == pytest.approx(std["a"], rel=0.02)


def test_where_a_patient_may_weigh_four_images_a_quarter_of_the_images_are_taken_as_independent() -> None:
    images, std = dataclasses.replace(held_out(3000), groups=np.zeros((3000, 0), int)), []
    for k in (1, 4):
        plan = design_of([0.3, 0.4], (), k, 0.1)
        table = noised_evaluation(noised_counts(images, plan, KEY), plan, ["a", "b"], [], [True, True])
        std.append(table["std_sample"].to_numpy())
    np.testing.assert_allclose(std[1] / std[0], 2, rtol=0.1)


@pytest.mark.parametrize(("patients", "epsilon"), [(600, 3.0), (3000, 0.15)], ids=["the sample", "the noise"])
def test_intervals_hold_the_truth(patients: int, epsilon: float) -> None:
    """150 cohorts of patients with several images each, most of the spread by one part or by the other."""
    found = coverage(Cohort(patients, (0.4,)), epsilon, 150)
    assert np.all(found["holds"] >= 0.91)
    assert np.all(found["given"] == 150)
    assert np.all(found["width"] < 0.25)


def test_a_threshold_chosen_on_noised_validation_images_is_near_the_best_one() -> None:
    plan = design_of([None, None], (), 1, 1.0)
    images = dataclasses.replace(held_out(20_000), groups=np.zeros((20_000, 0), int))
    chosen = chosen_split(noised_counts(images, plan, KEY)[0], plan)
    best = 1 / (1 + np.exp(-(1.5 / 2 - 1)))  # where the densities of two equal normals cross
    for edge in chosen:
        assert edge is not None
        assert abs(EDGES[edge] - best) < 0.08
    assert chosen_split(noised_counts(images, dataclasses.replace(plan, noise_multiplier=4e3), KEY)[0], dataclasses.replace(plan, noise_multiplier=4e3)) == [None, None]  # fmt: skip


def record(**changed: object) -> dict:
    plan = design(1.0)
    counts = noised_counts(held_out(500), plan, KEY)
    cost = epsilon_of(1.0, 1e-5)
    return {
        "epsilon": cost, "delta": 1e-5, "evaluations": 1, "epsilon_together": cost, "declared_patients": 500,
        "noise_multiplier": 1.0, "images_per_patient": 1, "findings": ["a", "b"],
        "groups": [dataclasses.asdict(group) for group in GROUPS], "threshold_source": "declared",
        "thresholds": [0.3, 0.4], "weights": None, "validation_counts": None, "counts": counts.tolist(),
    } | changed  # fmt: skip


def test_a_record_is_read_as_it_was_written_and_gives_the_same_table(tmp_path: Path) -> None:
    made = NoisedEvaluation.model_validate(record())
    (tmp_path / "noised_evaluation.json").write_text(record_json(made))
    again = read_record(tmp_path / "noised_evaluation.json")
    assert again == made
    pd.testing.assert_frame_equal(again.table(), made.table())


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": 0.5},
        {"noise_multiplier": 2.0},
        {"delta": 0.0},
        {"epsilon_together": 1.0},
        {"evaluations": 2},
        {"thresholds": [0.3]},
        {"thresholds": [0.3, 1.4]},
        {"findings": ["a", "a"]},
        {"findings": ["a", "b", "c"], "thresholds": [0.3, 0.4, 0.5]},
        {"counts": [[[[1]]]]},
        {"validation_counts": [[[1]]]},
        {"threshold_source": "noised validation images"},
        {"weights": "seen in IMG-3"},
        {"unit": "image"},
        {"remark": "of IMG-3"},
        {"groups": []},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, changed: dict) -> None:
    path = tmp_path / "noised_evaluation.json"
    path.write_text(
        json.dumps(record() | {"schema_version": 1, "unit": "patient", "adjacency": "add_remove"} | changed)
    )
    with pytest.raises(InputError, match=r"noised_evaluation\.json"):
        read_record(path)


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(
        {"age": [30.0, 71.0, np.nan], "sex": ["F", "M", "unknown"], "comorbidities": [np.nan] * 3} | columns
    )


def test_no_patient_decides_which_groups_there_are() -> None:
    specs = ("age:0,60,100", "sex", "sex*age", "comorbidities:0,1,2")
    here = public_groups(table(), specs)
    for other in (
        table(sex=["F", "F", "intersex"]),
        table(comorbidities=[0.0, 1.0, 2.0]),
        table(comorbidities=[0.5, 1.0, 2.0]),
        table(age=[np.nan] * 3),
        table(sex=[None] * 3),
    ):
        there = public_groups(other, specs)
        assert [(g.name, g.label, g.attribute) for g in here] == [
            (g.name, g.label, g.attribute) for g in there
        ]
    assert [g.name for g in here][:4] == ["age_0_60", "age_60_100", "sex_F", "sex_M"]
    assert [int(g.rows.sum()) for g in here][:4] == [1, 1, 1, 1]


def test_groups_by_default_are_those_whose_columns_exist() -> None:
    assert {g.attribute for g in public_groups(table(), None)} == {"age", "sex"}
    assert public_groups(table().loc[:, ["comorbidities"]], None) == ()
    assert {g.attribute for g in public_groups(table(age=[np.nan] * 3), None)} == {"age", "sex"}


@pytest.mark.parametrize(
    ("specs", "said"), [(("ward",), "bin edges"), (("view",), "missing"), (("age:3",), "edges")]
)
def test_groups_that_would_be_read_from_the_rows_are_refused(specs: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        public_groups(table(ward=["a", "b", "c"]), specs)
