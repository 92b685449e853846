"""Who the patients of the embedded cohort are, what their films show, and what a reader wrote down about
them.

The `private` domain follows the marginals of UKA-CXR (Table 1 of 'Private, fair and accurate'); the `public`
one stands for another hospital with other habits, whose labels were taken from reports. Every finding has a
liability: a standard normal variable made of age, comorbidity, the patient and the moment. Cutting it at
normal quantiles gives the five grades, so that the label rates below hold by construction; the reader's
confusions are in detailed balance with the grades and leave the rates where they are.
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
"""Probability that the private reader calls a grade one lower than drawn, on a film of middling quality."""
READER_BLUNDER = 0.04
"""Probability that a positive finding is missed altogether; as many normal films are called mild."""
PUBLIC_READER_NOISE = 0.36
"""The same as `READER_NOISE` for labels taken from reports."""
PUBLIC_READER_BLUNDER = 0.15
"""The same as `READER_BLUNDER` for labels taken from reports."""
SIDE_UNNAMED = 0.5
"""Probability that a public report names no side, so that a sided finding is recorded on both."""
POSITIVE_SHARES = (0.42, 0.36, 0.22)
"""Shares of mild, moderate and severe among the drawn positives."""
UNCERTAIN_SHARE = 0.45
"""Films drawn 'uncertain', over those drawn mild or worse; at most a third of the negatives."""
MAX_FILMS = 20
"""Most films of one patient."""

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
"""Shape of the gamma that a patient's comorbidity rate is drawn from; gives the 1.1 +- 1.3 of Figure S2."""
MAX_COMORBIDITIES = 8
"""Most comorbidities of one patient."""

AGE_EFFECT, COMORBIDITY_EFFECT, PATIENT_EFFECT = 0.15, 0.20, 0.60
"""Loadings of a finding's liability; what is left of its unit variance changes from film to film."""
PERSISTENCE = 0.6
"""Correlation between a patient's consecutive films in the part of the liability that changes."""
FINDING_CORRELATIONS: tuple[tuple[int, int, float], ...] = (
    (0, 1, 0.30), (1, 2, 0.30), (1, 3, 0.30), (0, 2, 0.12), (0, 3, 0.12),
    (2, 3, 0.40), (4, 5, 0.40), (6, 7, 0.35), (2, 6, 0.30), (3, 7, 0.30),
    (1, 4, 0.15), (1, 5, 0.15), (1, 6, 0.12), (1, 7, 0.12), (2, 4, 0.10), (3, 5, 0.10), (2, 7, 0.10), (3, 6, 0.10),
)  # fmt: skip
"""Correlations between liabilities, by position in `UKA_FINDINGS`; pairs not named are uncorrelated."""


@dataclasses.dataclass(frozen=True)
class Population:
    """What sets one hospital's patients, films and readers apart from another's."""

    code: int
    female: float
    age_shares: tuple[float, ...]
    drawn_rates: tuple[float, ...]
    ap_share: float
    films_median: float
    films_spread: float
    reader_noise: float
    reader_blunder: float
    side_unnamed: float


POPULATIONS = MappingProxyType(
    {
        "private": Population(
            code=1,
            female=0.344,
            age_shares=(0.028, 0.276, 0.240, 0.318, 0.138),
            drawn_rates=(0.467, 0.085, 0.080, 0.065, 0.115, 0.081, 0.097, 0.078),
            ap_share=0.92,
            films_median=2.3,
            films_spread=0.9,
            reader_noise=READER_NOISE,
            reader_blunder=READER_BLUNDER,
            side_unnamed=0.0,
        ),
        "public": Population(
            code=2,
            female=0.47,
            age_shares=(0.06, 0.34, 0.22, 0.22, 0.16),
            drawn_rates=(0.20, 0.13, 0.14, 0.13, 0.09, 0.08, 0.12, 0.12),
            ap_share=0.55,
            films_median=1.9,
            films_spread=0.8,
            reader_noise=PUBLIC_READER_NOISE,
            reader_blunder=PUBLIC_READER_BLUNDER,
            side_unnamed=SIDE_UNNAMED,
        ),
    }
)
"""The two hospitals; `drawn_rates` are shares of films drawn mild or worse, in the order of `UKA_FINDINGS`.
"""


def cohort(config: SyntheticConfig) -> pd.DataFrame:
    """Draw a cohort: one row a film, patients whole within a split.

    Args:
        config: domain, films a split, seed. The result depends on nothing else.

    Returns:
        The manifest's columns (`path` is empty; findings are 1.0 or 0.0 as the reader labelled them) and the
        truth behind the
        film in columns `draw_*`: each finding's grade as drawn (0 none, 1 uncertain, 2 mild, 3 moderate, 4
        severe), `draw_difficulty` (0 to 1), `draw_patient_seed` and `draw_film_seed` (from which the rest
        follows) and `draw_domain`.
    """
    population = POPULATIONS[config.domain]
    counts = {"train": config.n_train, "valid": config.n_valid, "test": config.n_test}
    parts: list[pd.DataFrame] = []
    n_patients = 0
    for index, (split, n_films) in enumerate(counts.items()):
        rng = np.random.default_rng([population.code, index, abs(config.seed), int(config.seed < 0)])
        part = _films(rng, population, n_films)
        part["patient"] += n_patients
        part["split"] = split
        n_patients += part["patient"].nunique()
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    prefix = f"{config.domain}-{config.seed}"
    frame["patient_id"] = [f"{prefix}-p{patient:06d}" for patient in frame["patient"]]
    frame["image_id"] = [
        f"{p}-f{film:02d}" for p, film in zip(frame["patient_id"], frame["film"], strict=True)
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
    drawn = [f"draw_{finding}" for finding in UKA_FINDINGS]
    return frame.loc[
        :, [*manifest, *drawn, "draw_difficulty", "draw_patient_seed", "draw_film_seed", "draw_domain"]
    ]


def _films(rng: np.random.Generator, population: Population, n_films: int) -> pd.DataFrame:
    """All films of one split; the last patient's are trimmed to the count."""
    per_patient = np.ceil(rng.lognormal(np.log(population.films_median), population.films_spread, n_films))
    per_patient = np.clip(per_patient, 1, MAX_FILMS).astype(np.int64)
    patient = np.repeat(np.arange(n_films), per_patient)[:n_films]
    n_patients = int(patient.max()) + 1 if n_films else 0
    film = np.arange(n_films) - np.searchsorted(patient, patient)
    age, comorbidities = _people(rng, population, n_patients)
    female = rng.random(n_patients) < population.female
    liability = _liabilities(rng, age, comorbidities)[patient, film]
    is_ap = rng.random(n_films) < population.ap_share
    difficulty = _difficulty(
        rng, age[patient], comorbidities[patient], is_ap, rng.standard_normal(n_patients)[patient]
    )
    drawn, shares = _grades(liability, np.asarray(population.drawn_rates))
    read = _read(rng, drawn, shares, difficulty, population)
    labels = _name_sides(rng, read >= 2, population.side_unnamed).astype(np.float64)
    columns: dict[str, np.ndarray] = {
        "patient": patient,
        "film": film,
        "age": age[patient],
        "sex": np.where(female, "F", "M")[patient],
        "view": np.where(is_ap, "AP", "PA"),
        "comorbidities": comorbidities[patient],
        "draw_difficulty": difficulty,
        "draw_patient_seed": rng.integers(2**62, size=n_patients)[patient],
        "draw_film_seed": rng.integers(2**62, size=n_films),
    }
    columns |= {finding: labels[:, i] for i, finding in enumerate(UKA_FINDINGS)}
    columns |= {f"draw_{finding}": drawn[:, i] for i, finding in enumerate(UKA_FINDINGS)}
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
    # Rounding down keeps everybody inside the group that was drawn.
    return np.floor(age * 10) / 10, np.minimum(rng.poisson(rate), MAX_COMORBIDITIES)


def _liabilities(
    rng: np.random.Generator, age: Float[np.ndarray, " patients"], comorbidities: Int[np.ndarray, " patients"]
) -> Float[np.ndarray, "patients films findings"]:
    """Standard normal liabilities of `MAX_FILMS` consecutive films a patient."""
    n, k = len(age), len(UKA_FINDINGS)
    correlation = np.eye(k)
    for i, j, value in FINDING_CORRELATIONS:
        correlation[i, j] = correlation[j, i] = value
    mix = np.linalg.cholesky(correlation).T
    patient = PATIENT_EFFECT * rng.standard_normal((n, k)) @ mix
    patient += (AGE_EFFECT * (age - 65.4) / 15.3 + COMORBIDITY_EFFECT * (comorbidities - 1.06) / 1.27)[
        :, None
    ]
    innovations = rng.standard_normal((n, MAX_FILMS, k)) @ mix
    moment = np.empty_like(innovations)
    for film in range(MAX_FILMS):
        if film == 0:
            moment[:, film] = innovations[:, film]
        else:
            moment[:, film] = (
                PERSISTENCE * moment[:, film - 1] + np.sqrt(1 - PERSISTENCE**2) * innovations[:, film]
            )
    rest = 1 - AGE_EFFECT**2 - COMORBIDITY_EFFECT**2 - PATIENT_EFFECT**2
    return patient[:, None, :] + np.sqrt(rest) * moment


def _difficulty(
    rng: np.random.Generator,
    age: Float[np.ndarray, " films"],
    comorbidities: Int[np.ndarray, " films"],
    is_ap: Bool[np.ndarray, " films"],
    patient: Float[np.ndarray, " films"],
) -> Float[np.ndarray, " films"]:
    """How hard each film is to take and to read, 0 to 1: it grows with age, comorbidities and the bedside
    (AP) view.
    """
    score = 0.7 * (age - 66) / 15 + 0.35 * (comorbidities - 1.1) + 0.5 * is_ap - 0.5
    return expit(score + 0.5 * patient + 0.8 * rng.standard_normal(len(age)))


def _grades(
    liability: Float[np.ndarray, "films findings"], rates: Float[np.ndarray, " findings"]
) -> tuple[Int[np.ndarray, "films findings"], Float[np.ndarray, "findings grades"]]:
    """Grades 0 to 4, and the share of each grade that the cut-offs stand for."""
    uncertain = np.minimum(UNCERTAIN_SHARE * rates, (1 - rates) / 3)
    mild, moderate, severe = (share * rates for share in POSITIVE_SHARES)
    shares = np.stack([1 - rates - uncertain, uncertain, mild, moderate, severe], axis=1)
    cutoffs = ndtri(np.cumsum(shares, axis=1)[:, :-1])
    return (liability[:, :, None] > cutoffs).sum(axis=2), shares


def _read(
    rng: np.random.Generator,
    drawn: Int[np.ndarray, "films findings"],
    shares: Float[np.ndarray, "findings grades"],
    difficulty: Float[np.ndarray, " films"],
    population: Population,
) -> Int[np.ndarray, "films findings"]:
    """The reader's grades: neighbours confused, more often on hard films, and now and then a blunder.

    A step up from grade g is taken with the probability of a step down from g + 1 times their shares' ratio,
    so that as many films go up as come down and the label rates stay what they are.
    """
    # Up to a half, a step down and a step up exclude one another.
    down = np.minimum(population.reader_noise * (0.5 + difficulty), 0.5)[:, None]
    ratio = np.concatenate([shares[:, 1:] / shares[:, :-1], np.zeros((len(shares), 1))], axis=1)
    up = down * ratio[np.arange(len(shares)), drawn]
    luck = rng.random(drawn.shape)
    read = drawn - ((luck < down) & (drawn > 0)) + (luck > 1 - up)
    positive = shares[:, 2:].sum(axis=1)
    luck = rng.random(drawn.shape)
    missed = (drawn >= 2) & (luck < population.reader_blunder)
    invented = (drawn < 2) & (luck < population.reader_blunder * positive / (1 - positive))
    return np.where(missed, 0, np.where(invented, 2, read))


def _name_sides(
    rng: np.random.Generator, labels: Bool[np.ndarray, "films findings"], side_unnamed: float
) -> Bool[np.ndarray, "films findings"]:
    """Labels as a report gives them: where no side is named, both are recorded."""
    named = labels.copy()
    for right in range(2, len(UKA_FINDINGS), 2):
        either = labels[:, right] | labels[:, right + 1]
        unnamed = either & (rng.random(len(labels)) < side_unnamed)
        named[:, right] |= unnamed
        named[:, right + 1] |= unnamed
    return named
