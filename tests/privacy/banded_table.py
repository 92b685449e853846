"""Noise of correlated steps relative to independent ones at equal epsilon, and what it takes.

    python -m tests.privacy.banded_table [--time]

For the paper's plan, the demo's and the study's: the noise multiplier that each number of bands asks for, the root mean
square over steps of the noise of prefix sums, over that of independent noise, and the noise of one step, over the same.
The last row of each plan is what `auto` takes. Epsilons are those of jax-privacy and dp-accounting, too. With
--time: processor seconds and memory of a step's noise for a million weights.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from dp_accounting import pld
from jax_privacy.experimental import accounting as jax_privacy_accounting
from scipy.signal import lfilter

from jaxcxr import accounting
from jaxcxr.accounting import banded
from jaxcxr.privacy.correlated import Correlation
from jaxcxr.privacy.mechanism import Mechanism

DELTA = 6e-6
PLANS = {
    "paper": (153_502, 128, 179_885),
    "demo": (32_000, 512, 45),
    "study, batch 128": (8_000, 128, 512),
    "study, batch 512": (8_000, 512, 128),
}
"""Declared N, expected batch, steps."""
BANDS = (1, 2, 4, 8, 16, 32)
WEIGHTS = 1_000_000
MOST_ROUNDS = 2_000


def theirs(rate: float, sigma: float, steps: int, bands: int) -> str:
    """Epsilon by jax-privacy's event and dp-accounting, whose rounding makes it too coarse for longer runs."""
    if banded.rounds(steps, bands) > MOST_ROUNDS:
        return "-"
    event = jax_privacy_accounting.amplified_bandmf_event(sigma, steps, num_bands=bands, sampling_prob=rate)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    return f"{accountant.compose(event).get_epsilon(DELTA):.4f}"


def step_noise(column: tuple[float, ...], steps: int) -> float:
    """Root mean square over steps of the deviation of w."""
    length = min(steps, 20_000)
    response: np.ndarray = np.asarray(lfilter([1.0], column, np.eye(1, length)[0])) * float(
        np.linalg.norm(column)
    )
    return float(np.sqrt(np.mean(np.cumsum(np.square(response)))))


def table() -> None:
    """Print a row for each plan, budget and number of bands."""
    for name, (n, batch, steps) in PLANS.items():
        for epsilon in (1.06, 4.71, 7.89):
            base: tuple[float, float] | None = None
            for bands in BANDS:
                if bands > steps or bands * batch > n:
                    continue
                rate, rounds = accounting.sample_rate_of(bands * batch, n), banded.rounds(steps, bands)
                sigma = accounting.calibrated_noise(epsilon, DELTA, rate, rounds)
                column = banded.coefficients(bands, steps)
                noise, single = (
                    float(sigma * banded.prefix_error(column, steps)),
                    float(sigma * step_noise(column, steps)),
                )
                base = base or (noise, single)
                print(
                    f"{name:17} epsilon {epsilon:<4g} bands {bands:2d} rate {rate:.5f} rounds {rounds:6d} noise multiplier "
                    f"{sigma:7.4f}  prefix sums {noise / base[0]:.3f}  single step {single / base[1]:.3f}  "
                    f"epsilon {accounting.epsilon_pld([banded.spending_of(rate, sigma, steps, bands)], DELTA):.4f}, by "
                    f"jax-privacy {theirs(rate, sigma, steps, bands)}",
                    flush=True,
                )
            print(
                f"{name:17} epsilon {epsilon:<4g} auto: {banded.chosen_bands((epsilon, DELTA), (batch, n), steps)}"
            )


def times() -> None:
    """Of the noise of a step alone, in turns; of the independent one, what `release` does with its key."""
    like = {"w": jnp.zeros(WEIGHTS)}
    functions = {}
    for bands in (1, 2, 4, 8, 16, 32):
        m = Mechanism(
            10**6, 1000, 1.0, 1.0, 1.0, 1e-8, correlation=Correlation(banded.coefficients(bands, 512))
        )
        stream, empty = m.stream(bytes(32)), m.counted(like, True)
        release = jax.jit(m.release)
        if stream is None:
            functions[bands] = lambda step, m=m, release=release, empty=empty: release(
                empty, jnp.asarray(m.noise_key(bytes(32), step))
            )
        else:
            functions[bands] = lambda step, s=stream, release=release, empty=empty: release(
                empty, s.at(step, like)
            )
    seconds: dict[int, list[float]] = {bands: [] for bands in functions}
    for step in range(12):
        for bands, function in functions.items():
            began = time.process_time()
            jax.block_until_ready(function(step))
            seconds[bands].append(time.process_time() - began)
    base = float(np.median(seconds[1][2:]))
    for bands, found in seconds.items():
        print(
            f"bands {bands:2d}: noise and release of {WEIGHTS:,} weights {np.median(found[2:]):.4f} processor s a step, "
            f"{np.median(found[2:]) / base:.2f} of independent noise; {(bands - 1) * 4 * WEIGHTS / 1e6:.0f} MB kept"
        )


if __name__ == "__main__":
    times() if "--time" in sys.argv else table()
