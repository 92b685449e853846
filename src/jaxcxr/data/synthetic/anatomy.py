"""A patient's thorax and its position before the detector, as smooth attenuation maps.

Lengths are in half-widths of the image: x grows to the image's right (the patient's left), y downwards, both
from -1 to 1; u and v are the same axes fixed to the patient's spine. Attenuation is in units in which a
lateral chest wall is about 0.5 and air is 0.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

Map = Float[np.ndarray, "size size"]

CARDIAC_WIDTH_PER_GRADE = (0.0, 0.035, 0.07, 0.125, 0.20)
"""Heart width added by each grade of cardiomegaly; normal hearts vary by `CARDIAC_WIDTH_SPREAD`."""
CARDIAC_WIDTH_SPREAD = 0.032
"""Standard deviation of the normal heart's width."""


@dataclasses.dataclass(frozen=True)
class Thorax:
    """Measures of one patient's chest on one image; sides are (patient's right, patient's left)."""

    half_width: float
    apex: float
    diaphragm: tuple[float, float]
    angle_drop: float
    heart_right: float
    heart_left: float
    heart_height: float
    heart_lean: float
    mediastinum: float
    shift: float
    knob: float
    spine_bend: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    bone: float
    clavicle: float
    clavicle_slope: tuple[float, float]
    hilum: float
    vessels: float
    upper_vessels: float
    vessel_phases: tuple[float, ...]
    breast: float
    breast_height: float
    wall: float
    bubble: float
    scapula: float


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the patient lies on the image: rotation (radians), magnification, offset of mid-spine."""

    angle: float
    zoom: float
    offset_x: float
    offset_y: float


@dataclasses.dataclass(frozen=True)
class Field:
    """Coordinates of every pixel, in the image's and in the patient's axes.

    Attributes:
        pixel: side of a pixel.
        axis: pixel centres along x and along y.
        u, v: position along the patient's axes.
        side: distance from the midline, `abs(u)`.
        is_left: 1 on the patient's left, 0 on the right.
    """

    pixel: float
    axis: Float[np.ndarray, " size"]
    u: Map
    v: Map
    side: Map
    is_left: Map

    def pick(self, sides: tuple[float, float]) -> Map:
        """Map with the first value on the patient's right and the second on the left."""
        return sides[0] + np.float32(sides[1] - sides[0]) * self.is_left


@dataclasses.dataclass(frozen=True)
class Lungs:
    """The aerated region and the surfaces that bound it.

    Attributes:
        mask: 1 in the lungs, 0 outside.
        wall: distance from the midline of the lateral chest wall, at each pixel's height.
        dome: height of the diaphragm, at each pixel's distance from the midline.
        cage: 1 inside the lateral chest walls, whatever the height.
    """

    mask: Map
    wall: Map
    dome: Map
    cage: Map


def ramp(depth: Map, softness: float) -> Map:
    """Smooth step from 0 to 1 as `depth` goes from -softness to softness."""
    t = depth * (0.5 / softness)
    t += 0.5
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    curve = t * -2
    curve += 3
    t *= t
    t *= curve
    return t


def clamp(values: Map, low: float, high: float) -> Map:
    """`np.clip` without its overhead, which matters for small images."""
    values = np.maximum(values, low)
    return np.minimum(values, high, out=values)


@functools.lru_cache(maxsize=32)
def _spread(size: int, knots: int) -> Float[np.ndarray, "size knots"]:
    """Weights that turn values at `knots` points into a smooth curve over `size` pixels."""
    position = (np.arange(size, dtype=np.float32) + 0.5) / size * (knots - 1)
    gap = np.abs(position[:, None] - np.arange(knots, dtype=np.float32))
    return np.where(gap < 1, (1 - gap) ** 2 * (1 + 2 * gap), 0).astype(np.float32)


def clouds(rng: np.random.Generator, size: int, knots: int) -> Map:
    """Smooth random map with about unit variance; the same at every size."""
    weights = _spread(size, knots)
    return weights @ rng.standard_normal((knots, knots), dtype=np.float32) @ weights.T * np.float32(1.3)


def distance(a: Map, b: Map) -> Map:
    """Length of the vectors (a, b); several times faster than `np.hypot`, which also avoids overflow."""
    return np.sqrt(a * a + b * b)


def field(size: int, pose: Pose) -> Field:
    """Pixel coordinates of an image of `size` x `size` pixels for a patient lying as `pose` says."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = (axis - np.float32(pose.offset_x)) / pose.zoom, (axis - np.float32(pose.offset_y)) / pose.zoom
    cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
    u = cos * x[None, :] + sin * y[:, None]
    v = cos * y[:, None] - sin * x[None, :]
    return Field(
        pixel=2 / size / pose.zoom, axis=axis, u=u, v=v, side=np.abs(u), is_left=(u > 0).astype(np.float32)
    )


def lungs(f: Field, t: Thorax) -> Lungs:
    """Outline of both lungs."""
    height = clamp((-0.08 - f.v) * (1 / (-0.08 - t.apex)), 0.0, 1.0)
    squared = height * height
    half = (0.47 * t.half_width + 0.03 * clamp(f.v + 0.08, 0.0, 0.6)) * np.sqrt(np.maximum(1 - squared, 0))
    centre = (0.53 - 0.17 * squared) * t.half_width
    wall = centre + half
    lateral = clamp((f.side - 0.52 * t.half_width) * (1 / (0.48 * t.half_width)), -1.0, 1.3)
    outward, inward = np.maximum(lateral, 0), np.minimum(lateral, 0)
    dome = t.diaphragm[0] + (t.diaphragm[1] - t.diaphragm[0]) * ramp(f.u, 0.15)
    dome += t.angle_drop * outward * outward * outward + 0.10 * inward * inward
    edge = max(0.025, f.pixel)
    cage = ramp(wall - f.side, edge) * ramp(f.v - t.apex + 0.02, 0.02)
    mask = cage * ramp(f.side - (centre - half), 0.05) * ramp(dome - f.v, edge)
    return Lungs(mask=mask, wall=wall, dome=dome, cage=cage)


def soft_tissue(f: Field, t: Thorax, lung: Lungs) -> tuple[Map, Map, Map]:
    """Three maps: all tissue but bone and vessels; the body's region; lung air not hidden by the heart."""
    edge = max(0.03, f.pixel)
    beyond = np.maximum(f.side - 0.17, 0)
    shoulder = 1.02 + 0.10 * t.wall - 0.30 * f.side - 0.10 * f.side * f.side + 0.08 / (0.10 + beyond) - 0.10
    body = ramp(f.v + shoulder, 2 * edge) * ramp(1.0 + 0.10 * t.wall - 0.22 * f.v - f.side, 2 * edge)
    below = ramp(f.v - lung.dome, max(0.04, f.pixel)) * ramp(lung.wall + 0.06 - f.side, 0.08)

    heart_u, heart_v = (t.heart_left - t.heart_right) / 2 + t.shift, t.diaphragm[1] - 0.19
    half = (t.heart_left + t.heart_right) / 2
    down = f.v - heart_v
    across = (f.u - heart_u - t.heart_lean * down) / half
    along = np.square(down * (1 / t.heart_height))
    heart = ramp(
        (1 - np.sqrt(across * across + 0.6 * along + 0.4 * along * along)) * (0.8 * half), max(0.035, f.pixel)
    )
    offset = f.u - t.shift - 0.015
    middle = t.mediastinum + 0.10 * np.maximum(-0.45 - f.v, 0) + 0.05 * np.maximum(f.v, 0)
    centre = ramp(middle - np.abs(offset), max(0.05, f.pixel))
    knob = ramp(t.knob - distance(offset - 0.085, f.v + 0.36), max(0.03, f.pixel))
    trunk = ramp(0.10 - distance(offset - 0.09, 0.7 * (f.v + 0.17)), 0.06)
    shadow = np.maximum(np.maximum(heart, centre * 0.92), np.maximum(0.85 * knob, 0.8 * trunk))
    air = lung.mask * (1 - 0.93 * shadow)

    tissue = 0.50 + 0.06 * t.wall + (0.13 + 0.10 * f.v) * below - (0.37 - 0.04 * t.wall) * air
    tissue += 0.12 * shadow * (1 - below) * lung.cage
    tissue += 0.08 * ramp(0.16 - np.abs(f.side - lung.wall - 0.08), 0.12) * (1 - lung.cage)
    tissue += 0.05 * lung.mask * np.square(f.side * (1 / t.half_width))

    trachea_u = f.u - 0.6 * t.shift + 0.01 + 0.01 * f.v
    pipe = ramp(0.040 - np.abs(trachea_u), max(0.025, f.pixel)) * ramp(-0.27 - f.v, 0.08)
    bronchi = (
        ramp(0.028 - np.abs(f.v + 0.27 - 0.75 * (f.side - 0.03)), 0.03)
        * ramp(0.2 - f.side, 0.06)
        * (f.v > -0.32)
    )
    tissue -= 0.16 * pipe + 0.09 * bronchi
    if t.breast > 0:
        reach = distance((f.side - 0.49) * (1 / 0.33), (f.v - t.breast_height) * (1 / 0.31))
        tissue += (
            t.breast
            * (0.4 + 0.6 * air)
            * ramp(1 - reach, 0.14)
            * clamp(0.55 + 1.5 * (f.v - t.breast_height), 0.0, 1.0)
        )
    if t.bubble > 0:
        gas = distance((f.u - 0.38) * (1 / 0.17), (f.v - t.diaphragm[1] - 0.12) * (1 / 0.075))
        tissue -= t.bubble * ramp(1 - gas, 0.5)
    return tissue * body, body, air


def vessels(f: Field, t: Thorax, air: Map, rng: np.random.Generator) -> Map:
    """Hila, and vessels that branch from them into the lungs (`rng`, the patient's, bends them)."""
    left = f.is_left
    du = f.side - 0.17 - 0.03 * left - t.shift * (left - 0.5)
    dv = f.v + 0.07 + 0.05 * left
    squared = du * du + dv * dv
    radius = np.sqrt(squared) + np.float32(1e-3)
    turn = np.arctan2(dv, du)
    warp = clouds(rng, len(f.axis), 9)
    phases = t.vessel_phases
    tree = np.zeros_like(turn)
    for branch, (count, bend) in enumerate(((6, 0.7), (10, -1.1), (17, 1.3))):
        wave = np.maximum(
            np.cos(
                count * turn
                + (2 * radius - 1) * bend
                + min(2.0, 0.9 + 0.4 * branch) * warp
                + f.pick((phases[2 * branch], phases[2 * branch + 1]))
            ),
            0,
        )
        wave = wave * wave
        tree += wave * wave * np.minimum(radius * (2.0 + 2.0 * branch), 0.8 - 0.1 * branch)
    fade = np.exp(radius * np.float32(-1 / 0.28)) * clamp(1 - 0.5 * warp, 0.0, 2.0)
    upward = clamp(-3 * dv, 0.0, 1.0)
    strength = t.vessels * (0.8 + 0.5 * clamp(3 * dv, -0.6, 1.0)) + t.upper_vessels * upward
    hilum = np.exp(-((du * (1 / 0.085)) ** 2) - (dv * (1 / 0.13)) ** 2)
    return air * (strength * tree * fade + t.hilum * hilum * (1 + 0.4 * warp))


def bones(f: Field, t: Thorax, lung: Lungs, air: Map) -> Map:
    """Ribs, spine, clavicles, shoulder blades and humeral heads."""
    edge = max(0.02, f.pixel)
    inside = ramp(lung.wall + 0.04 - f.side, 0.04) * ramp(f.v - t.apex + 0.03, 0.04)
    posterior = (f.v - t.rib_slope * f.side * f.side + 0.05 * f.side) * (1 / t.rib_spacing) + t.rib_phase
    anterior = (f.v + 0.62 * f.side - 0.25 * f.side * f.side) * (0.88 / t.rib_spacing) + 1.7 * t.rib_phase
    sharp = min(1.0, t.rib_spacing / (3.0 * f.pixel))
    back = np.cos(2 * np.pi * posterior)
    back = (ramp(back - 0.05, 0.55) - 0.25 * ramp(back - 0.75, 0.3)) * ramp(f.side - 0.10, 0.06)
    front = (
        ramp(np.cos(2 * np.pi * anterior) - 0.35, 0.6) * ramp(f.side - 0.32, 0.15) * ramp(f.v + 0.42, 0.15)
    )
    rim = 0.75 + 0.7 * np.square(np.square(f.side * (1 / t.half_width)))
    bone = inside * (0.22 + 0.78 * air) * rim * (sharp * 0.115 * back + sharp * 0.045 * front)
    spine_u = f.u - t.spine_bend * np.sin(2.2 * f.v + 0.6)
    vertebra = ramp(np.cos((2 * np.pi * 1.15 / t.rib_spacing) * f.v + t.rib_phase) + 0.5, 0.5)
    bone += ramp(0.085 - np.abs(spine_u), max(0.025, f.pixel)) * (0.03 + 0.035 * vertebra)

    slope = f.pick(t.clavicle_slope)
    bow = f.side - 0.35
    course = t.clavicle + 0.03 - slope * f.side + 0.9 * bow * bow * bow
    thick = 0.026 + 0.05 * bow * bow
    bone += (
        0.13
        * ramp(thick - np.abs(f.v - course), max(0.018, f.pixel))
        * ramp(f.side - 0.085, edge)
        * ramp(0.84 - f.side, 0.05)
    )
    border = f.side - (t.half_width - t.scapula) - 0.25 * np.square(f.v + 0.2)
    blade = ramp(border, 0.03) * (0.06 + 0.06 * ramp(0.05 - np.abs(border - 0.02), 0.04))
    bone += (
        blade
        * ramp(0.12 - 0.8 * (t.half_width + 0.15 - f.side) - f.v, 0.08)
        * ramp(f.v + 0.66, 0.05)
        * ramp(t.half_width + 0.25 - f.side, 0.06)
    )
    bone += 0.11 * ramp(0.16 - distance(f.side - 1.02, f.v + 0.55), 0.04)
    return t.bone * bone


def draw_thorax(
    patient: np.random.Generator,
    image: np.random.Generator,
    grades: tuple[int, ...],
    *,
    age: float,
    is_female: bool,
    is_ap: bool,
    difficulty: float,
) -> Thorax:
    """Measures of a patient's chest (from `patient`) on one image (from `image`).

    Args:
        patient: generator seeded by the patient.
        image: generator seeded by the image.
        grades: true grades in the order of `UKA_FINDINGS`; cardiomegaly, congestion and atelectasis (volume
            loss) matter here.
        age: years.
        is_female: whether there can be breast shadows.
        is_ap: whether the view is AP, taken at the bedside.
        difficulty: 0 to 1.
    """
    p, q = patient.standard_normal(24).tolist(), image.standard_normal(12).tolist()
    cardiac, congestion, loss_right, loss_left = grades[0], grades[1], grades[6], grades[7]
    old = min(max((age - 40) / 50, 0.0), 1.0)
    shrink = 0.05 * is_ap + 0.14 * difficulty + 0.035 * q[0]
    half_width = 0.735 + 0.035 * p[0] - 0.02 * is_female
    size = (0.96 + 0.07 * is_ap + 0.03 * old) * (1 + 0.25 * max(shrink, 0))
    extra = CARDIAC_WIDTH_PER_GRADE[cardiac] * (1 + 0.2 * q[1])
    wide = CARDIAC_WIDTH_SPREAD * p[1]
    loss = 0.034
    base = 0.52 + 0.05 * p[2] - shrink
    return Thorax(
        half_width=half_width,
        apex=-0.80 + 0.02 * p[3] + 0.04 * difficulty,
        diaphragm=(
            base - 0.025 + 0.015 * p[4] - loss * loss_right,
            base + 0.015 + 0.015 * p[5] - loss * loss_left,
        ),
        angle_drop=0.21 + 0.03 * p[6],
        heart_right=size * (0.20 + 0.3 * wide + 0.3 * extra + 0.012 * p[7]),
        heart_left=size * (0.43 + 0.7 * wide + 0.8 * extra + 0.014 * q[2]),
        heart_height=size * (0.36 + 0.02 * p[8] + 0.35 * extra),
        heart_lean=0.42 + 0.06 * p[22],
        mediastinum=0.105 + 0.010 * p[9] + 0.015 * is_ap + 0.012 * difficulty,
        shift=0.018 * (loss_left - loss_right) + (0.008 + 0.030 * difficulty) * q[3],
        knob=0.068 + 0.008 * p[10] + 0.022 * old,
        spine_bend=(0.008 + 0.02 * old) * p[11],
        rib_spacing=0.150 + 0.008 * p[12],
        rib_phase=float(patient.random()),
        rib_slope=0.42 + 0.05 * p[13] + 0.10 * is_ap,
        bone=1.05 + 0.12 * p[14] - 0.25 * old,
        clavicle=-0.56 + 0.03 * p[15] - 0.06 * is_ap + 0.03 * q[4],
        clavicle_slope=(0.20 + 0.05 * p[16] + 0.05 * q[5], 0.20 + 0.05 * p[16] - 0.05 * q[5]),
        hilum=float(np.clip(0.10 + 0.025 * p[17] + 0.012 * congestion, 0.03, 0.2)),
        vessels=float(np.clip(0.12 + 0.02 * p[18] + 0.012 * congestion, 0.05, 0.4)),
        upper_vessels=0.03 * congestion,
        vessel_phases=tuple(float(x) for x in patient.random(6) * 2 * np.pi),
        breast=float(np.clip(0.11 + 0.06 * p[19], 0, 0.24)) if is_female else 0.0,
        breast_height=0.13 + 0.05 * p[20] + 0.05 * old,
        wall=float(np.clip(0.5 * p[21] + 0.3, -0.5, 2)),
        bubble=0.24 if image.random() < 0.4 else 0.0,
        scapula=float(np.clip((0.13 if is_ap else -0.06) + 0.03 * q[6], -0.2, 0.25)),
    )
