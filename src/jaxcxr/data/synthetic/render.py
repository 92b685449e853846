"""Render a cohort's row as a raw image: anatomy, disease, devices, exposure and processing."""

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from scipy.ndimage import uniform_filter

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.synthetic import anatomy, pathology
from jaxcxr.data.synthetic.anatomy import Field, Map, Pose

NOISE = 0.005
"""Standard deviation of the detector's noise on the easiest image (full scale 1); threefold on the hardest.
"""
SCATTER = 0.30
"""Share of contrast lost to scattered radiation on the hardest image."""
FULL = 0.40
"""Attenuation by which an airless lung exceeds an aerated one."""
CHUNK = 128
"""Images that a worker renders at a time."""
SMALL = 256
"""Cohorts up to this size are rendered in the calling process: starting workers would take longer."""


@dataclasses.dataclass(frozen=True)
class Scanner:
    """A hospital's exposure and processing of images.

    Attributes:
        gamma: exponent of the grey scale.
        slope: contrast about the middle of the grey scale.
        sharpening: strength of unsharp masking over a neighbourhood of an eighth of the image.
        grain: noise relative to `NOISE`.
        smoothing: share of noise that neighbouring pixels have in common.
        collimated: share of images with an unexposed (bright) or shuttered (black) border.
        zoom: mean magnification of the patient.
    """

    gamma: float
    slope: float
    sharpening: float
    grain: float
    smoothing: float
    collimated: float
    zoom: float


SCANNERS: Mapping[str, Scanner] = MappingProxyType(
    {
        "private": Scanner(
            gamma=1.0, slope=1.0, sharpening=0.12, grain=1.0, smoothing=0.5, collimated=0.08, zoom=1.13
        ),
        "public": Scanner(
            gamma=1.35, slope=1.2, sharpening=0.8, grain=0.9, smoothing=0.0, collimated=0.4, zoom=0.96
        ),
    }
)
"""The scanners of the two hospitals."""

COLUMNS: tuple[str, ...] = (
    "age",
    "sex",
    "view",
    "draw_domain",
    "draw_difficulty",
    "draw_patient_seed",
    "draw_image_seed",
    *(f"draw_{finding}" for finding in UKA_FINDINGS),
)
"""Columns of the cohort that determine an image."""


def render(image: Mapping[str, object] | pd.Series, size: int) -> UInt8[np.ndarray, "size size"]:
    """One image as a detector would deliver it: neither normalised nor equalised.

    Args:
        image: a row of `cohort` (its `COLUMNS` are read); equal rows give equal images.
        size: side of the image in pixels.
    """
    return _render(tuple(image[column] for column in COLUMNS), size)


def render_all(
    cohort_frame: pd.DataFrame, size: int, processes: int | None = None
) -> Iterator[UInt8[np.ndarray, "size size"]]:
    """Every image of a cohort, in row order.

    Args:
        cohort_frame: what `cohort` returned, or some of its rows.
        size: side of the images in pixels.
        processes: number of worker processes; None takes one per core, and none for a small cohort. The
            images do not depend on it.
    """
    rows = list(cohort_frame[list(COLUMNS)].itertuples(index=False, name=None))
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    if processes < 2 or len(rows) <= SMALL:
        yield from (_render(row, size) for row in rows)
        return
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for images in _in_order(pool, chunks, size, ahead=4 * processes):
            yield from images


def _in_order(
    pool: Executor, chunks: list[list[tuple]], size: int, ahead: int
) -> Iterator[UInt8[np.ndarray, "n size size"]]:
    """Rendered chunks in their order, with at most `ahead` of them waiting in memory."""
    waiting: list[Future] = []
    for chunk in chunks:
        waiting.append(pool.submit(_render_chunk, chunk, size))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()


def _render_chunk(rows: list[tuple], size: int) -> UInt8[np.ndarray, "n size size"]:
    return np.stack([_render(row, size) for row in rows])


def _render(row: tuple, size: int) -> UInt8[np.ndarray, "size size"]:
    age, sex, view, domain, difficulty, patient_seed, image_seed, *grades = row
    # A NumPy scalar would turn every map of the image into float64.
    age, difficulty, grades = float(age), float(difficulty), tuple(int(grade) for grade in grades)
    scanner = SCANNERS[domain]
    patient, image = np.random.default_rng(patient_seed), np.random.default_rng(image_seed)
    pose = _pose(image, difficulty, scanner)
    thorax = anatomy.draw_thorax(
        patient, image, grades, age=age, is_female=sex == "F", is_ap=view == "AP", difficulty=difficulty
    )
    f = anatomy.field(size, pose)
    lung = anatomy.lungs(f, thorax)
    tissue, body, air = anatomy.soft_tissue(f, thorax, lung)
    density = pathology.confounders(f, lung, air, image, difficulty)
    if grades[1]:
        density += pathology.congestion(f, air, np.random.default_rng([image_seed, 1]), grades[1])
    for index, draw in ((2, pathology.effusion), (4, pathology.infiltrates), (6, pathology.atelectasis)):
        for side in (-1, 1):
            which = index + (side > 0)
            if grades[which]:
                # A generator of its own for each finding, so that changing one grade leaves the rest of the
                # image alone.
                density += draw(
                    f, thorax, air, np.random.default_rng([image_seed, which]), grades[which], side
                )
    # An airless lung is no denser than soft tissue; in it, vessels lose their outline and ribs their
    # contrast.
    density = np.float32(FULL) * np.tanh(density * (1 / FULL))
    air = np.maximum(air - 2 * np.maximum(density, 0), 0)
    density += tissue + body * (
        anatomy.bones(f, thorax, lung, air) + anatomy.vessels(f, thorax, air, patient)
    )
    density += body * 0.025 * anatomy.clouds(image, size, 5)
    density += pathology.devices(f, thorax, image, difficulty, age, is_ap=view == "AP")
    return _expose(f, density, image, scanner, difficulty)


def _pose(image: np.random.Generator, difficulty: float, scanner: Scanner) -> Pose:
    turn, grow, right, down = image.standard_normal(4)
    return Pose(
        angle=float(np.deg2rad((1.5 + 4.0 * difficulty) * turn)),
        zoom=float(scanner.zoom * np.exp(0.04 * grow)),
        offset_x=float((0.02 + 0.05 * difficulty) * right),
        offset_y=float(0.04 + 0.05 * down),
    )


def _expose(
    f: Field, density: Map, image: np.random.Generator, scanner: Scanner, difficulty: float
) -> UInt8[np.ndarray, "size size"]:
    size = len(f.axis)
    a = image.standard_normal(6)
    tilt = 0.03 * (0.5 + difficulty)
    grey = density * np.float32(1 - SCATTER * difficulty) + np.float32(0.5 * SCATTER * difficulty)
    grey += np.float32(tilt * a[0]) * f.axis[None, :] + np.float32(tilt * a[1]) * f.axis[:, None]
    if scanner.sharpening:
        near = max(3, size // 8) | 1
        grey += np.float32(scanner.sharpening) * (grey - uniform_filter(grey, near, mode="nearest"))
    grey = 0.5 + (grey - 0.45) * np.float32(scanner.slope * np.exp(0.12 * a[2])) + np.float32(0.05 * a[3])
    noise = image.standard_normal((size, size), dtype=np.float32)
    if scanner.smoothing:
        noise = noise + np.float32(scanner.smoothing) * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))
    grey += np.float32(NOISE * scanner.grain * (1 + 2 * difficulty)) * noise
    grey = anatomy.clamp(grey, 0.0, 1.0)
    if scanner.gamma != 1:
        grey = grey**scanner.gamma
    if image.random() < scanner.collimated:
        border = image.uniform(0, 0.10, 4)
        grey[: int(border[0] * size)] = 0
        grey[size - int(border[1] * size) :] = 0
        grey[:, : int(border[2] * size)] = 0
        grey[:, size - int(border[3] * size) :] = 0
    return (grey * 255 + 0.5).astype(np.uint8)
