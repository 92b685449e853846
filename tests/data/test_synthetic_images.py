import importlib
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from skimage.exposure import equalize_hist

from jaxcxr.config import SyntheticConfig
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.synthetic import cohort, render, render_all

SIDED = UKA_FINDINGS[2:]


@pytest.fixture(scope="module")
def private() -> pd.DataFrame:
    return cohort(SyntheticConfig("private", 280, 10, 10, seed=2))


def images_with(frame: pd.DataFrame, n: int, **grades: int) -> list[dict]:
    """Rows whose grades are all zero but for the named ones, in whatever else they differ."""
    rows = frame.drop_duplicates("patient_id").head(n).to_dict("records")
    return [
        row | {f"draw_{f}": 0 for f in UKA_FINDINGS} | {f"draw_{f}": g for f, g in grades.items()}
        for row in rows
    ]


def signed_difference(row_with: dict, row_without: dict, size: int = 64) -> np.ndarray:
    return render(row_with, size).astype(float) - render(row_without, size).astype(float)


@pytest.mark.parametrize("size", [32, 64, 100, 256])
def test_images_are_square_bytes_with_contrast(private, size):
    image = render(private.iloc[0].to_dict(), size)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.std() > 15


def test_largest_image_can_be_drawn(private):
    assert render(private.iloc[0].to_dict(), 1024).shape == (1024, 1024)


def test_a_row_gives_the_same_image_whatever_holds_it(private):
    row = private.iloc[3]
    np.testing.assert_array_equal(render(row.to_dict(), 64), render(row, 64))
    np.testing.assert_array_equal(render(row, 64), next(render_all(private.iloc[3:4], 64)))


def test_sizes_show_the_same_image(private):
    for _, row in private.head(8).iterrows():
        small, large = render(row, 64).astype(float), render(row, 256).reshape(64, 4, 64, 4).mean((1, 3))
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.93


def test_processes_and_chunks_do_not_show(private, monkeypatch):
    # More chunks than are kept waiting, the last one cut short.
    monkeypatch.setattr(importlib.import_module("jaxcxr.data.synthetic.render"), "CHUNK", 17)
    alone = np.stack(list(render_all(private, 32, processes=1)))
    together = np.stack(list(render_all(private, 32, processes=2)))
    assert len(private) > 256  # otherwise no process would have been started
    np.testing.assert_array_equal(alone, together)
    part = np.stack(list(render_all(private.iloc[100:110], 32)))
    np.testing.assert_array_equal(alone[100:110], part)


def test_label_columns_do_not_reach_the_image(private):
    row = private.iloc[5].to_dict()
    flipped = row | {finding: 1.0 - row[finding] for finding in UKA_FINDINGS}
    np.testing.assert_array_equal(render(row, 64), render(flipped, 64))


@pytest.mark.parametrize("finding", SIDED)
def test_sided_findings_are_drawn_on_their_side(private, finding):
    on_left_half, on_right_half = 0.0, 0.0
    for with_it, without in zip(
        images_with(private, 25, **{finding: 4}), images_with(private, 25), strict=True
    ):
        change = np.abs(signed_difference(with_it, without))
        on_left_half += change[:, :32].sum()
        on_right_half += change[:, 32:].sum()
    own, other = (
        (on_left_half, on_right_half) if finding.endswith("_right") else (on_right_half, on_left_half)
    )
    # Atelectasis also pulls the mediastinum over, which shows on both sides.
    assert own > (1.5 if finding.startswith("atelectasis") else 4) * other


@pytest.mark.parametrize("finding", SIDED)
def test_sided_opacities_brighten_their_side(private, finding):
    columns = slice(0, 32) if finding.endswith("_right") else slice(32, 64)
    pairs = zip(images_with(private, 25, **{finding: 4}), images_with(private, 25), strict=True)
    assert np.mean([signed_difference(a, b)[:, columns].mean() for a, b in pairs]) > 1


def test_right_is_on_the_images_left_for_the_heart_too(private):
    for row in images_with(private, 5, cardiomegaly=4):
        grown = signed_difference(row, row | {"draw_cardiomegaly": 0})
        assert grown[:, 32:].sum() > 1.3 * grown[:, :32].sum() > 0


@pytest.mark.parametrize("finding", UKA_FINDINGS)
def test_each_grade_changes_the_image_more_than_the_one_before(private, finding):
    without = images_with(private, 12)
    changes = []
    for grade in range(5):
        pairs = zip(images_with(private, 12, **{finding: grade}), without, strict=True)
        changes.append(np.mean([np.abs(signed_difference(a, b)).mean() for a, b in pairs]))
    assert changes[0] == 0
    assert changes[1] > 0.1
    assert all(more > 1.15 * less for less, more in itertools.pairwise(changes))


def test_images_of_a_patient_look_more_alike_than_those_of_two(private):
    many = private.groupby("patient_id").filter(lambda images: len(images) >= 3).groupby("patient_id").head(2)
    rendered = np.stack([equalize_hist(render(row, 32)).ravel() for _, row in many.iterrows()])
    correlation = np.corrcoef(rendered)
    same = np.mean([correlation[i, i + 1] for i in range(0, len(rendered), 2)])
    other = np.mean([correlation[i, i + 2] for i in range(0, len(rendered) - 2, 2)])
    assert same > other + 0.01


def test_hard_images_are_noisier_and_less_inflated(private):
    easy, hard = (
        np.stack([render(row | {"draw_difficulty": d}, 64).astype(float) for row in images_with(private, 40)])
        for d in (0.05, 0.95)
    )
    heart = (slice(None), slice(36, 46), slice(34, 42))
    grain = [np.median(np.abs(np.diff(images[heart], n=2, axis=2))) / images.std() for images in (easy, hard)]
    assert grain[1] > 1.5 * grain[0]
    dark = [
        (np.stack([equalize_hist(image)[20:50, 8:56] for image in images]) < 0.4).mean()
        for images in (easy, hard)
    ]
    assert dark[1] < 0.95 * dark[0]


def test_the_two_hospitals_images_look_different(private):
    ours = images_with(private, 40)
    theirs = [row | {"draw_domain": "public"} for row in ours]
    apart = [
        np.corrcoef(equalize_hist(render(a, 64)).ravel(), equalize_hist(render(b, 64)).ravel())[0, 1]
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert np.mean(apart) < 0.95
    ours, theirs = (
        np.stack([render(row, 64)[12:52, 12:52] for row in rows]).astype(float) for rows in (ours, theirs)
    )
    assert theirs.std(axis=(1, 2)).mean() > 1.2 * ours.std(axis=(1, 2)).mean()


def test_workers_need_no_jax():
    code = "import sys, jaxcxr.data.synthetic; sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
