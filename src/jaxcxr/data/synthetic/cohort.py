"""The synthetic cohort: its patients, what their images show, and a simulated reader's labels.

The `private` domain follows the marginals of UKA-CXR (Table 1 of 'Private, fair and accurate'); the `public`
one stands for another hospital with other habits, whose labels come from reports. Every finding has a
liability: a standard normal variable that depends on age, comorbidities, the patient and the time. Cutting it
at normal quantiles gives five grades, so the label rates below hold by construction; the reader's confusions
are in detailed balance with the grades and leave the rates unchanged.

Columns `draw_*` hold the truth from which an image is rendered; the findings' own columns hold the reader's
labels.
"""

import dataclasses
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import expit, ndtri

from jaxcxr.config import SyntheticConfig
from jaxcxr.data.findings import UKA_FINDINGS

READER_NOISE = 0.30
"""Probability that the private reader calls a grade one too low, on an image of average difficulty."""
READER_BLUNDER = 0.04
"""Probability that a positive finding is missed completely; as many negatives are called mild."""
PUBLIC_READER_NOISE = 0.36
"""The same as `READER_NOISE` for labels taken from reports."""
PUBLIC_READER_BLUNDER = 0.15
"""The same as `READER_BLUNDER` for labels taken from reports."""
SIDE_UNNAMED = 0.5
"""Probability that a public report names no side, so that a sided finding is recorded on both."""
POSITIVE_SHARES = (0.42, 0.36, 0.22)
"""Shares of mild, moderate and severe among the true positives."""
UNCERTAIN_SHARE = 0.45
"""Ratio of truly uncertain images to truly positive ones; at most a third of the negatives are uncertain."""
MAX_IMAGES = 20
"""Largest number of images of one patient."""

AGE_GROUPS: tuple[tuple[float, float, float, float, float], ...] = (
    # lowest age, highest age, mean, standard deviation, mean number of comorbidities
    (0, 30, 21, 8, 0.8),
    (30, 60, 50, 8, 1.0),
    (60, 70, 65, 3, 1.1),
    (70, 80, 75, 3, 1.1),
    (80, 100, 84, 3, 1.1),
)
"""Age groups of the paper's Table 1 (with the age's mean and spread) and of its Figure S2 (comorbidities)."""
COMORBIDITY_SHAPE = 2.0
"""Shape of the gamma distribution of a patient's comorbidity rate; gives the 1.1 +- 1.3 of Figure S2."""
MAX_COMORBIDITIES = 8
"""Largest number of comorbidities of one patient."""

AGE_EFFECT, COMORBIDITY_EFFECT, PATIENT_EFFECT = 0.15, 0.20, 0.60
"""Loadings of a finding's liability; the rest of its unit variance changes from image to image."""
PERSISTENCE = 0.6
"""Correlation between a patient's consecutive images in the changing part of the liability."""
FINDING_CORRELATIONS: tuple[tuple[int, int, float], ...] = (
    (0, 1, 0.30), (1, 2, 0.30), (1, 3, 0.30), (0, 2, 0.12), (0, 3, 0.12), (2, 3, 0.40), (4, 5, 0.40),
    (6, 7, 0.35), (2, 6, 0.30), (3, 7, 0.30), (1, 4, 0.15), (1, 5, 0.15), (1, 6, 0.12), (1, 7, 0.12),
    (2, 4, 0.10), (3, 5, 0.10), (2, 7, 0.10), (3, 6, 0.10),
)  # fmt: skip
"""Correlations between liabilities, by position in `UKA_FINDINGS`; pairs not named are uncorrelated."""


@dataclasses.dataclass(frozen=True)
class Population:
    """Parameters of one hospital's patients, images and readers."""

    code: int
    female: float
    age_shares: tuple[float, ...]
    positive_rates: tuple[float, ...]
    ap_share: float
    images_median: float
    images_spread: float
    reader_noise: float
    reader_blunder: float
    side_unnamed: float


POPULATIONS = MappingProxyType(
    {
        "private": Population(
            code=1,
            female=0.344,
            age_shares=(0.028, 0.276, 0.240, 0.318, 0.138),
            positive_rates=(0.467, 0.085, 0.080, 0.065, 0.115, 0.081, 0.097, 0.078),
            ap_share=0.92,
            images_median=2.3,
            images_spread=0.9,
            reader_noise=READER_NOISE,
            reader_blunder=READER_BLUNDER,
            side_unnamed=0.0,
        ),
        "public": Population(
            code=2,
            female=0.47,
            age_shares=(0.06, 0.34, 0.22, 0.22, 0.16),
            positive_rates=(0.20, 0.13, 0.14, 0.13, 0.09, 0.08, 0.12, 0.12),
            ap_share=0.55,
            images_median=1.9,
            images_spread=0.8,
            reader_noise=PUBLIC_READER_NOISE,
            reader_blunder=PUBLIC_READER_BLUNDER,
            side_unnamed=SIDE_UNNAMED,
        ),
    }
)
"""The two hospitals; `positive_rates` are shares of truly positive images, in the order of `UKA_FINDINGS`."""


def cohort(config: SyntheticConfig) -> pd.DataFrame:
    """A synthetic cohort: one row per image, every patient within one split.

    Args:
        config: domain, images per split, seed. The result depends on nothing else.

    Returns:
        The manifest's columns (`path` is empty; findings are 1.0 or 0.0, the reader's labels), and the truth
        behind each image in columns `draw_*`: each finding's true grade (0 none, 1 uncertain, 2 mild, 3
        moderate, 4 severe), `draw_difficulty` (0 to 1), `draw_domain`, and `draw_patient_seed` and
        `draw_image_seed`, from which everything else of the image follows.
    """
    population = POPULATIONS[config.domain]
    counts = {"train": config.n_train, "valid": config.n_valid, "test": config.n_test}
    parts: list[pd.DataFrame] = []
    n_patients = 0
    for index, (split, n_images) in enumerate(counts.items()):
        rng = np.random.default_rng([population.code, index, abs(config.seed), int(config.seed < 0)])
        part = _images(rng, population, n_images)
        part["patient"] += n_patients
        part["split"] = split
        n_patients += part["patient"].nunique()
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    prefix = f"{config.domain}-{config.seed}"
    frame["patient_id"] = [f"{prefix}-p{patient:06d}" for patient in frame["patient"]]
    frame["image_id"] = [
        f"{p}-f{image:02d}" for p, image in zip(frame["patient_id"], frame["image"], strict=True)
    ]
    frame["path"] = ""
    frame["draw_domain"] = config.domain
    manifest = [
        "image_id",
        "patient_id",
        "path",
        "split",
        "age",
        "sex",
        "view",
        "comorbidities",
        *UKA_FINDINGS,
    ]
    truth = [f"draw_{finding}" for finding in UKA_FINDINGS]
    return frame.loc[
        :, [*manifest, *truth, "draw_difficulty", "draw_patient_seed", "draw_image_seed", "draw_domain"]
    ]


def _images(rng: np.random.Generator, population: Population, n_images: int) -> pd.DataFrame:
    """All images of one split; those of the last patient are cut to the count."""
    per_patient = np.ceil(rng.lognormal(np.log(population.images_median), population.images_spread, n_images))
    per_patient = np.clip(per_patient, 1, MAX_IMAGES).astype(np.int64)
    patient = np.repeat(np.arange(n_images), per_patient)[:n_images]
    n_patients = int(patient.max()) + 1 if n_images else 0
    image = np.arange(n_images) - np.searchsorted(patient, patient)
    age, comorbidities = _people(rng, population, n_patients)
    female = rng.random(n_patients) < population.female
    liability = _liabilities(rng, age, comorbidities)[patient, image]
    is_ap = rng.random(n_images) < population.ap_share
    difficulty = _difficulty(
        rng, age[patient], comorbidities[patient], is_ap, rng.standard_normal(n_patients)[patient]
    )
    grades, shares = _grades(liability, np.asarray(population.positive_rates))
    read = _read(rng, grades, shares, difficulty, population)
    labels = _name_sides(rng, read >= 2, population.side_unnamed).astype(np.float64)
    columns: dict[str, np.ndarray] = {
        "patient": patient,
        "image": image,
        "age": age[patient],
        "sex": np.where(female, "F", "M")[patient],
        "view": np.where(is_ap, "AP", "PA"),
        "comorbidities": comorbidities[patient],
        "draw_difficulty": difficulty,
        "draw_patient_seed": rng.integers(2**62, size=n_patients)[patient],
        "draw_image_seed": rng.integers(2**62, size=n_images),
    }
    columns |= {finding: labels[:, i] for i, finding in enumerate(UKA_FINDINGS)}
    columns |= {f"draw_{finding}": grades[:, i] for i, finding in enumerate(UKA_FINDINGS)}
    return pd.DataFrame(columns)


def _people(
    rng: np.random.Generator, population: Population, n: int
) -> tuple[Float[np.ndarray, " patients"], Int[np.ndarray, " patients"]]:
    """Ages in years and numbers of comorbidities."""
    low, high, mean, std, comorbidity = np.asarray(AGE_GROUPS)[
        rng.choice(len(AGE_GROUPS), n, p=population.age_shares)
    ].T
    centre, spread = (mean - low) / (high - low), std / (high - low)
    concentration = centre * (1 - centre) / spread**2 - 1
    age = low + (high - low) * rng.beta(centre * concentration, (1 - centre) * concentration)
    rate = comorbidity * rng.gamma(COMORBIDITY_SHAPE, 1 / COMORBIDITY_SHAPE, n)
    # Rounding down keeps everybody inside the sampled age group.
    return np.floor(age * 10) / 10, np.minimum(rng.poisson(rate), MAX_COMORBIDITIES)


def _liabilities(
    rng: np.random.Generator, age: Float[np.ndarray, " patients"], comorbidities: Int[np.ndarray, " patients"]
) -> Float[np.ndarray, "patients images findings"]:
    """Standard normal liabilities of `MAX_IMAGES` consecutive images per patient."""
    n, k = len(age), len(UKA_FINDINGS)
    correlation = np.eye(k)
    for i, j, value in FINDING_CORRELATIONS:
        correlation[i, j] = correlation[j, i] = value
    mix = np.linalg.cholesky(correlation).T
    patient = PATIENT_EFFECT * rng.standard_normal((n, k)) @ mix
    patient += (AGE_EFFECT * (age - 65.4) / 15.3 + COMORBIDITY_EFFECT * (comorbidities - 1.06) / 1.27)[
        :, None
    ]
    innovations = rng.standard_normal((n, MAX_IMAGES, k)) @ mix
    moment = np.empty_like(innovations)
    for image in range(MAX_IMAGES):
        if image == 0:
            moment[:, image] = innovations[:, image]
        else:
            moment[:, image] = (
                PERSISTENCE * moment[:, image - 1] + np.sqrt(1 - PERSISTENCE**2) * innovations[:, image]
            )
    rest = 1 - AGE_EFFECT**2 - COMORBIDITY_EFFECT**2 - PATIENT_EFFECT**2
    return patient[:, None, :] + np.sqrt(rest) * moment


def _difficulty(
    rng: np.random.Generator,
    age: Float[np.ndarray, " images"],
    comorbidities: Int[np.ndarray, " images"],
    is_ap: Bool[np.ndarray, " images"],
    patient: Float[np.ndarray, " images"],
) -> Float[np.ndarray, " images"]:
    """Difficulty of each image, 0 to 1: it grows with age, comorbidities and the bedside (AP) view."""
    score = 0.7 * (age - 66) / 15 + 0.35 * (comorbidities - 1.1) + 0.5 * is_ap - 0.5
    return expit(score + 0.5 * patient + 0.8 * rng.standard_normal(len(age)))


def _grades(
    liability: Float[np.ndarray, "images findings"], rates: Float[np.ndarray, " findings"]
) -> tuple[Int[np.ndarray, "images findings"], Float[np.ndarray, "findings grades"]]:
    """True grades 0 to 4, and the expected share of each grade."""
    uncertain = np.minimum(UNCERTAIN_SHARE * rates, (1 - rates) / 3)
    mild, moderate, severe = (share * rates for share in POSITIVE_SHARES)
    shares = np.stack([1 - rates - uncertain, uncertain, mild, moderate, severe], axis=1)
    cutoffs = ndtri(np.cumsum(shares, axis=1)[:, :-1])
    return (liability[:, :, None] > cutoffs).sum(axis=2), shares


def _read(
    rng: np.random.Generator,
    grades: Int[np.ndarray, "images findings"],
    shares: Float[np.ndarray, "findings grades"],
    difficulty: Float[np.ndarray, " images"],
    population: Population,
) -> Int[np.ndarray, "images findings"]:
    """The reader's grades: neighbouring grades confused, more often on hard images, and occasional blunders.

    The probability of reading g + 1 for g is that of reading g for g + 1 times the ratio of their shares, so
    that as many images move up as down and the label rates do not change.
    """
    # Up to one half, steps down and up exclude each other.
    down = np.minimum(population.reader_noise * (0.5 + difficulty), 0.5)[:, None]
    ratio = np.concatenate([shares[:, 1:] / shares[:, :-1], np.zeros((len(shares), 1))], axis=1)
    up = down * ratio[np.arange(len(shares)), grades]
    luck = rng.random(grades.shape)
    read = grades - ((luck < down) & (grades > 0)) + (luck > 1 - up)
    positive = shares[:, 2:].sum(axis=1)
    luck = rng.random(grades.shape)
    missed = (grades >= 2) & (luck < population.reader_blunder)
    invented = (grades < 2) & (luck < population.reader_blunder * positive / (1 - positive))
    return np.where(missed, 0, np.where(invented, 2, read))


def _name_sides(
    rng: np.random.Generator, labels: Bool[np.ndarray, "images findings"], side_unnamed: float
) -> Bool[np.ndarray, "images findings"]:
    """Labels as a report gives them: if no side is named, both are recorded."""
    named = labels.copy()
    for right in range(2, len(UKA_FINDINGS), 2):
        either = labels[:, right] | labels[:, right + 1]
        unnamed = either & (rng.random(len(labels)) < side_unnamed)
        named[:, right] |= unnamed
        named[:, right + 1] |= unnamed
    return named
