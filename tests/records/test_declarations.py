import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcxr.records.declarations import proposed_size, rates_were_counted, size_remarks

DEMO = (0.467, 0.085, 0.080, 0.065, 0.115, 0.081, 0.097, 0.078)
"""The paper's rates, as the configurations declare them."""


def cohort(n: int, rates: tuple[float, ...] = DEMO, seed: int = 0, unknown: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(rates))) < rates).astype(float)
    labels[rng.random(labels.shape) < unknown] = np.nan
    return labels


@pytest.mark.parametrize(
    ("units", "proposed"), [(7, 7), (57, 50), (212, 210), (7_999, 7_900), (8_000, 8_000), (153_502, 150_000)]
)
def test_a_proposed_size_has_two_digits(units: int, proposed: int) -> None:
    assert proposed_size(units) == proposed


@given(st.integers(10, 10**7))
def test_a_proposed_size_is_near_and_never_more(units: int) -> None:
    assert 0.5 * units < proposed_size(units) <= units
    assert units < 100 or 0.9 * units < proposed_size(units)


def test_a_counted_size_is_told_with_a_proposal() -> None:
    (told,) = size_remarks(None, 7_999, 7_999, "images", 512)
    assert "not for release" in told
    assert "such as 7900" in told


@pytest.mark.parametrize(
    ("declared", "units", "images", "called", "words"),
    [
        (
            800,
            8_000,
            8_000,
            "images",
            ["800, but 8000 images", "5.12e+03 images on average", "longer than meant", "such as 8000"],
        ),
        (
            80_000,
            8_000,
            8_000,
            "images",
            ["80000, but 8000 images", "51.2 images on average", "drowns in noise"],
        ),
        (659, 212, 659, "patients", ["looks like the number of images (659)", "212 patients", "such as 210"]),
        (650, 450, 659, "patients", ["looks like the number of images (659)", "450 patients"]),
    ],
)
def test_a_declared_size_that_is_not_meant_is_told(
    declared: int, units: int, images: int, called: str, words: list[str]
) -> None:
    (told,) = size_remarks(declared, units, images, called, 512)
    for word in words:
        assert word in told


def test_a_declared_size_that_is_the_count_is_told() -> None:
    (told,) = size_remarks(7_999, 7_999, 7_999, "images", 512)
    assert "7999 is exactly the number of training images" in told
    assert "such as 7900" in told
    assert size_remarks(7_998, 7_999, 7_999, "images", 512) == []


@pytest.mark.parametrize(("declared", "units", "images", "called"), [(8_000, 8_000, 8_000, "images"), (150_000, 153_502, 153_502, "images"), (210, 212, 659, "patients"), (5_000, 8_000, 8_000, "images")])  # fmt: skip
def test_a_sensible_size_is_not_remarked_on(declared: int, units: int, images: int, called: str) -> None:
    assert size_remarks(declared, units, images, called, 512) == []


def fixed(rates: np.ndarray) -> tuple[float, ...]:
    return tuple(float(rate) for rate in np.clip(rates, 1e-6, 1 - 1e-6))


@pytest.mark.parametrize("n", [50, 1_000, 8_000, 150_000])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_exact_rates_are_found_however_many_images(n: int, unknown: float) -> None:
    labels = cohort(n, unknown=unknown)
    own = np.nanmean(labels, axis=0)
    assert rates_were_counted(fixed(own), labels)
    assert rates_were_counted(fixed(own.astype(np.float32)), labels)
    assert rates_were_counted(fixed(np.round(own, 6)), labels)


@pytest.mark.parametrize("exact", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_exact_rates_of_some_findings_are_found(exact: int, width: type) -> None:
    labels = cohort(8_000)
    rates = np.array(DEMO) * 1.5 % 0.9
    rates[-exact:] = width(labels.mean(axis=0))[-exact:]
    assert rates_were_counted(fixed(rates), labels)


def test_four_digits_of_several_findings_are_found() -> None:
    labels = cohort(20_000)
    own = labels.mean(axis=0)
    assert rates_were_counted(fixed(np.round(own, 4)), labels)
    rates = np.round(own, 4)
    rates[:3] = [0.2, 0.3, 0.2]
    assert rates_were_counted(fixed(rates), labels)


def test_two_digits_pass_where_they_say_little_and_not_where_they_say_nearly_all() -> None:
    """Of 150,000 images, one moves a two-digit rate with a chance of less than 1 in 1,000; of 100, every time."""
    for seed in range(5):
        large, small = cohort(150_000, seed=seed), cohort(100, seed=seed)
        assert not rates_were_counted(fixed(np.round(large.mean(axis=0), 2)), large)
        assert rates_were_counted(fixed(np.round(small.mean(axis=0), 2)), small)


@pytest.mark.parametrize("n", [40, 2_000])
@pytest.mark.parametrize("digits", [2, 3])
def test_rates_from_elsewhere_pass_even_if_they_are_right(n: int, digits: int) -> None:
    """The hardest case: the declared rates are the very probabilities that the labels were drawn with."""
    truth = tuple(round(rate, digits) for rate in DEMO)
    refused = sum(rates_were_counted(truth, cohort(n, truth, seed)) for seed in range(150))
    assert refused <= 2  # 0.15 are to be expected at most


@pytest.mark.parametrize("agreement", [0.9, 1.0])
def test_findings_that_say_nearly_the_same_are_not_counted_as_several(agreement: float) -> None:
    """All eight rates are near their expectation when one is; a test that takes them as independent refuses every fifth."""
    refused = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        one = rng.random((2_000, 1)) < 0.3
        others = np.where(rng.random((2_000, 8)) < agreement, one, rng.random((2_000, 8)) < 0.3)
        refused += rates_were_counted((0.3001,) * 8, others.astype(float))
    assert refused <= 2


def test_findings_without_labels_say_nothing() -> None:
    labels = cohort(500)
    labels[:, 2] = np.nan
    assert not rates_were_counted(DEMO, np.full((500, 8), np.nan))
    own = np.nan_to_num(np.nanmean(np.where(np.isnan(labels), 0.3, labels), axis=0))
    assert rates_were_counted(fixed(own), labels)


def test_the_shipped_rates_are_not_the_drawn_cohorts() -> None:
    from pathlib import Path

    from jaxcxr.config import Experiment
    from jaxcxr.config_files import load
    from jaxcxr.data import synthetic

    for name in ("demo", "quick", "study/private", "study/proxy"):
        config = load(Experiment, Path(__file__).parents[2] / "configs" / f"{name}.yaml")
        assert config.data.synthetic is not None
        assert config.training.positive_rates is not None
        assert config.privacy is not None
        images = synthetic.cohort(config.data.synthetic)
        training = images.loc[images["split"] == "train", list(config.data.findings)].to_numpy(float)
        assert not rates_were_counted(config.training.positive_rates, training)
        assert config.privacy.dataset_size == len(training)
