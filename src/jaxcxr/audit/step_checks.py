"""Check noise, clipping and sampling of every step against what the accountant assumes.

An attack only finds faults that help it. The data holder can inspect every step: the released sum less the
exact clipped sum is the noise, which must be normal with the claimed standard deviation, independent of the
sum and of the noise of every other step; and each image must be sampled at the claimed rate, independently of
other images and steps. Each check has a p-value; a correct implementation fails a check with probability
`SIGNIFICANCE`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binom, chi2, gamma, norm

SIGNIFICANCE = 1e-5
_SMALLEST = 1e-300


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of the mechanism.

    Attributes:
        name: what was checked.
        p_value: probability of a result at least as extreme if the mechanism is as claimed.
        found: the result in words.
    """

    name: str
    p_value: float
    found: str

    @property
    def failed(self) -> bool:
        """Whether the mechanism is not as claimed."""
        return self.p_value < SIGNIFICANCE


def check_mechanism(
    noise: Float[np.ndarray, "steps d"],
    sums: Float[np.ndarray, "steps d"],
    sampled: Bool[np.ndarray, "steps images"],
    sample_rate: float,
) -> tuple[Check, ...]:
    """The five checks of a run.

    Args:
        noise: released sum less the exact clipped sum, over the claimed noise deviation (noise multiplier x
            clip norm); standard normal if the mechanism is as claimed.
        sums: the exact clipped sums, in the same unit.
        sampled: mask of the images in each step's batch.
        sample_rate: claimed probability with which each image is sampled.
    """
    return (
        _scale(noise),
        _signal(noise, sums),
        _independence_of_steps(noise),
        _rates(sampled, sample_rate),
        _independence_of_images(sampled, sample_rate),
    )


def _fisher(p_values: np.ndarray) -> float:
    """One p-value from many independent ones (Fisher 1925)."""
    return float(chi2.sf(-2 * np.log(np.maximum(p_values, _SMALLEST)).sum(), 2 * len(p_values)))


def _scale(noise: np.ndarray) -> Check:
    energies = np.einsum("td,td->t", noise, noise, dtype=np.float64)
    d = noise.shape[1]
    tails = 2 * np.minimum(chi2.cdf(energies, d), chi2.sf(energies, d))
    deviations = np.sqrt(energies / d)
    found = (
        f"{deviations.mean():.3g} of the claimed deviation on average, {deviations.min():.3g} to "
        f"{deviations.max():.3g} in single steps"
    )
    return Check("noise has the claimed deviation in every step", _fisher(np.minimum(tails, 1.0)), found)


def _signal(noise: np.ndarray, sums: np.ndarray) -> Check:
    lengths = np.linalg.norm(sums, axis=1)
    present = lengths > 0
    if not present.any():
        return Check("released sum is the clipped sum", 1.0, "no batch held an image")
    along = np.einsum("td,td->t", noise[present], sums[present]) / lengths[present]
    found = (
        f"deviates along the sum by {np.abs(along).mean():.3g} noise deviations on average; 0.8 is expected"
    )
    return Check("released sum is the clipped sum", _fisher(2 * norm.sf(np.abs(along))), found)


def _independence_of_steps(noise: np.ndarray) -> Check:
    steps, d = noise.shape
    lengths = np.linalg.norm(noise, axis=1)
    if steps < 2 or (lengths == 0).any():
        return Check("noise of one step tells nothing of another's", 1.0, "no two steps with noise")
    unit = noise / lengths[:, None]
    cosines = (unit @ unit.T)[np.triu_indices(steps, 1)]
    largest = float(np.abs(cosines).max())
    p_value = min(1.0, 2 * len(cosines) * float(norm.sf(largest * np.sqrt(d))))
    return Check(
        "noise of one step tells nothing of another's",
        p_value,
        f"largest correlation of two steps {largest:.3g}",
    )


def _rates(sampled: np.ndarray, sample_rate: float) -> Check:
    steps, images = sampled.shape
    counts = sampled.sum(axis=0)
    tails = 2 * np.minimum(binom.cdf(counts, steps, sample_rate), binom.sf(counts - 1, steps, sample_rate))
    worst = int(np.argmin(tails))
    p_value = min(1.0, images * float(tails[worst]))
    total = sampled.sum()
    whole = 2 * min(
        binom.cdf(total, sampled.size, sample_rate), binom.sf(total - 1, sampled.size, sample_rate)
    )
    found = (
        f"one image was in {counts[worst]} of {steps} batches, {steps * sample_rate:.3g} expected; rate "
        f"{sampled.mean():.4g}"
    )
    return Check("every image is sampled with the claimed rate", min(p_value, 1.0, 2 * float(whole)), found)


def _independence_of_images(sampled: np.ndarray, sample_rate: float) -> Check:
    """Check of independent sampling: fixed batch sizes, or epochs with every image once, vary less."""
    steps, images = sampled.shape
    sizes, times = sampled.sum(axis=1), sampled.sum(axis=0)
    p_value = min(
        1.0, 2 * min(_dispersion(sizes, images, sample_rate), _dispersion(times, steps, sample_rate))
    )
    expected = np.sqrt(images * sample_rate * (1 - sample_rate))
    return Check(
        "images are sampled independently",
        p_value,
        f"batch sizes vary by {sizes.std():.3g}, {expected:.3g} expected",
    )


def _dispersion(counts: np.ndarray, n: int, q: float) -> float:
    """Two-sided p-value of the squared deviations of independent binomial counts.

    Their sum is approximately gamma-distributed: exactly chi-squared for normal counts, here with the
    binomial's kurtosis.
    """
    variance = n * q * (1 - q)
    total = float(np.square(counts - n * q).sum()) / variance
    spread = 2 + (1 - 6 * q * (1 - q)) / variance
    fitted = gamma(len(counts) / spread, scale=spread)
    return float(2 * min(fitted.cdf(total), fitted.sf(total)))
