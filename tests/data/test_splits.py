import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.data.splits import split_stratified, valid_from_train
from jaxcxr.errors import InputError

FINDINGS = ("common", "rare")
FRACTIONS = {"train": 0.7, "valid": 0.1, "test": 0.2}


def films(count: int = 3000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(0, count // 3, count))
    return pd.DataFrame(
        {
            "image_id": [f"f{i}" for i in range(count)],
            "patient_id": [f"p{p}" for p in patient],
            "age": rng.uniform(0, 95, count),
            "sex": np.where(patient % 3 == 0, "F", "M"),
            "common": (rng.uniform(size=count) < 0.3).astype(float),
            "rare": np.where(rng.uniform(size=count) < 0.01, 1.0, np.nan),
        }
    )


def test_findings_and_groups_are_spread_evenly_even_rare_ones():
    frame = split_stratified(films(), FRACTIONS, 0, FINDINGS)
    assert frame.groupby("patient_id")["split"].nunique().max() == 1
    patients = frame.groupby("patient_id").agg({"split": "first", "rare": "max", "common": "max", "sex": "first"})
    share = patients["split"].value_counts(normalize=True)
    for split, fraction in FRACTIONS.items():
        assert share[split] == pytest.approx(fraction, abs=0.003)
    with_rare = patients.loc[patients["rare"] == 1, "split"].value_counts()
    for split, fraction in FRACTIONS.items():
        assert abs(with_rare.get(split, 0) - fraction * with_rare.sum()) <= 1.01
    women = patients["sex"].eq("F").groupby(patients["split"]).mean()
    assert women.max() - women.min() < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("findings", [("rare", "a", "b", "c"), ("a", "b", "c", "rare")])
def test_the_rarest_finding_is_spread_most_evenly_wherever_it_is_named(seed, findings):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({finding: (rng.uniform(size=600) < 0.5).astype(float) for finding in "abc"})
    frame = frame.assign(patient_id=[f"p{i}" for i in range(600)], age=50.0, sex="F", rare=(np.arange(600) % 10 == 0) * 1.0)
    drawn = split_stratified(frame, {"train": 0.5, "test": 0.5}, seed, findings)
    counts = drawn.loc[drawn["rare"] == 1, "split"].value_counts()
    assert abs(counts["train"] - counts["test"]) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_declared_groups_are_spread_evenly_too(seed):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"patient_id": [f"p{i}" for i in range(400)], "age": 50.0, "sex": "F", "rare": 0.0})
    frame["scanner"] = np.where(rng.uniform(size=400) < 0.3, "old", "new")
    drawn = split_stratified(frame, {"train": 0.5, "test": 0.5}, seed, ("rare",), ("scanner",))
    counts = pd.crosstab(drawn["scanner"], drawn["split"])
    assert (counts["train"] - counts["test"]).abs().max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    seed=st.integers(0, 2**31),
)
def test_patients_are_never_shared_and_each_split_has_its_share(patients, cuts, seed):
    frame = films(len(patients) * 3)[: len(patients)].assign(patient_id=[f"p{p}" for p in patients])
    fractions = {"train": cuts[0], "valid": cuts[1] - cuts[0], "test": 1 - cuts[1]}
    drawn = split_stratified(frame, fractions, seed, FINDINGS)
    assert drawn.groupby("patient_id")["split"].nunique().max() == 1
    for split, fraction in fractions.items():
        found = drawn.loc[drawn["split"] == split, "patient_id"].nunique()
        assert abs(found - fraction * len(set(patients))) <= 1 + 1e-9
    backwards = split_stratified(frame[::-1], fractions, seed, FINDINGS)
    assert backwards["split"].tolist()[::-1] == drawn["split"].tolist()


def test_another_seed_draws_others():
    draws = [split_stratified(films(), FRACTIONS, seed, FINDINGS)["split"].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_validation_patients_come_from_training_and_test_is_untouched():
    frame = split_stratified(films(), {"train": 0.8, "test": 0.2}, 0, FINDINGS)
    drawn = valid_from_train(frame, 0.25, 1, FINDINGS)
    assert (drawn.loc[frame["split"] == "test", "split"] == "test").all()
    assert drawn.groupby("patient_id")["split"].nunique().max() == 1
    assert (drawn["split"] == "valid").mean() == pytest.approx(0.2, abs=0.02)
    pd.testing.assert_frame_equal(valid_from_train(drawn, 0.25, 1, FINDINGS), drawn)


@pytest.mark.parametrize("fractions", [{"train": 0.5, "test": 0.4}, {"train": 1.5, "test": -0.5}, {"dev": 1.0}])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(InputError, match="split fractions"):
        split_stratified(films(30), fractions, 0, FINDINGS)
