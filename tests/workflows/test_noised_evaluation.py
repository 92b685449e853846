"""An evaluation that may be published, from the command line to its files."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.cli import evaluate
from jaxcxr.data.store import write_store
from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError
from jaxcxr.eval.noised_record import NOISED_EVALUATION, NOISED_TABLE, read_record
from jaxcxr.privacy.score_counts import Design, HeldOut, noised_counts
from jaxcxr.records.evaluation_ledger import EVALUATIONS
from jaxcxr.workflows import noised_evaluation

FINDINGS = ("cardiomegaly", "congestion")
PATIENTS = 400


@functools.cache
def predictions() -> pd.DataFrame:
    """Two images per patient; the first 150 patients are validation ones."""
    rng = np.random.default_rng(0)
    labels = (rng.random((2 * PATIENTS, 2)) < 0.4).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) + 2 * labels - 1)))
    patients = np.repeat(np.arange(PATIENTS), 2)
    table = pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(2 * PATIENTS)], "patient_id": [f"p{p}" for p in patients]}
    )
    table["split"] = np.where(patients < 150, "valid", "test")
    table["age"], table["sex"] = (
        rng.integers(20, 90, len(table)).astype(float),
        np.where(patients % 2, "F", "M"),
    )
    for f, finding in enumerate(FINDINGS):
        table[f"y_{finding}"], table[f"p_{finding}"] = labels[:, f], scores[:, f]
    return table


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = predictions()
    frame = table[["image_id", "patient_id", "split", "age", "sex"]].assign(path=table["image_id"], view="AP")
    frame = frame.assign(**{f: table[f"y_{f}"] for f in FINDINGS})
    images = iter(np.zeros((len(frame), 16, 16), np.uint8))
    path = tmp_path_factory.mktemp("noised") / "store"
    return write_store(
        path, frame, images, size=16, findings=FINDINGS, preprocessing={"made": "by hand"}
    ).path


@pytest.fixture
def hospital(stored: Path, tmp_path: Path) -> Path:
    """A folder with a store and a table of predictions."""
    shutil.copytree(stored, tmp_path / "store")
    predictions().to_csv(tmp_path / "theirs.csv", index=False)
    return tmp_path


def run(hospital: Path, *more: str, out: str = "out", epsilon: float = 3) -> Path:
    evaluate.main([
        str(hospital / "theirs.csv"), "--out", str(hospital / out), "--store", str(hospital / "store"),
        "--private-epsilon", str(epsilon), "--private-patients", "250", *more,
    ])  # fmt: skip
    return hospital / out


def ledger(hospital: Path) -> list[str]:
    path = hospital / "store" / EVALUATIONS
    return path.read_text().splitlines() if path.exists() else []


def test_what_is_written_may_be_published_and_is_near_the_truth(
    hospital: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(hospital)
    assert {path.name for path in out.iterdir()} == {NOISED_EVALUATION, NOISED_TABLE, DIGESTS}
    record, table = read_record(out / NOISED_EVALUATION), pd.read_csv(out / NOISED_TABLE)
    assert record.epsilon <= 3
    assert record.evaluations == 1
    assert record.threshold_source == "noised validation images"
    assert table.loc[(table["metric"] == "auroc") & (table["group"] == "all"), "value"].between(0.8, 1).all()
    pd.testing.assert_frame_equal(
        table.astype({"note": object}).fillna({"note": "", "attribute": ""}),
        record.table(),
        check_dtype=False,
    )
    assert len(ledger(hospital)) == 2
    assert "they may be published" in capsys.readouterr().out
    text = (out / NOISED_EVALUATION).read_text() + (out / NOISED_TABLE).read_text()
    assert not any(str(private) in text for private in ("i17", "p12", hospital, "theirs"))


def test_the_cost_is_on_the_disk_before_anything_is_counted(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        assert len(ledger(hospital)) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(noised_evaluation, "noised_counts", stop)
    with pytest.raises(KeyboardInterrupt):
        run(hospital)
    assert not list((hospital / "out").iterdir())


def test_a_second_evaluation_composes_and_one_beyond_the_budget_is_refused(hospital: Path) -> None:
    run(hospital, "--private-budget", "4.5")
    second = read_record(run(hospital, out="second") / NOISED_EVALUATION)
    assert second.evaluations == 2
    assert 4 < second.epsilon_together < 4.5
    with pytest.raises(InputError, match=r"2 evaluations have spent 4\.\d+ of it"):
        run(hospital, out="third")
    assert len(ledger(hospital)) == 3
    assert not list((hospital / "third").iterdir())


def test_by_default_the_first_evaluation_is_the_budget(hospital: Path) -> None:
    run(hospital)
    with pytest.raises(InputError, match="budget of the held-out patients is epsilon 3"):
        run(hospital, out="second")


def test_no_two_releases_have_the_same_noise(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal noise, the difference of two releases would show a patient."""
    keys = []

    def counted(held_out: HeldOut, design: Design, key: np.ndarray) -> np.ndarray:
        keys.append(key.tobytes())
        return noised_counts(held_out, design, key)

    monkeypatch.setattr(noised_evaluation, "noised_counts", counted)
    first = read_record(run(hospital, "--private-budget", "9") / NOISED_EVALUATION)
    second = read_record(run(hospital, out="second") / NOISED_EVALUATION)
    assert len(keys) == len(set(keys)) == 4  # validation and test images, twice
    equal = np.array(first.counts) == np.array(second.counts)
    assert equal.mean() < 0.01


@pytest.mark.parametrize(
    ("more", "epsilon", "said"),
    [
        ((), 0.05, "the test split is too small for this budget"),
        (("--private-delta", "0.1"), 3, "less than 1 / 250"),
        (("--private-images", "0"), 3, "--private-images"),
        (("--private-images", "500"), 3, "too small"),
        (("--private-budget", "1"), 3, "--private-budget"),
        (("--threshold", "youden_test"), 3, "test images themselves"),
        (("--groups", "patient_id"), 3, "bin edges"),
        (("--threshold", "fixed", "--fixed-thresholds", "0.1", "0.2", "0.3"), 3, "fixed_thresholds"),
        ((), -1, "epsilon"),
        ((), float("nan"), "epsilon"),
    ],
)
def test_what_cannot_be_released_costs_nothing(
    hospital: Path, more: tuple[str, ...], epsilon: float, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(hospital, *more, epsilon=epsilon)
    assert ledger(hospital) == []
    assert not (hospital / "out").exists()


def test_a_split_that_is_nearly_too_small_is_warned_of(
    hospital: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(hospital, epsilon=0.7)
    assert "will be hidden by the noise" in capsys.readouterr().err


def test_an_evaluation_is_not_made_anew_where_one_lies(hospital: Path) -> None:
    run(hospital, "--private-budget", "9")
    with pytest.raises(InputError, match="publishing it again costs nothing"):
        run(hospital)
    assert len(ledger(hospital)) == 2


@pytest.mark.parametrize("change", ["another image", "another patient", "moved"])
def test_a_table_of_other_images_than_the_stores_is_refused(hospital: Path, change: str) -> None:
    """Renaming a patient would give each of their images a guarantee of its own."""
    table = predictions().copy()
    if change == "another image":
        table.loc[700, "image_id"] = "elsewhere"
    elif change == "another patient":
        table.loc[700, "patient_id"] = "split in two"
    else:
        table.loc[table["patient_id"] == table["patient_id"][700], "split"] = "valid"
    table.to_csv(hospital / "theirs.csv", index=False)
    with pytest.raises(InputError, match="expected the store that was predicted"):
        run(hospital)
    assert ledger(hospital) == []


def test_fixed_thresholds_are_public_and_need_no_validation_images(hospital: Path) -> None:
    predictions().query("split == 'test'").to_csv(hospital / "theirs.csv", index=False)
    out = run(hospital, "--threshold", "fixed", "--fixed-thresholds", "0.4", "0.55")
    record = read_record(out / NOISED_EVALUATION)
    assert record.thresholds == [0.4, 0.55]
    assert record.validation_counts is None
    table = record.table().set_index(["group", "finding", "metric"])
    test = predictions().query("split == 'test'")
    called = (test["p_cardiomegaly"] >= 0.4) == (test["y_cardiomegaly"] == 1)
    row = table.loc["all", "cardiomegaly", "accuracy"]
    assert row["ci_low"] < called.mean() < row["ci_high"]


def test_with_epsilon_without_limit_it_is_the_evaluation_itself(hospital: Path) -> None:
    """Every patient has two images: weighing two at most counts every image once, in every group."""
    groups = ("--groups", "age:0,50,100", "sex", "sex*age")
    fixed = ("--threshold", "fixed", "--fixed-thresholds", "0.4", "0.55")
    out = run(hospital, *groups, *fixed, "--private-images", "2", epsilon=450)
    noised = read_record(out / NOISED_EVALUATION).table()
    evaluate.main(
        [str(hospital / "theirs.csv"), "--out", str(hospital / "exact"), *groups, *fixed, "--redraws", "200"]
    )
    exact = pd.read_csv(hospital / "exact" / "evaluation.csv").query("reference.isna()")
    keys = ["group", "finding", "metric"]
    both = noised.merge(exact, on=keys, suffixes=("", "_exact"))
    assert len(both) == len(noised) == 3 * (4 + 2 * 8)
    off = np.abs(both["value"] - both["value_exact"])
    assert np.all(off <= 6 * both["std_noise"] + 0.005)
    assert np.all(off[both["group"] == "all"] < 0.02)
    assert np.all(both["std_noise"] < 0.03)  # groups that were mixed up would differ by more
    widths = (both["ci_high"] - both["ci_low"]) / (both["ci_high_exact"] - both["ci_low_exact"])
    assert widths.between(0.7, 4).all()  # wider, as two images of a patient are taken as one


@pytest.mark.parametrize("without", ["--store", "--private-patients", "--out"])
def test_what_is_missing_is_said(hospital: Path, without: str) -> None:
    arguments = {
        "--out": str(hospital / "out"), "--store": str(hospital / "store"), "--private-epsilon": "3", "--private-patients": "250",
    }  # fmt: skip
    del arguments[without]
    with pytest.raises(InputError, match=without):
        evaluate.main([str(hospital / "theirs.csv"), *(text for pair in arguments.items() for text in pair)])
