import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import SyntheticConfig
from jaxcxr.data.findings import UKA_FINDINGS, mirrored
from jaxcxr.data.synthetic import SIDE_UNNAMED, cohort
from jaxcxr.data.synthetic.cohort import (
    AGE_GROUPS,
    FINDING_CORRELATIONS,
    MAX_COMORBIDITIES,
    MAX_IMAGES,
    PUBLIC_READER_BLUNDER,
)

TABLE_1_RATES = (0.467, 0.085, 0.080, 0.065, 0.115, 0.081, 0.097, 0.078)
TABLE_1_AGES = {
    (0, 30): (0.028, 21, 8),
    (30, 60): (0.276, 50, 8),
    (60, 70): (0.240, 65, 3),
    (70, 80): (0.318, 75, 3),
    (80, 100): (0.138, 84, 3),
}
MANIFEST = ["image_id", "patient_id", "path", "split", "age", "sex", "view", "comorbidities", *UKA_FINDINGS]


@pytest.fixture(scope="module")
def private() -> pd.DataFrame:
    return cohort(SyntheticConfig("private", 60_000, 5_000, 5_000, seed=3))


@pytest.fixture(scope="module")
def public() -> pd.DataFrame:
    return cohort(SyntheticConfig("public", 40_000, 1_000, 1_000, seed=3))


def clustered_error(values: pd.Series, patients: pd.Series) -> float:
    """Standard error of a mean over images that come in patients."""
    sums = (values - values.mean()).groupby(patients.to_numpy()).sum()
    return float(np.sqrt((sums**2).sum()) / len(values))


def share_is(values: pd.Series, patients: pd.Series, expected: float) -> bool:
    return abs(values.mean() - expected) < 4 * clustered_error(values.astype(float), patients) + 0.002


@pytest.mark.parametrize("domain", ["private", "public"])
@pytest.mark.parametrize("counts", [(50, 7, 13), (1, 1, 1), (400, 0, 0), (10, 0, 3)])
def test_counts_are_exact_and_patients_stay_in_one_split(domain, counts):
    frame = cohort(SyntheticConfig(domain, *counts))
    assert frame["split"].value_counts().reindex(["train", "valid", "test"], fill_value=0).tolist() == list(
        counts
    )
    assert set(frame.groupby("patient_id")["split"].nunique()) == {1}
    assert frame["image_id"].is_unique


def test_columns_follow_the_manifest_contract(private):
    assert list(private.columns[: len(MANIFEST)]) == MANIFEST
    assert all(column.startswith("draw_") for column in private.columns[len(MANIFEST) :])
    assert set(private["sex"]) == {"F", "M"}
    assert set(private["view"]) == {"AP", "PA"}
    assert (private["path"] == "").all()
    assert private["comorbidities"].dtype.kind == "i"
    assert private["comorbidities"].between(0, MAX_COMORBIDITIES).all()
    for finding in UKA_FINDINGS:
        assert set(private[finding]) == {0.0, 1.0}
        assert set(private[f"draw_{finding}"]) == {0, 1, 2, 3, 4}


def test_equal_recipes_give_equal_cohorts_and_other_seeds_others():
    config = SyntheticConfig("private", 300, 20, 30, seed=5)
    pd.testing.assert_frame_equal(cohort(config), cohort(config))
    other = cohort(dataclasses.replace(config, seed=6))
    assert not cohort(config)["age"].equals(other["age"])
    assert not set(cohort(config)["image_id"]) & set(other["image_id"])
    assert len(cohort(dataclasses.replace(config, seed=-5))) == 350


def test_test_images_do_not_depend_on_how_many_train():
    small, large = (
        cohort(SyntheticConfig("private", n, 20, 30)).query("split == 'test'") for n in (100, 300)
    )
    assert small["draw_image_seed"].tolist() == large["draw_image_seed"].tolist()


def test_no_two_images_share_a_seed(private):
    assert private["draw_image_seed"].is_unique
    assert private.groupby("patient_id")["draw_patient_seed"].nunique().eq(1).all()
    assert private["draw_patient_seed"].nunique() == private["patient_id"].nunique()


def test_domains_share_no_identifiers(private, public):
    assert not set(private["image_id"]) & set(public["image_id"])
    assert not set(private["patient_id"]) & set(public["patient_id"])


@pytest.mark.parametrize(("finding", "rate"), list(zip(UKA_FINDINGS, TABLE_1_RATES, strict=True)))
def test_private_label_rates_are_those_of_table_1(private, finding, rate):
    assert share_is(private[finding], private["patient_id"], rate)


def test_private_sex_and_ages_are_those_of_table_1(private):
    patients = private["patient_id"]
    assert share_is(private["sex"] == "F", patients, 0.344)
    for (low, high), (share, mean, std) in TABLE_1_AGES.items():
        inside = private["age"].ge(low) & private["age"].lt(high)
        assert share_is(inside, patients, share)
        assert private["age"][inside].mean() == pytest.approx(mean, abs=1.5)
        assert private["age"][inside].std() == pytest.approx(std, abs=1)
    assert private["age"].between(0, 100, inclusive="left").all()
    assert private["age"].mean() == pytest.approx(66, abs=1)
    assert private["age"].std() == pytest.approx(15, abs=1)


def test_comorbidities_rise_with_age_as_in_figure_s2(private):
    people = private.drop_duplicates("patient_id")
    means = [
        people["comorbidities"][people["age"].ge(g[0]) & people["age"].lt(g[1])].mean() for g in AGE_GROUPS
    ]
    assert means == pytest.approx([0.8, 1.0, 1.1, 1.1, 1.1], abs=0.13)
    assert people["comorbidities"].std() == pytest.approx(1.3, abs=0.1)


def test_images_a_patient_are_few_and_skewed(private):
    images = private.groupby("patient_id").size()
    assert images.min() == 1
    assert images.max() == MAX_IMAGES
    assert images.median() in (2, 3)
    assert images.mean() > images.median()


def test_correlations_between_findings_can_exist():
    correlation = np.eye(len(UKA_FINDINGS))
    for i, j, value in FINDING_CORRELATIONS:
        correlation[i, j] = correlation[j, i] = value
    assert np.linalg.eigvalsh(correlation).min() > 0.05


def test_findings_go_together_within_a_patient_and_between_sides(private):
    right, left = private["draw_pleural_effusion_right"] >= 2, private["draw_pleural_effusion_left"] >= 2
    assert left[right].mean() > 2 * left.mean()
    first, second = private[:-1], private[1:]
    same = first["patient_id"].to_numpy() == second["patient_id"].to_numpy()
    now = first["draw_congestion"].to_numpy()[same] >= 2
    later = second["draw_congestion"].to_numpy()[same] >= 2
    assert later[now].mean() > 3 * later.mean()
    assert later[now].mean() < 0.9
    # Nine images on, only what belongs to the patient is left of the likeness.
    series = private.assign(image=private.groupby("patient_id").cumcount()).query("image in (0, 9)")
    pairs = series.pivot(index="patient_id", columns="image", values="draw_congestion").dropna() >= 2
    assert pairs[9][pairs[0]].mean() > 1.5 * pairs[9].mean()


def test_readers_mostly_agree_with_what_was_drawn_and_less_on_hard_images(private):
    names = list(UKA_FINDINGS)
    wrong = (private[names].to_numpy() == 1) != (private[[f"draw_{f}" for f in names]].to_numpy() >= 2)
    assert 0.01 < wrong.mean() < 0.08
    hard = private["draw_difficulty"] > private["draw_difficulty"].median()
    assert wrong[hard].mean() > 1.3 * wrong[~hard].mean()
    grade = private["draw_pleural_effusion_right"]
    rates = private.groupby(grade)["pleural_effusion_right"].mean()
    assert rates[:3].is_monotonic_increasing
    assert rates[2] < rates[3] < 1
    assert 0.9 < rates[4] < 1


def test_old_and_ill_patients_have_harder_images(private):
    assert private["draw_difficulty"].corr(private["age"]) > 0.3
    assert private["draw_difficulty"].corr(private["comorbidities"]) > 0.15
    by_group = [
        private["draw_difficulty"][private["age"].ge(g[0]) & private["age"].lt(g[1])].mean()
        for g in AGE_GROUPS
    ]
    assert by_group == sorted(by_group)


def test_public_reports_often_name_no_side(public, private):
    for frame, unnamed in ((public, SIDE_UNNAMED), (private, 0.0)):
        both = (frame["pleural_effusion_right"] == 1) & (frame["pleural_effusion_left"] == 1)
        one_drawn = (frame["draw_pleural_effusion_right"] == 4) & (frame["draw_pleural_effusion_left"] == 0)
        # A blunder misses the finding altogether, or names the other side now and then.
        assert both[one_drawn].mean() == pytest.approx(unnamed * (1 - PUBLIC_READER_BLUNDER), abs=0.06)


def test_public_labels_and_views_differ(private, public):
    assert public["cardiomegaly"].mean() == pytest.approx(0.20, abs=0.02)
    assert (public["view"] == "PA").mean() > 3 * (private["view"] == "PA").mean()
    for finding in UKA_FINDINGS[2:]:
        assert public[finding].mean() == pytest.approx(public[mirrored(finding)].mean(), abs=0.02)
