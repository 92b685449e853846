import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.data.augment import flip_rotate
from jaxcxr.data.findings import UKA_FINDINGS

SIDED = ("cardiomegaly", "effusion_right", "effusion_left")
RIGHT_ONLY = np.array([0, 1, 0], np.float32)


def half_bright(count: int) -> np.ndarray:
    """Images that are bright in their left half, where the patient's right side is."""
    images = np.zeros((count, 32, 32), dtype=np.uint8)
    images[:, :, :16] = 200
    return images


def test_a_flip_carries_the_labels_to_the_other_side():
    images, labels = half_bright(400), np.tile(RIGHT_ONLY, (400, 1))
    turned, swapped = flip_rotate(images, labels, SIDED, np.random.default_rng(0))
    flipped = turned[:, 8:24, 20:].mean((1, 2)) > turned[:, 8:24, :12].mean((1, 2))
    np.testing.assert_array_equal(
        swapped[flipped], np.tile(np.array([0, 0, 1], np.float32), (flipped.sum(), 1))
    )
    np.testing.assert_array_equal(swapped[~flipped], np.tile(RIGHT_ONLY, ((~flipped).sum(), 1)))
    assert 160 < flipped.sum() < 240


def test_images_turn_by_up_to_ten_degrees_both_ways():
    images = np.zeros((300, 65, 65), dtype=np.uint8)
    images[:, :, 31:34] = 255
    turned, _ = flip_rotate(images, np.zeros((300, 0), np.float32), (), np.random.default_rng(1))
    columns = np.arange(65)
    centre = (turned * columns).sum(2) / turned.sum(2)
    degrees = np.degrees(np.arctan((centre[:, 60] - centre[:, 4]) / 56))
    assert np.abs(degrees).max() < 10.2
    assert degrees.min() < -9.5
    assert degrees.max() > 9.5
    assert abs(degrees.std() - 20 / np.sqrt(12)) < 0.3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 12))
def test_each_label_row_is_kept_or_mirrored_and_inputs_are_untouched(seed, count):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 12, 10), dtype=np.uint8)
    labels = rng.choice([0, 1, np.nan], (count, len(UKA_FINDINGS))).astype(np.float32)
    before = images.copy(), labels.copy()
    first = flip_rotate(images, labels, UKA_FINDINGS, np.random.default_rng(seed))
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(labels, before[1])
    again = flip_rotate(images, labels, UKA_FINDINGS, np.random.default_rng(seed))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first[0].dtype, first[0].shape) == (np.uint8, images.shape)
    mirrored = labels[:, [0, 1, 3, 2, 5, 4, 7, 6]]
    for row in range(count):
        assert any(np.array_equal(first[1][row], rows[row], equal_nan=True) for rows in (labels, mirrored))


def test_a_finding_without_its_other_side_cannot_be_flipped():
    with pytest.raises(ValueError, match="effusion_left"):
        flip_rotate(
            half_bright(1), np.zeros((1, 1), np.float32), ("effusion_right",), np.random.default_rng(0)
        )
