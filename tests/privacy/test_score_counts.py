import dataclasses

import numpy as np
import pytest

from jaxcxr.eval.counts import levels
from jaxcxr.eval.noised_metrics import cells
from jaxcxr.eval.noised_record import nearest_edge
from jaxcxr.privacy import score_counts
from jaxcxr.privacy.score_counts import (
    BINS,
    EDGES,
    Design,
    HeldOut,
    noised_counts,
    rounded_counts,
    strategy,
)

KEY = np.arange(4, dtype=np.uint32)
THRESHOLDS = (0.3, 0.5, 0.02)
DESIGN = Design(tuple(nearest_edge(t) for t in THRESHOLDS), THRESHOLDS, (2, 3), 1, 2.0)


def cohort(seed: int, patients: int = 8, most: int = 9) -> HeldOut:
    """Patients with 1 to `most` images, unknown labels, and groups that may change from image to image."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    n = len(owner)
    return HeldOut(
        rng.random((n, 3)) ** 3,
        rng.choice([0.0, 1.0, np.nan], (n, 3), p=[0.6, 0.25, 0.15]),
        owner,
        np.stack([rng.integers(-1, 2, n), rng.integers(-1, 3, n)], axis=1),
    )


def where(held_out: HeldOut, rows: np.ndarray) -> HeldOut:
    return HeldOut(*(getattr(held_out, f.name)[rows] for f in dataclasses.fields(HeldOut)))


def bound(design: Design) -> float:
    """Steps by which a patient may move the counts: what the noise is accounted for, less half the rounding."""
    return design.l2_sensitivity / design.grid.step + np.sqrt(np.prod(design.shape)) / 2


def worst_patient(design: Design, images: int) -> HeldOut:
    """Positive for everything, in a group of each attribute, with the scores whose column is longest."""
    longest = [int(np.argmax((strategy(s) ** 2).sum(axis=0))) for s in design.splits]
    edges = [np.concatenate([[0.0], design.edges(f)]) for f in range(len(longest))]
    scores = np.array([edge[b] for edge, b in zip(edges, longest, strict=True)])
    return HeldOut(
        np.tile(scores, (images, 1)),
        np.ones((images, len(longest))),
        np.full(images, 7),
        np.ones((images, len(design.groups)), int),
    )


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_one_patient_moves_the_counts_by_their_own_contribution_and_by_at_most_the_sensitivity(
    seed: int, k: int
) -> None:
    design, held_out = dataclasses.replace(DESIGN, images_per_patient=k), cohort(seed)
    everybody = rounded_counts(held_out, design)
    for patient in range(8):
        own = held_out.patients == patient
        moved = everybody - rounded_counts(where(held_out, ~own), design)
        np.testing.assert_array_equal(moved, rounded_counts(where(held_out, own), design))
        assert np.linalg.norm(moved) <= bound(design)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("images", [1, 4, 50])
def test_the_worst_patient_reaches_the_sensitivity_and_no_more(images: int, k: int) -> None:
    """A sensitivity that is too small, or larger than it need be, is seen here."""
    design = dataclasses.replace(DESIGN, images_per_patient=k)
    length = np.linalg.norm(rounded_counts(worst_patient(design, images), design)) * design.grid.step
    assert length == pytest.approx(min(images, k) * np.sqrt(3), rel=1e-4)


def test_a_patient_whose_images_are_in_several_groups_of_an_attribute_counts_once_in_it() -> None:
    held_out = worst_patient(DESIGN, 6)
    spread = dataclasses.replace(held_out, groups=np.array([[i % 2, i % 3] for i in range(6)]))
    assert np.linalg.norm(rounded_counts(spread, DESIGN)) < np.linalg.norm(rounded_counts(held_out, DESIGN))


@pytest.mark.parametrize("wrong", ["every image weighs 1", "every block in full"])
def test_a_contribution_that_is_too_long_is_not_released(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "every image weighs 1":
        monkeypatch.setattr(score_counts, "_weights", lambda labelled, *_: np.ones(len(labelled)))
    else:
        monkeypatch.setattr(Design, "factors", property(lambda self: np.ones(1 + sum(self.groups))))
    with pytest.raises(ValueError, match="longer than the sensitivity"):
        rounded_counts(worst_patient(DESIGN, 2), DESIGN)


@pytest.mark.parametrize("split", [0, 5, 31, 61, 62])
def test_no_image_adds_more_than_one_and_every_bin_can_be_told(split: int) -> None:
    lengths = np.linalg.norm(strategy(split), axis=0)
    assert lengths.max() == pytest.approx(1)
    assert np.linalg.matrix_rank(strategy(split)) == BINS


def test_noise_has_the_accounted_deviation_in_every_block_and_is_not_used_twice() -> None:
    design = dataclasses.replace(DESIGN, noise_multiplier=1.3)
    nobody = where(cohort(0), np.zeros(len(cohort(0).patients), bool))
    drawn = noised_counts(nobody, design, KEY) * design.grid.step
    by_block = drawn.reshape(len(drawn), -1)
    np.testing.assert_allclose(by_block.std(axis=1), 1.3 * design.l2_sensitivity, rtol=0.15)
    assert drawn.std() == pytest.approx(1.3 * design.l2_sensitivity, rel=0.05)
    assert len(np.unique(drawn)) > 0.999 * drawn.size
    assert np.abs(np.corrcoef(by_block) - np.eye(len(by_block))).max() < 0.3
    np.testing.assert_array_equal(
        noised_counts(cohort(1), design, KEY) - rounded_counts(cohort(1), design),
        noised_counts(nobody, design, KEY),
    )


def test_cells_are_the_weighted_histograms() -> None:
    """Everybody and each group, both classes; unknown labels are in none."""
    held_out = cohort(3)
    found = cells(rounded_counts(held_out, DESIGN) * DESIGN.grid.step, DESIGN)
    members = [np.ones(len(held_out.patients), bool)]
    members += [held_out.groups[:, 0] == g for g in range(2)] + [held_out.groups[:, 1] == g for g in range(3)]
    for f in range(3):
        labelled = ~np.isnan(held_out.labels[:, f])
        images = np.bincount(held_out.patients[labelled], minlength=8)
        weights = 1 / np.maximum(images[held_out.patients], 1)
        for block, member in enumerate(members):
            for place, label in enumerate((1, 0)):
                rows = member & (held_out.labels[:, f] == label)
                inner = np.concatenate([[-np.inf], DESIGN.edges(f), [np.inf]])
                wanted, _ = np.histogram(held_out.scores[rows, f], inner, weights=weights[rows])
                np.testing.assert_allclose(found[block, f, place], wanted, atol=1e-3)


def test_an_image_at_the_threshold_is_above_it() -> None:
    """As in `eval.metrics`: called positive if the probability is at least the threshold."""
    for threshold in (0.3, 0.0, 1.0, float(EDGES[10])):
        design = Design((nearest_edge(threshold),), (threshold,), (), 1, 1.0)
        assert np.all(np.diff(design.edges(0)) > 0)
        one = HeldOut(np.array([[threshold]]), np.ones((1, 1)), np.zeros(1, int), np.zeros((1, 0), int))
        found = cells(rounded_counts(one, design) * design.grid.step, design)[0, 0, 0]
        assert found[design.splits[0] + 1 :].sum() == pytest.approx(1, abs=1e-4)
    assert levels(np.array([1.0, 0.0]), np.array([0.3, 0.3])).negative_tied.all()


def test_images_that_do_not_go_with_the_design_are_refused() -> None:
    for changed in (
        {"groups": np.full((len(cohort(0).patients), 2), 3)},
        {"groups": np.zeros((len(cohort(0).patients), 1), int)},
        {"scores": np.full((len(cohort(0).patients), 3), np.nan)},
    ):
        with pytest.raises(ValueError, match="held_out"):
            rounded_counts(dataclasses.replace(cohort(0), **changed), DESIGN)
