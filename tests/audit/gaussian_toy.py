"""LiRA and RMIA beside the exact optimum where it is known: `python -m tests.audit.gaussian_toy`.

A model is the mean of its training points, with Gaussian noise; points lie on a sphere. Given a point x, the model is Gaussian
with a mean that is larger by x / k if x is among the k points, so that the likelihood-ratio test is a test of a shift by
mu = |x| / (k s) standard deviations, and no attack finds more than Phi(Phi^-1(a) + mu) at false-positive rate a.
"""

import dataclasses

import numpy as np
from scipy.stats import norm

from jaxcxr.audit import membership
from jaxcxr.audit.membership import Said

RATES = (0.001, 0.01, 0.1)


@dataclasses.dataclass(frozen=True)
class Toy:
    """What models that are means say of their points, whom they were made of, and the exact shift."""

    said: Said
    inside: np.ndarray
    mu: float


def toy(seed: int, points: int = 400, dimensions: int = 600, models: int = 128, noise: float = 0.05) -> Toy:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(points, dimensions))
    x *= np.sqrt(dimensions) / np.linalg.norm(x, axis=1, keepdims=True)
    inside, k = membership.halves(models, points, rng), points // 2
    means = inside @ x / k + rng.normal(0, noise, (models, dimensions))
    agreement = means @ x.T
    # of the other points, half are drawn: variance of a mean of k of N without replacement, about each coordinate
    spread = np.sqrt((1 - k / points) / k + noise**2)
    likelihood = -0.5 * (dimensions - 2 * agreement + np.square(means).sum(axis=1, keepdims=True)) / spread**2
    said = Said(agreement[..., None].astype(np.float32), (likelihood / k).astype(np.float32))
    return Toy(said, inside, np.sqrt(dimensions) / (k * spread))


def found(scores: np.ndarray, inside: np.ndarray, rate: float) -> float:
    """Share of members at or above the threshold that a share `rate` of non-members reaches."""
    threshold = membership.threshold_at(scores[~inside], rate)
    assert threshold is not None
    return float((scores[inside] >= threshold).mean())


def agreement(made: Toy) -> dict[str, list[float]]:
    """True-positive rate at each of `RATES`: exactly optimal, and of both attacks."""
    scores = {
        "LiRA": membership.lira_among(made.said, made.inside),
        "RMIA": membership.rmia_among(made.said, made.inside),
    }
    exact = {"optimum": [float(norm.cdf(norm.ppf(rate) + made.mu)) for rate in RATES]}
    return exact | {name: [found(s, made.inside, rate) for rate in RATES] for name, s in scores.items()}


if __name__ == "__main__":
    print("share of members found at false-positive rates", *RATES, sep="\t")
    for noise in (0.02, 0.05, 0.1):
        for name, rates in agreement(toy(0, noise=noise)).items():
            print(f"noise {noise}", name, *(f"{rate:.4f}" for rate in rates), sep="\t")
