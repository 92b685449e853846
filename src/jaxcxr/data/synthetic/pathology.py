"""What disease and intensive care add to an image: opacities by grade, devices and confounders."""

import math

import numpy as np
from jaxtyping import Float

from jaxcxr.data.synthetic.anatomy import Field, Lungs, Map, Thorax, clamp, clouds, distance, ramp

OPACITY = 1.0
"""Scale of every opacity below; 1 is the calibrated difficulty."""
EFFUSION_LEVEL = (0.0, 0.05, 0.11, 0.24, 0.44)
"""Height of the fluid above the costophrenic angle, by grade."""
INFILTRATE_CONTRAST = (0.0, 0.06, 0.13, 0.20, 0.28)
"""Attenuation of a pneumonic infiltrate's core, by grade."""
ATELECTASIS_CONTRAST = (0.0, 0.06, 0.11, 0.17, 0.23)
"""Attenuation of an atelectatic band, by grade."""
CONGESTION_CONTRAST = (0.0, 0.03, 0.06, 0.105, 0.155)
"""Attenuation of the perihilar haze, by grade."""
CONFOUNDER_CONTRAST = 0.045
"""Attenuation of shadows that belong to no finding, on the hardest images."""
MAX_DEVICES_MEAN = 2.4
"""Mean number of devices on the hardest images."""


def blobs(
    f: Field,
    u: Float[np.ndarray, " blobs"],
    v: Float[np.ndarray, " blobs"],
    radius_u: Float[np.ndarray, " blobs"],
    radius_v: Float[np.ndarray, " blobs"],
    height: Float[np.ndarray, " blobs"],
) -> Map:
    """Sum of soft elliptical spots at (u, v) in the patient's axes; one matrix product computes them all."""
    row, column = f.v[:, f.v.shape[1] // 2], f.u[f.u.shape[0] // 2]
    across = np.exp(-(((column[None, :] - u[:, None]) / radius_u[:, None]) ** 2))
    down = np.exp(-(((row[None, :] - v[:, None]) / radius_v[:, None]) ** 2))
    return (down * height[:, None]).T.astype(np.float32) @ across.astype(np.float32)


def effusion(f: Field, t: Thorax, air: Map, rng: np.random.Generator, grade: int, side: int) -> Map:
    """Pleural fluid of one side (-1 the patient's right, 1 the left), rising from the costophrenic angle."""
    jitter = rng.standard_normal(3)
    mine = f.is_left if side > 0 else 1 - f.is_left
    level = EFFUSION_LEVEL[grade] * (1 + 0.12 * float(jitter[0]))
    bottom = t.diaphragm[(side + 1) // 2] + 0.13
    lateral = np.minimum(f.side * (1 / t.half_width), 1.1)
    surface = bottom - level * (0.72 + 0.45 * np.square(np.square(lateral))) + 0.10 * (1 - lateral)
    depth = ramp(f.v - surface, 0.05 + 0.03 * abs(float(jitter[1])))
    veil = ramp(f.v - surface + 0.5, 0.5) * 0.035 * max(grade - 1, 0)
    return OPACITY * mine * air * np.maximum(0.33 * depth, veil)


def infiltrates(f: Field, t: Thorax, air: Map, rng: np.random.Generator, grade: int, side: int) -> Map:
    """Patchy, cloudy, ill-defined opacities within the lung of one side."""
    count = 1 + grade + int(rng.integers(2))
    centre_u = 0.42 + 0.10 * rng.standard_normal()
    centre_v = (0.10 if rng.random() < 0.7 else -0.30) + 0.08 * rng.standard_normal()
    spread = 0.05 + 0.035 * grade
    u = np.clip(centre_u + spread * rng.standard_normal(count), 0.18, 0.68)
    v = np.clip(
        centre_v + 1.4 * spread * rng.standard_normal(count), -0.6, t.diaphragm[(side + 1) // 2] - 0.05
    )
    radius = (0.10 + 0.025 * grade) * np.exp(0.25 * rng.standard_normal((2, count)))
    total = blobs(f, side * u, v, radius[0], radius[1], np.ones(count))
    texture = 0.8 + 0.25 * clouds(rng, len(f.axis), 16)
    contrast = INFILTRATE_CONTRAST[grade] * float(np.exp(0.15 * rng.standard_normal()))
    mine = f.is_left if side > 0 else 1 - f.is_left
    return OPACITY * contrast * mine * air * clamp(texture, 0.2, 1.5) * np.minimum(total, 1.3)


def atelectasis(f: Field, t: Thorax, air: Map, rng: np.random.Generator, grade: int, side: int) -> Map:
    """Bands in the lower zone of one side; the volume loss itself is in the thorax's measures."""
    mine = f.is_left if side > 0 else 1 - f.is_left
    dome = t.diaphragm[(side + 1) // 2]
    total = np.zeros_like(f.u)
    for _ in range(1 + (grade >= 2) + (grade >= 4)):
        u, v = 0.40 + 0.09 * rng.standard_normal(), dome - 0.13 - 0.07 * abs(rng.standard_normal())
        tilt = 0.25 * rng.standard_normal() - 0.1
        thick = (0.016 + 0.005 * grade) * np.exp(0.2 * rng.standard_normal())
        width = math.hypot(thick, 0.6 * f.pixel)
        across = f.v - v - np.float32(tilt) * (f.side - np.float32(u))
        band = np.exp(-((across / np.float32(width)) ** 2)) * ramp(
            0.15 + 0.035 * grade - np.abs(f.side - np.float32(u)), 0.06
        )
        total = np.maximum(total, band * np.float32(thick / width))
    basal = np.exp(-np.square((f.v - dome - 0.04) * (1 / (0.06 + 0.025 * grade)))) * ramp(f.side - 0.15, 0.08)
    contrast = ATELECTASIS_CONTRAST[grade] * float(np.exp(0.15 * rng.standard_normal()))
    return OPACITY * contrast * mine * air * (total + 0.5 * basal)


def congestion(f: Field, air: Map, rng: np.random.Generator, grade: int) -> Map:
    """Haze around both hila and fine interstitial marking (`Thorax` holds the size of the vessels)."""
    reach = distance((f.side - 0.24) * (1 / 0.32), (f.v + 0.02) * (1 / 0.42))
    haze = np.exp(-np.square(reach)) * (1 + 0.25 * clouds(rng, len(f.axis), 14))
    contrast = CONGESTION_CONTRAST[grade] * float(np.exp(0.15 * rng.standard_normal()))
    return OPACITY * contrast * air * haze


def confounders(f: Field, lung: Lungs, air: Map, rng: np.random.Generator, difficulty: float) -> Map:
    """Fat, folds and overlying objects: shadows that resemble findings but are none."""
    count = 4
    u = rng.uniform(-0.65, 0.65, count)
    v = rng.uniform(-0.5, 0.45, count)
    radius = rng.uniform(0.06, 0.25, (2, count))
    height = CONFOUNDER_CONTRAST * (0.35 + difficulty) * rng.standard_normal(count)
    shadow = blobs(f, u, v, radius[0], radius[1], height)
    base = CONFOUNDER_CONTRAST * (0.3 + difficulty) * np.abs(rng.standard_normal(2))
    shadow += f.pick((float(base[0]), float(base[1]))) * ramp(f.v - lung.dome + 0.12, 0.14)
    shadow += 0.014 * (0.6 + difficulty) * clouds(rng, len(f.axis), 20)
    return air * shadow


def _line(f: Field, course: Map, along: Map, start: float, end: float, thick: float) -> Map:
    """A thin line where `course` is 0 and `along` is in [start, end]; fainter if narrower than a pixel."""
    width = math.hypot(thick, 0.6 * f.pixel)
    window = ramp(along - start, 0.02) * ramp(end - along, 0.02)
    return np.exp(-np.square(course * (1 / width))) * window * (thick / width)


def devices(f: Field, t: Thorax, rng: np.random.Generator, difficulty: float, age: float, is_ap: bool) -> Map:
    """Tubes, lines, leads, electrodes, pacemakers and sternal wires; more of them on harder images."""
    total = np.zeros_like(f.u)
    care = 1.0 if is_ap else 0.15
    wanted = rng.random(6) < difficulty * MAX_DEVICES_MEAN / 6 * np.array(
        [care, 1.3 * care, 1.3 * care, 1.3 * care, 0.6, 0.7]
    )
    jitter = rng.standard_normal((6, 4)).tolist()
    for device in wanted.nonzero()[0].tolist():
        a, b, c, d = jitter[device]
        if device == 0:  # endotracheal tube
            total += 0.20 * _line(f, f.u - 0.6 * t.shift, f.v, -1.3, -0.42 + 0.04 * a, 0.010)
        elif device == 1:  # central venous catheter
            course = (
                f.u + 0.10 + 0.02 * a - 0.5 * np.square(clamp(-0.5 - f.v, 0.0, 1.0)) * (-1 if b > 0 else 1)
            )
            total += 0.22 * _line(f, course, f.v, -1.3, -0.12 + 0.06 * c, 0.010)
        elif device == 2:  # gastric tube
            course = f.u - 0.03 * np.sin(2 * f.v + a) - 0.6 * np.square(clamp(f.v - 0.25, 0.0, 1.0))
            total += 0.16 * _line(f, course, f.v, -1.3, 1.3, 0.010)
        elif device == 3:  # electrodes and their leads
            for k in range(3):
                u, v = (
                    (-0.55, 0.55, 0.5)[k] + 0.08 * jitter[device][k],
                    (-0.35, -0.35, 0.25)[k] + 0.08 * jitter[device][3 - k],
                )
                total += 0.18 * ramp(0.03 - distance(f.u - u, f.v - v), max(0.01, f.pixel))
                course = f.u - u + math.copysign(0.25, u) * (f.v - v) - 0.1 * np.sin(4 * (f.v - v))
                total += 0.14 * _line(f, course, f.v, v, 1.3, 0.007)
        elif device == 4 and age > 45:  # pacemaker
            side = 1 if a > -0.7 else -1
            box = np.maximum(
                np.abs(f.u - side * (0.56 + 0.03 * b)) / 0.105, np.abs(f.v + 0.44 + 0.03 * c) / 0.085
            )
            total += 0.55 * ramp(1 - box, max(0.15, 8 * f.pixel))
            course = (
                f.u
                - side * 1.35 * np.square(clamp(0.12 - f.v, 0.0, 1.0))
                - 0.5 * np.square(clamp(f.v + 0.1, 0.0, 1.0))
                + 0.04
            )
            total += 0.26 * _line(f, course, f.v, -0.48, 0.22 + 0.04 * d, 0.011)
        elif device == 5 and age > 40:  # sternal wires
            near = np.abs(((f.v + 0.02 * a) / 0.16) % 1.0 - 0.5) * 0.16
            total += (
                0.22
                * _line(f, near, f.u, -0.035, 0.035, 0.010)
                * ramp(f.v + 0.5, 0.02)
                * ramp(0.35 - f.v, 0.02)
            )
    return total
